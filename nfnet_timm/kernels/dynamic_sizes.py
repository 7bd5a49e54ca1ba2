"""Convolution of dynamic image sizes: torch.compile then makes one graph for images of several sizes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["conv2d_of_dynamic_size", "has_dynamic_size"]


def has_dynamic_size(x: Tensor) -> bool:
    """Return whether torch.compile treats the height or width of ``x`` as a symbol."""
    if not torch.compiler.is_dynamo_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # a slow import, which Dynamo has done

    return not (has_static_value(x.shape[2]) and has_static_value(x.shape[3]))


def conv2d_of_dynamic_size(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """Return the same as ``F.conv2d``; ``geometry`` is the stride, padding, dilation and groups."""
    if x.is_cpu:
        # On a CPU, torch.compile makes feature maps channels-last in any case. If they were traced in another layout,
        # the graph of the backward pass has fixed numbers for their strides, and fits one size only.
        x = x.contiguous(memory_format=torch.channels_last)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.conv2d(x, weight, bias, *geometry)
    return _GradOfInput.apply(F.conv2d(x.detach(), weight, bias, *geometry), x, weight, *geometry)


class _GradOfInput(torch.autograd.Function):
    """The gradient of a convolution's input, computed as a transposed convolution.

    For torch's own gradient, Inductor uses fixed numbers as strides, and the graph fits one size only.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.height, ctx.width, ctx.dtype = geometry, x.shape[2], x.shape[3], x.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.geometry
        grad_x = F.conv_transpose2d(grad, weight.to(grad.dtype), None, stride, padding, 0, groups, dilation)
        windows = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
        if any(window < s for window, s in zip(windows, stride, strict=True)):
            # The convolution may not have read the last rows and columns. SAME padding excludes this for other windows.
            grad_x = F.pad(grad_x, [0, ctx.width - grad_x.shape[3], 0, ctx.height - grad_x.shape[2]])
        return grad, grad_x.to(ctx.dtype), None, None, None, None, None
