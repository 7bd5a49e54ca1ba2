"""Padding and pooling equal their definitions."""

import pytest
import torch
import torch.nn.functional as F

from nfnet_timm.layers.same_padding import AvgPool2dSame, Conv2dSame, MaxPool2dSame
from nfnet_timm.layers.ws_conv import WSConv2d

SIZES = [(1, 2), (5, 6), (6, 5), (7, 9), (8, 12), (31, 32)]


def padding(size, kernel, stride, dilation=1):
    """Return the zeros before and after. Source: TensorFlow's documentation of padding="SAME"."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return [total // 2, total - total // 2]


def padded(x, kernel, stride, dilation=(1, 1), mode="constant", value=0.0):
    pads = [padding(x.shape[2 + i], kernel[i], stride[i], dilation[i]) for i in (1, 0)]
    return F.pad(x, pads[0] + pads[1], mode, value)


def convolved(conv, x):
    """Compute the convolution of ``conv`` by its definition, with its present attributes."""
    weight = conv.standardized_weight() if isinstance(conv, WSConv2d) else conv.weight
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = padded(x, weight.shape[2:], conv.stride, conv.dilation, mode)
    return F.conv2d(x, weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


WINDOWS = [
    *[(3, 1, 1), (3, 2, 1), (7, 2, 1), (3, 1, 2), (3, 2, 2), (1, 2, 1), (3, 4, 1), (2, 1, 1)],
    *[((3, 5), (2, 1), 1), ((3, 1), (1, 2), (3, 1)), ((4, 3), 3, 1)],
]


@pytest.mark.parametrize(
    ("layer", "dtype", "memory_format"),
    [
        (Conv2dSame, torch.float32, torch.contiguous_format),
        (WSConv2d, torch.float32, torch.channels_last),
        (WSConv2d, torch.float64, torch.contiguous_format),
    ],
)
@pytest.mark.parametrize(("kernel", "stride", "dilation"), WINDOWS)
def test_padding_and_its_gradients_equal_tensorflows_definition(kernel, stride, dilation, layer, dtype, memory_format):
    conv = layer(2, 4, kernel, stride, dilation=dilation, groups=2, dtype=dtype).to(memory_format=memory_format)
    for size in SIZES:
        x = torch.randn(3, 2, *size, dtype=dtype).to(memory_format=memory_format).requires_grad_()
        expected = convolved(conv, x)
        assert expected.shape[2:] == tuple(-(-n // s) for n, s in zip(size, conv.stride, strict=True))
        upstream = torch.randn_like(expected)
        results = [[y, *torch.autograd.grad(y, (x, conv.weight, conv.bias), upstream)] for y in (conv(x), expected)]
        for result, reference in zip(*results, strict=True):
            assert float((result - reference).detach().norm()) <= 1e-6 * float(reference.detach().norm())


CHANGES = {
    "stride of 1 as an int": {"stride": 1},
    "stride in one direction": {"stride": (2, 1)},
    "stride of 4": {"stride": (4, 4)},
    "as segmentation_models_pytorch dilates": {"stride": (1, 1), "dilation": (2, 2), "padding": (2, 2)},
    "another mode": {"padding_mode": "replicate"},
    "another mode without a stride": {"stride": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_padding_follows_attributes_changed_after_construction(change):
    conv = WSConv2d(2, 4, 3, 2)
    for name, value in change.items():
        setattr(conv, name, value)
    for size in SIZES[1:]:
        x = torch.randn(1, 2, *size)
        expected = convolved(conv, x)
        torch.testing.assert_close(conv(x), expected)
        torch.testing.assert_close(conv.fuse()(x), expected)


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)],
)
@pytest.mark.parametrize("stride", [(2, 2), (1, 1), (2, 1)])
def test_average_pooling_and_its_gradient_equal_means_of_real_pixels(stride, dtype, memory_format):
    pool = AvgPool2dSame(2)
    pool.stride = stride
    for size in (*SIZES, (1, 1), (2, 2)):
        x = torch.randn(2, 3, *size).to(dtype=dtype, memory_format=memory_format).requires_grad_()
        exact = x.detach().double().requires_grad_()
        total, count = (F.avg_pool2d(padded(t, (2, 2), stride), 2, stride) for t in (exact, torch.ones_like(exact)))
        expected, actual = total / count, pool(x)
        assert actual.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(actual.double(), expected, rtol=2 * eps, atol=eps)
        upstream = torch.randn_like(actual)
        actual.backward(upstream)
        expected.backward(upstream.double())
        torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2 * eps, atol=eps)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 3), ((3, 2), (2, 1))])
def test_max_pooling_and_its_gradient_equal_tensorflows_definition(kernel, stride):
    pool = MaxPool2dSame(kernel, stride)
    for size in SIZES:
        # All values are below 0, so that zeros in the padding would be the maximum.
        x = torch.randn(2, 3, *size).sub(10).requires_grad_()
        expected = F.max_pool2d(padded(x, pool.kernel_size, pool.stride, value=-torch.inf), kernel, stride)
        torch.testing.assert_close(pool(x), expected)
        upstream = torch.randn_like(expected)
        torch.testing.assert_close(*(torch.autograd.grad(y, x, upstream) for y in (pool(x), expected)))


LAYERS = {
    "convolution": lambda: Conv2dSame(2, 4, 3, 2, bias=False),
    "dilated": lambda: WSConv2d(2, 4, 3, 2, dilation=2),
    "smaller than its stride": lambda: WSConv2d(2, 4, 3, 4),
    "average pooling": lambda: AvgPool2dSame(2),
    "max pooling": lambda: MaxPool2dSame(3, 2),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("how", ["traced", "scripted", "exported"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_traced_at_one_size_is_right_at_all_sizes(layer, how):
    """Some inputs have an odd height or width, so the padding for one size is wrong for another."""
    layer, x = layer().eval(), torch.randn(2, 2, 15, 16)
    with torch.no_grad():
        if how == "traced":
            traced = torch.jit.trace(layer, x)
        elif how == "scripted":
            traced = torch.jit.script(layer)
        else:
            sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
            traced = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
        for size in [(9, 12), (16, 15), (17, 33), (32, 32)]:
            x = torch.randn(2, 2, *size)
            torch.testing.assert_close(traced(x), layer(x))
