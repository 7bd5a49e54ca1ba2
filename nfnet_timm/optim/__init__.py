"""Adaptive gradient clipping as published, and optimizers that clip.

agc            clip gradients, and measure the effect
param_groups   choose which parameters are clipped, and which are decayed
agc_optimizer  make any optimizer clip before each step
factory        create an optimizer from a name and a model
sam            sharpness-aware minimization around any optimizer
"""

from typing import TYPE_CHECKING

from nfnet_timm.lazy import lazy_names

if TYPE_CHECKING:
    from nfnet_timm.optim.agc import ClipStats, adaptive_clip_grad_, clip_stats, unitwise_norm
    from nfnet_timm.optim.agc_optimizer import attach_agc
    from nfnet_timm.optim.factory import create_optimizer
    from nfnet_timm.optim.param_groups import agc_param_groups
    from nfnet_timm.optim.sam import SAM

_HOMES = {
    "SAM": "sam",
    "ClipStats": "agc",
    "adaptive_clip_grad_": "agc",
    "clip_stats": "agc",
    "unitwise_norm": "agc",
    "agc_param_groups": "param_groups",
    "attach_agc": "agc_optimizer",
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
