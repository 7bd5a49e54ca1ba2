"""Adaptive gradient clipping of many tensors: one operation where launches count, torch's own elsewhere.

``nfnet_timm::clip_`` has an implementation by Triton for GPUs, and one by torch's operations for where there is no
Triton. Source of the rule: arXiv 2102.06171, section 4.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nfnet_timm.kernels.dispatch import is_on_a_device
from nfnet_timm.kernels.torch_private import foreach_copy_

__all__ = ["clip_", "is_dense", "is_one_unit", "unit_norm"]

torch.library.define(
    "nfnet_timm::clip_",
    "(Tensor[] weights, Tensor(a!)[] grads, float[] clip_factors, float[] eps, Tensor? grad_scale) -> ()",
)


def clip_(
    weights: list[Tensor],
    grads: list[Tensor],
    clip_factors: list[float],
    eps: list[float],
    grad_scale: Tensor | None,
) -> None:
    """Scale each unit of ``grads``, in place, to at most ``grad_scale * clip_factor * max(|W|, eps)``.

    All on one device and dense, see ``is_dense``; ``unitwise_norm`` says what a unit is.
    """
    by: Any = torch.ops.nfnet_timm.clip_ if is_on_a_device(grads[0]) else clip_by_torch_
    by(weights, grads, clip_factors, eps, grad_scale)


def clip_by_torch_(
    weights: list[Tensor],
    grads: list[Tensor],
    clip_factors: list[float],
    eps: list[float],
    grad_scale: Tensor | None,
) -> None:
    """Clip tensors whose units are of one length together.

    On a CPU a kernel or matrix is clipped by itself: there are no launches to save, and its gradient is still in the
    cache when it is scaled.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
        by_itself = i if g.is_cpu and not is_one_unit(w) else None
        key = (by_itself, unit_length(w), w.dtype, g.dtype, clip_factors[i], eps[i])
        alike.setdefault(key, []).append(i)
    for (*_, clip_factor, least), members in alike.items():
        clip_alike_([weights[i] for i in members], [grads[i] for i in members], clip_factor, least, grad_scale)


def clip_alike_(
    weights: list[Tensor], grads: list[Tensor], clip_factor: float, eps: float, grad_scale: Tensor | None
) -> None:
    """Clip tensors whose units are of one length, as one matrix: in ten operations, however many they are."""
    weights, grads = [_rows(w) for w in weights], [_rows(g) for g in grads]
    alone = len(grads) == 1
    scale = unit_norm(weights[0] if alone else torch.cat(weights), False).clamp_(min=eps).mul_(clip_factor)
    if grad_scale is not None:
        scale.mul_(grad_scale)
    units = grads[0] if alone else torch.cat(grads)
    units.mul_(scale.div_(unit_norm(units, False)).clamp_(max=1.0))
    if not alone:
        foreach_copy_(grads, units.split([len(g) for g in grads]))


def is_dense(x: Tensor) -> bool:
    """Tell whether the elements of ``x`` lie one after the other, in one of the two usual orders."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def is_one_unit(x: Tensor) -> bool:
    """Tell whether ``x`` is clipped as a whole: a scalar, a vector, or one stored with further dimensions of size 1."""
    return x.dim() < 2 or x.numel() == max(x.shape)


def unit_length(x: Tensor) -> int:
    """Return the number of elements in each unit of ``x``."""
    return x.numel() if is_one_unit(x) else x.shape[1:].numel()


def unit_norm(x: Tensor, one_unit: bool) -> Tensor:
    """Return the L2 norm of ``x`` as a whole, or of its rows, at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if one_unit:
        return torch.linalg.vector_norm(x, dtype=dtype)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True, dtype=dtype)


def _rows(x: Tensor) -> Tensor:
    """Return a view of a dense tensor as a matrix with a unit in each row, its elements in the order of memory."""
    if is_one_unit(x):
        return x.view(1, -1)
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).flatten(1)


@torch.library.register_fake("nfnet_timm::clip_")
def _(*args: Any) -> None:
    return None


torch.library.impl("nfnet_timm::clip_", "CompositeExplicitAutograd", clip_by_torch_)

if find_spec("triton") is not None:

    @torch.library.impl("nfnet_timm::clip_", "CUDA")
    def _(weights: list[Tensor], grads: list[Tensor], *settings: Any) -> None:
        from nfnet_timm.kernels import clip_triton  # not above: it takes a GPU

        with torch.cuda.device_of(grads[0]):  # Triton launches on the current device
            clip_triton.clip_(weights, grads, *settings)
