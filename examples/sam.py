"""Train a small NFNet on handwritten digits with sharpness-aware minimization (SAM) and adaptive gradient clipping.

    pip install '.[demo]'     in a clone of nfnet_timm
    python sam.py

The data are 1,797 scans of scikit-learn. Few are used for training, so that the network can overfit. Three runs:
without SAM, with the ascent on the whole batch, and with the ascent on a fifth of it, as for the published NFNet-F6
(arXiv 2102.06171, appendix A.4). Prints the test accuracy and the time of each run, for one seed. Takes a minute on two
cores.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

try:
    import timm
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from tqdm import tqdm

    from nfnet_timm.demo import Digits, load_images
    from nfnet_timm.optim import SAM, create_optimizer
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: `pip install '.[demo]'` in a clone of nfnet_timm")


def main() -> None:
    """Train three times, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=40, help="(%(default)s)")
    parser.add_argument("--images", type=int, default=300, help="to train with, at most 1437 (%(default)s)")
    parser.add_argument("--rho", type=float, default=0.05, help="length of the ascent (%(default)s)")
    args = parser.parse_args()
    if not 0 < args.rho < math.inf:
        parser.error(f"--rho {args.rho}: expected a number above 0")
    if args.epochs < 1 or not 50 <= args.images <= 1437:
        parser.error(f"--epochs {args.epochs} --images {args.images}: expected at least 1, and from 50 to 1437")
    digits = load_images()
    for label, share in (("without SAM", None), ("SAM", 1.0), ("SAM, ascent on a fifth", 0.2)):
        start = time.perf_counter()
        accuracy = run(digits, args.images, args.epochs, args.rho, share, label)
        print(f"{label:24} test accuracy {accuracy:.1%} after {time.perf_counter() - start:.0f} s")


def run(digits: Digits, images: int, epochs: int, rho: float, share: float | None, label: str) -> float:
    """Train on the first ``images``, with the ascent on a share of each batch or without one; return the accuracy."""
    torch.manual_seed(0)
    model = timm.create_model(
        "nfnet_f0", depths=(1, 1, 1, 1), channels=(32, 64, 96, 96), group_size=8, in_chans=1, num_classes=10
    )
    optimizer = create_optimizer(model, "sgd", lr=0.2, momentum=0.9, weight_decay=2e-5, clip_factor=0.02)
    sam = SAM(optimizer, rho) if share else None
    for _ in tqdm(range(epochs), desc=label, unit="epoch", leave=False):
        model.train()
        for batch in torch.randperm(images).split(50):
            x, classes = digits.train[batch], digits.train_classes[batch]
            descent = gradients_of(model, x, classes)
            if sam is not None and share is not None:
                few = int(len(x) * share)  # the same images: with others SAM brings no gain
                sam.step(descent, ascent=gradients_of(model, x[:few], classes[:few]))
            else:
                optimizer.zero_grad()
                descent()
                optimizer.step()
    model.eval()
    with torch.no_grad():
        return (model(digits.test).argmax(1) == digits.test_classes).float().mean().item()


def gradients_of(model: nn.Module, images: Tensor, classes: Tensor) -> Callable[[], Tensor]:
    """Return a closure that adds the gradients of these images to the parameters' and returns the loss."""

    def closure() -> Tensor:
        loss = F.cross_entropy(model(images), classes)
        loss.backward()
        return loss

    return closure


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
