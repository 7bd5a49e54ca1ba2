"""torch's fused step on a CPU: the same to rounding in one pass over memory, where it is right.

torch leaves it out by default, and rightly: it takes memory as it lies, and is wrong where a gradient or a buffer lies
in another order than its parameter, and fails where a part of the parameters has buffers and a part does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nfnet_timm.kernels.clip import is_dense

__all__ = ["fuse_step"]


def fuse_step(optimizer: Optimizer, *_: Any) -> None:
    """Choose torch's fused step for each group for which it is right, unless the optimizer was built with a choice.

    A pre-hook: the choice is made anew before each step, and is no part of the optimizer's state.
    """
    chosen = [optimizer.defaults.get(key, "no such option") for key in ("fused", "foreach")]
    if chosen != [None, None] or optimizer.defaults.get("differentiable"):
        return
    for group in optimizer.param_groups:
        if group["fused"] is not False:
            group["fused"] = True if _is_right(group["params"], optimizer.state) else None


def _is_right(params: list[Tensor], state: Any) -> bool:
    stepped = [p for p in params if p.grad is not None]
    # A parameter that gets its first gradient after others has no buffers yet.
    has_buffers = {any(isinstance(x, Tensor) for x in state.get(p, {}).values()) for p in stepped}
    return len(has_buffers) <= 1 and all(_is_one_layout(p, state.get(p, {})) for p in stepped)


def _is_one_layout(p: Tensor, state: dict[str, Any]) -> bool:
    if p.device.type != "cpu" or not p.is_floating_point() or hasattr(p, "placements"):
        return False
    buffers = [x for x in state.values() if isinstance(x, Tensor) and x.shape == p.shape]
    others: list[Any] = [p.grad, *buffers]
    return is_dense(p) and all(x.layout == torch.strided and _strides(x) == _strides(p) for x in others)


def _strides(x: Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size != 1]
