"""Convolution and pooling with SAME padding, as TensorFlow and JAX define it: outputs of ceil(size / stride) pixels.

The amount of padding depends on the size of the image. In tracing, in an export, or in a graph that is compiled for
several sizes, the size is a symbol, and the amount must be a formula in this symbol. So no branch here depends on a
size. No division or remainder has a negative operand, because ONNX rounds these differently from Python.

Source: ``padding="SAME"`` in deepmind-research/nfnets.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfnet_timm.kernels.dynamic_sizes import conv2d_of_dynamic_size, has_dynamic_size
from nfnet_timm.kernels.eager import is_eager_on_cpu
from nfnet_timm.layers.recompute import carry_origin, record_origin, saving_origins

__all__ = ["AvgPool2dSame", "Conv2dSame", "MaxPool2dSame"]


def same_padding(size: int, window: int, stride: int) -> int:
    """Return how many rows SAME padding adds to ``size`` rows, for a window of this number of rows."""
    # The last window begins at row (size - 1) // stride * stride, and the padded size is this plus window. With this
    # form, the size of the output simplifies to (size - 1) // stride + 1, also for symbols and over several stages.
    padding = (size - 1) // stride * stride + window - size
    if window < stride:  # max(padding, 0), where padding > -stride
        padding = padding * ((padding + stride - 1) // stride)
    return padding


def pad_same(
    x: Tensor, window: tuple[int, int], stride: tuple[int, int], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """Pad (N, C, H, W) as SAME does. If the number of rows or columns is odd, one more is at the bottom or right."""
    pad_h = same_padding(x.shape[2], window[0], stride[0])
    pad_w = same_padding(x.shape[3], window[1], stride[1])
    return F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2], mode, value)


class _Pairs(nn.Module):
    """Module that converts an int to a pair (height, width), also if the attribute is set after construction."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("kernel_size", "stride", "dilation") and isinstance(value, int):
            value = (value, value)
        super().__setattr__(name, value)


