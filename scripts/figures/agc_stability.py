"""Shows where training is stable, without and with adaptive gradient clipping, as arXiv 2102.06171, section 4.

    python scripts/figures/agc_stability.py                a quarter of an hour on two cores
    python scripts/figures/agc_stability.py --full         the whole grid, more epochs: hours
    python scripts/figures/agc_stability.py --ablation     what is clipped: which stages, the classifier's weight or not

Trains a small NF-ResNet on scikit-learn's handwritten digits over a grid of batch sizes and learning rates, with SGD
and Nesterov momentum and three seeds. Draws the accuracy by learning rate for each batch size, and the best one
by batch size.

Without clipping, training fails above some learning rate. The smaller the clip factor, the higher the rate that still
trains. These runs have hundreds of steps, the published ones 112,000. With a small clip factor a skip gain leaves its
initial zero slowly. Small factors therefore lose accuracy here that they do not lose in a full training: compare where
the lines end rather than how high they are.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import figures
import timm
import torch
from digits_training import accuracy_after_training
from matplotlib.figure import Figure
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from nfnet_timm import adaptive_clip_grad_
from nfnet_timm.demo import load_images

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "in_chans": 1, "num_classes": 10}
# What is clipped, by what the names of the parameters begin with. The classifier's bias always is, as published.
CLIPPED = {
    "as published": ("stem", "stages", "final_conv", "head.fc.bias"),
    "the classifier's weight, too": ("",),
    "not the stem": ("stages", "final_conv", "head.fc.bias"),
    "stages 1 and 2 only": ("stages.0", "stages.1"),
    "stages 3 and 4 only": ("stages.2", "stages.3"),
}
COLORS = ("tab:red", "#08306b", "#2171b5", "#6baed6")
COLORS_OF_ABLATION = ("black", "tab:red", "tab:orange", "tab:blue", "tab:green")


def train(setting: dict[str, Any], epochs: int) -> float:
    """Return the test accuracy after training, or 0.1, that of guessing, if the loss became NaN."""
    torch.manual_seed(setting["seed"])
    digits = load_images()
    model = timm.create_model("dm_nf_resnet50", **SMALL)
    optimizer = create_optimizer_v2(model, "sgd", lr=setting["lr"], momentum=0.9, weight_decay=1e-4)
    clipped, clip_factor = chosen(model, setting["clipped"]), setting["clip_factor"]

    def clip() -> None:
        if clip_factor is not None:
            adaptive_clip_grad_(clipped, clip_factor)

    return accuracy_after_training(model, optimizer, digits, len(digits.train), setting["batch"], epochs, clip)


def chosen(model: nn.Module, what: str) -> list[Tensor]:
    """Return the parameters that are clipped."""
    return [p for name, p in model.named_parameters() if name.startswith(CLIPPED[what])]


def main() -> None:
    """Run the grid, then write the results and the picture."""
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--ablation", action="store_true", help="what is clipped, at a batch of 256")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], parents=[which])
    parser.add_argument("--full", action="store_true", help="more batch sizes, learning rates and epochs")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    ablation = which.parse_known_args()[0].ablation  # before --out, whose default depends on it
    record = figures.run(parser, "agc_ablation" if ablation else "agc_stability", measure, draw)
    for line in lines_of(record):
        for batch in batches_of(record):
            best = max(curve(record, line, batch), key=lambda point: mean(point[1]))
            print(f"{label_of(line):32} batch {batch:4}: {100 * mean(best[1]):.1f} % at learning rate {best[0]:g}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the test accuracy of each run."""
    batches = [16, 64, 256, 1024] if args.full else [16, 64, 256]
    lrs = [0.0125 * 2**i for i in range(10)] if args.full else [0.0125 * 4**i for i in range(5)]
    epochs = 16 if args.full else 8
    lines = [(factor, "as published") for factor in (None, 0.01, 0.04, 0.16)]
    if args.ablation:
        lines, batches = [(0.04, what) for what in CLIPPED], [256]
    settings = [
        {"clip_factor": factor, "clipped": what, "batch": batch, "lr": lr, "seed": seed}
        for factor, what in lines
        for batch in batches
        for lr in lrs
        for seed in range(args.seeds)
    ]
    found = figures.in_processes(partial(train, epochs=epochs), settings, args.processes)
    runs = [{**setting, "accuracy": accuracy} for setting, accuracy in zip(settings, found, strict=True)]
    return {"epochs": epochs, "seeds": args.seeds, "runs": runs}


