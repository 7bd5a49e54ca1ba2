"""Accuracy against the time of a training step, the figure of arXiv 2102.06171, measured on this machine.

    python scripts/accuracy_latency.py                 less than ten minutes on two cores: F0, F1, B3, B5, B7, ResNet-50
    python scripts/accuracy_latency.py --all           NFNet-F0 to F6, EfficientNet-B0 to B7 and others: an hour there
    python scripts/accuracy_latency.py --all --device cuda --dtype bfloat16 --batch 32

Each network trains at its own image size, by SGD; NFNets with adaptive clipping. Accuracies are published ones, or
those that timm measured (hub/checkpoints.toml and hub/peers.toml), never measured here. Prints how many times as long
as NFNet-F1 EfficientNet-B7 takes, which has the same published top-1: 8.7 on TPUv3 in the paper.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import figures
import timm
import torch
import torch.nn.functional as F
from benchmark import has_cuda
from benchmark_networks import autocast, now
from common import positive
from matplotlib.figure import Figure
from timm.optim import create_optimizer_v2
from tqdm import tqdm

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.checkpoints import load_published

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK = ("nfnet_f0", "nfnet_f1", "tf_efficientnet_b3", "tf_efficientnet_b5", "tf_efficientnet_b7", "resnet50")
COLORS = {"NFNet": "tab:blue", "EfficientNet": "tab:orange"}


def main() -> None:
    """Measure, draw, and print the paper's ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="all networks, not six of them")
    parser.add_argument("--batch", type=positive, default=4, help="images in a step (%(default)s)")
    parser.add_argument("--repeat", type=positive, default=5, help="steps of each, in turns (%(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    record = figures.run(parser, "accuracy_latency", measure, draw)
    rows = {row["name"]: row for row in record["rows"]}
    for row in record["rows"]:
        times = row["milliseconds"]
        spread = f"({min(times):.0f} to {max(times):.0f})"
        print(f"{row['name']:20} {row['pixels']:4} px {median(times):8.0f} ms an image {spread}")
    pairs = zip(rows["tf_efficientnet_b7"]["milliseconds"], rows["nfnet_f1"]["milliseconds"], strict=True)
    ratios = sorted(b7 / f1 for b7, f1 in pairs)
    print(
        f"EfficientNet-B7 takes {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) times as long as NFNet-F1, "
        "of the same published top-1 of 84.7; the paper: 8.7 on TPUv3"
    )


def contenders() -> list[dict[str, Any]]:
    """Return what is known of each network: its family, image size, and top-1 with whoever says so."""
    nfnets: list[dict[str, Any]] = [
        {
            "name": name.split(".")[0],
            "family": "NFNet",
            "pixels": VARIANTS[name.split(".")[0]].train_size,
            "top1": released["top1"],
            "by": "published",
        }
        for name, released in load_published()["checkpoints"].items()
    ]
    text = (Path(__file__).parent.parent / "hub" / "peers.toml").read_text(encoding="utf-8")
    peers = [
        {
            "name": peer["name"],
            "family": peer["family"],
            "pixels": peer["train_size"],
            "top1": peer.get("top1", peer["timm_top1"]),
            "by": "published" if "top1" in peer else "measured by timm",
        }
        for peer in tomllib.loads(text)["peers"]
    ]
    return nfnets + peers


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return each network with the milliseconds per image of its steps."""
    if args.device == "cuda" and not has_cuda():
        raise SystemExit("accuracy_latency.py: error: --device cuda: torch finds no GPU here; leave it out")
    rows = [row for row in contenders() if args.all or row["name"] in QUICK]
    for row in rows:
        row["milliseconds"] = []
    with tqdm(total=len(rows) * (args.repeat + 1), unit="step") as progress:
        # Few at a time, as all of them would not fit into memory; those that are compared with each other together.
        for some in (rows[i : i + 8] for i in range(0, len(rows), 8)):
            steps = [step_of(row["name"], row["pixels"], args) for row in some]
            for turn in range(args.repeat + 1):
                for row, step in zip(some, steps, strict=True):
                    progress.set_description(row["name"])
                    milliseconds = step()
                    if turn:  # the first is the warm-up
                        row["milliseconds"].append(milliseconds)
                    progress.update()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"machine": machine, "dtype": args.dtype, "batch": args.batch, "torch": torch.__version__, "rows": rows}


def step_of(name: str, pixels: int, args: argparse.Namespace) -> Callable[[], float]:
    """Return a function that takes a training step and returns its milliseconds per image."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name).to(args.device).train()
    opt = "agc-sgd" if name.startswith("nfnet_") else "sgd"
    optimizer = create_optimizer_v2(model, opt, lr=1e-4, momentum=0.9, weight_decay=2e-5)
    x = torch.randn(args.batch, 3, pixels, pixels, device=args.device)
    y = torch.randint(0, 1000, (args.batch,), device=args.device)

    def step() -> float:
        start = now(args.device)
        with autocast(args):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return (now(args.device) - start) * 1000 / args.batch

    return step


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw top-1 over milliseconds per image, a line for each family."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for family in dict.fromkeys(row["family"] for row in record["rows"]):
        rows = sorted((row for row in record["rows"] if row["family"] == family), key=lambda row: row["top1"])
        color = COLORS.get(family, "tab:green" if "NFNet" in family else "tab:grey")
        xs, ys = [median(row["milliseconds"]) for row in rows], [row["top1"] for row in rows]
        low = [x - min(row["milliseconds"]) for x, row in zip(xs, rows, strict=True)]
        high = [max(row["milliseconds"]) - x for x, row in zip(xs, rows, strict=True)]
        axes.errorbar(xs, ys, xerr=[low, high], color=color, linewidth=1.5 if len(rows) > 1 else 0, elinewidth=1)
        for x, row in zip(xs, rows, strict=True):
            published = row["by"] == "published"
            axes.plot(x, row["top1"], "o", color=color, markerfacecolor=color if published else "white", markersize=7)
            label = row["name"].removeprefix("nfnet_").removeprefix("tf_efficientnet_").replace("_", " ")
            axes.annotate(label, (x, row["top1"]), (6, -11), textcoords="offset points", fontsize=9, color=color)
    axes.plot([], [], "o", color="black", label="top-1 published")
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="top-1 measured by timm")
    axes.set(
        xscale="log",
        xlabel=f"milliseconds for each image of a training step, batch {record['batch']} (median, range)",
        ylabel="ImageNet top-1 (%)",
    )
    axes.set_title(
        f"Further left is faster to train for its accuracy ({record['machine']}, {record['dtype']})", fontsize=11
    )
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000) if _within(t, record)]
    axes.set_xticks(ticks, labels=[f"{t:,}" for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    axes.margins(x=0.12)
    figures.clean(axes)
    figure.savefig(path)


def _within(tick: float, record: dict[str, Any]) -> bool:
    times = [ms for row in record["rows"] for ms in row["milliseconds"]]
    return min(times) / 2 < tick < max(times) * 2


if __name__ == "__main__":
    main()