class Conv2dSame(_Pairs, nn.Conv2d):
    """Convolution with SAME padding: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).

    The padding depends on ``kernel_size``, ``stride`` and ``dilation`` at the time of the call.

    Args:
        padding: "same", or numbers that equal SAME padding at every image size. All other arguments are those of
            ``nn.Conv2d``.
    Raises:
        ValueError: If ``padding`` is not SAME padding, also if the attribute is set after construction.
    Differs from timm: timm's ``Conv2dSame`` gives the same result, but pads by a separate operation even if torch's own
        padding is enough.
    """

    stride: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        *args: Any,
        **kwargs: Any,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, *args, **kwargs)
        self.padding = padding  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "padding" and hasattr(self, "weight"):  # torch's constructor sets it before the weight
            same = self.symmetric_padding()
            pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
            if (value.lower() if isinstance(value, str) else pair) not in ("same", same):
                raise ValueError(
                    f"padding={value!r}: expected 'same'{'' if same is None else f' or {same}'}, the only padding of "
                    f"this convolution. For another one with kernel {self.kernel_size} and stride {self.stride}, use "
                    "torch.nn.Conv2d or timm.layers.ScaledStdConv2d"
                )
            value = "same" if same is None else same
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``."""
        return self.convolve(x, self.weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve ``x`` with ``weight`` instead of the module's own weight."""
        x, padding = self.padded(x)
        if not torch.jit.is_scripting():
            conv = conv2d_of_dynamic_size if has_dynamic_size(x) else F.conv2d
            with saving_origins(x):
                return conv(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return ``x`` and the padding for torch's convolution, or ``x`` padded and (0, 0) if that is not possible."""
        own = self.own_padding()
        if own is not None:
            return x, own
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if torch.jit.is_scripting():
            return pad_same(x, self.window(), self.stride, mode), (0, 0)
        # A forward hook, such as Opacus's, may keep x. Then autograd saves only the origin of the padded x.
        pad = record_origin if self._forward_hooks else carry_origin
        return pad(pad_same, x, self.window(), self.stride, mode), (0, 0)

    def own_padding(self) -> tuple[int, int] | None:
        """Return the padding of torch's convolution that equals SAME padding at any size, or None if there is none."""
        return self.symmetric_padding() if self.padding_mode == "zeros" else None

    def symmetric_padding(self) -> tuple[int, int] | None:
        """Return the rows and columns of SAME padding at each side, or None if they depend on the side or the size."""
        window_h, window_w = self.window()
        same_h = window_h == 1 or (self.stride[0] == 1 and window_h % 2 == 1)
        same_w = window_w == 1 or (self.stride[1] == 1 and window_w % 2 == 1)
        if same_h and same_w:
            return window_h // 2, window_w // 2
        return None

    def window(self) -> tuple[int, int]:
        """Return the height and width of the window of input pixels for one output pixel."""
        (kernel_h, kernel_w), (dilation_h, dilation_w) = self.kernel_size, self.dilation
        return dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1


class AvgPool2dSame(_Pairs):
    """2 x 2 average pooling with SAME padding. Each mean is over real pixels only, without the padding.

    Shapes: (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

    Args:
        stride: 2, or 1 if the network's ``output_stride`` replaces the stride by dilation.
    Source: ``hk.avg_pool(..., padding="SAME")`` in deepmind-research/nfnets/nfnet.py.
    Differs from timm: timm's ``AvgPool2dSame`` counts the padding as zeros.
    """

    stride: tuple[int, int]

    def __init__(self, stride: int | tuple[int, int]):
        super().__init__()
        self.stride = stride  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x``."""
        if not torch.jit.is_scripting():
            fast = is_eager_on_cpu(x) and x.dtype == torch.float32 and x.is_contiguous() and self.stride == (2, 2)
            if fast and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
                # torch's kernel takes four times as long for contiguous tensors.
                top, bottom = x.unflatten(2, (-1, 2)).unbind(3)
                left, right = (top + bottom).unflatten(3, (-1, 2)).unbind(4)
                return (left + right) * 0.25
            # With ceil_mode, torch.compile and torch.export would make a graph for even sizes alone.
            if has_dynamic_size(x) or isinstance(x.shape[2], torch.SymInt) or isinstance(x.shape[3], torch.SymInt):
                return average(x, self.stride)
            with saving_origins(x):
                return average(x, self.stride, ceil_mode=self.stride == (2, 2))
        return average(x, self.stride, ceil_mode=self.stride == (2, 2))


def average(x: Tensor, stride: tuple[int, int], ceil_mode: bool = False) -> Tensor:
    """Return the means of ``AvgPool2dSame``. ``ceil_mode`` needs stride 2, and avoids a padded copy."""
    if ceil_mode:
        return F.avg_pool2d(x, 2, stride, ceil_mode=True, count_include_pad=False)
    mean = F.avg_pool2d(pad_same(x, (2, 2), stride), 2, stride)
    share = F.avg_pool2d(pad_same(torch.ones_like(x[:1, :1]), (2, 2), stride), 2, stride)  # share of real pixels
    return mean / share


class MaxPool2dSame(_Pairs):
    """Max pooling with SAME padding: (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

    Source: ``hk.max_pool(..., padding="SAME")`` in deepmind-research/nfnets/nf_resnet.py.
    Differs from timm: timm's ``MaxPool2dSame`` gives the same result, but exporters and compilers cannot simplify its
        amount of padding.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]

    def __init__(self, kernel_size: int | tuple[int, int], stride: int | tuple[int, int]):
        super().__init__()
        self.kernel_size = kernel_size  # type: ignore[assignment]
        self.stride = stride  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x``."""
        x = pad_same(x, self.kernel_size, self.stride, value=-torch.inf)
        return F.max_pool2d(x, self.kernel_size, self.stride)
