"""Less memory in training: the outputs of activations are recomputed in the backward pass instead of saved for it.

Autograd saves the input of each convolution. In ``y = act(x); z = conv(y)`` it saves x for ``act`` and y for ``conv``.
x is enough, because y can be computed from it. For this the module records the origin of y, a function and its input::

    y = record_origin(act, x)  # y = act(x), and the origin of y is (act, x)
    with saving_origins(y):
        z = conv(y)  # autograd saves (act, x) in place of y; the backward pass calls act(x)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from nfnet_timm.compat.torch import has_saved_tensors_hooks, has_transforms
from nfnet_timm.layers.activations import ACTIVATIONS

__all__ = ["carry_origin", "record_origin", "recompute_acts_of", "saving_origins"]


def recompute_acts_of(model: nn.Module) -> None:
    """Make the convolutions of ``model`` save the input of the activation before them instead of its output.

    Outputs and gradients stay bit-identical. Everything is saved as usual in ``torch.func``, under ``torch.compile``
    (which decides by itself), and where other code has set hooks on saved tensors, such as activation checkpointing.
    """
    for module in model.modules():
        module.__class__ = _RECOMPUTING.get(type(module), type(module))


@dataclass(frozen=True)
class _Kept:
    """A tensor that autograd saves, with its version. torch increases the version at each in-place change."""

    tensor: Tensor
    version: int

    def restore(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a tensor of shape {tuple(self.tensor.shape)} is at version {self.tensor._version}; expected version "
                f"{self.version} instead. Change a clone of it, or build the model without recompute_acts"
            )
        return self.tensor


@dataclass(frozen=True)
class _Origin:
    """How a tensor was computed: it was ``function(input, *args)``, and had ``version`` at that time."""

    function: Callable[..., Tensor]
    input: _Kept | _Origin
    args: tuple[Any, ...]
    version: int

    def restore(self) -> Tensor:
        return self.function(self.input.restore(), *self.args)


# The origins of living tensors. They are not attributes of the tensors, because saving a tensor to a file would then
# save the function too, and its module.
_origins = WeakTensorKeyDictionary()


def _has_origin(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x in _origins


def record_origin(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``y = function(x, *args)``, and record the origin of y if autograd may save y."""
    y = function(x, *args)
    if isinstance(y, Tensor) and y.requires_grad and not torch.compiler.is_compiling() and not has_transforms():
        _origins[y] = _Origin(function, _keep(x), args, y._version)
    return y


def carry_origin(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``y = function(x, *args)``, and record the origin of y only if ``x`` has an origin."""
    return record_origin(function, x, *args) if _has_origin(x) else function(x, *args)


def saving_origins(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autograd saves the origin of a tensor instead of the tensor.

    Tensors without an origin are saved as usual. Nothing changes if ``x`` has no origin, or if other code has set hooks
    on saved tensors.
    """
    if not _has_origin(x) or has_saved_tensors_hooks():
        return nullcontext()
    return saved_tensors_hooks(_keep, lambda kept: kept.restore())


def _keep(x: Tensor) -> _Kept | _Origin:
    origin = _origins.get(x)
    # After an in-place change, x differs from the value that its origin would give.
    return origin if origin is not None and origin.version == x._version else _Kept(x, x._version)


class _Recomputing(nn.Module):
    """Mixin for the class of an activation: it records the origin of the output."""

    activate: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.activate(x)
        return record_origin(self.activate, x)


def _recomputing(plain: Any) -> Any:
    # TorchScript uses the name of a method's function, and the name forward is taken. So the function gets a new name.
    activate = FunctionType(plain.forward.__code__, plain.forward.__globals__, "activate")
    activate.__annotations__ = plain.forward.__annotations__
    members = {"activate": activate, "__doc__": plain.__doc__}
    return type(f"Recomputing{plain.__name__}", (_Recomputing, plain), members)


# Autograd saves the output of some activations. The next convolution saves the same tensor, so nothing would be gained.
_SAVES_OUTPUT = (nn.Identity, nn.LogSoftmax, nn.ReLU, nn.Sigmoid, nn.Tanh)
_RECOMPUTING = {cls: _recomputing(cls) for cls, _, _ in ACTIVATIONS.values() if cls not in _SAVES_OUTPUT}
globals().update({cls.__name__: cls for cls in _RECOMPUTING.values()})  # copy and pickle find a class by its name
