"""Whether a network needs batch norm, the point of arXiv 2101.08692: test accuracy over the batch size it trains with.

    python scripts/figures/batch_size.py           under ten minutes on two cores
    python scripts/figures/batch_size.py --full    the recorded run: an hour

A small NF-ResNet on scikit-learn's handwritten digits, without and with adaptive clipping, and the same network with
batch norm (``nfnet_timm.with_batch_norm``). All train by SGD with Nesterov momentum, at learning rates proportional to
the batch, as in both papers. The best of ten proportions counts. All runs have the same number of epochs, but at
least a fixed number of updates, because a large batch would otherwise get too few.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import figures
import timm
import torch
from digits_training import accuracies_of, accuracy_after_training, batches_of, best, draw_seeds
from matplotlib.figure import Figure

from nfnet_timm import with_batch_norm
from nfnet_timm.demo import load_images
from nfnet_timm.optim import create_optimizer

IMAGES, EPOCHS, UPDATES = 768, 2, 400
CLIP_FACTOR = 0.16  # more than the published 0.01, which is for batches of 4096 and a hundred thousand steps
COLORS = {"NF-ResNet": "tab:blue", "NF-ResNet, clipped adaptively": "navy", "the same with batch norm": "tab:orange"}


def main() -> None:
    """Train each network at each batch size, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="ten learning rates and three seeds")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    record = figures.run(parser, "batch_size", measure, draw)
    for network in COLORS:
        for batch in batches_of(record):
            lr, accuracies = best(record, network=network, batch=batch)
            print(f"{network:32} batch {batch:4}: {100 * mean(accuracies):.1f} % at learning rate {lr:g}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the test accuracy of each run."""
    settings = [
        {"network": network, "batch": batch, "lr": lr * batch / 256, "seed": seed}
        for batch in (1, 256, 16)  # the longest first
        for network in COLORS
        for lr in (2.0**i for i in (range(-6, 4) if args.full else (-1,)))
        for seed in range(3 if args.full else 1)
    ]
    runs = accuracies_of(train, settings, args.processes)
    return {"images": IMAGES, "epochs": EPOCHS, "updates": UPDATES, "runs": runs}


def train(setting: dict[str, Any]) -> float:
    """Return the test accuracy of a run."""
    torch.manual_seed(setting["seed"])
    # A last feature map of 2 x 2 pixels, as batch norm cannot train on one pixel of one image.
    shape: dict[str, Any] = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 128), "output_stride": 8}
    model = timm.create_model("dm_nf_resnet50", in_chans=1, num_classes=10, **shape)
    if "batch norm" in setting["network"]:
        model = with_batch_norm(model)
    clip_factor = CLIP_FACTOR if "clipped" in setting["network"] else None
    optimizer = create_optimizer(model, "sgd", setting["lr"], 5e-5, clip_factor, momentum=0.9)
    return accuracy_after_training(model, optimizer, load_images(), IMAGES, setting["batch"], EPOCHS, UPDATES)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the mean and the range of the seeds over the batch size, a line for each network."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    batches = batches_of(record)
    for network, color in COLORS.items():
        accuracies = [best(record, network=network, batch=batch)[1] for batch in batches]
        draw_seeds(axes, batches, accuracies, color, network)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, labels=list(map(str, batches)))
    seeds, lrs = (len({run[key] for run in record["runs"] if run["batch"] == batches[0]}) for key in ("seed", "lr"))
    axes.set(xlabel="images in a batch", ylabel="test accuracy (%)")
    axes.set_title(
        f"Batch norm fails with a batch of one (digits, {record['images']} images, {record['epochs']} epochs, at least "
        f"{record['updates']} updates;\nthe best of {lrs} learning rates, mean and range of {seeds} seeds)",
        fontsize=10,
    )
    axes.legend(frameon=False, loc="best")
    figures.clean(axes)
    figure.savefig(path)


if __name__ == "__main__":
    main()
