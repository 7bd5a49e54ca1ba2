"""The networks.

variants            the configuration of every network
block               the residual block and the stems
nfnet               the network, with timm's interface, and its registration
state_dict          identify the network of a checkpoint
build               build a network from its name, with weights
reparameterize      remove standardization for inference, also from timm's own networks
signal_propagation  measure the variance through a network
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
