"""Which implementation a tensor may take: one made for its device, or the formula, which anything can look into."""

import torch
from torch import Tensor, nn

from nfnet_timm.kernels.torch_private import has_dispatch_modes, has_transforms

__all__ = ["is_eager", "is_eager_on_cpu"]


def is_eager(x: Tensor) -> bool:
    """Tell whether operations on ``x`` run one by one, as they come: nobody traces, compiles or transforms them."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or has_transforms():
        return False
    return type(x) in (Tensor, nn.Parameter)


def is_eager_on_cpu(x: Tensor) -> bool:
    """Tell whether ``x`` has its numbers here and now: on a CPU, in eager mode, and nobody stands between."""
    return x.is_cpu and is_eager(x) and not has_dispatch_modes()
