"""The units of adaptive gradient clipping: each row of a matrix or kernel is one, and each vector or scalar is one."""

import torch
from torch import Tensor

__all__ = ["is_contiguous_or_channels_last", "is_one_unit", "rows_of", "unit_length", "unit_norm"]


def is_contiguous_or_channels_last(x: Tensor) -> bool:
    """Return whether ``x`` is contiguous, in the default or in the channels-last order; its memory then has no gaps."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def is_one_unit(x: Tensor) -> bool:
    """Return whether ``x`` is one unit: a scalar or a vector, which may have further dimensions of size 1."""
    return x.dim() < 2 or x.numel() == max(x.shape)


def unit_length(x: Tensor) -> int:
    """Return the number of elements in each unit of ``x``."""
    return x.numel() if is_one_unit(x) else x.shape[1:].numel()


def unit_norm(x: Tensor, one_unit: bool) -> Tensor:
    """Return the L2 norm of ``x`` if ``one_unit``, or of each of its rows, computed at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if one_unit:
        return torch.linalg.vector_norm(x, dtype=dtype)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True, dtype=dtype)


def rows_of(x: Tensor) -> Tensor:
    """Return a view of ``x`` as a matrix with one unit in each row; ``x`` is contiguous or channels-last."""
    if is_one_unit(x):
        return x.view(1, -1)
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).flatten(1)
