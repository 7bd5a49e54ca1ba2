"""Shared by the tests of other libraries: images, and the plain training loop with which each is compared."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from nfnet_timm.optim import create_optimizer


def images_and_labels(n, size):
    """Return the first ``n`` of scikit-learn's digits (real scans) as (n, 3, size, size), and their classes."""
    digits = load_digits()
    x = torch.tensor(digits.images[:n], dtype=torch.float32)[:, None] / 16
    return F.interpolate(x, size=size, mode="bilinear").expand(-1, 3, -1, -1).contiguous(), torch.tensor(
        digits.target[:n]
    )


def plain_training(model, x, y, batch):
    """Train ``model`` for one epoch without shuffling, in a plain PyTorch loop, and return it."""
    optimizer = create_optimizer(model, "sgd", lr=0.05, momentum=0.9, clip_factor=0.02)
    model.train()
    for images, labels in zip(x.split(batch), y.split(batch), strict=True):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def same_weights(ours, plain):
    """Assert that two networks have exactly the same weights."""
    theirs = plain.state_dict()
    assert [name for name, p in ours.state_dict().items() if not p.equal(theirs[name])] == []
