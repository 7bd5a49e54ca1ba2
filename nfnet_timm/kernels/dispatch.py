"""Where the paths that are made for a CPU may be taken."""

import torch
from torch import Tensor, nn

from nfnet_timm.kernels.torch_private import has_dispatch_modes, has_transforms

__all__ = ["is_eager_on_cpu"]


def is_eager_on_cpu(x: Tensor) -> bool:
    """Tell whether ``x`` has its numbers here and now: on a CPU, and nobody traces, compiles or transforms."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or has_transforms():
        return False
    return x.is_cpu and type(x) in (Tensor, nn.Parameter) and not has_dispatch_modes()
