"""GELU in its tanh form, without the tanh: on a CPU that takes most of an activation's time.

Source: arXiv 1606.08415, section 2; JAX's ``gelu(approximate=True)``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

__all__ = ["GELUTanh"]


@register_notrace_module
class GELUTanh(nn.Module):
    """``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))`` to float32 rounding, of any shape.

    Differs from torch: in float32 on a CPU, eager, it takes less than half of the time of
    ``F.gelu(x, approximate="tanh")``, which it is everywhere else.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``."""
        if not torch.jit.is_scripting():
            eager = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
            if eager and x.device.type == "cpu" and x.dtype == torch.float32:
                return _GELUTanh.apply(x) if torch.is_grad_enabled() else _GELUTanh.forward(x)
        return F.gelu(x, approximate="tanh")


class _GELUTanh(torch.autograd.Function):
    """``x * sigmoid(2 * z)`` is ``0.5 * x * (1 + tanh(z))``, and torch's sigmoid is six times as fast as its tanh."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        slope = 2 * math.sqrt(2 / math.pi)
        z = torch.addcmul(x.new_tensor(slope), x, x, value=0.044715 * slope)
        return z.mul_(x).sigmoid_().mul_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad, *ctx.saved_tensors, approximate="tanh")

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(tangent, *ctx.saved_tensors, approximate="tanh")
