"""Adaptive gradient clipping of many tensors: one kernel on a GPU with Triton, torch's operations elsewhere.

On the meta device, or under a dispatch mode, the operation ``nfnet_timm::clip_`` counts as one. Source of the rule:
arXiv 2102.06171, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nfnet_timm.kernels.check import has_right_kernel
from nfnet_timm.kernels.dispatch import is_on_a_device
from nfnet_timm.kernels.torch_private import foreach_copy_, has_dispatch_modes

__all__ = ["CLIP_EPS", "CLIP_FACTOR", "Clipping", "clip_", "is_dense", "is_one_unit", "settings_of_each", "unit_norm"]

# The authors' values, for batches of 4096.
CLIP_FACTOR, CLIP_EPS = 0.01, 1e-3


class Clipping(NamedTuple):
    """The settings of adaptive clipping, which are also entries of an optimizer's parameter groups.

    Args:
        clip_factor: Largest ratio of gradient norm to weight norm.
        clip_eps: Lower bound of the weight norm.
    """

    clip_factor: float = CLIP_FACTOR
    clip_eps: float = CLIP_EPS

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Clipping | None:
        """Return the record of a parameter group's entries; None if its ``clip_factor`` is None: nothing is clipped.

        Raises:
            ValueError: If another value is not a number above 0; a text that is one is converted.
        """
        values = {name: settings[name] for name in Clipping._fields}
        is_off = values["clip_factor"] is None
        if is_off:
            values["clip_factor"] = CLIP_FACTOR
        record = Clipping(**{name: _positive(name, value) for name, value in values.items()})
        return None if is_off else record


def _positive(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(
            f"{name}={value!r}: expected a number above 0, such as the authors' clip_factor=0.01 and clip_eps=0.001. "
            "clip_factor=None switches adaptive clipping off"
        )
    return number


torch.library.define(
    "nfnet_timm::clip_",
    # settings: the fields of each tensor's Clipping, one tensor after the other
    "(Tensor[] weights, Tensor(a!)[] grads, float[] settings, Tensor? grad_scale) -> ()",
)


def clip_(weights: list[Tensor], grads: list[Tensor], clippings: list[Clipping], grad_scale: Tensor | None) -> None:
    """Scale each unit of ``grads``, in place, to at most ``grad_scale * clip_factor * max(|W|, clip_eps)``.

    All tensors are on one device and dense, see ``is_dense``; ``unitwise_norm`` defines a unit.
    """
    settings = [value for clipping in clippings for value in clipping]
    first = grads[0]
    if not is_on_a_device(first):
        clip_by_torch_(weights, grads, settings, grad_scale)
    elif first.is_cuda and not has_dispatch_modes() and has_right_kernel("clip", first.device):
        from nfnet_timm.kernels import clip_triton  # not above: it needs Triton

        with torch.cuda.device(first.device):  # Triton launches on the current device
            clip_triton.clip_(weights, grads, settings, grad_scale)
    else:
        torch.ops.nfnet_timm.clip_(weights, grads, settings, grad_scale)


def settings_of_each(settings: list[float]) -> list[tuple[float, ...]]:
    """Return the fields of the ``Clipping`` of each tensor."""
    count = len(Clipping._fields)
    return list(zip(*(settings[i::count] for i in range(count)), strict=True))


def clip_by_torch_(
    weights: list[Tensor], grads: list[Tensor], settings: list[float], grad_scale: Tensor | None
) -> None:
    """Clip tensors whose units have one length together.

    On a CPU each kernel or matrix is clipped alone: there are no launches to save, and its gradient is still in the
    cache when it is scaled.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (w, g, own) in enumerate(zip(weights, grads, settings_of_each(settings), strict=True)):
        alone = i if g.is_cpu and not is_one_unit(w) else None
        alike.setdefault((alone, unit_length(w), w.dtype, g.dtype, own), []).append(i)
    for (*_, own), members in alike.items():
        clip_alike_([weights[i] for i in members], [grads[i] for i in members], Clipping(*own), grad_scale)


def clip_alike_(weights: list[Tensor], grads: list[Tensor], clipping: Clipping, grad_scale: Tensor | None) -> None:
    """Clip tensors whose units have one length as one matrix: ten operations for any number of tensors."""
    weights, grads = [_rows(w) for w in weights], [_rows(g) for g in grads]
    alone = len(grads) == 1
    norm = unit_norm(weights[0] if alone else torch.cat(weights), False)
    scale = norm.clamp_(min=clipping.clip_eps).mul_(clipping.clip_factor)
    if grad_scale is not None:
        scale.mul_(grad_scale)
    units = grads[0] if alone else torch.cat(grads)
    units.mul_(scale.div_(unit_norm(units, False)).clamp_(max=1.0))
    if not alone:
        foreach_copy_(grads, units.split([len(g) for g in grads]))


def is_dense(x: Tensor) -> bool:
    """Whether the memory of ``x`` has no gaps, in contiguous or channels-last order."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def is_one_unit(x: Tensor) -> bool:
    """Whether ``x`` is clipped as a whole: a scalar or a vector, also with further dimensions of size 1."""
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
    """Return a dense tensor as a matrix with a unit in each row: a view, with the elements in the order of memory."""
    if is_one_unit(x):
        return x.view(1, -1)
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).flatten(1)


@torch.library.register_fake("nfnet_timm::clip_")
def _(*args: Any) -> None:
    return None


torch.library.impl("nfnet_timm::clip_", "CompositeExplicitAutograd", clip_by_torch_)
