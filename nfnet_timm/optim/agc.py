"""Adaptive gradient clipping as published.

Source: arXiv 2102.06171, section 4; ``SGD_AGC`` in deepmind-research/nfnets/optim.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nfnet_timm.kernels.clip import clip_, is_dense, is_one_unit, unit_norm
from nfnet_timm.kernels.torch_private import (
    foreach_clamp_max_,
    foreach_clamp_min_,
    foreach_div_,
    foreach_mul_,
    foreach_norm,
)

__all__ = ["ClipStats", "Limit", "adaptive_clip_grad_", "clip_each_", "clip_stats", "unitwise_norm"]


@dataclass(frozen=True)
class Limit:
    """A parameter, and how its gradient is limited; ``adaptive_clip_grad_`` says what the numbers are."""

    param: Tensor
    clip_factor: float
    clip_eps: float


def unitwise_norm(x: Tensor) -> Tensor:
    """Return the L2 norm of each unit of ``x``, at least in float32, in a shape that broadcasts against ``x``.

    A unit is a row of a matrix or of a convolution kernel (dim 0: the weights into one output); a vector or a scalar,
    also one stored with further dimensions of size 1, is one unit as a whole. Of a transposed convolution, which no
    network of the papers has, dim 0 is an input: its units are the weights out of one.

    Differs from timm: its ``unitwise_norm`` takes each element of a gain of shape (O, 1, 1, 1) for a unit.
    """
    return unit_norm(x, is_one_unit(x))


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    error_if_nonfinite: bool = False,
) -> None:
    """Scale each unit's gradient, in place, to at most ``clip_factor`` times the norm of the unit's weights.

    ``G <- G * min(1, clip_factor * max(|W|, eps) / |G|)`` per unit; see ``unitwise_norm`` for what a unit is. Leave out
    the classifier's weight, as the authors do; its bias is clipped. Norms are float32 at least. Parameters that are
    sharded over processes on dim 0 (FSDP2) get the same result: rows are clipped where they lie, and the norms of
    all vectors take one collective. On a GPU with Triton all is one launch; on one without, units of one length are
    copied into one matrix for the time of the call.

    Args:
        clip_factor: Largest ratio of gradient norm to weight norm (lambda in the paper); 0.01 suits batches of 1024
            to 4096, smaller batches train with larger ones.
        eps: Smallest weight norm that is reckoned with, so that parameters that start at zero can leave it.
        error_if_nonfinite: Whether to look for NaN and infinite gradients, which waits for the device.
    Raises:
        ValueError: If a gradient is sparse, a matrix or kernel is sharded across its rows, or FSDP1 has flattened it.
        RuntimeError: If ``error_if_nonfinite`` and a gradient is not finite; nothing is clipped then.
    Differs from timm: ``timm.utils.adaptive_clip_grad`` clips gains element by element.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    limits = [Limit(p, clip_factor, eps) for p in params]
    if error_if_nonfinite and not _are_finite(limits):
        raise RuntimeError(
            "a gradient is NaN or infinite, so it cannot be clipped: expected finite gradients. Look for the step's "
            "cause, or pass error_if_nonfinite=False to go on"
        )
    clip_each_(limits)


@torch.no_grad()
def clip_each_(limits: list[Limit], grad_scale: Tensor | None = None) -> None:
    """Clip each parameter's gradient within a limit of its own, as ``adaptive_clip_grad_`` does.

    All in one call, so that vectors sharded over processes take one collective whatever groups they are in.

    Args:
        grad_scale: What the gradients have been multiplied with, by a gradient scaler, and still are.
    """
    for device, here in _by_device(limits).items():
        _clip_on_device_(here, None if grad_scale is None else grad_scale.to(device))


def _by_device(limits: list[Limit]) -> dict[torch.device, list[Limit]]:
    """Return those that have a gradient, by device: one foreach call takes the tensors of one."""
    devices: dict[torch.device, list[Limit]] = {}
    for limit in limits:
        if limit.param.grad is not None:
            devices.setdefault(limit.param.device, []).append(limit)
    return devices


def _clip_on_device_(limits: list[Limit], grad_scale: Tensor | None) -> None:
    whole: list[tuple[Limit, Tensor, Tensor]] = []  # with what this process holds of the weight and the gradient
    rest: list[Limit] = []
    for limit in limits:
        weight, grad, group = _local(limit.param)
        is_split = group is not None and is_one_unit(limit.param)
        if is_split or not (is_dense(weight) and is_dense(grad)):
            rest.append(limit)
        else:
            whole.append((limit, weight, grad))
    if rest:
        grads, scales, grad_norms = _norms(rest)
        if grad_scale is not None:
            foreach_mul_(scales, grad_scale)
        foreach_div_(scales, grad_norms)
        foreach_clamp_max_(scales, 1.0)
        foreach_mul_(grads, scales)
    if whole:
        factors, eps = [limit.clip_factor for limit, _, _ in whole], [limit.clip_eps for limit, _, _ in whole]
        clip_([weight for _, weight, _ in whole], [grad for _, _, grad in whole], factors, eps, grad_scale)


