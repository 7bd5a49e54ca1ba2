"""The private functions of torch that the package uses."""

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

# Each applies one operation to a list of tensors in a few launches. torch's own optimizers use them.
foreach_add_ = torch._foreach_add_
foreach_clamp_max_ = torch._foreach_clamp_max_
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_copy_ = torch._foreach_copy_
foreach_div_ = torch._foreach_div_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm


def has_transforms() -> bool:
    """Return whether a ``torch.func`` transform, such as ``vmap`` or ``grad``, is active."""
    return torch._C._are_functorch_transforms_active()


def has_dispatch_modes() -> bool:
    """Return whether a ``TorchDispatchMode`` is active."""
    return bool(torch._C._len_torch_dispatch_stack())


def has_forward_derivatives() -> bool:
    """Return whether forward-mode derivatives are computed, also under ``torch.no_grad()``."""
    return torch.autograd.forward_ad._current_level >= 0


def has_saved_tensors_hooks() -> bool:
    """Return whether hooks on saved tensors are active (``torch.autograd.graph.saved_tensors_hooks``)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def is_checkpointing() -> bool:
    """Return whether torch's activation checkpointing will run the present code a second time, in the backward pass."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
