"""Shared by the tests of other programs: images, and the plain training loop with which libraries are compared."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from nfnet_timm.optim import create_optimizer

BATCH = 8


def images_and_labels(n, size=32):
    """Return the first ``n`` of scikit-learn's digits (real scans) as (n, 3, size, size), and their classes."""
    digits = load_digits()
    x = torch.tensor(digits.images[:n], dtype=torch.float32)[:, None] / 16
    x = F.interpolate(x, size=size, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    return x, torch.tensor(digits.target[:n])


def write_digits(root, n):
    """Write ``n`` digits, every fourth to val/ and the others to train/, in one folder for each class."""
    digits = load_digits()
    for i, (image, digit) in enumerate(zip(digits.images[:n], digits.target, strict=False)):
        folder = root / ("val" if i % 4 == 0 else "train") / f"digit {digit}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((40, 40)).convert("RGB").save(folder / f"{i}.png")
    return root


def optimizer_of(model):
    """Return the optimizer of the plain loop."""
    return create_optimizer(model, "sgd", lr=0.05, momentum=0.9, clip_factor=0.02)


def assert_weights_of_a_plain_loop(trained, start):
    """Assert that an epoch over 24 images, in order, takes ``start`` to exactly the weights of ``trained``."""
    optimizer = optimizer_of(start.train())
    for images, labels in zip(*(tensor.split(BATCH) for tensor in images_and_labels(24)), strict=True):
        F.cross_entropy(start(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = start.state_dict()
    assert [name for name, p in trained.state_dict().items() if not p.equal(expected[name])] == []
