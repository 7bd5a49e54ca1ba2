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

__all__ = ["WSConv2d"]


class WSConv2d(Conv2dSame):
    """Convolution whose weight is standardized per output channel, with SAME padding.

    ``W_hat = scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel. It is
    computed in float64 for float64 weights, and in float32 for all others, also under autocast. With ``scale`` 1 and
    gain 1, the weights of each output channel have zero mean and unit norm.

    Args:
        in_channels: Input channels; forward takes (N, in_channels, H, W), any H and W of at least 1.
        out_channels: Output channels; forward returns (N, out_channels, ceil(H / stride), ceil(W / stride)).
        padding: "same" or what equals it, see ``Conv2dSame``.
        scale: Constant factor of the input (gamma and beta). The weight is multiplied by it.
        eps: Lower bound of ``var * fan_in``. All networks here use the authors' 1e-4.
    Raises:
        ValueError: In forward, if the input has another number of channels or no pixels, or the weight is complex.
    Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
    Differs from timm: ``ScaledStdConv2dSame`` computes ``rsqrt(var + eps)``. Its ``gain`` has shape (O, 1, 1, 1), so
        timm's optimizers decay it, and timm's AGC clips it element by element. Here ``gain`` has shape (O,). State
        dicts with either shape load.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scale: float = 1.0,
        eps: float = 1e-4,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.gain = nn.Parameter(torch.ones(out_channels, device=device, dtype=dtype))
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
        if not self.weight.is_floating_point():
            raise ValueError(f"the weight is {self.weight.dtype}: expected a real dtype, such as torch.float32")
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
        own = self.own_padding()
        plain: Any = Conv2dSame if own is None else nn.Conv2d
        geometry = (self.in_channels, self.out_channels, self.kernel_size, self.stride)
        conv = plain(*geometry, own or "same", self.dilation, self.groups, True, self.padding_mode, device="meta")
        device = self.weight.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            conv.weight = nn.Parameter(self.standardized_weight(), self.weight.requires_grad)
        # A bias that torch has pruned or parametrized is not a parameter.
        conv.bias = None if self.bias is None else nn.Parameter(self.bias.detach(), self.bias.requires_grad)
        return conv.train(self.training)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        gain = state_dict.get(prefix + "gain")
        if gain is not None and gain.dim() == 4:  # timm's shape, (O, 1, 1, 1)
            state_dict[prefix + "gain"] = gain.flatten()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
