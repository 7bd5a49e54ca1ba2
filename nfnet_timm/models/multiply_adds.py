"""What a network costs, counted: nothing is typed that the network itself can tell."""

from __future__ import annotations

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from nfnet_timm.models.variants import VARIANTS

__all__ = ["multiply_adds"]


def multiply_adds(name: str) -> float:
    """Return the multiply-adds of the network called ``name`` for one image of its test size, in billions.

    Those of convolutions and matrix products, as papers count them; on the meta device, so nothing is computed.
    """
    model, size = timm.create_model(name, device="meta").eval(), VARIANTS[name].test_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9
