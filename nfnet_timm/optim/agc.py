"""Adaptive gradient clipping as published.

Source: arXiv 2102.06171, section 4; ``SGD_AGC`` in deepmind-research/nfnets/optim.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nfnet_timm.compat.torch import foreach_clamp_max_, foreach_clamp_min_, foreach_div_, foreach_mul_, foreach_norm
from nfnet_timm.kernels.clip import clip_
from nfnet_timm.kernels.clip.settings import CLIP_EPS, CLIP_FACTOR, Clipping
from nfnet_timm.kernels.clip.units import is_contiguous_or_channels_last, is_one_unit, unit_norm

__all__ = [
    "ClipStats",
    "adaptive_clip_grad_",
    "clip_each_",
    "clip_stats",
    "local_grad",
    "unitwise_norm",
]


def unitwise_norm(x: Tensor) -> Tensor:
    """Return the L2 norm of each unit of ``x``, at least in float32, in a shape that broadcasts against ``x``.

    A unit is a row of a matrix or of a convolution kernel (dim 0: the weights of one output). A vector or a scalar is
    one unit, also if it has further dimensions of size 1. In the kernel of a transposed convolution, dim 0 is the
    input, so a unit is the weights of one input. The networks of the papers have no transposed convolution.

    Differs from timm: in timm's ``unitwise_norm``, each element of a gain of shape (O, 1, 1, 1) is a unit.
    """
    return unit_norm(x, is_one_unit(x))


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float | None = CLIP_FACTOR,
    eps: float = CLIP_EPS,
) -> None:
    """Scale each unit's gradient, in place, to at most ``clip_factor`` times the norm of the unit's weights.

    ``G <- G * min(1, clip_factor * max(|W|, eps) / |G|)`` for each unit; ``unitwise_norm`` defines a unit. Norms are
    computed at least in float32.

    All given parameters are clipped. The authors clip the classifier's bias, but not its weight, so leave the weight
    out.

    Parameters may be sharded over processes on dim 0 (FSDP2), with the same result. Each process clips its own rows,
    and the norms of all vectors take one collective.

    On a GPU with Triton, clipping is one launch. On a GPU without Triton, units of the same length are copied into one
    matrix during the call.

    Args:
        clip_factor: Largest ratio of gradient norm to weight norm (lambda in the paper). 0.01 suits batches of 1024
            to 4096; smaller batches train with larger factors. None: nothing is clipped.
        eps: Lower bound of the weight norm. With it, parameters that start at zero can change.
    Raises:
        ValueError: If ``clip_factor`` or ``eps`` is not a number above 0, a parameter is not a tensor, or is complex, a
            gradient is sparse, a matrix or kernel is sharded on another dim than 0, or FSDP1 has flattened a parameter.
    Differs from timm: ``timm.utils.adaptive_clip_grad`` clips gains element by element.
    """
    params = [parameters] if isinstance(parameters, (Tensor, nn.Module)) else list(parameters)
    for p in params:
        if not isinstance(p, Tensor):
            raise ValueError(f"parameters has {type(p).__name__}: expected tensors. Pass model.parameters()")
    clipping = Clipping.of(clip_factor, eps)
    if clipping is not None:
        clip_each_([(p, clipping) for p in params])


@torch.no_grad()
def clip_each_(clipped: list[tuple[Tensor, Clipping]], grad_scale: Tensor | None = None) -> None:
    """Clip the gradient of each parameter as ``adaptive_clip_grad_`` does, but with the settings beside it.

    Pass all parameters in one call. Then all vectors that are sharded over processes take one collective together.

    Args:
        grad_scale: The factor of a gradient scaler, if the gradients still contain it.
    """
    for device, here in _by_device(clipped).items():
        _clip_on_device_(here, None if grad_scale is None else grad_scale.to(device))


def _by_device(clipped: list[tuple[Tensor, Clipping]]) -> dict[torch.device, list[tuple[Tensor, Clipping]]]:
    """Return the parameters that have a gradient, grouped by device: a foreach call accepts only one device."""
    devices: dict[torch.device, list[tuple[Tensor, Clipping]]] = {}
    for p, clipping in clipped:
        if p.grad is not None:
            devices.setdefault(p.device, []).append((p, clipping))
    return devices


def _clip_on_device_(clipped: list[tuple[Tensor, Clipping]], grad_scale: Tensor | None) -> None:
    whole: list[tuple[Tensor, Tensor, Clipping]] = []  # local weight, local gradient
    rest: list[tuple[Tensor, Clipping]] = []
    for p, clipping in clipped:
        weight, grad, group = _local(p)
        is_split = group is not None and is_one_unit(p)
        if is_split or not (is_contiguous_or_channels_last(weight) and is_contiguous_or_channels_last(grad)):
            rest.append((p, clipping))
        else:
            whole.append((weight, grad, clipping))
    if rest:
        grads, scales, grad_norms = _norms(rest)
        if grad_scale is not None:
            foreach_mul_(scales, grad_scale)
        foreach_div_(scales, grad_norms)
        foreach_clamp_max_(scales, 1.0)
        foreach_mul_(grads, scales)
    if whole:
        weights, grads, clippings = map(list, zip(*whole, strict=True))
        clip_(weights, grads, clippings, grad_scale)


@dataclass(frozen=True)
class ClipStats:
    """The effect of clipping on one parameter.

    Args:
        clipped: Share of its units whose gradient is scaled down, 0 to 1.
        max_ratio: Largest |G| / max(|W|, eps) of its units. Units above the clip factor are clipped.
    """

    clipped: float
    max_ratio: float


@torch.no_grad()
def clip_stats(
    parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    clip_factor: float = CLIP_FACTOR,
    eps: float = CLIP_EPS,
) -> dict[str, ClipStats]:
    """Return, by name, how the next step would clip the present gradients.

    The classifier's weight in a network of this package counts as not clipped, as in the optimizers. A unit whose
    gradient is NaN counts as clipped. For sharded parameters, only the rows of this process are counted. There is one
    transfer from each device. With a gradient scaler, call its ``unscale_(optimizer)`` first.

    Args:
        parameters: ``model.named_parameters()``, or a dict.
    Raises:
        ValueError: As ``adaptive_clip_grad_``, or if ``parameters`` has no names.
    """
    from nfnet_timm.optim.param_groups import known_classifier_weights

    try:
        named = dict(parameters)
    except (TypeError, ValueError):
        raise ValueError(
            f"parameters is {type(parameters).__name__}: expected names and tensors. Pass model.named_parameters()"
        ) from None
    names = {id(p): name for name, p in named.items()}
    clipping = Clipping.of(clip_factor, eps)
    found: dict[str, list[float]] = {}
    if clipping is None:
        return {}
    for here in _by_device([(p, clipping) for p in named.values()]).values():
        _, max_norms, grad_norms = _norms(here)
        ratios = {names[id(p)]: g / m for (p, _), g, m in zip(here, grad_norms, max_norms, strict=True)}
        ratios = {name: ratio for name, ratio in ratios.items() if ratio.numel()}  # a process may have no rows
        # not ratio > 1, because NaN is changed too
        rows = [torch.stack([(~(r <= 1)).float().mean(), r.max() * clipping.clip_factor]) for r in ratios.values()]
        if rows:
            found.update(zip(ratios, torch.stack(rows).tolist(), strict=True))
    exempt = known_classifier_weights()
    return {
        name: ClipStats(0.0 if id(p) in exempt else found[name][0], found[name][1])
        for name, p in named.items()
        if name in found
    }


def _norm_each(tensors: list[Tensor], one_unit: list[bool]) -> list[Tensor]:
    whole = [x for x, one in zip(tensors, one_unit, strict=True) if one]
    # All vectors together, in a few launches, because two thirds of the parameter tensors are vectors.
    dtype = reduce(torch.promote_types, {x.dtype for x in whole}, torch.float32)
    norms = iter(foreach_norm(whole, 2, dtype=dtype) if whole else [])
    return [next(norms) if one else unit_norm(x, False) for x, one in zip(tensors, one_unit, strict=True)]


def _norms(clipped: list[tuple[Tensor, Clipping]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the local gradients of this process, the largest allowed norms of their units, and the present norms."""
    params, clippings = zip(*clipped, strict=True)
    weights, grads, groups = map(list, zip(*map(_local, params), strict=True))
    one_unit = [is_one_unit(p) for p in params]
    weight_norms, grad_norms = _norm_each(weights, one_unit), _norm_each(grads, one_unit)
    split: dict[Any, list[Tensor]] = {}  # process group -> norms of the vectors sharded over it
    for group, one, weight_norm, grad_norm in zip(groups, one_unit, weight_norms, grad_norms, strict=True):
        if group is not None and one:
            split.setdefault(group, []).extend((weight_norm, grad_norm))
    for group, norms in split.items():
        squares = torch.stack(norms).double().square_()
        dist.all_reduce(squares, group=group)
        for norm, whole in zip(norms, squares.sqrt_(), strict=True):
            norm.copy_(whole)
    foreach_clamp_min_(weight_norms, [clipping.clip_eps for clipping in clippings])
    foreach_mul_(weight_norms, [clipping.clip_factor for clipping in clippings])
    return grads, weight_norms, grad_norms


