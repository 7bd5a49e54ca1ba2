"""Weight standardization on a CPU, by torch's kernel for group normalization."""

import torch
from torch import Tensor

__all__ = ["by_group_norm"]


def by_group_norm(weight: Tensor, gain: Tensor, scale: float, eps: float) -> tuple[Tensor, bool]:
    """Return the standardized weight without clamping, and whether a row should have been clamped.

    If a row should have been clamped, the caller must use the formula instead. Group normalization with one row in each
    group is weight standardization. For W of shape (O, fan_in), with gain 1 and scale 1::

        image = W.reshape(1, O, fan_in)  # one image; each row is a channel, and each channel is a group
        factor = torch.full((O,), fan_in**-0.5)
        F.group_norm(image, O, weight=factor)  # (W - mean) / sqrt(var * fan_in)

    The kernel also returns ``rstd = 1 / sqrt(var)``. A row is clamped where ``var * fan_in < eps``, which is
    ``rstd > sqrt(fan_in / eps)``.
    """
    chs, fan_in = len(weight), weight.shape[1:].numel()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    image, factor = weight.to(dtype).reshape(1, chs, fan_in), gain.to(dtype) * (scale * fan_in**-0.5)
    # Added to var. It prevents a division by zero, and is too small to change a row that is not clamped.
    tiny = 1e-8 * eps / fan_in
    out, _, rstd = torch.native_group_norm(image, factor, None, 1, chs, fan_in, chs, tiny)
    return out.view(weight.shape), eps > 0 and float(rstd.detach().max()) > (fan_in / eps) ** 0.5
