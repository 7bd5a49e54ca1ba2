"""The one writer of Markdown tables."""

from __future__ import annotations

__all__ = ["table"]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; columns whose title ends in a colon are aligned to the right."""
    titles = [column.rstrip(":") for column in columns]
    aligned = "|".join("---:" if column.endswith(":") else "---" for column in columns)
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in [titles, *rows])
    return "".join([first, f"|{aligned}|\n", *rest])


if __name__ == "__main__":
    raise SystemExit("tables.py is not a program: run speed.py or another benchmark of this folder")
