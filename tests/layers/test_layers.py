"""The layers equal independent implementations of their formulas, and no activation overwrites its input."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from nfnet_timm.layers.squeeze_excite import PixelConv2d, SqueezeExcite
from nfnet_timm.layers.ws_conv import WSConv2d


def reference_weight(conv: WSConv2d) -> np.ndarray:
    """Compute the formula of base.py in float64: (w - mean) * gain * rsqrt(max(var * fan_in, eps))."""
    weight, gain = conv.weight.detach().double().numpy(), conv.gain.detach().double().numpy()
    mean, var = weight.mean((1, 2, 3), keepdims=True), weight.var((1, 2, 3), keepdims=True)
    scale = gain[:, None, None, None] / np.sqrt(np.maximum(var * weight[0].size, 1e-4))
    return conv.scale * (weight - mean) * scale


@pytest.fixture
def conv():
    torch.manual_seed(0)
    conv = WSConv2d(8, 12, 3, stride=2, groups=2, scale=1.7)
    torch.nn.init.uniform_(conv.gain, 0.5, 1.5)
    conv.weight.data[::5] *= 1e-3  # clamped by eps
    conv.weight.data[1] = 3.25  # without variance
    return conv


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weight_and_gradients_equal_the_authors_formula_in_float64(conv, memory_format):
    conv = conv.double().to(memory_format=memory_format)
    actual = conv.standardized_weight().detach().numpy()
    assert actual.dtype == np.float64
    assert np.allclose(actual, reference_weight(conv), rtol=1e-12, atol=1e-13)
    conv.weight.data[1] = torch.randn(4, 3, 3)
    conv.weight.data[::5] *= 1e3

    def standardized(weight, gain):
        return torch.func.functional_call(conv, {"weight": weight, "gain": gain}, (x,))

    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    inputs = conv.weight.detach().requires_grad_(), conv.gain.detach().requires_grad_()
    assert torch.autograd.gradcheck(standardized, inputs)


def test_squeeze_excite_has_plain_relu_and_a_factor_of_two():
    torch.manual_seed(0)
    attn = SqueezeExcite(6, 0.1)
    assert attn.fc1.out_channels == 1  # at least
    x = torch.randn(2, 6, 4, 5)
    pooled = x.mean((2, 3))
    hidden = (pooled @ attn.fc1.weight.flatten(1).T + attn.fc1.bias).clamp(min=0)
    expected = 2 * torch.sigmoid(hidden @ attn.fc2.weight.flatten(1).T + attn.fc2.bias)
    assert torch.allclose(attn(x)[:, :, 0, 0], expected, atol=1e-6)


def test_pixel_convolution_and_its_gradients_equal_torchs():
    torch.manual_seed(0)
    ours = PixelConv2d(6, 4, 1).double()
    x = torch.randn(3, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    results = []
    for y in (ours(x), F.conv2d(x, ours.weight, ours.bias)):
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, ours.weight, ours.bias))])
    torch.testing.assert_close(*results)


def test_forward_hooks_see_what_a_convolution_computed():
    """Grad-CAM keeps the feature maps that hooks see. An activation in place would overwrite them."""
    model = timm.create_model("dm_nf_resnet50", depths=(1, 1, 1, 1), channels=(16, 32, 32, 32), num_classes=4)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *args: seen.append((args[2], args[2].clone())))
    model(torch.randn(2, 3, 32, 32))
    assert seen
    assert all(kept.equal(copy) for kept, copy in seen)
