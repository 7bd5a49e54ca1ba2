"""An optimizer that clips, by its name and a model."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer

import nfnet_timm.optim.twins  # noqa: F401  # the names that may be asked for
from nfnet_timm.optim.clipping import attach_agc
from nfnet_timm.optim.groups import CLIPPING, agc_param_groups

__all__ = ["create_optimizer"]


def create_optimizer(
    model: nn.Module,
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    clip_factor: float = CLIPPING["clip_factor"],
    clip_eps: float = CLIPPING["clip_eps"],
    layer_decay: float | None = None,
    **kwargs: Any,
) -> Optimizer:
    """Return timm's optimizer ``opt`` over ``agc_param_groups``, which clips adaptively before each step.

    Args:
        opt: Any name of ``timm.optim.list_optimizers()``; "sgd" is the authors', with Nesterov momentum.
        kwargs: For timm's ``create_optimizer_v2``.
    Raises:
        ValueError: If ``opt`` differentiates gradients, as "adahessian" does.
    """
    groups = agc_param_groups(model, weight_decay, clip_factor, clip_eps, layer_decay)
    lookahead, _, name = opt.lower().rpartition("_")
    if f"agc-{name}" in list_optimizers():
        opt = f"{lookahead}_agc-{name}" if lookahead else f"agc-{name}"
    return attach_agc(create_optimizer_v2(groups, opt, lr=lr, **kwargs), clip_factor, clip_eps)
