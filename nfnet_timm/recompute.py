"""Less memory in training: activations are computed again in the backward pass instead of kept for it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nfnet_timm.layers import ACTIVATIONS
from nfnet_timm.same import Flip, Pad

__all__ = ["recompute_acts"]

# Autograd keeps the output of these, which the convolution behind shares: there is nothing to gain.
_KEPT_BY_OUTPUT = (nn.Identity, nn.LogSoftmax, nn.ReLU, nn.Sigmoid, nn.Tanh)


def recompute_acts(module: nn.Module) -> None:
    """Let ``module`` keep the input of each activation for the backward pass, and not its output too.

    Outputs and gradients stay the same to the bit: a convolution that asks for its input gets the activation of what
    the activation has kept. Of any module with activations of ``ACTIVATIONS``. All is kept where ``recompute_acts`` of
    the module is set to False, in ``torch.func``, and under ``torch.compile``, which decides by itself.
    """
    classes = {cls for cls, _, _ in ACTIVATIONS.values()} - set(_KEPT_BY_OUTPUT) | {Flip, Pad}
    for child in module.modules():
        if isinstance(child, tuple(classes)):
            child.register_forward_hook(_tell_origin)
    module.recompute_acts = True  # type: ignore[assignment]
    module.register_forward_pre_hook(_enter)
    module.register_forward_hook(_exit, always_call=True)


def _tell_origin(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Attach to ``output`` the function that computes it again: from the input, or from what that can be had from."""
    if output.requires_grad and not torch.compiler.is_compiling():
        x, *rest = args
        before = getattr(x, "recompute", lambda: x)
        output.recompute = lambda: module.forward(before(), *rest)  # type: ignore[attr-defined]


# A tensor that cannot be had again is kept as it is.
_hooks = saved_tensors_hooks(
    lambda tensor: getattr(tensor, "recompute", tensor),
    lambda kept: kept if isinstance(kept, Tensor) else kept(),
)


def _enter(module: Any, args: tuple[Tensor]) -> None:
    if _is_on(module):
        _hooks.__enter__()


def _exit(module: Any, args: tuple[Tensor], output: Tensor) -> None:
    if _is_on(module):
        _hooks.__exit__()


def _is_on(module: Any) -> bool:
    # torch.func refuses saved tensor hooks.
    other = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return module.recompute_acts and not other
