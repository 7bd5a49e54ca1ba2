"""The formulas of the papers as modules, to be read beside them.

ws_conv         convolution with scaled weight standardization
same_padding    convolution and pooling with SAME padding
activations     activations with their gammas
squeeze_excite  a gate for each channel
recompute       activations computed again in the backward pass
"""

from nfnet_timm.layers.activations import ACTIVATIONS, GELUTanh, ScaledAct
from nfnet_timm.layers.same_padding import AvgPool2dSame, Conv2dSame
from nfnet_timm.layers.squeeze_excite import SqueezeExcite
from nfnet_timm.layers.ws_conv import WSConv2d

__all__ = ["ACTIVATIONS", "AvgPool2dSame", "Conv2dSame", "GELUTanh", "ScaledAct", "SqueezeExcite", "WSConv2d"]
