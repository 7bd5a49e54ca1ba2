"""Adaptive gradient clipping as published, and optimizers that clip.

agc            the rule, of any parameters; what it would do to each
classifiers    which parameters it leaves alone
groups         the authors' parameter groups
clipping       an optimizer that clips before each step
twins          ``agc-*``, in timm's registry
factory        an optimizer by its name and model
sam            sharpness-aware minimization around any optimizer
fused_step     torch's fused step on a CPU, where it is right
clip_mode      a warning where timm clips too
"""

from typing import TYPE_CHECKING

from nfnet_timm.lazy import lazy_names

if TYPE_CHECKING:
    from nfnet_timm.optim.agc import ClipStats, adaptive_clip_grad_, clip_stats, unitwise_norm
    from nfnet_timm.optim.clipping import attach_agc
    from nfnet_timm.optim.factory import create_optimizer
    from nfnet_timm.optim.groups import agc_param_groups
    from nfnet_timm.optim.sam import SAM

_HOMES = {
    "SAM": "sam",
    "ClipStats": "agc",
    "adaptive_clip_grad_": "agc",
    "clip_stats": "agc",
    "unitwise_norm": "agc",
    "agc_param_groups": "groups",
    "attach_agc": "clipping",
    "create_optimizer": "factory",
}
__all__ = [
    "SAM",
    "ClipStats",
    "adaptive_clip_grad_",
    "agc_param_groups",
    "attach_agc",
    "clip_stats",
    "create_optimizer",
    "unitwise_norm",
]

__getattr__ = lazy_names(__name__, _HOMES)
