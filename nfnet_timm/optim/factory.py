"""Create an optimizer that clips, from a name and a model."""

from collections.abc import Iterable
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer

from nfnet_timm.kernels.clip.settings import CLIP_EPS, CLIP_FACTOR
from nfnet_timm.optim.agc_optimizer import attach_agc
from nfnet_timm.optim.param_groups import agc_param_groups

__all__ = ["create_optimizer"]

# timm's factory ignores these arguments if it gets groups instead of a model.
_ABOUT_GROUPS = (
    "fallback_list",
    "fallback_no_weight_decay",
    "filter_bias_and_bn",
    "layer_decay_min_scale",
    "layer_decay_no_opt_scale",
    "param_group_fn",
)


def create_optimizer(
    model: nn.Module,
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    clip_factor: float | None = CLIP_FACTOR,
    clip_eps: float = CLIP_EPS,
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
        kwargs: Further arguments of timm's ``create_optimizer_v2``, except those about parameter groups.
    Raises:
        ValueError: If an argument is about parameter groups; see also ``agc_param_groups`` and ``attach_agc``.
    Differs from timm: with ``layer_decay``, timm's groups have an entry ``lr_scale``, which only timm's schedulers use.
    """
    for name in _ABOUT_GROUPS:
        if name in kwargs:
            raise ValueError(
                f"{name}={kwargs[name]!r} has no effect: expected no argument about parameter groups, because "
                "agc_param_groups makes them. Leave it out, or use timm's create_optimizer_v2 with an agc- name"
            )
    groups = agc_param_groups(model, weight_decay, clip_factor, clip_eps, layer_decay, no_clip)
    lookahead, _, name = opt.lower().rpartition("_")
    if f"agc-{name}" in list_optimizers():
        opt = f"{lookahead}_agc-{name}" if lookahead else f"agc-{name}"
    optimizer = attach_agc(create_optimizer_v2(groups, opt, lr=lr, **kwargs), clip_factor, clip_eps)
    for group in optimizer.param_groups:
        if "lr_scale" in group:
            group["lr"] = group["lr"] * group.pop("lr_scale")  # not in place: groups share a tensor
    return optimizer
