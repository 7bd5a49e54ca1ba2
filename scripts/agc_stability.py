"""Where training is stable, without and with adaptive gradient clipping: the picture of arXiv 2102.06171, section 4.

    python scripts/agc_stability.py                about ten minutes on two cores
    python scripts/agc_stability.py --full         the whole grid, more epochs, three seeds: hours

Trains a small NF-ResNet on scikit-learn's handwritten digits over a grid of batch sizes and learning rates, with SGD
and Nesterov momentum, and writes agc_stability.json and agc_stability.png: the best test accuracy over the learning
rates for each batch size, and the accuracy over the learning rates for each batch size.

Expect that without clipping training breaks down above some learning rate, and that the smaller the clip factor, the
higher the rate that still trains. These runs are short: hundreds of steps, where the published ones have 112,000. Under
a small factor a skip gain that starts at zero leaves it slowly, so small factors lose accuracy here that they do not
lose in a full training; compare where the lines end, more than how high they are.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from tqdm import tqdm

from nfnet_timm.demo import Digits, load_images
from nfnet_timm.optim import create_optimizer

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "in_chans": 1, "num_classes": 10}


def train(digits: Digits, clip_factor: float | None, batch: int, lr: float, epochs: int, seed: int) -> float:
    """Return the test accuracy after training; that of guessing, where the loss has become NaN."""
    torch.manual_seed(seed)
    model = timm.create_model("dm_nf_resnet50", **SMALL)
    settings: dict[str, Any] = {"lr": lr, "momentum": 0.9, "weight_decay": 1e-4}
    if clip_factor is None:
        optimizer = create_optimizer_v2(model, "sgd", **settings)
    else:
        optimizer = create_optimizer(model, "sgd", clip_factor=clip_factor, **settings)
    steps = math.ceil(len(digits.train) / batch)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=steps
    )
    step = 0
    for _ in range(epochs):
        for index in torch.randperm(len(digits.train)).split(batch):
            scheduler.step_update(step)
            loss = F.cross_entropy(model(digits.train[index]), digits.train_classes[index])
            if not loss.isfinite():
                return 0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    model.eval()
    with torch.no_grad():
        return float((model(digits.test).argmax(1) == digits.test_classes).float().mean())


def main() -> None:
    """Run the grid, then write the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--full", action="store_true", help="more batch sizes, learning rates, factors, epochs and seeds"
    )
    parser.add_argument("--out", type=Path, default=Path("agc-stability"), help="folder for the results (%(default)s)")
    args = parser.parse_args()
    factors = [None, 0.01, 0.04, 0.16]
    batches = [16, 64, 256, 1024] if args.full else [16, 64, 256]
    lrs = [0.0125 * 2**i for i in range(10)] if args.full else [0.0125 * 4**i for i in range(5)]
    epochs, seeds = (16, 3) if args.full else (8, 1)
    digits = load_images()
    grid = [(f, b, lr) for f in factors for b in batches for lr in lrs]
    results = []
    for factor, batch, lr in tqdm(grid, unit="run"):
        accuracies = [train(digits, factor, batch, lr, epochs, seed) for seed in range(seeds)]
        results.append({"clip_factor": factor, "batch": batch, "lr": lr, "accuracy": sum(accuracies) / seeds})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "agc_stability.json").write_text(
        json.dumps({"epochs": epochs, "seeds": seeds, "runs": results}, indent=1)
    )
    plot(results, args.out / "agc_stability.png")
    print("| clip factor | " + " | ".join(f"batch {b}" for b in batches) + " |")
    print("|---|" + "---|" * len(batches))
    for factor in factors:
        best = [
            max((r for r in results if (r["clip_factor"], r["batch"]) == (factor, b)), key=accuracy) for b in batches
        ]
        print(f"| {factor or 'none'} | " + " | ".join(f"{accuracy(r):.1%} at lr {r['lr']:g}" for r in best) + " |")
    print(f"Written to {args.out}")


def accuracy(run: dict[str, Any]) -> float:
    """Return the accuracy of a run, for sorting."""
    return run["accuracy"]


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the best accuracy by batch size, and the accuracy by learning rate at each batch size."""
    batches = sorted({r["batch"] for r in results})
    factors = list(dict.fromkeys(r["clip_factor"] for r in results))
    figure = Figure(figsize=(4.2 * (len(batches) + 1), 4), layout="constrained")
    best_axes, *by_batch = figure.subplots(1, len(batches) + 1, sharey=True)
    colors = {
        f: "tab:red" if f is None else color
        for f, color in zip(factors, ["", "#08306b", "#2171b5", "#6baed6"], strict=False)
    }
    for factor in factors:
        label = "without AGC" if factor is None else f"AGC, clip factor {factor:g}"
        best = [max(r["accuracy"] for r in results if (r["clip_factor"], r["batch"]) == (factor, b)) for b in batches]
        best_axes.plot(batches, [100 * a for a in best], "o-", color=colors[factor], label=label)
        for batch, axes in zip(batches, by_batch, strict=True):
            runs = sorted(
                (r["lr"], r["accuracy"]) for r in results if (r["clip_factor"], r["batch"]) == (factor, batch)
            )
            axes.plot([lr for lr, _ in runs], [100 * a for _, a in runs], "o-", color=colors[factor])
            axes.set(title=f"batch {batch}", xlabel="learning rate", xscale="log")
    best_axes.set(
        title="best learning rate", xlabel="batch size", xscale="log", ylabel="test accuracy (%)", ylim=(0, 102)
    )
    best_axes.legend(frameon=False, loc="lower left")
    best_axes.set_xticks(batches, labels=[str(b) for b in batches], minor=False)
    for axes in by_batch:
        ticks = sorted({r["lr"] for r in results})[:: 2 if len({r["lr"] for r in results}) > 6 else 1]
        axes.set_xticks(ticks, labels=[f"{lr:g}" for lr in ticks], minor=False)
    for axes in (best_axes, *by_batch):
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
