"""What the package uses of torch's private functions; tests/test_torch_private.py names the one that is gone."""

from __future__ import annotations

import torch

__all__ = ["has_dispatch_modes", "has_saved_tensors_hooks", "has_transforms"]


def has_transforms() -> bool:
    """Tell whether ``torch.func`` transforms what runs now."""
    return torch._C._are_functorch_transforms_active()


def has_dispatch_modes() -> bool:
    """Tell whether a ``TorchDispatchMode`` sees the operations that run now."""
    return bool(torch._C._len_torch_dispatch_stack())


def has_saved_tensors_hooks() -> bool:
    """Tell whether somebody decides what autograd keeps of the operations that run now."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
