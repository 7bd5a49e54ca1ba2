"""One training run on scikit-learn's digits, for the scripts that compare many runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from nfnet_timm.demo import Digits

__all__ = ["accuracy_after_training"]


def accuracy_after_training(
    model: nn.Module,
    optimizer: Optimizer,
    digits: Digits,
    images: int,
    batch: int,
    epochs: int,
    before_step: Callable[[], None] = lambda: None,
) -> float:
    """Train on the first ``images`` and return the test accuracy: 0.1, that of guessing, if the loss became NaN."""
    x, y = digits.train[:images], digits.train_classes[:images]
    steps = math.ceil(images / batch)
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=steps
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
            before_step()
            optimizer.step()
            step += 1
    model.eval()
    with torch.no_grad():
        return float((model(digits.test).argmax(1) == digits.test_classes).float().mean())


if __name__ == "__main__":
    raise SystemExit("digits_training.py is not a program: run agc_stability.py or batch_size.py")
