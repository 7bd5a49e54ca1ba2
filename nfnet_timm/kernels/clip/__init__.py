"""Adaptive gradient clipping of many tensors: ``clip_`` chooses the implementation.

settings     the options of clipping, one record for each tensor
units        which elements are clipped together
reference    torch's operations; the kernel is compared with them
triton       one kernel for a GPU

On the meta device, or under a dispatch mode, one call is one operation, ``nfnet_timm::clip_``.
"""

from typing import Any

import torch
from torch import Tensor

from nfnet_timm.compat.torch import has_dispatch_modes
from nfnet_timm.kernels.check import has_right_kernel
from nfnet_timm.kernels.clip.reference import clip_by_torch_
from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.kernels.eager import is_on_a_device

__all__ = ["clip_"]

torch.library.define(
    "nfnet_timm::clip_",
    # settings: the fields of ``Clipping`` of the first tensor, then of the second, and so on
    "(Tensor[] weights, Tensor(a!)[] grads, float[] settings, Tensor? grad_scale) -> ()",
)


def clip_(weights: list[Tensor], grads: list[Tensor], clippings: list[Clipping], grad_scale: Tensor | None) -> None:
    """Scale each unit of ``grads``, in place, to at most ``grad_scale * clip_factor * max(|W|, clip_eps)``.

    All tensors are on one device. Each one is contiguous, or channels-last without gaps. ``unitwise_norm`` defines a
    unit.
    """
    first = grads[0]
    if not is_on_a_device(first):
        clip_by_torch_(weights, grads, clippings, grad_scale)
    elif first.is_cuda and not has_dispatch_modes() and has_right_kernel("clip", first.device):
        from nfnet_timm.kernels.clip import triton  # not at the top: Triton may be missing

        with torch.cuda.device(first.device):  # Triton launches on the current device
            triton.clip_(weights, grads, clippings, grad_scale)
    else:
        settings = [value for clipping in clippings for value in clipping]
        torch.ops.nfnet_timm.clip_(weights, grads, settings, grad_scale)


@torch.library.register_fake("nfnet_timm::clip_")
def _(*args: Any) -> None:
    return None


def _clip_by_torch_(
    weights: list[Tensor], grads: list[Tensor], settings: list[float], grad_scale: Tensor | None
) -> None:
    count = len(Clipping._fields)
    clippings = [Clipping(*settings[i : i + count]) for i in range(0, len(settings), count)]
    clip_by_torch_(weights, grads, clippings, grad_scale)


torch.library.impl("nfnet_timm::clip_", "CompositeExplicitAutograd", _clip_by_torch_)
