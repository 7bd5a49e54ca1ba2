"""Shows which layers adaptive clipping clips, and when, in a training run of the network of ``nfnet-timm demo``.

    python scripts/figures/clipped_layers.py --out docs/pictures       half a minute on two cores

Trains it on scikit-learn's handwritten digits as the demo does and calls ``clip_stats`` before each step. Writes
clipped_layers.json, and clipped_layers.png from that file alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import figures
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

from nfnet_timm import clip_stats
from nfnet_timm.demo import ARGS, BATCH, CLIP_FACTOR, LR, load_images
from nfnet_timm.optim import create_optimizer


def main() -> None:
    """Train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=4, help="(%(default)s)")
    figures.run(parser, "clipped_layers", lambda args: train(args.epochs), draw)


def train(epochs: int) -> dict[str, Any]:
    """Return, for each parameter in the order of the network, the share of its units that each step clips."""
    torch.manual_seed(0)
    digits = load_images()
    model = timm.create_model("nfnet_f0", drop_path_rate=0.1, **ARGS)
    optimizer = create_optimizer(model, "sgd", lr=LR, momentum=0.9, weight_decay=2e-5, clip_factor=CLIP_FACTOR)
    named = {name: p for name, p in model.named_parameters() if name != "head.fc.weight"}
    clipped: dict[str, list[float]] = {name: [] for name in named}
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(digits.train)).split(BATCH)]
    for batch in tqdm(batches, desc="training", unit="step"):
        loss = F.cross_entropy(model(digits.train[batch]), digits.train_classes[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        for name, stats in clip_stats(named, CLIP_FACTOR).items():
            clipped[name].append(round(stats.clipped, 4))
        optimizer.step()
    return {"clip_factor": CLIP_FACTOR, "lr": LR, "batch": BATCH, "clipped": clipped}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw a row for each parameter and a column for each step, by kind of parameter."""
    kinds = {"kernels and matrices": "weight", "gains and skip gains": "gain", "biases": "bias"}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(
        "Clipped are stem, shortcuts, skip gains and most biases; hardly the inside of branches\n"
        f"(clip factor {record['clip_factor']}, learning rate {record['lr']}, batch {record['batch']})",
        fontweight="bold",
    )
    for axis, (kind, ending) in zip(figure.subplots(1, 3), kinds.items(), strict=True):
        names = [name for name in record["clipped"] if name.endswith(ending)]
        shares = [record["clipped"][name] for name in names]
        image = axis.imshow(shares, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axis.set(title=kind, xlabel="step")
        axis.set_yticks(range(len(names)), [name.removesuffix(".weight") for name in names], fontsize=5)
    figure.colorbar(image, ax=figure.axes, label="share of the units whose gradient is scaled down")
    figure.savefig(path)


if __name__ == "__main__":
    main()
