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


def padded(x, kernel, stride, dilation=(1, 1), value=0.0):
    return F.pad(
        x,
        padding(x.shape[3], kernel[1], stride[1], dilation[1]) + padding(x.shape[2], kernel[0], stride[0], dilation[0]),
        value=value,
    )


def convolved(conv, x):
    """Compute the convolution of ``conv`` by its definition, with its present attributes."""
    weight = conv.standardized_weight() if isinstance(conv, WSConv2d) else conv.weight
    x = padded(x, weight.shape[2:], conv.stride, conv.dilation)
    return F.conv2d(x, weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def patch_means(x, stride=(2, 2)):
    """Return the mean of the real pixels in each 2 x 2 window."""
    ones = torch.ones_like(x)
    total, count = (F.avg_pool2d(padded(t, (2, 2), stride), 2, stride) for t in (x, ones))
    return total / count


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch.jit as a whole
@pytest.mark.parametrize(
    ("how", "memory_format"),
    [
        ("eager", torch.contiguous_format),
        ("eager", torch.channels_last),
        ("scripted", torch.contiguous_format),
        ("float64", torch.channels_last),
    ],
)
@pytest.mark.parametrize("layer", [Conv2dSame, WSConv2d])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (7, 2, 1), (3, 1, 2), (3, 2, 2), (1, 2, 1), (3, 4, 1)]
)
def test_padding_and_its_gradients_equal_tensorflows_definition(kernel, stride, dilation, layer, how, memory_format):
    dtype = torch.float64 if how == "float64" else torch.float32
    conv = layer(2, 4, kernel, stride, dilation=dilation, groups=2, dtype=dtype).to(memory_format=memory_format)
    called = torch.jit.script(conv) if how == "scripted" else conv
    for size in (1, 2, 5, 6, 7, 8, 31, 32):
        x = torch.randn(3, 2, size, size + 1, dtype=dtype).to(memory_format=memory_format).requires_grad_()
        expected = convolved(conv, x)
        assert expected.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
        upstream = torch.randn_like(expected)
        results = [[y, *torch.autograd.grad(y, (x, conv.weight, conv.bias), upstream)] for y in (called(x), expected)]
        for result, reference in zip(*results, strict=True):
            assert float((result - reference).detach().norm()) <= 1e-6 * float(reference.detach().norm())


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.float32, torch.contiguous_format),
        (torch.float32, torch.channels_last),
        (torch.bfloat16, torch.channels_last),
    ],
)
@pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (1, 1), (2, 2)])
def test_average_pooling_and_its_gradient_equal_means_of_patches(size, dtype, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).to(dtype=dtype, memory_format=memory_format).requires_grad_()
    exact = x.detach().double().requires_grad_()
    rows, columns = (range(0, n, 2) for n in size)
    patches = [[exact[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in columns] for i in rows]
    expected = torch.stack([torch.stack(row, -1) for row in patches], -2)
    actual = AvgPool2dSame(2)(x)
    assert actual.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=2 * eps, atol=eps)
    upstream = torch.randn_like(actual)
    actual.backward(upstream)
    expected.backward(upstream.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2 * eps, atol=eps)


CHANGES = {
    "stride of 1": {"stride": (1, 1)},
    "stride of 1 as an int": {"stride": 1},
    "stride in one direction": {"stride": (2, 1)},
    "stride of 4": {"stride": (4, 4)},
    "dilation": {"stride": (1, 1), "dilation": (2, 2), "padding": (2, 2)},
    "dilation in one direction": {"dilation": (1, 3)},
    "padding": {"padding": (0, 0)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("built_stride", [1, 2])
@pytest.mark.parametrize("layer", [Conv2dSame, WSConv2d])
def test_padding_follows_attributes_changed_after_construction(layer, built_stride, change):
    conv = layer(2, 4, 3, built_stride)
    for name, value in change.items():
        setattr(conv, name, value)
    for size in SIZES:
        x = torch.randn(1, 2, *size)
        expected = convolved(conv, x)
        assert expected.shape[2:] == tuple(-(-n // s) for n, s in zip(size, conv.stride, strict=True))
        torch.testing.assert_close(conv(x), expected)
        if layer is WSConv2d:
            torch.testing.assert_close(conv.fuse()(x), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3, 5), (2, 1), 1), ((1, 7), 2, 1), ((3, 1), (1, 2), (3, 1)), (2, 1, 1), ((4, 3), 3, 1), (2, 4, 1)],
)
@pytest.mark.parametrize("layer", [Conv2dSame, WSConv2d])
def test_windows_of_any_shape_are_padded_as_in_tensorflow(layer, kernel, stride, dilation):
    conv = layer(2, 4, kernel, stride, dilation=dilation)
    for size in SIZES:
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(conv(x), convolved(conv, x))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_another_padding_mode_is_applied(mode, stride):
    conv = WSConv2d(2, 4, 3, stride)
    conv.padding_mode = mode
    x = torch.randn(1, 2, 7, 8)
    pads = padding(8, 3, stride) + padding(7, 3, stride)
    expected = F.conv2d(F.pad(x, pads, mode), conv.standardized_weight(), conv.bias, stride)
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv.fuse()(x), expected)


@pytest.mark.parametrize("stride", [(2, 2), (1, 1), (2, 1)])
def test_average_pooling_follows_a_stride_changed_after_construction(stride):
    pool = AvgPool2dSame(2)
    pool.stride = stride
    for size in SIZES:
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(pool(x), patch_means(x, stride))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (2, 3), ((3, 2), (2, 1))])
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
    "convolution": lambda: Conv2dSame(2, 4, 3, 2),
    "standardized convolution": lambda: WSConv2d(2, 4, 3, 2),
    "7 x 7": lambda: WSConv2d(2, 4, 7, 2),
    "1 x 1": lambda: WSConv2d(2, 4, 1, 2),
    "dilated": lambda: WSConv2d(2, 4, 3, 2, dilation=2),
    "smaller than its stride": lambda: WSConv2d(2, 4, 3, 4),
    "without a stride": lambda: WSConv2d(2, 4, 3),
    "average pooling": lambda: AvgPool2dSame(2),
    "average pooling without a stride": lambda: AvgPool2dSame(1),
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
