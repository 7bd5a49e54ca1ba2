"""The networks.

variants            every network as plain numbers
block               the residual block and the stems
nfnet               the network, under timm's contract; registration
infer               which network a checkpoint's arrays are
build               a network by its name, with weights
signal_propagation  measuring the variance through a network
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfnet_timm.models.block import NormFreeBlock
    from nfnet_timm.models.nfnet import NormFreeNet
    from nfnet_timm.models.variants import VARIANTS, NormFreeCfg

_HOMES = {"NormFreeBlock": "block", "NormFreeNet": "nfnet", "NormFreeCfg": "variants", "VARIANTS": "variants"}
__all__ = ["VARIANTS", "NormFreeBlock", "NormFreeCfg", "NormFreeNet"]


def __getattr__(name: str) -> Any:  # on first use: timm may be only half imported when this package is
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
