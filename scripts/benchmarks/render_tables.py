"""Renders the tables in README.md and docs, and the example card hub/cards/nfnet_f0.dm_in1k.md.

    python scripts/benchmarks/render_tables.py            write them
    python scripts/benchmarks/render_tables.py --check    fail if any is not up to date

The sources are hub/checkpoints.toml, the networks themselves, and benchmarks/results/.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import timm
from compile import compile_table
from deployment import deployment_table
from launches import launches_table
from results import RESULTS, ROOT, table
from speed import ratios, spread

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.card import multiply_adds, render_card
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.sources import Source

BEGIN, END = "<!-- {}: rendered by scripts/benchmarks/render_tables.py -->\n", "<!-- end of {} -->\n"
# The order in the table of speed, and what a row is called there.
BENCHMARKS = {"inference": "inference", "train": "training step", "agc": "clipping", "coldstart": "cold start"}


def networks_table(published: bool) -> str:
    """Return the table of all networks, or of those with published weights."""
    checkpoints = {name.split(".")[0]: checkpoint for name, checkpoint in load_published()["checkpoints"].items()}
    columns = ["name", "parameters:", "multiply-adds:", "train px:", "test px:"]
    columns += ["top-1 published:", "top-1 by timm:", "weights"]
    rows = []
    for name, variant in VARIANTS.items():
        weights = ["", "", "none published"]
        if checkpoint := checkpoints.get(name):
            top1 = f"{checkpoint['top1']:.1f}{' (SAM)' if checkpoint['sam'] else ''}"
            link = f"[{checkpoint['hub']}](https://huggingface.co/{checkpoint['hub']})"
            weights = [top1, f"{checkpoint['timm_top1']:.2f}", link]
        elif published:
            continue
        rows.append([f"`{name}`", *cost(name), str(variant.train_size), str(variant.test_size), *weights])
    return table(columns, rows)


@functools.cache  # two tables have the same networks
def cost(name: str) -> list[str]:
    """Return the number of parameters and of multiply-adds."""
    parameters = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
    return [f"{parameters / 1e6:.1f} M", f"{multiply_adds(name):.2f} B"]


def parity_table(errors: dict[str, float]) -> str:
    """Return the table of what parity.py measured."""
    rows = []
    for reference, error in errors.items():
        if reference.startswith("timm"):  # the docs cite it in a sentence
            continue
        network, size = reference.rsplit("_", 1)
        rows.append([f"`{network}`", size.replace("x", " x "), f"{error:.1e}".replace("e-0", "e-")])
    return table(["network of the authors", "image", "relative error:"], rows)


def speed_table(records: list[dict[str, Any]], on_gpu: bool, with_memory: bool = True) -> str:
    """Return the table of times: ours beside timm's and the floor; of a GPU with the dtype and the range of ratios."""
    rows = []
    for record in records:
        title = [BENCHMARKS[record["benchmark"]]]
        title = title if on_gpu else [record["settings"][:2].upper(), *title]
        ways = [way for way in ("float32", "compiled") if on_gpu and way in record["settings"]]
        for row in record["rows"]:
            if row["network"] in ("timm", "floor"):
                continue
            peers = {peer["network"]: peer for peer in record["rows"] if peer["case"] == row["case"]}
            variant = row["network"].removeprefix("nfnet_timm").removeprefix(", ")  # such as "reparameterized"
            name = ", ".join(filter(None, [*title, row["case"], *ways, variant]))
            times = [
                f"{statistics.median(peer['milliseconds']):{'.3f' if on_gpu else '.0f'}}" if peer else ""
                for peer in (row, peers["timm"], peers.get("floor"))
            ]
            each = ratios(peers["timm"], row)
            ratio = spread(each, ".2f") if on_gpu else f"{statistics.median(each):.2f}"
            # What a training step keeps, else the peak.
            memory = [f"{peer.get('kept_mib', peer['peak_mib']):.0f}" for peer in (row, peers["timm"])]
            rows.append([name, *times, ratio, *(memory if with_memory else [])])
    columns = ["", "this package, ms:", "timm, ms:", "floor, ms:", "timm's time over ours:"]
    return table([*columns, *(["memory, MiB:", "timm's memory, MiB:"] if with_memory else [])], rows)


