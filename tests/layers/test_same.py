"""Padding and pooling against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from nfnet_timm.layers.same import AvgPool2dSame, Conv2dSame
from nfnet_timm.layers.ws_conv import WSConv2d


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch.jit as a whole
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("how", ["eager", "scripted", "float64"])
@pytest.mark.parametrize("layer", [Conv2dSame, WSConv2d])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 8, 31, 32])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (7, 2, 1), (3, 1, 2), (3, 2, 2), (1, 2, 1), (3, 4, 1)]
)
def test_padding_and_its_gradients_are_those_of_tensorflow(size, kernel, stride, dilation, layer, how, memory_format):
    torch.manual_seed(0)
    dtype = torch.float64 if how == "float64" else torch.float32
    conv = layer(2, 4, kernel, stride, dilation, groups=2, dtype=dtype).to(memory_format=memory_format)
    x = torch.randn(3, 2, size, size + 1, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    # Source: the definition in TensorFlow's documentation of padding="SAME".
    pads = []
    for n in (size + 1, size):
        total = max((-(-n // stride) - 1) * stride + dilation * (kernel - 1) + 1 - n, 0)
        pads += [total // 2, total - total // 2]
    weight = conv.standardized_weight() if layer is WSConv2d else conv.weight
    expected = F.conv2d(F.pad(x, pads), weight, conv.bias, stride, 0, dilation, groups=2)
    assert expected.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    actual = torch.jit.script(conv)(x) if how == "scripted" else conv(x)
    upstream = torch.randn_like(expected)
    results = [[y, *torch.autograd.grad(y, (x, conv.weight, conv.bias), upstream)] for y in (actual, expected)]
    for result, reference in zip(*results, strict=True):
        assert float((result - reference).detach().norm()) <= 1e-6 * float(reference.detach().norm())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (1, 1), (2, 2)])
def test_average_pooling_and_its_gradient_are_those_of_one_image_patch_at_a_time(size, dtype, memory_format):
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