def lines_of(record: dict[str, Any]) -> list[tuple[float | None, str]]:
    """Return each clip factor with what is clipped, in the order of the runs."""
    return list(dict.fromkeys((run["clip_factor"], run["clipped"]) for run in record["runs"]))


def batches_of(record: dict[str, Any]) -> list[int]:
    """Return the batch sizes."""
    return sorted({run["batch"] for run in record["runs"]})


def label_of(line: tuple[float | None, str]) -> str:
    """Return what a line is called."""
    factor, what = line
    if factor is None:
        return "without AGC"
    return f"AGC, clip factor {factor:g}" + ("" if what == "as published" else f", {what}")


def curve(record: dict[str, Any], line: tuple[float | None, str], batch: int) -> list[tuple[float, list[float]]]:
    """Return the accuracies of all seeds at each learning rate."""
    runs = [run for run in record["runs"] if (run["clip_factor"], run["clipped"], run["batch"]) == (*line, batch)]
    return [(lr, [r["accuracy"] for r in runs if r["lr"] == lr]) for lr in sorted({run["lr"] for run in runs})]


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the best accuracy by batch size, and the accuracy by learning rate at each batch size."""
    batches, lines = batches_of(record), lines_of(record)
    is_ablation = len({what for _, what in lines}) > 1
    figure = Figure(figsize=(4.2 * (len(batches) + (not is_ablation)), 4.6), layout="constrained")
    figure.suptitle(
        "What is clipped decides up to which learning rate training is stable"
        if is_ablation
        else f"Clipping is what lets large learning rates train (mean and range of {record['seeds']} seeds)",
        fontsize=8 if is_ablation else 11,
    )
    every = figure.subplots(1, len(batches) + (not is_ablation), sharey=True, squeeze=False)[0]
    by_batch = every if is_ablation else every[1:]
    for line, color in zip(lines, COLORS_OF_ABLATION if is_ablation else COLORS, strict=True):
        for batch, axes in zip(batches, by_batch, strict=True):
            lrs, found = zip(*curve(record, line, batch), strict=True)
            percent = [[100 * accuracy for accuracy in seeds] for seeds in found]
            axes.fill_between(
                lrs, list(map(min, percent)), list(map(max, percent)), color=color, alpha=0.12, linewidth=0
            )
            axes.plot(lrs, list(map(mean, percent)), "o-", color=color, label=label_of(line), markersize=4)
            axes.set(title=f"batch {batch}", xlabel="learning rate", xscale="log")
            ticks = list(lrs)[:: 2 if len(lrs) > 6 else 1]
            axes.set_xticks(ticks, labels=[f"{lr:g}" for lr in ticks], minor=False)
        if not is_ablation:
            best = [max((seeds for _, seeds in curve(record, line, batch)), key=mean) for batch in batches]
            every[0].plot(batches, [100 * mean(seeds) for seeds in best], "o-", color=color, label=label_of(line))
    if not is_ablation:
        every[0].set(title="best learning rate", xlabel="batch size", xscale="log")
        every[0].set_xticks(batches, labels=[str(b) for b in batches], minor=False)
    every[0].set(ylabel="test accuracy (%)", ylim=(0, 102))
    for axes in every:
        axes.minorticks_off()
        figures.clean(axes)
    handles, labels = by_batch[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if is_ablation else len(lines), frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
