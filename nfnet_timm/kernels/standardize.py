"""Weight standardization: the formula as published, and the same in fused passes over the weight.

Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
"""

import torch
from torch import Tensor

from nfnet_timm.kernels.dispatch import is_eager_on_cpu

__all__ = ["standardize"]


def standardize(weight: Tensor, gain: Tensor, scale: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Return ``scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel.

    On a CPU in eager mode the weight is read and written once forward and once backward. Elsewhere this is the
    formula, for a compiler to fuse, and so it is for a weight of which ``max`` holds a row, which hardly any has.

    Args:
        weight: (O, ...), float32 or float64; the result has its shape.
        gain: (O,).
        eps: Lower bound of ``var * fan_in``; below it the result is linear in the weight.
    """
    if not torch.jit.is_scripting():  # TorchScript does not read what is under this
        fused = is_eager_on_cpu(weight)
        if fused:
            # Group normalization with one channel per group is standardization without ``max``, the kernel torch's.
            chs, fan_in = len(weight), weight.shape[1:].numel()
            tiny = 1e-8 * eps / fan_in  # nothing beside eps / fan_in, and enough for a row without variance
            rows, gains = weight.reshape(1, chs, fan_in), gain * (scale * fan_in**-0.5)
            out, _, rstd = torch.native_group_norm(rows, gains, None, 1, chs, fan_in, chs, tiny)
            if float(rstd.detach().max()) <= (fan_in / eps) ** 0.5:
                return out.view(weight.shape)
    return formula(weight, gain, scale, eps)


def formula(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return what ``standardize`` guarantees, by the formula as it stands in the paper."""
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    var_fan_in = centred.square().sum(1)
    return (centred * (scale * gain * torch.rsqrt(var_fan_in.clamp(min=eps))).unsqueeze(1)).view_as(weight)
