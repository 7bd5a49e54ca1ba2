"""Weight standardization: the formula as published, and the same in fused passes over the weight.

Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
"""

import torch
from torch import Tensor

from nfnet_timm.kernels.dispatch import is_eager_on_cpu

__all__ = ["standardize"]


def standardize(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return ``scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel.

    On a CPU in eager mode by torch's kernel, elsewhere by the formula, for a compiler to fuse.

    Args:
        weight: (O, ...), float32 or float64; the result has its shape.
        gain: (O,).
        eps: Lower bound of ``var * fan_in``, to which the row of a channel is clamped; the result is linear in it then.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  # TorchScript does not read what is under this
        if is_eager_on_cpu(weight):
            out, is_clamped = by_group_norm(weight, gain, scale, eps)
            if not is_clamped:  # as hardly any weight is
                return out
    return formula(weight, gain, scale, eps)


def formula(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return what ``standardize`` guarantees, by the formula as it stands in the paper."""
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    var_fan_in = centred.square().sum(1)
    return (centred * (scale * gain * torch.rsqrt(var_fan_in.clamp(min=eps))).unsqueeze(1)).view_as(weight)


def by_group_norm(weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, bool]:
    """Return the standardized weight as if no row were clamped, and whether one is.

    Group normalization of an image with a pixel for each weight of a row, and a group for each row, gives
    ``factor * (W - mean) * rstd`` with ``rstd = rsqrt(var)``. Two things follow from ``rsqrt(var * fan_in)`` being
    ``rstd * fan_in ** -0.5``: the factor of a row is ``scale * gain * fan_in ** -0.5``, and a row is clamped where
    ``rstd > (fan_in / eps) ** 0.5``.
    """
    chs, fan_in = len(weight), weight.shape[1:].numel()
    image, factor = weight.reshape(1, chs, fan_in), gain * (scale * fan_in**-0.5)
    nothing = 1e-8 * eps / fan_in  # added to var: too little to change a row that is not clamped, enough for 1 / 0
    out, _, rstd = torch.native_group_norm(image, factor, None, 1, chs, fan_in, chs, nothing)
    return out.view(weight.shape), float(rstd.detach().max()) > (fan_in / eps) ** 0.5
