"""The units of adaptive gradient clipping: rows of matrices and kernels; vectors and scalars as a whole."""

import torch
from torch import Tensor

__all__ = ["is_dense", "is_one_unit", "rows_of", "unit_length", "unit_norm"]


def is_dense(x: Tensor) -> bool:
    """Whether the memory of ``x`` has no gaps, in contiguous or channels-last order."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def is_one_unit(x: Tensor) -> bool:
    """Whether ``x`` is clipped as a whole: a scalar or a vector, also with further dimensions of size 1."""
    return x.dim() < 2 or x.numel() == max(x.shape)


def unit_length(x: Tensor) -> int:
    """Return the number of elements in each unit of ``x``."""
    return x.numel() if is_one_unit(x) else x.shape[1:].numel()


def unit_norm(x: Tensor, one_unit: bool) -> Tensor:
    """Return the L2 norm of ``x`` as a whole, or of its rows, at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if one_unit:
        return torch.linalg.vector_norm(x, dtype=dtype)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True, dtype=dtype)


def rows_of(x: Tensor) -> Tensor:
    """Return a dense tensor as a matrix with a unit in each row: a view, with the elements in the order of memory."""
    if is_one_unit(x):
        return x.view(1, -1)
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).flatten(1)
