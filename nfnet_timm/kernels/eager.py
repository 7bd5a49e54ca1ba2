"""Whether a tensor is in eager mode, on which device. Fast implementations are for such tensors only.

All other tensors use the formula. It consists of torch's own operations, so compilers, exporters and transforms can
read it.
"""

import torch
from torch import Tensor, nn

from nfnet_timm.compat.torch import has_dispatch_modes, has_forward_derivatives, has_transforms

__all__ = ["is_eager_on_cpu", "is_on_a_device"]


def is_eager_on_cpu(x: Tensor) -> bool:
    """Return whether ``x`` is a plain tensor on a CPU, and operations on it run immediately (eager mode).

    False during tracing and compilation, in ``torch.func``, for forward-mode derivatives, under a dispatch mode, and
    for subclasses of Tensor such as fake tensors.
    """
    return x.is_cpu and _is_eager(x) and not has_dispatch_modes()


def is_on_a_device(x: Tensor) -> bool:
    """Return whether ``x`` is a plain tensor on a device other than a CPU, in eager mode; see ``is_eager_on_cpu``.

    Also True for the meta device, and under a dispatch mode, so that the operations of a GPU can be counted.
    """
    return not x.is_cpu and _is_eager(x)


def _is_eager(x: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or has_transforms() or has_forward_derivatives():
        return False
    return type(x) in (Tensor, nn.Parameter)
