"""The formula of the paper, in torch's operations. Compilers, transforms and exporters can read it."""

import torch
from torch import Tensor

__all__ = ["standardize_formula"]


def standardize_formula(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return the same as ``standardize``, at least in float32. Source: arXiv 2101.08692, section 4.2."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows, gain = weight.flatten(1).to(dtype), gain.to(dtype)
    centred = rows - rows.mean(1, keepdim=True)
    var_fan_in = centred.square().sum(1)
    # A division by sqrt, because ONNX has no rsqrt. The exporter writes 1 / sqrt for it, and ONNX Runtime cannot merge
    # that with the product if all gains are equal.
    return (centred * (scale * gain / torch.sqrt(var_fan_in.clamp(min=eps))).unsqueeze(1)).view_as(weight)
