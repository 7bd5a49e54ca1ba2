"""The networks.

variants            every network as plain numbers
block               the residual block and the stems
nfnet               the network, under timm's contract; registration
state_dict          the network that the arrays of a checkpoint belong to
build               a network by its name, with weights
reparameterize      networks without standardization, timm's own too
signal_propagation  measuring the variance through a network
"""

from typing import TYPE_CHECKING

from nfnet_timm.lazy import lazy_names

if TYPE_CHECKING:
    from nfnet_timm.models.block import NormFreeBlock
    from nfnet_timm.models.nfnet import NormFreeNet
    from nfnet_timm.models.variants import VARIANTS, NormFreeCfg

_HOMES = {"NormFreeBlock": "block", "NormFreeNet": "nfnet", "NormFreeCfg": "variants", "VARIANTS": "variants"}
__all__ = ["VARIANTS", "NormFreeBlock", "NormFreeCfg", "NormFreeNet"]

__getattr__ = lazy_names(__name__, _HOMES)
