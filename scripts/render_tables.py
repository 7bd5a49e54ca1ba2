"""Renders the table of networks in README.md from hub/checkpoints.toml.

python scripts/render_tables.py            rewrite README.md
python scripts/render_tables.py --check    fail if README.md is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- networks: rendered by scripts/render_tables.py -->\n", "<!-- end of networks -->\n"


def networks_table(facts: dict[str, Any]) -> str:
    """Return the table of all networks, in Markdown."""
    lines = [
        "| name | parameters | multiply-adds | train px | test px | top-1 published | top-1 by timm | weights |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    checkpoints = {name.split(".")[0]: checkpoint for name, checkpoint in facts["checkpoints"].items()}
    for name, network in facts["networks"].items():
        checkpoint = checkpoints.get(name)
        columns = [
            f"`{name}`",
            f"{network['parameters'] / 1e6:.1f} M",
            f"{network['multiply_adds']:.2f} B",
            str(network["train_size"]),
            str(network["test_size"]),
            f"{checkpoint['top1']:.1f}{' (SAM)' if checkpoint['sam'] else ''}" if checkpoint else "",
            f"{checkpoint['timm_top1']:.2f}" if checkpoint else "",
            f"[{checkpoint['hub']}](https://huggingface.co/{checkpoint['hub']})" if checkpoint else "none published",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Render, or check, and return the exit status."""
    facts = tomllib.loads((ROOT / "hub" / "checkpoints.toml").read_text())
    readme = ROOT / "README.md"
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"README.md: expected one {BEGIN.strip()} and one {END.strip()}", file=sys.stderr)
        return 1
    head, rest = text.split(BEGIN)
    rendered = head + BEGIN + networks_table(facts) + END + rest.split(END)[1]
    if rendered == text:
        return 0
    if "--check" in sys.argv:
        print("README.md is not up to date: run python scripts/render_tables.py", file=sys.stderr)
        return 1
    readme.write_text(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
