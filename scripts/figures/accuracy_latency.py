"""Draws ImageNet accuracy against the time of a training step, the figure of arXiv 2102.06171.

    python scripts/figures/accuracy_latency.py                     a quarter of an hour on two cores: eight networks
    python scripts/figures/accuracy_latency.py --all --repeat 5    an hour: all NFNets and EfficientNets, three others
    python scripts/figures/accuracy_latency.py --all --device cuda --dtype bfloat16 --batch 32

Measures a training step of each network at its own image size, by SGD, of NFNets with adaptive clipping. Accuracies are
published ones or those that timm measured (hub/checkpoints.toml and PEERS). Prints how many times as long as NFNet-F1
EfficientNet-B7 takes, which has the same published top-1: 8.7 on TPUv3 in the paper.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

import figures
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from timm.optim import create_optimizer_v2
from tqdm import tqdm

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.checkpoints import load_published

# Name and weights, family, pixels in training, and top-1 in percent. This is the only place where these numbers are
# typed. Published: of B7 with RandAugment in arXiv 2102.06171, table 3, of ConvNeXt in arXiv 2201.03545, table 1.
# Measured by timm, of ResNet-50 and ECA-NFNet at 288 pixels: results/results-imagenet.csv of
# huggingface/pytorch-image-models at commit aa4b585.
PEERS = (
    ("tf_efficientnet_b0.aa_in1k", "EfficientNet", 224, 76.882, "measured by timm"),
    ("tf_efficientnet_b1.aa_in1k", "EfficientNet", 240, 78.840, "measured by timm"),
    ("tf_efficientnet_b2.aa_in1k", "EfficientNet", 260, 80.074, "measured by timm"),
    ("tf_efficientnet_b3.aa_in1k", "EfficientNet", 300, 81.648, "measured by timm"),
    ("tf_efficientnet_b4.aa_in1k", "EfficientNet", 380, 83.040, "measured by timm"),
    ("tf_efficientnet_b5.ra_in1k", "EfficientNet", 456, 83.834, "measured by timm"),
    ("tf_efficientnet_b6.aa_in1k", "EfficientNet", 528, 84.124, "measured by timm"),
    ("tf_efficientnet_b7.ra_in1k", "EfficientNet", 600, 84.7, "published"),
    ("resnet50.ra_in1k", "ResNet-50", 224, 79.864, "measured by timm"),
    ("convnext_base.fb_in1k", "ConvNeXt-B", 224, 83.8, "published"),
    ("eca_nfnet_l0.ra2_in1k", "ECA-NFNet-L0", 224, 82.590, "measured by timm"),
)
QUICK = (
    *("nfnet_f0", "nfnet_f1", "nfnet_f2"),
    *("tf_efficientnet_b3", "tf_efficientnet_b5", "tf_efficientnet_b7"),
    *("resnet50", "convnext_base"),
)
WARM_UP = 3  # steps of each network that are not counted: the first two of B7 took up to twice as long as the others
COLORS = {"NFNet": "tab:blue", "EfficientNet": "tab:orange"}


def main() -> None:
    """Measure and draw, and print the paper's ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="all networks, not eight of them")
    parser.add_argument("--batch", type=int, default=4, help="images in a step (%(default)s)")
    parser.add_argument("--repeat", type=int, default=17, help="steps of each, in turns (%(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    rows = {row["name"]: row for row in figures.run(parser, "accuracy_latency", measure, draw)["rows"]}
    pairs = zip(rows["tf_efficientnet_b7"]["milliseconds"], rows["nfnet_f1"]["milliseconds"], strict=True)
    low, middle, high = quartiles([b7 / f1 for b7, f1 in pairs])
    print(
        f"EfficientNet-B7 takes {middle:.1f} (middle half: {low:.1f} to {high:.1f}) times as long as NFNet-F1, "
        "which has the same published top-1 of 84.7; the paper: 8.7 on TPUv3"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return each network with the milliseconds per image of its steps."""
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: torch finds no GPU here; leave it out to measure on the CPU")
    checkpoints = {name.split(".")[0]: facts for name, facts in load_published()["checkpoints"].items()}
    nfnets = [(name, "NFNet", VARIANTS[name].train_size, of["top1"], "published") for name, of in checkpoints.items()]
    rows: list[dict[str, Any]] = [
        {"name": name.split(".")[0], "family": family, "pixels": pixels, "top1": top1, "by": by, "milliseconds": []}
        for name, family, pixels, top1, by in [*nfnets, *PEERS]
        if args.all or name.split(".")[0] in QUICK
    ]
    with tqdm(total=len(rows) * (args.repeat + WARM_UP), unit="step") as progress:
        # Eight at a time, because all of them do not fit into memory. Networks that are compared are in the same eight.
        for some in (rows[i : i + 8] for i in range(0, len(rows), 8)):
            steps = [step_of(row["name"], row["pixels"], args) for row in some]
            for turn in range(args.repeat + WARM_UP):
                for row, step in zip(some, steps, strict=True):
                    progress.set_description(row["name"])
                    milliseconds = step()
                    if turn >= WARM_UP:
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
        start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16, args.dtype == "bfloat16"):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1000 / args.batch

    return step


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the quartiles of ``values``, which may be a single one."""
    low, middle, high = quantiles(values, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return low, middle, high


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw top-1 over milliseconds per image, a line for each family."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for family in dict.fromkeys(row["family"] for row in record["rows"]):
        rows = sorted((row for row in record["rows"] if row["family"] == family), key=lambda row: row["top1"])
        color = COLORS.get(family, "tab:grey")
        lows, xs, highs = zip(*(quartiles(row["milliseconds"]) for row in rows), strict=True)
        spread = [[x - low for low, x in zip(lows, xs, strict=True)], [h - x for h, x in zip(highs, xs, strict=True)]]
        ys = [row["top1"] for row in rows]
        axes.errorbar(xs, ys, xerr=spread, color=color, linewidth=1.5 if len(rows) > 1 else 0, elinewidth=1)
        for x, row in zip(xs, rows, strict=True):
            published = row["by"] == "published"
            axes.plot(x, row["top1"], "o", color=color, markerfacecolor=color if published else "white", markersize=7)
            label = row["name"].removeprefix("nfnet_").removeprefix("tf_efficientnet_").replace("_", " ")
            axes.annotate(label, (x, row["top1"]), (6, -11), textcoords="offset points", fontsize=9, color=color)
    axes.plot([], [], "o", color="black", label="top-1 published")
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="top-1 measured by timm")
    axes.set(
        xscale="log",
        xlabel=f"milliseconds for each image of a training step, batch {record['batch']} (median, middle half)",
        ylabel="ImageNet top-1 (%)",
    )
    axes.set_title(
        f"Further left is faster to train for its accuracy ({record['machine']}, {record['dtype']})", fontsize=11
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    axes.margins(x=0.12)
    figures.clean(axes)
    figure.savefig(path)


if __name__ == "__main__":
    main()
