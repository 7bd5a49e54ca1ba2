"""Adaptive gradient clipping for GPUs, by Triton: one launch for all tensors, one program for each unit.

Units are numbered across all tensors. A table has a row for each tensor, by which a program finds its unit. The table
of weights of shape (2, 3) and (4, 5) is::

    weight address, gradient address, first unit, unit length
    w0,             g0,               0,          3            # units 0 and 1
    w1,             g1,               2,          5            # units 2 to 5

Program 4 searches for the last row whose first unit is at most 4: it is w1, and its unit is row 4 - 2 = 2 of w1.
Gradients are scaled in place. Only units that are clipped are read a second time.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.kernels.clip.units import unit_length

__all__ = ["clip_"]

_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}
BLOCK = 1024  # elements of a unit that are read together


@triton.jit(do_not_specialize=["count"])  # one kernel for one tensor and for many
def clip_kernel(
    table,  # (count, 4), int64; see above
    count,  # tensors
    clip_factor,
    eps,
    grad_scale,  # (), float32; not read without HAS_SCALE
    HAS_SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,  # dtype of the weights
    GRAD: tl.constexpr,  # dtype of the gradients
    ACC: tl.constexpr,  # dtype of the norms
    HALVINGS: tl.constexpr,  # steps of the binary search in the table
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
    if not norm <= limit:  # also if the norm is NaN
        ratio = limit / norm
        for at in range(0, length, BLOCK):
            inside = at + cols < length
            g = tl.load(grad + at + cols, mask=inside, other=0.0).to(ACC)
            tl.store(grad + at + cols, (g * ratio).to(GRAD), mask=inside)


def clip_(weights: list[Tensor], grads: list[Tensor], clippings: list[Clipping], grad_scale: Tensor | None) -> None:
    """Clip all tensors, in one launch for each combination of dtypes and ``Clipping``.

    A grid may have 2**31 - 1 programs, one for each unit. Offsets have 64 bits.
    """
    alike: dict[tuple[torch.dtype, torch.dtype, Clipping], list[int]] = {}
    for i, (w, g, clipping) in enumerate(zip(weights, grads, clippings, strict=True)):
        if g.numel():
            alike.setdefault((w.dtype, g.dtype, clipping), []).append(i)
    for (weight_dtype, grad_dtype, clipping), members in alike.items():
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


# Host tables that CUDA graphs copy at each replay. A table is kept as long as a weight that its graph reads.
_in_graphs = WeakTensorKeyDictionary()


def _table_on_device(entries: list[int], weight: Tensor, device: torch.device) -> Tensor:
    """Return the table ``entries`` on ``device``, without waiting for the copy.

    Addresses are usually the same in each step, so tables are cached. The key of the cache contains all entries: an
    address that now belongs to a tensor of another shape gives another table. The key also contains the stream. A
    stream runs its operations in order: first the copy of the table, then the kernel that reads it, and only then an
    operation that reuses the table's memory.
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
