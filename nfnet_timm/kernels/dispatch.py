"""Which implementation a tensor may take: one made for its device, or the formula, which anything can look into."""

import torch
from torch import Tensor, nn

from nfnet_timm.kernels.torch_private import has_dispatch_modes, has_transforms

__all__ = ["is_eager_on_cpu", "is_on_a_device", "is_symbol"]


def is_eager_on_cpu(x: Tensor) -> bool:
    """Tell whether ``x`` has its numbers here and now: on a CPU, in eager mode, and nobody stands between."""
    return x.is_cpu and _is_eager(x) and not has_dispatch_modes()


def is_on_a_device(x: Tensor) -> bool:
    """Tell whether operations on ``x`` are launched one by one: on a device that is no CPU, the meta device too."""
    return not x.is_cpu and _is_eager(x)


def is_symbol(size: int) -> bool:
    """Tell whether torch.compile keeps the ``size`` of a tensor open, for a graph that takes several sizes."""
    if not torch.compiler.is_dynamo_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes time; Dynamo has imported it

    return not has_static_value(size)


def _is_eager(x: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or has_transforms():
        return False  # somebody traces, compiles or transforms what runs
    return type(x) in (Tensor, nn.Parameter)
