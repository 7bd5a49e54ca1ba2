"""Weight standardization as one operation, and its gradients as a second one, for every device except a CPU.

On a GPU with Triton these are kernels. Without Triton they are ``nfnet_timm::standardize`` and
``nfnet_timm::standardize_backward``, which call torch's own operations. On the meta device, or under a dispatch mode,
each is one operation. So the operations of a GPU can be counted on any machine.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from nfnet_timm.compat.torch import has_dispatch_modes
from nfnet_timm.kernels.check import has_right_kernel
from nfnet_timm.kernels.standardize.reference import standardize_formula

__all__ = ["backward_by_torch", "standardize_as_one_operation", "standardize_by_torch"]

# The kernels hold a row in registers. The longest row of the networks here has 4,608 weights.
LONGEST_ROW = 8192

torch.library.define(
    "nfnet_timm::standardize", "(Tensor weight, Tensor gain, float scale, float eps, ScalarType dtype) -> Tensor"
)
torch.library.define(
    "nfnet_timm::standardize_backward",
    "(Tensor grad, Tensor weight, Tensor gain, float scale, float eps) -> (Tensor, Tensor)",
)


def standardize_as_one_operation(weight: Tensor, gain: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the standardized weight in ``dtype``, computed in float32; see ``standardize``.

    It supports gradients and second derivatives.
    """
    weight = weight.contiguous()
    if torch.is_grad_enabled():
        return _Standardize.apply(weight, gain, scale, eps, dtype)
    return _run("standardize", weight, weight, gain, scale, eps, dtype)


def _run(name: str, weight: Tensor, *args: Any) -> Any:
    """Run the Triton kernel ``name`` if it is right on the device of ``weight``, else the operation ``name``."""
    if not (
        weight.is_cuda
        and 0 < weight.shape[1:].numel() <= LONGEST_ROW
        and not has_dispatch_modes()
        and has_right_kernel(name, weight.device)
    ):
        return getattr(torch.ops.nfnet_timm, name)(*args)
    from nfnet_timm.kernels.standardize import triton as standardize_triton  # not at the top: Triton may be missing

    with _current(weight.device):
        return getattr(standardize_triton, name)(*args)


def _current(device: torch.device) -> Any:
    """Make ``device`` the current one. Triton launches on the current device."""
    return nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device)


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, gain)
        ctx.scale, ctx.eps, ctx.dtype = scale, eps, dtype
        return _run("standardize", weight, weight, gain, scale, eps, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, gain = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True: the gradients will be differentiated
            out = standardize_formula(weight, gain, ctx.scale, ctx.eps).to(ctx.dtype)
            inputs = [x for x in (weight, gain) if x.requires_grad]
            found = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
            return *(next(found) if x.requires_grad else None for x in (weight, gain)), None, None, None
        grads = _run("standardize_backward", weight, grad.contiguous(), weight, gain, ctx.scale, ctx.eps)
        return *grads, None, None, None


@torch.library.register_fake("nfnet_timm::standardize")
def _(weight: Tensor, gain: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(weight, dtype=dtype)


@torch.library.register_fake("nfnet_timm::standardize_backward")
def _(grad: Tensor, weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(gain)


def standardize_by_torch(weight: Tensor, gain: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the standardized weight by eight of torch's operations. None of them waits for the device."""
    rows = weight.flatten(1).float()
    var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
    factor = var.mul_(rows.shape[1]).clamp_(min=eps).rsqrt_().mul_(gain.unsqueeze(1)).mul_(scale)
    return rows.sub(mean).mul_(factor).to(dtype).view_as(weight)


def backward_by_torch(grad: Tensor, weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight and the gain, by torch's operations.

    For each row of ``fan_in`` weights::

        c = row - mean(row)
        r = rsqrt(max(sum(c**2), eps))
        h = grad - mean(grad)
        d = sum(h * c)
        grad_gain = scale * r * d
        grad_row = scale * gain * r * (h - c * r**2 * d)  # in a clamped row: scale * gain * r * h
    """
    rows, grads = weight.flatten(1).float(), grad.flatten(1).float()
    centred = rows - rows.mean(1, keepdim=True)
    var_fan_in = centred.square().sum(1, keepdim=True)
    r = var_fan_in.clamp(min=eps).rsqrt_()
    grad_rows = grads - grads.mean(1, keepdim=True)
    d = (grad_rows * centred).sum(1, keepdim=True)
    grad_gain = (r * d).mul_(scale).squeeze(1)
    along = r.square().mul_(d).mul_(var_fan_in >= eps)
    grad_rows.addcmul_(centred, along, value=-1).mul_(r.mul_(gain.unsqueeze(1)).mul_(scale))
    return grad_rows.to(weight.dtype).view_as(weight), grad_gain.to(gain.dtype)


torch.library.impl("nfnet_timm::standardize", "CompositeExplicitAutograd", standardize_by_torch)
torch.library.impl("nfnet_timm::standardize_backward", "CompositeExplicitAutograd", backward_by_torch)
