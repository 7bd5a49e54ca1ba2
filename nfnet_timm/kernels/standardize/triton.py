"""Weight standardization and its gradients for GPUs, by Triton: one launch each, a program for each row.

A row is held in registers, so it is read once, and its variance is taken of the centred row. All is computed in
float32. ``standardize_op.backward_by_torch`` has the formulas of the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from packaging.version import Version
from torch import Tensor

__all__ = ["backward", "standardize"]


@triton.jit
def _centred(w, inside, fan_in):
    centred = tl.where(inside, w - tl.sum(w) / fan_in, 0.0)
    # Once more, for what rounding left of the mean: of a row far off zero that is as large as its deviations.
    return tl.where(inside, centred - tl.sum(centred) / fan_in, 0.0)


@triton.jit
def standardize_kernel(
    weight,  # (O, fan_in)
    gain,  # (O,)
    out,  # (O, fan_in), of any floating-point dtype
    fan_in,
    scale,
    eps,
    BLOCK: tl.constexpr,  # the power of two from fan_in on
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < fan_in
    w = tl.load(weight + row * fan_in + cols, mask=inside, other=0.0).to(tl.float32)
    centred = _centred(w, inside, fan_in)
    r = 1.0 / tl.sqrt(tl.maximum(tl.sum(centred * centred), eps))
    factor = tl.load(gain + row).to(tl.float32) * scale * r
    tl.store(out + row * fan_in + cols, (centred * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad,  # (O, fan_in), of the standardized weight
    weight,  # (O, fan_in)
    gain,  # (O,)
    grad_weight,  # (O, fan_in)
    grad_gain,  # (O,)
    fan_in,
    scale,
    eps,
    BLOCK: tl.constexpr,  # the power of two from fan_in on
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < fan_in
    w = tl.load(weight + row * fan_in + cols, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * fan_in + cols, mask=inside, other=0.0).to(tl.float32)
    centred = _centred(w, inside, fan_in)
    var_fan_in = tl.sum(centred * centred)
    r = 1.0 / tl.sqrt(tl.maximum(var_fan_in, eps))
    h = tl.where(inside, g - tl.sum(g) / fan_in, 0.0)
    d = tl.sum(h * centred)
    tl.store(grad_gain + row, (scale * r * d).to(grad_gain.dtype.element_ty))
    along = tl.where(var_fan_in >= eps, r * r * d, 0.0)
    factor = tl.load(gain + row).to(tl.float32) * scale * r
    gradient = factor * (h - centred * along)
    tl.store(grad_weight + row * fan_in + cols, gradient.to(grad_weight.dtype.element_ty), mask=inside)


def options(fan_in: int) -> dict[str, int]:
    """Return the block and the warps for a row of ``fan_in`` weights: at most 32 numbers of it to a thread."""
    block = triton.next_power_of_2(fan_in)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 8)}


def standardize(weight: Tensor, gain: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the standardized weight, contiguous as ``weight`` is, in ``dtype``."""
    out = torch.empty_like(weight, dtype=dtype)
    _launch(standardize_kernel, (weight, gain, out), weight, scale, eps)
    return out


def backward(grad: Tensor, weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight and the gain."""
    grad_weight, grad_gain = torch.empty_like(weight), torch.empty_like(gain)
    _launch(backward_kernel, (grad, weight, gain, grad_weight, grad_gain), weight, scale, eps)
    return grad_weight, grad_gain


# ``kernel[grid](...)`` examines each argument in each call, which takes longer than the launch. Where the result is
# known, a compiled kernel is launched directly: for the same row length and dtypes, and addresses that are multiples of
# 16. With Triton before 3.6 this was not tried.
_compiled: dict[tuple[Any, ...], Any] = {}
LAUNCHES_DIRECTLY = Version(triton.__version__) >= Version("3.6")


def _launch(kernel: Any, tensors: tuple[Tensor, ...], weight: Tensor, scale: float, eps: float) -> None:
    """Launch a program for each row of ``weight``; a grid has room for 2**31 - 1, and offsets are 64 bits wide."""
    rows, fan_in = len(weight), weight.shape[1:].numel()
    addresses = 0
    for x in tensors:
        addresses |= x.data_ptr()
    key = (kernel, weight.get_device(), fan_in, *[x.dtype for x in tensors])
    if addresses % 16 == 0 and key in _compiled:
        compiled, block = _compiled[key]
        compiled[rows, 1, 1](*tensors, fan_in, scale, eps, block)
        return
    chosen = options(fan_in)
    compiled = kernel[(rows,)](*tensors, fan_in, scale, eps, **chosen)
    if addresses % 16 == 0 and LAUNCHES_DIRECTLY and compiled is not None:  # None from Triton's interpreter
        _compiled[key] = compiled, chosen["BLOCK"]
