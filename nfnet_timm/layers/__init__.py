"""The formulas of the papers as modules, written so that you can compare them with the papers.

ws_conv         convolution with scaled weight standardization
same_padding    convolution and pooling with SAME padding
activations     activations with their gammas
squeeze_excite  one factor for each channel, computed from the feature map
recompute       activations recomputed in the backward pass, to save memory
"""

from nfnet_timm.layers.activations import ACTIVATIONS, GELUTanh, ScaledAct
from nfnet_timm.layers.same_padding import AvgPool2dSame, Conv2dSame
from nfnet_timm.layers.squeeze_excite import SqueezeExcite
from nfnet_timm.layers.ws_conv import WSConv2d

__all__ = ["ACTIVATIONS", "AvgPool2dSame", "Conv2dSame", "GELUTanh", "ScaledAct", "SqueezeExcite", "WSConv2d"]
