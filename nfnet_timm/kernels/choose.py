"""Which implementation a tensor may take: one made for its device, or the formula, which anything can look into."""

import torch
from torch import Tensor, nn

from nfnet_timm.compat.torch import has_dispatch_modes, has_transforms

__all__ = ["is_eager_on_cpu", "is_on_a_device"]


def is_eager_on_cpu(x: Tensor) -> bool:
    """Tell whether ``x`` has its numbers here and now: on a CPU, in eager mode, and nobody stands between."""
    return x.is_cpu and _is_eager(x) and not has_dispatch_modes()


def is_on_a_device(x: Tensor) -> bool:
    """Tell whether operations on ``x`` are launched one by one: on a device that is no CPU, the meta device too."""
    return not x.is_cpu and _is_eager(x)


def _is_eager(x: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or has_transforms():
        return False  # somebody traces, compiles or transforms what runs
    return type(x) in (Tensor, nn.Parameter)
