"""Adaptive gradient clipping by torch's operations, on any device. Source: arXiv 2102.06171, section 4."""

from typing import Any

import torch
from torch import Tensor

from nfnet_timm.compat.torch import foreach_copy_
from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.kernels.clip.units import is_one_unit, rows_of, unit_length, unit_norm

__all__ = ["clip_alike_", "clip_by_torch_"]


def clip_by_torch_(
    weights: list[Tensor], grads: list[Tensor], clippings: list[Clipping], grad_scale: Tensor | None
) -> None:
    """Clip all tensors. Those with the same unit length, dtypes and settings are clipped together.

    On a CPU each kernel or matrix is clipped alone. A CPU has no launches to save, and the gradient is still in the
    cache when it is scaled.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (w, g, clipping) in enumerate(zip(weights, grads, clippings, strict=True)):
        alone = i if g.is_cpu and not is_one_unit(w) else None
        alike.setdefault((alone, unit_length(w), w.dtype, g.dtype, clipping), []).append(i)
    for (*_, clipping), members in alike.items():
        clip_alike_([weights[i] for i in members], [grads[i] for i in members], clipping, grad_scale)


def clip_alike_(weights: list[Tensor], grads: list[Tensor], clipping: Clipping, grad_scale: Tensor | None) -> None:
    """Clip tensors whose units have the same length, as one matrix: ten operations for any number of tensors."""
    weights, grads = [rows_of(w) for w in weights], [rows_of(g) for g in grads]
    alone = len(grads) == 1
    norm = unit_norm(weights[0] if alone else torch.cat(weights), False)
    scale = norm.clamp_(min=clipping.clip_eps).mul_(clipping.clip_factor)
    if grad_scale is not None:
        scale.mul_(grad_scale)
    units = grads[0] if alone else torch.cat(grads)
    units.mul_(scale.div_(unit_norm(units, False)).clamp_(max=1.0))
    if not alone:
        foreach_copy_(grads, units.split([len(g) for g in grads]))
