"""Less memory in training: activations are computed again in the backward pass instead of kept for it.

Autograd keeps the input of each convolution. Where that is the output of an activation, it is enough to keep the
activation's input, which autograd does in any case, and to compute the output again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from nfnet_timm.compat.torch import has_saved_tensors_hooks, has_transforms

__all__ = ["carry_origin", "record_origin", "recompute_acts_of", "saving_origins"]


def recompute_acts_of(model: nn.Module, activations: tuple[type[nn.Module], ...]) -> None:
    """Let the convolutions of ``model`` keep the input of an activation for the backward pass, and not its output.

    Outputs and gradients stay the same to the bit. All is kept as usual in ``torch.func``, under ``torch.compile``,
    which decides by itself, and where somebody else has a say in what is kept, such as activation checkpointing.

    Args:
        activations: Classes of those whose output is not needed for their own gradient: there is nothing to gain else.
    """
    for module in model.modules():
        plain: Any = type(module)
        if plain in activations:
            module.__class__ = _recomputing(plain)


@dataclass(frozen=True)
class _Kept:
    """A tensor for the backward pass, in which it has to be what it is now."""

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
    """How a tensor is computed: ``function(input, *args)``, at which time it had ``version``."""

    function: Callable[..., Tensor]
    input: _Kept | _Origin
    args: tuple[Any, ...]
    version: int

    def restore(self) -> Tensor:
        return self.function(self.input.restore(), *self.args)


# Of tensors that live. Not on the tensors: whoever saves one would save the function, and with it a module.
_origins = WeakTensorKeyDictionary()


def _has_origin(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x in _origins


def record_origin(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``function(x, *args)``, which remembers how to compute it again, if autograd is going to need it."""
    y = function(x, *args)
    if isinstance(y, Tensor) and y.requires_grad and not torch.compiler.is_compiling() and not has_transforms():
        _origins[y] = _Origin(function, _keep(x), args, y._version)
    return y


def carry_origin(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return ``function(x, *args)``, which remembers how to compute it again, if ``x`` does."""
    return record_origin(function, x, *args) if _has_origin(x) else function(x, *args)


def saving_origins(x: Tensor) -> AbstractContextManager[Any]:
    """Within it autograd keeps of ``x`` how it is computed again, where that is known."""
    if not _has_origin(x) or has_saved_tensors_hooks():
        return nullcontext()
    return saved_tensors_hooks(_keep, lambda kept: kept.restore())


def _keep(x: Tensor) -> _Kept | _Origin:
    origin = _origins.get(x)
    # What was changed in place is not what computing it again would give.
    return origin if origin is not None and origin.version == x._version else _Kept(x, x._version)


class _Recomputing(nn.Module):
    """What the class of an activation has before its own: an output that remembers its origin."""

    plain: type[nn.Module]
    activate: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.activate(x)
        return record_origin(self.activate, x)

    def __reduce_ex__(self, protocol: Any) -> Any:  # of copies and pickles, which know no class that is made here
        return _empty, (self.plain,), self.__dict__


@cache
def _recomputing(plain: Any) -> Any:
    # TorchScript compiles a method under the name of its function, and there is a forward already.
    activate = FunctionType(plain.forward.__code__, plain.forward.__globals__, "activate")
    activate.__annotations__ = plain.forward.__annotations__
    members = {"plain": plain, "activate": activate, "__doc__": plain.__doc__}
    return type(f"Recomputing{plain.__name__}", (_Recomputing, plain), members)


def _empty(plain: Any) -> nn.Module:
    recomputing = _recomputing(plain)
    return recomputing.__new__(recomputing)
