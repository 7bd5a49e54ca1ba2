"""The formula as it stands in the paper, for whatever looks into operations: compilers, transforms, exporters."""

import torch
from torch import Tensor

__all__ = ["standardize_formula"]


def standardize_formula(weight: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
    """Return what ``standardize`` guarantees, at least in float32. Source: arXiv 2101.08692, section 4.2."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows, gain = weight.flatten(1).to(dtype), gain.to(dtype)
    centred = rows - rows.mean(1, keepdim=True)
    var_fan_in = centred.square().sum(1)
    # Not by rsqrt, which ONNX lacks: where gains are equal, ONNX Runtime fails to merge its 1 / sqrt with the product.
    return (centred * (scale * gain / torch.sqrt(var_fan_in.clamp(min=eps))).unsqueeze(1)).view_as(weight)
