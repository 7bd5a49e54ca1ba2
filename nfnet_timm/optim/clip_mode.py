"""timm's own adaptive clipping, ``--clip-mode agc``, beside an optimizer that clips: a warning that both do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import wraps
from typing import Any
from weakref import ref

from torch import Tensor

from nfnet_timm.layers.timm_private import clip_grad_module
from nfnet_timm.optim.agc import Limit

__all__ = ["warn_if_clipped_by_timm", "watch"]

# The gradients that timm has clipped since the last step of an optimizer here, by their ids: each with its version,
# which changes with the next backward pass.
_clipped_by_timm: dict[int, tuple[ref[Tensor], int]] = {}


def watch() -> None:
    """Take note from now on of the parameters that timm clips adaptively; what it does stays the same."""
    module = clip_grad_module()
    clip = module.adaptive_clip_grad
    if getattr(clip, "is_watched", False):
        return

    @wraps(clip)
    def watched(parameters: Tensor | Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        clip(parameters, *args, **kwargs)
        grads = [p.grad for p in parameters if p.grad is not None]
        _clipped_by_timm.update({id(grad): (ref(grad), grad._version) for grad in grads})

    watched.is_watched = True  # type: ignore[attr-defined]
    module.adaptive_clip_grad = watched


def warn_if_clipped_by_timm(limits: list[Limit]) -> None:
    """Warn where the gradients that are about to be clipped have been already, by timm."""
    if _clipped_by_timm and any(_is_clipped(limit.param.grad) for limit in limits):
        warnings.warn(
            "gradients are clipped adaptively twice, by timm's clip mode 'agc' and by the optimizer: use one, "
            "`--clip-mode agc` with a plain optimizer or `--opt agc-...` without --clip-grad",
            RuntimeWarning,
            stacklevel=2,
        )
    _clipped_by_timm.clear()


def _is_clipped(grad: Tensor | None) -> bool:
    known = _clipped_by_timm.get(id(grad))
    return grad is not None and known is not None and known[0]() is grad and known[1] == grad._version
