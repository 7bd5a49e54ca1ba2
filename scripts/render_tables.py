"""Renders what is made from hub/checkpoints.toml and benchmarks/cpu.json.

From the first the table of networks in README.md and the cards in hub/cards, from the second the table of speed in
README.md and all that was measured in benchmarks/cpu.md.

python scripts/render_tables.py            write them
python scripts/render_tables.py --check    fail if any is not up to date
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import timm
from benchmark import markdown, ratios

from nfnet_timm.hub.card import render_card
from nfnet_timm.hub.known_model import KnownModel
from nfnet_timm.hub.published import load_published
from nfnet_timm.models.multiply_adds import multiply_adds
from nfnet_timm.models.variants import VARIANTS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- {}: rendered by scripts/render_tables.py -->\n", "<!-- end of {} -->\n"
# The order in the table of speed, and what a row is called there.
BENCHMARKS = {"inference": "inference", "train": "training step", "agc": "clipping", "coldstart": "cold start"}


def networks_table() -> str:
    """Return the table of all networks, in Markdown."""
    lines = [
        "| name | parameters | multiply-adds | train px | test px | top-1 published | top-1 by timm | weights |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    checkpoints = {name.split(".")[0]: checkpoint for name, checkpoint in load_published()["checkpoints"].items()}
    for name, variant in VARIANTS.items():
        checkpoint = checkpoints.get(name)
        parameters = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
        columns = [
            f"`{name}`",
            f"{parameters / 1e6:.1f} M",
            f"{multiply_adds(name):.2f} B",
            str(variant.train_size),
            str(variant.test_size),
            f"{checkpoint['top1']:.1f}{' (SAM)' if checkpoint['sam'] else ''}" if checkpoint else "",
            f"{checkpoint['timm_top1']:.2f}" if checkpoint else "",
            f"[{checkpoint['hub']}](https://huggingface.co/{checkpoint['hub']})" if checkpoint else "none published",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def speed_table(records: list[dict[str, Any]]) -> str:
    """Return what was measured in float32, contiguous and eager, in Markdown: ours beside timm's and the floor."""
    lines = [
        "| | this package, ms | timm, ms | floor, ms | timm's time over ours | memory, MiB | timm's memory, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    others = ("bfloat16", "channels-last", "compiled")
    chosen = [r for r in records if not any(word in r["settings"] for word in others)]
    for record in sorted(chosen, key=lambda r: list(BENCHMARKS).index(r["benchmark"])):
        size = record["settings"][:2].upper()
        for row in record["rows"]:
            if row["network"] in ("timm", "floor"):
                continue
            peers = {peer["network"]: peer for peer in record["rows"] if peer["case"] == row["case"]}
            variant = row["network"].removeprefix("nfnet_timm").removeprefix(", ")
            name = ", ".join(filter(None, [f"{size}, {BENCHMARKS[record['benchmark']]}", row["case"], variant]))
            times = [
                f"{statistics.median(peer['milliseconds']):.0f}" if peer else ""
                for peer in (row, peers["timm"], peers.get("floor"))
            ]
            ratio = f"{statistics.median(ratios(peers['timm'], row)):.2f}"
            memory = [f"{peer.get('kept_mib', peer['peak_mib']):.0f}" for peer in (row, peers["timm"])]
            lines.append(f"| {' | '.join([name, *times, ratio, *memory])} |")
    return "\n".join(lines) + "\n"


def insert(text: str, name: str, table: str) -> str:
    """Return ``text`` with ``table`` between the comments called ``name``."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md: expected one {begin.strip()} and one {end.strip()}")
    head, rest = text.split(begin)
    return head + begin + table + end + rest.split(end)[1]


def render() -> dict[Path, str]:
    """Return the text of every file that is rendered."""
    readme = ROOT / "README.md"
    records = json.loads((ROOT / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
    text = insert(readme.read_text(encoding="utf-8"), "networks", networks_table())
    files = {readme: insert(text, "speed", speed_table(records))}
    tables = "\n\n".join(map(markdown, records))
    files[ROOT / "benchmarks" / "cpu.md"] = f"# Measured by scripts/benchmark_all.sh\n\n{tables}\n"
    published = load_published()
    for checkpoint in published["checkpoints"]:
        model = timm.create_model(checkpoint.split(".")[0], device="meta").eval()
        known = KnownModel(model, {}, {}, checkpoint, proven=True)
        files[ROOT / "hub" / "cards" / f"{checkpoint}.md"] = render_card(
            known, f"{published['organization']}/{checkpoint}"
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
