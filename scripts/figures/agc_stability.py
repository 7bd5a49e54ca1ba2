"""Shows where training is stable, without and with adaptive gradient clipping, as arXiv 2102.06171, section 4.

    python scripts/figures/agc_stability.py           under ten minutes on two cores
    python scripts/figures/agc_stability.py --full    the recorded run: an hour

Trains a small NF-ResNet on scikit-learn's handwritten digits over a grid of batch sizes and learning rates, with SGD
and Nesterov momentum. Draws the accuracy by learning rate for each batch size, and the best one by batch size.

All runs have the same number of epochs, but at least a fixed number of updates. Without this minimum a large batch
would get so few updates that no network is trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import figures
import timm
import torch
from digits_training import accuracies_of, accuracy_after_training, batches_of, best, by_rate, draw_seeds
from matplotlib.figure import Figure

from nfnet_timm.demo import load_images
from nfnet_timm.optim import create_optimizer

EPOCHS, UPDATES = 8, 300
SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "in_chans": 1, "num_classes": 10}
# A clipped skip gain starts at zero and grows in proportion to the clip factor. The published factor of 0.01 is for
# 112,000 updates.
LINES = {None: ("without AGC", "tab:red"), 0.16: ("AGC, clip factor 0.16", "#08306b")}


def train(setting: dict[str, Any]) -> float:
    """Return the test accuracy of a run."""
    torch.manual_seed(setting["seed"])
    digits = load_images()
    model = timm.create_model("dm_nf_resnet50", **SMALL)
    optimizer = create_optimizer(model, "sgd", setting["lr"], 1e-4, setting["clip_factor"], momentum=0.9)
    return accuracy_after_training(model, optimizer, digits, len(digits.train), setting["batch"], EPOCHS, UPDATES)


def main() -> None:
    """Run the grid, then write the results and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="more batch sizes and learning rates, and three seeds")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    record = figures.run(parser, "agc_stability", measure, draw)
    for factor, (label, _) in LINES.items():
        for batch in batches_of(record):
            lr, accuracies = best(record, clip_factor=factor, batch=batch)
            print(f"{label:32} batch {batch:4}: {100 * mean(accuracies):.1f} % at learning rate {lr:g}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the test accuracy of each run."""
    batches = [16, 64, 256, 512] if args.full else [16, 256]
    lrs = [0.0125 * 2**i for i in range(7)] if args.full else [0.0125 * 4**i for i in range(4)]
    settings = [
        {"clip_factor": factor, "batch": batch, "lr": lr, "seed": seed}
        for batch in reversed(batches)  # the longest first
        for factor in LINES
        for lr in lrs
        for seed in range(3 if args.full else 1)
    ]
    runs = accuracies_of(train, settings, args.processes)
    return {"epochs": EPOCHS, "updates": UPDATES, "runs": runs}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the best accuracy by batch size, and the accuracy by learning rate at each batch size."""
    batches = batches_of(record)
    figure = Figure(figsize=(4.2 * (len(batches) + 1), 4.6), layout="constrained")
    seeds = len({run["seed"] for run in record["runs"]})
    figure.suptitle(
        "With clipping, training is stable up to a higher learning rate, and the best accuracy is about the same "
        f"(handwritten digits;\n{record['epochs']} epochs, at least {record['updates']} updates; mean and range of "
        f"{seeds} seeds)",
        fontsize=11,
    )
    of_best, *by_batch = figure.subplots(1, len(batches) + 1)
    for factor, (label, color) in LINES.items():
        for batch, axes in zip(batches, by_batch, strict=True):
            found = by_rate(record, clip_factor=factor, batch=batch)
            draw_seeds(axes, list(found), found.values(), color, label)
            axes.set(title=f"batch {batch}", xlabel="learning rate", xscale="log", ylim=(0, 102))
            ticks = list(found)[::2]
            axes.set_xticks(ticks, labels=[f"{lr:g}" for lr in ticks], minor=False)
        accuracies = [best(record, clip_factor=factor, batch=batch)[1] for batch in batches]
        draw_seeds(of_best, batches, accuracies, color, label)
    of_best.set(title="best learning rate", xlabel="batch size", xscale="log", ylabel="test accuracy (%)")
    of_best.set_xticks(batches, labels=[str(batch) for batch in batches], minor=False)
    for axes in (of_best, *by_batch):
        axes.minorticks_off()
        figures.clean(axes)
    handles, labels = of_best.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(LINES), frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
