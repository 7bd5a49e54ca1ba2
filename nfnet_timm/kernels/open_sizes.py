"""What torch.compile needs for one graph that takes images of several sizes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["conv2d_of_open_size", "is_open"]


def is_open(x: Tensor) -> bool:
    """Tell whether torch.compile keeps the height or width of ``x`` open, for a graph that takes several sizes."""
    if not torch.compiler.is_dynamo_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes time; Dynamo has imported it

    return not (has_static_value(x.shape[2]) and has_static_value(x.shape[3]))


def conv2d_of_open_size(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return ``F.conv2d`` of its arguments."""
    if x.is_cpu:
        # On a CPU torch.compile lays maps out like this in any case. Where that is not how they were traced, the graph
        # of the backward pass has their strides as numbers.
        x = x.contiguous(memory_format=torch.channels_last)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    out = F.conv2d(x.detach(), weight, bias, stride, padding, dilation, groups)
    return _GradOfInput.apply(out, x, weight, stride, padding, dilation, groups)


class _GradOfInput(torch.autograd.Function):
    """The gradient of a convolution's input as a convolution: for torch's own, Inductor has its strides as numbers."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.height, ctx.width, ctx.dtype = geometry, x.shape[2], x.shape[3], x.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (stride, padding, dilation, groups) = ctx.saved_tensors, ctx.geometry
        of_x = F.conv_transpose2d(grad, weight.to(grad.dtype), None, stride, padding, 0, groups, dilation)
        # Windows smaller than their stride may leave the last rows and columns out.
        of_x = F.pad(of_x, [0, ctx.width - of_x.shape[3], 0, ctx.height - of_x.shape[2]])
        return grad, of_x.to(ctx.dtype), None, None, None, None, None
