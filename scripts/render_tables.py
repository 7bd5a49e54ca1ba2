"""Renders what is made from hub/checkpoints.toml, the networks themselves and what was measured in benchmarks/.

The tables between comments in README.md and docs, and the cards in hub/cards.

    python scripts/render_tables.py            write them
    python scripts/render_tables.py --check    fail if any is not up to date
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import benchmark_launches
import timm
from benchmark import ratios
from benchmark_memory import largest_batch
from common import write_text

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.card import multiply_adds, render_card
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.sources import Source

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- {}: rendered by scripts/render_tables.py -->\n", "<!-- end of {} -->\n"
# The order in the table of speed, and what a row is called there.
BENCHMARKS = {"inference": "inference", "train": "training step", "agc": "clipping", "coldstart": "cold start"}


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; columns whose title ends in a colon are aligned to the right."""
    titles = [column.rstrip(":") for column in columns]
    aligned = "|".join("---:" if column.endswith(":") else "---" for column in columns)
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in [titles, *rows])
    return "".join([first, f"|{aligned}|\n", *rest])


def networks_table() -> str:
    """Return the table of all networks."""
    checkpoints = {name.split(".")[0]: checkpoint for name, checkpoint in load_published()["checkpoints"].items()}
    rows = []
    for name, variant in VARIANTS.items():
        checkpoint = checkpoints.get(name)
        parameters = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
        cost = [f"{parameters / 1e6:.1f} M", f"{multiply_adds(name):.2f} B"]
        sizes = [str(variant.train_size), str(variant.test_size)]
        rows.append([f"`{name}`", *cost, *sizes, *(_weights(checkpoint) if checkpoint else ["", "", "none published"])])
    sizes_of = ["parameters:", "multiply-adds:", "train px:", "test px:"]
    return table(["name", *sizes_of, "top-1 published:", "top-1 by timm:", "weights"], rows)


def weights_table() -> str:
    """Return the table of the networks that have weights."""
    rows = []
    for name, checkpoint in load_published()["checkpoints"].items():
        variant = VARIANTS[name.split(".")[0]]
        cost = [f"{checkpoint['parameters']:.1f} M", f"{checkpoint['multiply_adds']:.2f} B", str(variant.test_size)]
        rows.append([f"`{name.split('.')[0]}`", *cost, *_weights(checkpoint)])
    columns = ["name", "parameters:", "multiply-adds:", "test px:", "top-1 published:", "top-1 by timm:", "weights"]
    return table(columns, rows)


def _weights(checkpoint: dict[str, Any]) -> list[str]:
    published = f"{checkpoint['top1']:.1f}{' (SAM)' if checkpoint['sam'] else ''}"
    link = f"[{checkpoint['hub']}](https://huggingface.co/{checkpoint['hub']})"
    return [published, f"{checkpoint['timm_top1']:.2f}", link]


def parity_table(errors: dict[str, float]) -> str:
    """Return the table of what scripts/measure_parity.py measured."""
    rows = []
    for reference, error in errors.items():
        network, size = reference.rsplit("_", 1)
        rows.append([f"`{network}`", size.replace("x", " x "), f"{error:.1e}".replace("e-0", "e-")])
    return table(["network of the authors", "image", "relative error:"], rows)


def speed_table(records: list[dict[str, Any]]) -> str:
    """Return what was measured in float32, contiguous and eager: ours beside timm's and the floor."""
    rows = []
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
            rows.append([name, *times, ratio, *memory])
    times_of = ["this package, ms:", "timm, ms:", "floor, ms:", "timm's time over ours:"]
    return table(["", *times_of, "memory, MiB:", "timm's memory, MiB:"], rows)


def insert(text: str, name: str, table: str) -> str:
    """Return ``text`` with ``table`` between the comments called ``name``."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin.strip()} and one {end.strip()}")
    head, rest = text.split(begin)
    return head + begin + table + end + rest.split(end)[1]


def batches_table(footprints: dict[str, dict[str, float]]) -> str:
    """Return the table of the largest batches, from what scripts/benchmark_memory.py predicted."""
    rows = []
    for name, bytes_of in footprints.items():
        network, way = name.split(", ")
        size = VARIANTS[network].train_size
        fits = [str(largest_batch(bytes_of, gib)) for gib in (24, 40, 80)]
        rows.append([f"`{network}`, {way}", str(size), *fits, str(largest_batch(bytes_of, 80, shards=8))])
    return table(["", "train px:", "24 GB:", "40 GB:", "80 GB:", "80 GB, each of 8 with FSDP2:"], rows)


def compat_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of what tests/compat showed of other libraries."""
    cells = [[row["library"], row["version"], "<br>".join(" ".join(c.split()) for c in row["shown"])] for row in rows]
    return table(["library", "version", "shown"], cells)


def privacy_table(records: list[dict[str, Any]]) -> str:
    """Return the table of what scripts/benchmark_privacy.py measured."""
    rows = []
    for record in records:
        what = record["what"]
        for label, mib in record["growth"].items():
            median, low, high = record["ratios"][label]
            network = f"`{what['name']}`, batch {what['batch']}, {what['pixels']} px"
            rows.append([network, label, f"{median:.2f} ({low:.2f} to {high:.2f})", f"{mib:.1f}"])
    return table(["", "", "time, plain with Opacus is 1:", "MiB for each image more:"], rows)


def render() -> dict[Path, str]:
    """Return the text of every file that is rendered."""
    records = json.loads((ROOT / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
    errors = json.loads((ROOT / "benchmarks" / "parity.json").read_text(encoding="utf-8"))
    footprints = json.loads((ROOT / "benchmarks" / "memory.json").read_text(encoding="utf-8"))
    compat = json.loads((ROOT / "benchmarks" / "compat.json").read_text(encoding="utf-8"))
    privacy = json.loads((ROOT / "benchmarks" / "privacy.json").read_text(encoding="utf-8"))
    launches = benchmark_launches.table(argparse.Namespace(size="f0", batch=8, pixels=None, dtype="float32"))
    tables = {
        "README.md": {"weights": weights_table()},
        "docs/networks.md": {"networks": networks_table()},
        "docs/privacy.md": {"privacy": privacy_table(privacy)},
        "docs/compat.md": {"compat": compat_table(compat)},
        "docs/speed.md": {
            "speed": speed_table(records),
            "launches": launches[launches.index("| |") : launches.index("\nOf this")].rstrip() + "\n",
            "batches": batches_table(footprints),
        },
        "docs/fidelity.md": {"parity": parity_table({k: v for k, v in errors.items() if not k.startswith("timm")})},
    }
    files: dict[Path, str] = {}
    for page, named in tables.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, content in named.items():
            text = insert(text, name, content)
        files[ROOT / page] = text
    published = load_published()
    for checkpoint in published["checkpoints"]:
        model = timm.create_model(checkpoint.split(".")[0], device="meta").eval()
        source = Source(model, {}, {}, checkpoint=checkpoint, identified_by="MD5")
        files[ROOT / "hub" / "cards" / f"{checkpoint}.md"] = render_card(
            source, f"{published['organization']}/{checkpoint}"
        )
    return files


def main() -> int:
    """Render, or check, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if any is not up to date")
    args = parser.parse_args()
    files = render()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if args.check:
            print(f"{path.name} is not up to date: run python scripts/render_tables.py", file=sys.stderr)
        else:
            write_text(path, files[path])
    return bool(stale and args.check)


if __name__ == "__main__":
    sys.exit(main())
