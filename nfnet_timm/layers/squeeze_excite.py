"""Squeeze-excite: a gate (factor) for each channel of each sample, computed from the means of all channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GlobalMean", "PixelConv2d", "SqueezeExcite"]


class GlobalMean(nn.Module):
    """Mean over all pixels: (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x``."""
        # With a sum and a division, the backward pass divides (N, C, 1, 1) instead of a whole map. The sum is in
        # float32, because it would overflow in half precision.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return (x.sum((2, 3), keepdim=True, dtype=dtype) / (x.shape[2] * x.shape[3])).to(x.dtype)


class PixelConv2d(nn.Conv2d):
    """1 x 1 convolution of maps of one pixel, (N, in_chs, 1, 1) to (N, out_chs, 1, 1), computed as a matrix product.

    Differs from torch: the gradients of ``nn.Conv2d`` take up to several times as long.
    """

    def reset_parameters(self) -> None:
        """Initialise as Haiku's linear layers: weight N(0, 1 / in_chs) cut at two standard deviations, bias 0."""
        std = self.in_channels**-0.5
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class SqueezeExcite(nn.Module):
    """Channel gate ``2 * sigmoid(fc2(relu(fc1(mean(x)))))``: (N, C, H, W) to (N, C, 1, 1).

    The caller multiplies the feature map by the gate. The factor 2 keeps the variance, because the mean of the sigmoid
    is one half at initialisation.

    Args:
        chs: Channels of the input.
        rd_ratio: Hidden channels as a share of ``chs``, rounded down, at least one.
    Source: ``SqueezeExcite`` in deepmind-research/nfnets/base.py; plain ReLU, no gamma.
    Differs from timm: ``SEModule`` multiplies the feature map itself, and rounds the hidden channels to multiples of 8.
    """

    def __init__(
        self,
        chs: int,
        rd_ratio: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        rd_chs = max(1, int(chs * rd_ratio))
        self.pool = GlobalMean()
        self.fc1 = PixelConv2d(chs, rd_chs, 1, device=device, dtype=dtype)
        self.act = nn.ReLU()  # not in place: fc1 returns a view, and autograd would then copy its base
        self.fc2 = PixelConv2d(rd_chs, chs, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of ``x``."""
        return 2 * self.fc2(self.act(self.fc1(self.pool(x)))).sigmoid()
