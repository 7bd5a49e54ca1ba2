"""Convolution and pooling with SAME padding, as TensorFlow and JAX define it: outputs of ceil(size / stride) pixels.

Source: ``padding="SAME"`` in deepmind-research/nfnets, throughout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfnet_timm.kernels.dispatch import is_eager_on_cpu
from nfnet_timm.layers.recompute import carry_origin, derive, keeping_origins

__all__ = ["AvgPool2dSame", "Conv2dSame"]


def same_padding(size: int, reach: int, stride: int) -> int:
    """Return how many zeros SAME padding adds to ``size`` pixels, for a kernel that reaches over ``reach`` of them."""
    # timm's get_same_padding, which the rule in nfnet_timm/__init__.py keeps out of here.
    return max((-(-size // stride) - 1) * stride + reach - size, 0)


def pad_same(x: Tensor, pad_h: int, pad_w: int) -> Tensor:
    """Return (N, C, H, W) with zeros around it, of an odd number of rows or columns one more at the bottom or right."""
    return F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])


class Conv2dSame(nn.Conv2d):
    """Convolution with SAME padding and a bias: (N, in_chs, H, W) to (N, out_chs, ceil(H / stride), ceil(W / stride)).

    Differs from timm: its module of this name computes the same, and pads where torch's own padding would do.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        # SAME is symmetric at stride 1; otherwise it depends on the input's size.
        self.symmetric = dilation * (kernel_size - 1) // 2 if stride == 1 else 0
        super().__init__(
            in_chs,
            out_chs,
            kernel_size,
            stride=stride,
            padding=self.symmetric,
            dilation=dilation,
            groups=groups,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``."""
        return self.convolve(x, self.weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve ``x`` with ``weight`` in place of the module's own."""
        x, padding = self.padded(x)
        if not torch.jit.is_scripting():
            with keeping_origins(x):
                return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Return ``x``, with zeros around it where torch's own padding will not do, and what torch has to pad."""
        padding = [self.symmetric, self.symmetric]
        if self.stride[0] > 1:
            reach = (self.kernel_size[0] - 1) * self.dilation[0] + 1
            pad_h = same_padding(x.shape[2], reach, self.stride[0])
            pad_w = same_padding(x.shape[3], reach, self.stride[0])
            padding = [pad_h // 2, pad_w // 2]
            if pad_h % 2 != 0 or pad_w % 2 != 0:  # torch's own padding is the same at both ends
                padding = [0, 0]
                if torch.jit.is_scripting():
                    x = pad_same(x, pad_h, pad_w)
                else:
                    # Whoever has a hook here, as Opacus, may keep x: then nobody needs to keep it padded, too.
                    pad = derive if self._forward_hooks else carry_origin
                    x = pad(pad_same, x, pad_h, pad_w)
        return x, padding


class AvgPool2dSame(nn.Module):
    """2 x 2 average pooling with SAME padding, where the padding is not counted.

    Args:
        stride: 2, or 1 where ``output_stride`` replaces the stride by dilation; forward takes (N, C, H, W) to
            (N, C, ceil(H / stride), ceil(W / stride)).
    Source: ``hk.avg_pool(..., padding="SAME")`` in deepmind-research/nfnets/nfnet.py.
    Differs from timm: its module of this name counts the padding as zeros.
    """

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x``."""
        if not torch.jit.is_scripting():
            fast = is_eager_on_cpu(x) and x.dtype == torch.float32 and x.is_contiguous() and self.stride == 2
            if fast and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
                # torch's kernel takes four times as long in this order of memory.
                top, bottom = x.unflatten(2, (-1, 2)).unbind(3)
                left, right = (top + bottom).unflatten(3, (-1, 2)).unbind(4)
                return (left + right) * 0.25
            with keeping_origins(x):
                return average(x, self.stride)
        return average(x, self.stride)


def average(x: Tensor, stride: int) -> Tensor:
    """Return what ``AvgPool2dSame`` guarantees, by torch's own pooling."""
    if stride == 1:
        # The last window holds one row or column and its own copy, whose mean is itself.
        return F.avg_pool2d(F.pad(x, [0, 1, 0, 1], mode="replicate"), 2, 1)
    return F.avg_pool2d(x, 2, stride, ceil_mode=True, count_include_pad=False)
