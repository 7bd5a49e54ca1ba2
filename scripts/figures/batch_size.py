"""Whether a network needs batch norm, the point of arXiv 2101.08692: test accuracy over the batch size it trains with.

    python scripts/figures/batch_size.py                       a quarter of an hour on two cores
    python scripts/figures/batch_size.py --images 1437 --epochs 20 --batches 1 2 4 8 16 64 256

Networks of about the same size on scikit-learn's handwritten digits, with three seeds: a small NF-ResNet, without and
with adaptive clipping; the same network with a batch norm after each convolution instead of weight standardization,
skip gains and the factors alpha, beta and gamma; and timm's own ResNet. All train for the same number of epochs by SGD
with Nesterov momentum, at a learning rate that is proportional to the batch, as in both papers. The digits
are used because no maintained package ships a small set of natural images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import figures
import timm
import torch
from digits_training import accuracy_after_training
from matplotlib.figure import Figure
from torch import nn

from nfnet_timm import with_batch_norm
from nfnet_timm.demo import load_images
from nfnet_timm.optim import create_optimizer

# A last feature map of 2 x 2 pixels, as batch norm cannot train on one pixel of one image.
SMALL: dict[str, Any] = {"in_chans": 1, "num_classes": 10, "output_stride": 16}
CLIP_FACTOR = 0.16  # more than the published 0.01, which is for batches of 4096 and a hundred thousand steps
DEPTHS, CHANNELS = (1, 1, 1, 1), (32, 64, 96, 128)


def main() -> None:
    """Train each network at each batch size, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=768, help="to train with, at most 1437 (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=0.5, help="for a batch of 256 (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    record = figures.run(parser, "batch_size", measure, draw)
    batches = sorted({run["batch"] for run in record["runs"]})
    print("mean test accuracy (%) of the seeds")
    for network in NETWORKS:
        for batch in batches:
            print(f"{network:32} batch {batch:4}: {100 * mean(accuracies(record, network, batch)):.1f}")


def norm_free() -> nn.Module:
    """Return a small NF-ResNet."""
    return timm.create_model("dm_nf_resnet50", depths=DEPTHS, channels=CHANNELS, **SMALL)


def timm_resnet() -> nn.Module:
    """Return timm's ResNet with the same depths and widths."""
    block: Any = timm.models.resnet.Bottleneck
    widths = tuple(chs // 4 for chs in CHANNELS)
    return timm.models.resnet.ResNet(block, layers=DEPTHS, channels=widths, zero_init_last=True, **SMALL)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "NF-ResNet": norm_free,
    "NF-ResNet, clipped adaptively": norm_free,
    "the same with batch norm": lambda: with_batch_norm(norm_free()),
    "timm's ResNet": timm_resnet,
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the test accuracy of each run."""
    if args.images > 1437:
        raise SystemExit(f"batch_size.py: error: --images {args.images}: there are 1437 training images; choose fewer")
    settings = [
        {"network": network, "batch": batch, "seed": seed, "lr": args.lr * batch / 256}
        for batch in sorted(args.batches)  # the longest first
        for network in NETWORKS
        for seed in range(args.seeds)
    ]
    train_one = partial(train, images=args.images, epochs=args.epochs)
    found = figures.in_processes(train_one, settings, args.processes)
    runs = [{**setting, "accuracy": accuracy} for setting, accuracy in zip(settings, found, strict=True)]
    return {"images": args.images, "epochs": args.epochs, "runs": runs}


def train(setting: dict[str, Any], images: int, epochs: int) -> float:
    """Return the test accuracy of a run, or 0.1, that of guessing, if the loss became NaN."""
    torch.manual_seed(setting["seed"])
    model = NETWORKS[setting["network"]]()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        params, lr=setting["lr"], momentum=0.9, nesterov=True, weight_decay=5e-5
    )
    if "clipped" in setting["network"]:
        optimizer = create_optimizer(model, "sgd", setting["lr"], 5e-5, CLIP_FACTOR, momentum=0.9)
    return accuracy_after_training(model, optimizer, load_images(), images, setting["batch"], epochs)


def accuracies(record: dict[str, Any], network: str, batch: int) -> list[float]:
    """Return the accuracies of all seeds."""
    return [run["accuracy"] for run in record["runs"] if (run["network"], run["batch"]) == (network, batch)]


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the mean and the range of the seeds over the batch size, a line for each network."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    batches = sorted({run["batch"] for run in record["runs"]})
    for network, color in zip(NETWORKS, ("tab:blue", "navy", "tab:orange", "tab:grey"), strict=True):
        found = [[100 * a for a in accuracies(record, network, batch)] for batch in batches]
        axes.fill_between(batches, list(map(min, found)), list(map(max, found)), color=color, alpha=0.15, linewidth=0)
        axes.plot(batches, list(map(mean, found)), "o-", color=color, label=network)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, labels=list(map(str, batches)))
    seeds = len({run["seed"] for run in record["runs"]})
    axes.set(xlabel="images in a batch; the learning rate is proportional to it", ylabel="test accuracy (%)")
    axes.set_title(
        "Batch norm falls at a batch of one, large batches need clipping\n"
        f"(digits, {record['epochs']} epochs of {record['images']} images; mean and range of {seeds} seeds)",
        fontsize=11,
    )
    axes.legend(frameon=False, loc="best")
    figures.clean(axes)
    figure.savefig(path)


if __name__ == "__main__":
    main()
