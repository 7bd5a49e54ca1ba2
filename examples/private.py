"""Train a small NF-ResNet on handwritten digits with differential privacy, by DP-SGD with Opacus.

    pip install '.[privacy,demo]'     in a clone of nfnet_timm
    python private.py
    python private.py --epsilon 3 --ghost

The data are 1,797 scans of scikit-learn. DP-SGD needs a gradient for each sample, which batch norm does not
have, because it mixes samples. The settings are those of arXiv 2204.13650: large batches, no weight decay, skip gains
that start at one. Prints the accuracy after each epoch and the privacy budget: with probability 1 - delta, epsilon
bounds what the training run reveals about one image. Takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from typing import Any

try:
    import timm
    import torch
    import torch.nn.functional as F
    from opacus import PrivacyEngine
    from sklearn.datasets import load_digits
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset
    from tqdm import tqdm

    import nfnet_timm.privacy  # noqa: F401  # registers the layers with Opacus
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: `pip install '.[privacy,demo]'` in a clone of nfnet_timm")

# torch warns about the first layer, whose input needs no gradient. Opacus warns that its random numbers are not secure,
# and that its bound may be slightly above the best one.
warnings.filterwarnings("ignore", message="Full backward hook is firing|Secure RNG turned off|Optimal order is the")


def main() -> None:
    """Train, and print the privacy that was spent."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--epsilon", type=float, default=8.0, help="privacy to spend; less is more private (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--ghost", action="store_true", help="ghost clipping: less memory in about the same time")
    args = parser.parse_args()
    if args.epochs < 1 or not 0 < args.epsilon < math.inf:
        parser.error(f"--epochs {args.epochs} --epsilon {args.epsilon}: expected at least 1, and a number above 0")
    torch.manual_seed(0)
    train, test, test_classes = digits(load_digits())
    delta = 1 / len(train) ** 1.1
    model = timm.create_model(
        "dm_nf_resnet50", depths=(1, 1, 1, 1), channels=(64, 96, 128, 128), in_chans=1, num_classes=10
    )
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            nn.init.ones_(p)
    criterion: Any = nn.CrossEntropyLoss()
    engine = PrivacyEngine()
    try:
        private, optimizer, *wrapped, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.0),
            data_loader=DataLoader(train, batch_size=256),
            criterion=criterion,
            epochs=args.epochs,
            target_epsilon=args.epsilon,
            target_delta=delta,
            max_grad_norm=1.0,
            grad_sample_mode="ghost" if args.ghost else "hooks",
        )
    except ValueError as error:  # for example, no noise is enough for this epsilon
        parser.error(f"--epsilon {args.epsilon}: {error}")
    criterion = wrapped[0] if wrapped else criterion  # ghost clipping has a second backward pass
    for epoch in range(args.epochs):
        private.train()
        for images, classes in tqdm(loader, desc=f"epoch {epoch + 1} of {args.epochs}", unit="step", leave=False):
            optimizer.zero_grad()
            criterion(private(images), classes).backward()
            optimizer.step()
        private.eval()
        with torch.no_grad():
            accuracy = (private(test).argmax(1) == test_classes).float().mean().item()
        print(f"epoch {epoch + 1}: {accuracy:.1%} of the test images are classified correctly")
    spent = engine.get_epsilon(delta)
    print(
        f"spent: epsilon {spent:.2f} at delta {delta:.1e}, with a noise multiplier of {optimizer.noise_multiplier:.2f}"
    )


def digits(data: Any) -> tuple[TensorDataset, Tensor, Tensor]:
    """Return the digits, (N, 1, 32, 32): four fifths to train with, and the others with their classes."""
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, size=32, mode="bilinear")
    classes = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return TensorDataset(images[train], classes[train]), images[test], classes[test]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the steps until now have spent privacy too")
