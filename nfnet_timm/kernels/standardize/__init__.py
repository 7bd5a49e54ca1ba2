"""Weight standardization: ``standardize`` chooses the implementation.

reference    the formula of the paper; all others are compared with it
cpu          torch's kernel for group normalization
operation    one operation with its gradients, for every device except a CPU
triton       the kernels of that operation for a GPU
"""

import torch
from torch import Tensor

from nfnet_timm.kernels.eager import is_eager_on_cpu, is_on_a_device
from nfnet_timm.kernels.standardize.cpu import by_group_norm
from nfnet_timm.kernels.standardize.operation import standardize_as_one_operation
from nfnet_timm.kernels.standardize.reference import standardize_formula

__all__ = ["standardize"]


def standardize(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return ``scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel.

    Computed in float64 for float64 weights, and in float32 for all others. In eager mode, a CPU uses torch's kernel for
    group normalization, and any other device uses one operation. Everything else uses the formula.

    Args:
        weight: (O, ...). The result has the same shape. It has the same dtype, or autocast's on a device other than a
            CPU.
        gain: (O,).
        eps: Lower bound of ``var * fan_in``. A row with less variance is called clamped; its result is linear in W.
    """
    if not torch.jit.is_scripting():  # TorchScript does not compile this branch
        if is_eager_on_cpu(weight):
            out, is_clamped = by_group_norm(weight, gain, scale, eps)
            if not is_clamped:  # the usual case
                return out.to(weight.dtype)
        elif is_on_a_device(weight) and weight.dtype != torch.float64:
            return standardize_as_one_operation(weight, gain, scale, eps, _dtype_of_result(weight))
    return standardize_formula(weight, gain, scale, eps).to(weight.dtype)


def _dtype_of_result(weight: Tensor) -> torch.dtype:
    """Return the dtype in which the convolution will read the result: autocast's if it is on."""
    device = weight.device.type
    if device != "meta" and weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