def _local(p: Tensor) -> tuple[Tensor, Tensor, Any]:
    """Return this process's part of the weight and the gradient, and the process group of a sharded parameter."""
    if p.is_complex() or p.grad.is_sparse:  # type: ignore[union-attr]
        kind = f"is {p.dtype}" if p.is_complex() else "has a sparse gradient"
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} {kind}: adaptive clipping needs real weights and dense gradients. "
            "Leave it out, or set its group's clip_factor to None"
        )
    if getattr(p, "_fsdp_flattened", False):
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} was flattened by FSDP1, which leaves no rows to clip: use FSDP2's "
            "torch.distributed.fsdp.fully_shard"
        )
    if not hasattr(p, "placements"):
        return p, local_grad(p), None
    mesh: Any = p.device_mesh  # type: ignore[attr-defined]
    sharded = [(dim, placement.dim) for dim, placement in enumerate(p.placements) if placement.is_shard()]
    if len(sharded) > 1 or any(of_p != 0 and not is_one_unit(p) for _, of_p in sharded):
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is sharded as {p.placements} over {mesh}: expected dim 0 over one "
            "dim of the mesh, fully_shard's default, because each process needs whole rows to clip them"
        )
    group = mesh.get_group(sharded[0][0]) if sharded else None
    return p.to_local(), local_grad(p), group  # type: ignore[attr-defined]


def local_grad(p: Tensor) -> Tensor:
    """Return this process's part of the gradient of ``p``, which is placed on the processes as ``p`` is.

    With sequence parallelism, each process has only a part of the sum that is the gradient. The sum is computed here.
    """
    if not hasattr(p, "placements"):
        return p.grad  # type: ignore[return-value]
    grad: Any = p.grad
    if grad.placements != p.placements:
        grad = p.grad = grad.redistribute(placements=p.placements)
    return grad.to_local()
