"""Weight standardization on a CPU, by torch's kernel of group normalization; tests compare it with ``reference``."""

import torch
from torch import Tensor

__all__ = ["by_group_norm"]


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
