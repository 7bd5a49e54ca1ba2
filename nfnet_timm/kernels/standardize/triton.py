"""Weight standardization and its gradients for GPUs, by Triton: one launch each, one program for each row.

A row stays in registers, so it is read once. The variance is computed from the centred row. Everything is computed in
float32. The formulas of the gradients are in ``backward_by_torch`` in ``operation``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from packaging.version import Version
from torch import Tensor

__all__ = ["standardize", "standardize_backward"]


@triton.jit
def _centred(w, inside, fan_in):
    centred = tl.where(inside, w - tl.sum(w) / fan_in, 0.0)
    # Subtract the mean a second time. In a row far from zero, the rounding error of the first mean is as large as the
    # deviations of the weights.
    return tl.where(inside, centred - tl.sum(centred) / fan_in, 0.0)


@triton.jit
def standardize_kernel(
    weight,  # (O, fan_in)
    gain,  # (O,)
    out,  # (O, fan_in), any floating-point dtype
    fan_in,
    scale,
    eps,
    BLOCK: tl.constexpr,  # the smallest power of two that is at least fan_in
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
    grad,  # (O, fan_in), the gradient of the standardized weight
    weight,  # (O, fan_in)
    gain,  # (O,)
    grad_weight,  # (O, fan_in)
    grad_gain,  # (O,)
    fan_in,
    scale,
    eps,
    BLOCK: tl.constexpr,  # the smallest power of two that is at least fan_in
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
    """Return the block size and the number of warps for a row of ``fan_in`` weights.

    Each thread then holds at most 32 weights.
    """
    block = triton.next_power_of_2(fan_in)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 8)}


def standardize(weight: Tensor, gain: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the standardized weight in ``dtype``; ``weight`` and the result are contiguous."""
    out = torch.empty_like(weight, dtype=dtype)
    _launch(standardize_kernel, (weight, gain, out), weight, scale, eps)
    return out


def standardize_backward(grad: Tensor, weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight and the gain."""
    grad_weight, grad_gain = torch.empty_like(weight), torch.empty_like(gain)
    _launch(backward_kernel, (grad, weight, gain, grad_weight, grad_gain), weight, scale, eps)
    return grad_weight, grad_gain


# ``kernel[grid](...)`` examines each argument in each call, and this takes longer than the launch. So a compiled kernel
# is kept, and launched directly if the row length and dtypes are the same and all addresses are multiples of 16. This
# was not tried with Triton before 3.6.
_compiled: dict[tuple[Any, ...], Any] = {}
LAUNCHES_DIRECTLY = Version(triton.__version__) >= Version("3.6")


def _launch(kernel: Any, tensors: tuple[Tensor, ...], weight: Tensor, scale: float, eps: float) -> None:
    """Launch one program for each row of ``weight``; a grid may have 2**31 - 1 programs, and offsets have 64 bits."""
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
