"""Convolution with scaled weight standardization. The weight also contains gamma and beta.

The authors' code multiplies whole feature maps by the constants gamma and beta. Here the weight of the next convolution
is multiplied instead. The product is the same, and the weight is the smaller tensor.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nfnet_timm.kernels.standardize import standardize
from nfnet_timm.layers.same_padding import Conv2dSame

__all__ = ["WSConv2d", "plain_conv"]


class WSConv2d(Conv2dSame):
    """Convolution whose weight is standardized per output channel, with SAME padding.

    ``W_hat = scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel. It is
    computed in float64 for float64 weights, and in float32 for all others, also under autocast. With ``scale`` 1 and
    gain 1, the weights of each output channel have zero mean and unit norm.

    Args:
        args, kwargs: Those of ``Conv2dSame``. Forward takes (N, in_channels, H, W), any H and W of at least 1, and
            returns (N, out_channels, ceil(H / stride), ceil(W / stride)).
        scale: Constant factor of the input (gamma and beta). The weight is multiplied by it.
        eps: Lower bound of ``var * fan_in``. All networks here use the authors' 1e-4.
    Raises:
        ValueError: In forward, if the input has another number of channels or no pixels.
    Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
    Differs from timm: ``ScaledStdConv2dSame`` computes ``rsqrt(var + eps)``. Its ``gain`` has shape (O, 1, 1, 1), so
        timm's optimizers decay it, and timm's AGC clips it element by element. Here ``gain`` has shape (O,). State
        dicts with either shape load.
    """

    def __init__(self, *args: Any, scale: float = 1.0, eps: float = 1e-4, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, device=self.weight.device, dtype=self.weight.dtype))
        self.scale = scale
        self.eps = eps

    def reset_parameters(self) -> None:
        """Initialise as the authors do: weight N(0, 1 / fan_in), bias 0, gain 1."""
        if self.weight.is_meta:
            return  # there are no values, and torch's normal_ would make a build take three times as long
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, "gain"):  # torch's constructor calls this before gain exists
            nn.init.ones_(self.gain)

    def standardized_weight(self) -> Tensor:
        """Return ``W_hat`` in the shape and dtype of ``weight``, or in autocast's dtype under autocast on a GPU."""
        if self.weight.is_contiguous():
            return standardize(self.weight, self.gain, self.scale, self.eps)
        # Channels-last: this view is contiguous, so nothing is copied. The order within a row does not matter.
        weight = self.weight.permute(0, 2, 3, 1)
        return standardize(weight, self.gain, self.scale, self.eps).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` with the standardized weight."""
        # A trace would record the sizes that are compared here.
        if x.dim() != 4 or (
            not torch.jit.is_tracing() and (x.shape[1] != self.in_channels or x.shape[2] == 0 or x.shape[3] == 0)
        ):
            raise ValueError(
                f"expected images or features of shape (N, {self.in_channels}, H, W) with at least one pixel, got "
                f"{list(x.shape)}. For images with another number of channels, build the model with in_chans=."
            )
        return self.convolve(x, self.standardized_weight())

    @torch.jit.unused
    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return a plain convolution with the present standardized weight. timm's ``reparameterize_model`` calls it."""
        own, device = self.own_padding(), self.weight.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            weight = self.standardized_weight()
        return plain_conv(self, Conv2dSame if own is None else nn.Conv2d, own or "same", weight)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        gain = state_dict.get(prefix + "gain")
        if gain is not None and gain.dim() == 4:  # timm's shape, (O, 1, 1, 1)
            state_dict[prefix + "gain"] = gain.flatten()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def plain_conv(module: nn.Conv2d, kind: Any, padding: Any, weight: Tensor) -> nn.Conv2d:
    """Return a convolution of the class ``kind`` with ``weight``. Everything else is as in ``module``."""
    geometry = (module.in_channels, module.out_channels, module.kernel_size, module.stride, padding, module.dilation)
    conv = kind(*geometry, module.groups, device="meta")
    conv.padding_mode = module.padding_mode
    conv.weight = nn.Parameter(weight, module.weight.requires_grad)
    # A bias that torch has pruned or parametrized is not a parameter.
    conv.bias = None if module.bias is None else nn.Parameter(module.bias.detach(), module.bias.requires_grad)
    return conv.train(module.training)
