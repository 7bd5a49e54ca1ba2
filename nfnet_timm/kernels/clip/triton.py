"""Adaptive gradient clipping for GPUs, by Triton: one launch for all tensors, a program for each unit.

The launch finds the tensors by a table of their addresses. Gradients are scaled where they lie, and read a second time
only where they are.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nfnet_timm.kernels.clip.settings import Clipping, settings_of_each
from nfnet_timm.kernels.clip.units import unit_length

__all__ = ["clip_"]

_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}
BLOCK = 1024  # elements of a unit that are read at a time


@triton.jit(do_not_specialize=["count"])  # one kernel for one tensor and for many
def clip_kernel(
    table,  # (count, 4), int64: of each tensor the address of its weight and gradient, its first unit, a unit's length
    count,
    clip_factor,
    eps,
    grad_scale,  # (), float32, or anything where there is none
    HAS_SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,  # dtypes
    GRAD: tl.constexpr,
    ACC: tl.constexpr,  # in which norms are taken
    HALVINGS: tl.constexpr,  # of the table, until one tensor is left
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    first, behind = 0, count
    for _ in tl.static_range(HALVINGS):
        middle = (first + behind) // 2
        is_right = tl.load(table + 4 * middle + 2) <= unit
        first = tl.where(is_right, middle, first)
        behind = tl.where(is_right, behind, middle)
    entry = table + 4 * first
    length = tl.load(entry + 3)
    start = (unit - tl.load(entry + 2)) * length
    weight = tl.load(entry).to(tl.pointer_type(WEIGHT)) + start
    grad = tl.load(entry + 1).to(tl.pointer_type(GRAD)) + start
    cols = tl.arange(0, BLOCK)
    weight_squares = tl.zeros((BLOCK,), ACC)
    grad_squares = tl.zeros((BLOCK,), ACC)
    for at in range(0, length, BLOCK):
        inside = at + cols < length
        w = tl.load(weight + at + cols, mask=inside, other=0.0).to(ACC)
        g = tl.load(grad + at + cols, mask=inside, other=0.0).to(ACC)
        weight_squares += w * w
        grad_squares += g * g
    limit = tl.maximum(tl.sqrt(tl.sum(weight_squares)), eps) * clip_factor
    if HAS_SCALE:
        limit *= tl.load(grad_scale)
    norm = tl.sqrt(tl.sum(grad_squares))
    if not norm <= limit:  # also where it is NaN
        ratio = limit / norm
        for at in range(0, length, BLOCK):
            inside = at + cols < length
            g = tl.load(grad + at + cols, mask=inside, other=0.0).to(ACC)
            tl.store(grad + at + cols, (g * ratio).to(GRAD), mask=inside)


def clip_(weights: list[Tensor], grads: list[Tensor], settings: list[float], grad_scale: Tensor | None) -> None:
    """Clip all tensors; a launch for each pair of dtypes and each ``Clipping``.

    A program for each unit: a grid has room for 2**31 - 1. Offsets are 64 bits wide.
    """
    alike: dict[tuple[torch.dtype, torch.dtype, tuple[float, ...]], list[int]] = {}
    for i, (w, g, own) in enumerate(zip(weights, grads, settings_of_each(settings), strict=True)):
        if g.numel():
            alike.setdefault((w.dtype, g.dtype, own), []).append(i)
    for (weight_dtype, grad_dtype, own), members in alike.items():
        clipping = Clipping(*own)
        entries, units = [], 0
        for i in members:
            length = unit_length(weights[i])
            entries += [weights[i].data_ptr(), grads[i].data_ptr(), units, length]
            units += grads[i].numel() // length
        table = _table_on_device(entries, weights[members[0]], grads[0].device)
        clip_kernel[(units,)](
            table,
            len(members),
            clipping.clip_factor,
            clipping.clip_eps,
            table if grad_scale is None else grad_scale.float(),
            HAS_SCALE=grad_scale is not None,
            WEIGHT=_DTYPES[weight_dtype],
            GRAD=_DTYPES[grad_dtype],
            ACC=_DTYPES[torch.promote_types(weight_dtype, torch.float32)],
            HALVINGS=len(members).bit_length(),
            BLOCK=BLOCK,
        )


# Tables that a CUDA graph copies from the host at each replay. They live as long as a weight that the graph reads.
_in_graphs = WeakTensorKeyDictionary()


def _table_on_device(entries: list[int], weight: Tensor, device: torch.device) -> Tensor:
    """Return ``entries`` on ``device``; nothing waits for the copy.

    From step to step the same addresses come again, and the table is taken from a cache. Its key contains all entries,
    so an address that now belongs to a tensor of another shape has another table. It also contains the stream: on the
    stream that copies, what reads the table comes after the copy, and memory is reused after what reads it.
    """
    if device.type != "cuda":  # in Triton's interpreter
        return torch.tensor(entries)
    if torch.cuda.is_current_stream_capturing():
        pinned, table = _copied(tuple(entries), device)
        _in_graphs.setdefault(weight, []).append(pinned)
        return table
    return _cached(tuple(entries), device, torch.cuda.current_stream(device).cuda_stream)[1]


@lru_cache(maxsize=16)
def _cached(entries: tuple[int, ...], device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    return _copied(entries, device)


def _copied(entries: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    pinned = torch.tensor(entries, pin_memory=True)
    return pinned, pinned.to(device, non_blocking=True)
