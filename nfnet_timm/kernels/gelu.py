"""GELU in its tanh form. For float32 on a CPU it is computed without tanh, which takes most of the time.

Source: arXiv 1606.08415, section 2; JAX's ``gelu(approximate=True)``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nfnet_timm.kernels.eager import is_eager_on_cpu

__all__ = ["gelu_tanh"]

SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def gelu_tanh(x: Tensor) -> Tensor:
    """Return ``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))`` to the rounding of the dtype of ``x``.

    For float32 on a CPU it computes no tanh. Otherwise, in exported programs and in ``torch.func`` it is torch's
    ``F.gelu``, which is faster in half precision.
    """
    if is_eager_on_cpu(x) and x.dtype == torch.float32:
        return _GELUTanh.apply(x) if torch.is_grad_enabled() else by_sigmoid(x)
    if x.is_cpu and torch.compiler.is_compiling() and not (torch.compiler.is_exporting() or x.dtype == torch.float64):
        y = x.float()
        return (y * torch.sigmoid(SLOPE * (y + CUBIC * y * y * y))).to(x.dtype)
    if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        # torch.jit.optimize_for_inference passes an activation after a convolution to oneDNN, which has no tanh form. A
        # view between the convolution and the activation prevents this.
        x = x.view_as(x)
    return F.gelu(x, approximate="tanh")


class _GELUTanh(torch.autograd.Function):
    """``by_sigmoid`` that saves only its input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return by_sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad, *ctx.saved_tensors, approximate="tanh")


def by_sigmoid(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(2 * z)``, which equals ``0.5 * x * (1 + tanh(z))``.

    torch's sigmoid takes 1/6 of the time of its tanh.
    """
    z = torch.addcmul(x.new_tensor(SLOPE), x, x, value=CUBIC * SLOPE)
    return z.mul_(x).sigmoid_().mul_(x)
