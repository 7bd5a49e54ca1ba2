"""Training runs on scikit-learn's digits, for the scripts that compare many of them."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from nfnet_timm.demo import Digits

__all__ = ["accuracies_of", "accuracy_after_training", "batches_of", "best", "by_rate", "draw_seeds"]

Record = dict[str, Any]


def accuracies_of(train: Callable[[Record], float], settings: list[Record], processes: int) -> list[Record]:
    """Return each setting with the accuracy of its run: ``processes`` at a time, one thread each, a progress bar."""
    with multiprocessing.get_context("spawn").Pool(processes, _alone) as pool:  # an exception ends them
        found = tqdm(pool.imap(train, settings), total=len(settings), unit="run")
        return [{**setting, "accuracy": accuracy} for setting, accuracy in zip(settings, found, strict=True)]


def _alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    torch.set_num_threads(1)


def accuracy_after_training(
    model: nn.Module,
    optimizer: Optimizer,
    digits: Digits,
    images: int,
    batch: int,
    epochs: int,
    updates: int,
) -> float:
    """Train on the first ``images`` and return the test accuracy: 0.1, that of guessing, if the loss became NaN.

    Training ends after ``epochs``, or later, after ``updates``. The learning rate rises for 5 of 90 epochs, as in arXiv
    2101.08692, but for at least one. Then it falls by a cosine. Images have 16 x 16 pixels, which is twice the size of
    the original digits.
    """
    x, y = F.avg_pool2d(digits.train[:images], 2), digits.train_classes[:images]
    steps = math.ceil(images / batch)
    epochs = max(epochs, math.ceil(updates / steps))
    warmup = math.ceil(epochs * 5 / 90)
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=warmup, step_on_epochs=False, updates_per_epoch=steps
    )
    step = 0
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(images).split(batch):
            schedule.step_update(step)
            loss = F.cross_entropy(model(x[index]), y[index])
            if not loss.isfinite():
                return 0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    model.eval()
    with torch.no_grad():
        return float((model(F.avg_pool2d(digits.test, 2)).argmax(1) == digits.test_classes).float().mean())


def batches_of(record: Record) -> list[int]:
    """Return the batch sizes of the runs in ``record``."""
    return sorted({run["batch"] for run in record["runs"]})


def by_rate(record: Record, **setting: Any) -> dict[float, list[float]]:
    """Return the accuracies of all seeds at each learning rate, of the runs in ``record`` with this setting."""
    runs = [run for run in record["runs"] if setting.items() <= run.items()]
    return {lr: [run["accuracy"] for run in runs if run["lr"] == lr] for lr in sorted({run["lr"] for run in runs})}


def best(record: Record, **setting: Any) -> tuple[float, list[float]]:
    """Return the learning rate with the best mean accuracy, and the accuracies of all seeds there."""
    return max(by_rate(record, **setting).items(), key=lambda point: mean(point[1]))


def draw_seeds(axes: Any, x: Any, accuracies: Iterable[list[float]], color: str, label: str) -> None:
    """Draw a line through the mean accuracies, in percent, and the range of the seeds."""
    percent = [[100 * accuracy for accuracy in seeds] for seeds in accuracies]
    axes.fill_between(x, list(map(min, percent)), list(map(max, percent)), color=color, alpha=0.12, linewidth=0)
    axes.plot(x, list(map(mean, percent)), "o-", color=color, label=label, markersize=4)
