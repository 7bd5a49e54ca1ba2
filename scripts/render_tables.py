"""Renders what is made from hub/checkpoints.toml: the table of networks in README.md, and the cards in hub/cards.

python scripts/render_tables.py            write them
python scripts/render_tables.py --check    fail if any is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm

from nfnet_timm.card import render_card
from nfnet_timm.facts import load_facts
from nfnet_timm.sources import Source

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- networks: rendered by scripts/render_tables.py -->\n", "<!-- end of networks -->\n"


def networks_table() -> str:
    """Return the table of all networks, in Markdown."""
    facts = load_facts()
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


def render() -> dict[Path, str]:
    """Return the text of every file that is rendered."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md: expected one {BEGIN.strip()} and one {END.strip()}")
    head, rest = text.split(BEGIN)
    files = {readme: head + BEGIN + networks_table() + END + rest.split(END)[1]}
    facts = load_facts()
    for checkpoint in facts["checkpoints"]:
        model = timm.create_model(checkpoint.split(".")[0], device="meta").eval()
        source = Source(model, {}, {}, checkpoint)
        files[ROOT / "hub" / "cards" / f"{checkpoint}.md"] = render_card(
            source, f"{facts['organization']}/{checkpoint}"
        )
    return files


def main() -> int:
    """Render, or check, and return the exit status."""
    files = render()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.name} is not up to date: run python scripts/render_tables.py", file=sys.stderr)
        else:
            path.write_text(files[path], encoding="utf-8")
    return bool(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
