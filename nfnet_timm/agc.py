"""Adaptive gradient clipping as published; needs torch alone.

Source: arXiv 2102.06171, section 4; ``SGD_AGC`` in deepmind-research/nfnets/optim.py.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["adaptive_clip_grad_", "unitwise_norm"]


def unitwise_norm(x: Tensor) -> Tensor:
    """Return the L2 norm of each unit of ``x`` in float32, in a shape that broadcasts against ``x``.

    A unit is a row of a matrix or of a convolution kernel (dim 0: the weights into one output); a vector or a scalar,
    also one stored with further dimensions of size 1, is one unit as a whole.

    Differs from timm: its ``unitwise_norm`` takes each element of a gain of shape (O, 1, 1, 1) for a unit.
    """
    if x.squeeze().dim() <= 1:
        return torch.linalg.vector_norm(x, dtype=torch.float32)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True, dtype=torch.float32)


@torch.no_grad()
def adaptive_clip_grad_(parameters: Tensor | Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """Scale each unit's gradient, in place, to at most ``clip_factor`` times the norm of the unit's weights.

    ``G <- G * min(1, clip_factor * max(|W|, eps) / |G|)`` per unit; see ``unitwise_norm`` for what a unit is. Leave out
    the classifier's weight, as the authors do; its bias is clipped.

    Args:
        clip_factor: Largest ratio of gradient norm to weight norm (lambda in the paper); 0.01 suits batches of 1024
            to 4096, smaller batches train with larger ones.
        eps: Smallest weight norm that is reckoned with, so that parameters that start at zero can leave it.
    Differs from timm: ``timm.utils.adaptive_clip_grad`` clips gains element by element.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    for p in parameters:
        if p.grad is not None:
            max_norm = unitwise_norm(p).clamp(min=eps) * clip_factor
            p.grad.mul_((max_norm / unitwise_norm(p.grad)).clamp(max=1.0))
