"""The files in benchmarks/results/, the options that name them, and tables in Markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "ROOT", "add_record", "new_file", "positive", "records_file", "run", "table", "write_json"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def run(main: Callable[[], Any]) -> None:
    """Call ``main``, and end with its exit status, or with one line after Ctrl-C."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: no results were written")


def positive(text: str) -> int:
    """Return the number that ``text`` is, of at least 1; the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def new_file(text: str) -> Path:
    """Return the path of a new file, or of one with earlier results, in a folder that exists; the type of an option."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: expected a file in a folder that exists")
    try:
        _earlier(path)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}; expected earlier results or a new file") from None
    return path


def records_file(text: str) -> Path:
    """Return the path of a file for ``add_record``; the type of an option."""
    path = new_file(text)
    if not isinstance(_earlier(path), list):
        raise argparse.ArgumentTypeError(f"{path}: no list of results; expected earlier results or a new file")
    return path


def _earlier(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_json(path: Path, results: Any) -> None:
    """Write ``results`` to ``path``, completely or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def add_record(path: Path, record: dict[str, Any], is_replaced: Callable[[dict[str, Any]], bool]) -> None:
    """Add ``record`` to the results in ``path`` and remove those for which ``is_replaced`` is true."""
    write_json(path, [*(each for each in _earlier(path) if not is_replaced(each)), record])


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; columns whose title ends in a colon are aligned to the right."""
    titles = [column.rstrip(":") for column in columns]
    aligned = "|".join("---:" if column.endswith(":") else "---" for column in columns)
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in [titles, *rows])
    return "".join([first, f"|{aligned}|\n", *rest])
