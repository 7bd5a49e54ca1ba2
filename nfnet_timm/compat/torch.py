"""What the package uses of torch's private functions; tests/kernels/test_torch_private.py names one that is gone."""

from __future__ import annotations

import torch

__all__ = [
    "foreach_add_",
    "foreach_clamp_max_",
    "foreach_clamp_min_",
    "foreach_copy_",
    "foreach_div_",
    "foreach_mul_",
    "foreach_norm",
    "has_dispatch_modes",
    "has_forward_derivatives",
    "has_saved_tensors_hooks",
    "has_transforms",
    "is_checkpointing",
]

# One operation on a list of tensors, in a few launches; torch's own optimizers are built of them.
foreach_add_ = torch._foreach_add_
foreach_clamp_max_ = torch._foreach_clamp_max_
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_copy_ = torch._foreach_copy_
foreach_div_ = torch._foreach_div_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm


def has_transforms() -> bool:
    """Tell whether ``torch.func`` transforms what runs now."""
    return torch._C._are_functorch_transforms_active()


def has_dispatch_modes() -> bool:
    """Tell whether a ``TorchDispatchMode`` sees the operations that run now."""
    return bool(torch._C._len_torch_dispatch_stack())


def has_forward_derivatives() -> bool:
    """Whether forward-mode derivatives are computed, also under ``torch.no_grad()``."""
    return torch.autograd.forward_ad._current_level >= 0


def has_saved_tensors_hooks() -> bool:
    """Tell whether somebody decides what autograd keeps of the operations that run now."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def is_checkpointing() -> bool:
    """Tell whether what runs now is going to run again in the backward pass, by torch's activation checkpointing."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
