"""Weight standardization: the function that chooses which implementation runs.

reference    the formula of the paper; all others are compared with it
cpu          torch's kernel of group normalization
operation    one operation with its gradients, for every device but a CPU
triton       its kernels for a GPU

Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
"""

import torch
from torch import Tensor

from nfnet_timm.kernels.choose import is_eager_on_cpu, is_on_a_device
from nfnet_timm.kernels.standardize.cpu import by_group_norm
from nfnet_timm.kernels.standardize.operation import standardize_as_one_operation
from nfnet_timm.kernels.standardize.reference import standardize_formula

__all__ = ["standardize"]


def standardize(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return ``scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel.

    Computed in float32 also for half-precision weights, in float64 for those of float64. In eager mode by torch's
    kernel on a CPU, as one operation on any other device, which under autocast writes the dtype of that; elsewhere by
    the formula.

    Args:
        weight: (O, ...); the result has its shape and, without autocast, its dtype.
        gain: (O,).
        eps: Lower bound of ``var * fan_in``, to which the row of a channel is clamped; the result is linear in it then.
    """
    if not torch.jit.is_scripting():  # TorchScript does not read what is under this
        if is_eager_on_cpu(weight):
            out, is_clamped = by_group_norm(weight, gain, scale, eps)
            if not is_clamped:  # as hardly any weight is
                return out.to(weight.dtype)
        elif is_on_a_device(weight) and weight.dtype != torch.float64:
            return standardize_as_one_operation(weight, gain, scale, eps, _dtype_of_result(weight))
    return standardize_formula(weight, gain, scale, eps).to(weight.dtype)


def _dtype_of_result(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution is going to read the result: that of autocast, where it is on."""
    device = weight.device.type
    if device != "meta" and weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
