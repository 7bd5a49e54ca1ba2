"""Weight standardization: which implementation runs, and the one for a CPU.

Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
"""

import torch
from torch import Tensor

from nfnet_timm.kernels.dispatch import is_eager_on_cpu, is_on_a_device
from nfnet_timm.kernels.formula import standardize_formula
from nfnet_timm.kernels.standardize_op import standardize_as_one_operation

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


def by_group_norm(weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, bool]:
    """Return the standardized weight as if no row were clamped, and whether one is.

    Group normalization of an image with a pixel for each weight of a row, and a group for each row, gives
    ``factor * (W - mean) * rstd`` with ``rstd = rsqrt(var)``. Two things follow from ``rsqrt(var * fan_in)`` being
    ``rstd * fan_in ** -0.5``: the factor of a row is ``scale * gain * fan_in ** -0.5``, and a row is clamped where
    ``rstd > (fan_in / eps) ** 0.5``.
    """
    chs, fan_in = len(weight), weight.shape[1:].numel()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    image, factor = weight.to(dtype).reshape(1, chs, fan_in), gain.to(dtype) * (scale * fan_in**-0.5)
    nothing = 1e-8 * eps / fan_in  # added to var: too little to change a row that is not clamped, enough for 1 / 0
    out, _, rstd = torch.native_group_norm(image, factor, None, 1, chs, fan_in, chs, nothing)
    return out.view(weight.shape), float(rstd.detach().max()) > (fan_in / eps) ** 0.5


def _dtype_of_result(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution is going to read the result: that of autocast, where it is on."""
    device = weight.device.type
    if device != "meta" and weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
