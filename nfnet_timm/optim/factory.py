"""Create an optimizer that clips, from a name and a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer

import nfnet_timm.optim.agc_optimizer  # noqa: F401  # registers the agc- names
from nfnet_timm.optim.agc import CLIP_FACTOR, Clipping
from nfnet_timm.optim.agc_optimizer import attach_agc
from nfnet_timm.optim.param_groups import agc_param_groups

__all__ = ["create_optimizer"]


def create_optimizer(
    model: nn.Module,
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    clip_factor: float | None = CLIP_FACTOR,
    layer_decay: float | None = None,
    no_clip: str | Iterable[str] | None = None,
    **kwargs: Any,
) -> Optimizer:
    """Return timm's optimizer ``opt`` with the groups of ``agc_param_groups``. It clips adaptively before each step.

    Args:
        opt: A name from ``timm.optim.list_optimizers()``. The authors use "sgd", which has Nesterov momentum.
        layer_decay: Factor of the learning rate from layer to layer. The learning rate of each group includes its
            factor, so schedulers of any library work.
        no_clip: See ``agc_param_groups``.
        kwargs: The other fields of ``Clipping``, and further arguments of timm's ``create_optimizer_v2``.
    Raises:
        ValueError: If ``opt`` is not a name; see also ``agc_param_groups`` and ``attach_agc``.
    Differs from timm: with ``layer_decay``, timm's groups have an entry ``lr_scale``, which only timm's schedulers use.
    """
    if not isinstance(opt, str):
        raise ValueError(f'opt is {opt!r}: expected a name from timm.optim.list_optimizers(), such as "sgd"')
    settings = {"clip_factor": clip_factor, **Clipping.taken_from(kwargs)}
    groups = agc_param_groups(model, weight_decay, layer_decay=layer_decay, no_clip=no_clip, **settings)
    lookahead, _, name = opt.lower().rpartition("_")
    if f"agc-{name}" in list_optimizers():
        opt = f"{lookahead}_agc-{name}" if lookahead else f"agc-{name}"
    optimizer = attach_agc(create_optimizer_v2(groups, opt, lr=lr, **kwargs), **settings)
    for group in optimizer.param_groups:
        if "lr_scale" in group:
            group["lr"] = group["lr"] * group.pop("lr_scale")  # not in place: groups share a tensor
    return optimizer