def insert(text: str, name: str, content: str) -> str:
    """Return ``text`` with ``content`` between the comments called ``name``."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin.strip()} and one {end.strip()}")
    head, rest = text.split(begin)
    return head + begin + content + end + rest.split(end)[1]


def batches_table(footprints: dict[str, dict[str, float]]) -> str:
    """Return the table of the largest batches, from what memory.py predicted: as it is / with recompute_acts."""
    rows = []
    for network in dict.fromkeys(name.split(", ")[0] for name in footprints):
        row = [f"`{network}`", str(VARIANTS[network].train_size)]
        for gib, processes in ((24, 1), (40, 1), (80, 1), (80, 8)):  # FSDP2 spreads the state over the processes
            ways = (footprints[f"{network}, {way}"] for way in ("as it is", "recompute_acts"))
            free = ((gib * 2**30 + way["state"] * (1 - 1 / processes) - way["fixed"], way["each"]) for way in ways)
            row.append(" / ".join(str(int(size // each)) for size, each in free))
        rows.append(row)
    return table(["", "train px:", "24 GB:", "40 GB:", "80 GB:", "80 GB, each of 8 with FSDP2:"], rows)


def compat_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of what tests/compat showed of other libraries."""
    cells = [[row["library"], row["version"], "<br>".join(" ".join(c.split()) for c in row["shown"])] for row in rows]
    return table(["library", "version", "shown"], cells)


def privacy_table(records: list[dict[str, Any]]) -> str:
    """Return the table of what privacy.py measured."""
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
    others = ("bfloat16", "channels-last", "compiled")
    cpu = [record for record in recorded("cpu") if not any(word in record["settings"] for word in others)]
    cpu.sort(key=lambda record: list(BENCHMARKS).index(record["benchmark"]))
    gpu = recorded("cuda")
    tables = {
        "README.md": {"weights": networks_table(published=True)},
        "docs/networks.md": {"networks": networks_table(published=False)},
        "docs/privacy.md": {"privacy": privacy_table(recorded("privacy"))},
        "docs/compat.md": {"compat": compat_table(recorded("compat"))},
        "docs/speed.md": {
            "speed": speed_table(cpu, on_gpu=False),
            "deployment": deployment_table(recorded("deployment")["rows"]),
            "gpu": speed_table([r for r in gpu if "CUDA graph" not in r["settings"]], on_gpu=True),
            "gpu alone": speed_table([r for r in gpu if "CUDA graph" in r["settings"]], on_gpu=True, with_memory=False),
            "compile": compile_table(recorded("compile")),
            "launches": launches_table(recorded("launches")),
            "batches": batches_table(recorded("memory")),
        },
        "docs/fidelity.md": {"parity": parity_table(recorded("parity"))},
    }
    files: dict[Path, str] = {}
    for page, named in tables.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, content in named.items():
            text = insert(text, name, content)
        files[ROOT / page] = text
    # The example card. scripts/publish_all.py --cards prints all of them.
    model = timm.create_model("nfnet_f0", device="meta").eval()
    source = Source(model, {}, {}, checkpoint="nfnet_f0.dm_in1k", identified_by="MD5")
    card = render_card(source, f"{load_published()['organization']}/nfnet_f0.dm_in1k")
    files[ROOT / "hub" / "cards" / "nfnet_f0.dm_in1k.md"] = card
    return files


def recorded(name: str) -> Any:
    """Return the content of a file in benchmarks/results/."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> int:
    """Render, or check, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if any is not up to date")
    args = parser.parse_args()
    files = render()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if args.check:
            print(f"{path.name} is not up to date: run python scripts/benchmarks/render_tables.py", file=sys.stderr)
        else:
            path.write_text(files[path], encoding="utf-8")
    return bool(stale and args.check)


if __name__ == "__main__":
    sys.exit(main())