@dataclass(frozen=True)
class ClipStats:
    """What clipping does to one parameter.

    Args:
        clipped: Share of its units whose gradient is scaled down, 0 to 1.
        max_ratio: Largest |G| / max(|W|, eps) over its units; those above the clip factor are clipped.
    """

    clipped: float
    max_ratio: float


@torch.no_grad()
def clip_stats(
    parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
) -> dict[str, ClipStats]:
    """Return, by name, what ``adaptive_clip_grad_`` would do to each parameter now; call it before the step.

    Costs the norms and one transfer from each device. Of sharded parameters, the rows that this process holds count.

    Args:
        parameters: ``model.named_parameters()``, or a dict.
    """
    named = dict(parameters)
    names = {id(p): name for name, p in named.items()}
    found: dict[str, list[float]] = {}
    for here in _by_device([Limit(p, clip_factor, eps) for p in named.values()]).values():
        _, max_norms, grad_norms = _norms(here)
        ratios = [(limit.param, g / m) for limit, g, m in zip(here, grad_norms, max_norms, strict=True)]
        ratios = [(p, ratio) for p, ratio in ratios if ratio.numel()]  # a process may hold no row
        rows = [torch.stack([(ratio > 1).float().mean(), ratio.max() * clip_factor]) for _, ratio in ratios]
        if rows:
            found.update(zip((names[id(p)] for p, _ in ratios), torch.stack(rows).tolist(), strict=True))
    return {name: ClipStats(*found[name]) for name in named if name in found}


def _norm_each(tensors: list[Tensor], one_unit: list[bool]) -> list[Tensor]:
    whole = [x for x, one in zip(tensors, one_unit, strict=True) if one]
    # All vectors in a few launches: they are two thirds of a network's parameters.
    dtype = reduce(torch.promote_types, {x.dtype for x in whole}, torch.float32)
    norms = iter(foreach_norm(whole, 2, dtype=dtype) if whole else [])
    return [next(norms) if one else unit_norm(x, False) for x, one in zip(tensors, one_unit, strict=True)]


def _norms(limits: list[Limit]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the gradients that this process holds, the largest norms that their units may have, and their norms."""
    owners = [limit.param for limit in limits]
    weights, grads, groups = map(list, zip(*map(_local, owners), strict=True))
    one_unit = [is_one_unit(p) for p in owners]
    weight_norms, grad_norms = _norm_each(weights, one_unit), _norm_each(grads, one_unit)
    split: dict[Any, list[Tensor]] = {}  # process group -> the norms of vectors that it shares
    for group, one, weight_norm, grad_norm in zip(groups, one_unit, weight_norms, grad_norms, strict=True):
        if group is not None and one:
            split.setdefault(group, []).extend((weight_norm, grad_norm))
    for group, norms in split.items():
        squares = torch.stack(norms).double().square_()
        dist.all_reduce(squares, group=group)
        for norm, whole in zip(norms, squares.sqrt_(), strict=True):
            norm.copy_(whole)
    foreach_clamp_min_(weight_norms, [limit.clip_eps for limit in limits])
    foreach_mul_(weight_norms, [limit.clip_factor for limit in limits])
    return grads, weight_norms, grad_norms


def _are_finite(limits: list[Limit]) -> bool:
    """Tell whether all gradients are finite, the same in every process that shares one of the parameters."""
    finite: dict[Any, Tensor] = {}
    for here in _by_device(limits).values():
        for limit, grad_norm in zip(here, _norms(here)[2], strict=True):
            group = _local(limit.param)[2]
            all_here = grad_norm.isfinite().all()
            finite[group] = (
                finite[group].logical_and(all_here.to(finite[group].device)) if group in finite else all_here
            )
    for group, all_here in finite.items():
        if group is not None:
            flag = all_here.float()
            dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=group)
            finite[group] = flag > 0
    return all(bool(all_here) for all_here in finite.values())


def _local(p: Tensor) -> tuple[Tensor, Tensor, Any]:
    """Return the weight and gradient that this process holds, and the group that shares a unit of them, if any does."""
    if p.grad.is_sparse:  # type: ignore[union-attr]
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} has a sparse gradient: adaptive clipping needs dense rows. "
            "Build the embedding with sparse=False, or leave its parameters out"
        )
    if getattr(p, "_fsdp_flattened", False):
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} was flattened by FSDP1, which leaves no rows to clip: use FSDP2's "
            "torch.distributed.fsdp.fully_shard"
        )
    if not hasattr(p, "placements"):
        return p, p.grad, None  # type: ignore[return-value]
    mesh: Any = p.device_mesh  # type: ignore[attr-defined]
    group = None
    for dim, placement in enumerate(p.placements):
        if placement.is_shard():
            if placement.dim != 0 and not is_one_unit(p):
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is sharded on dim {placement.dim}: expected dim 0, where "
                    "a row, the unit of clipping, stays whole. It is fully_shard's default"
                )
            if group is not None:
                raise ValueError(f"a parameter is sharded over two dims of {mesh}: expected one")
            group = mesh.get_group(dim)
    return p.to_local(), p.grad.to_local(), group  # type: ignore[attr-defined,union-attr]
