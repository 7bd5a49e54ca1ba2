"""The scaled-standardized convolutions of any model become plain ones with the same outputs."""

import golden
import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame
from torch import nn

from nfnet_timm import reparameterize
from nfnet_timm.layers import WSConv2d

STANDARDIZED = (ScaledStdConv2d, ScaledStdConv2dSame, WSConv2d)


@pytest.mark.parametrize("size", [(64, 64), (97, 65)])
@pytest.mark.parametrize(
    "name", ["eca_nfnet_l0", "nfnet_l0", "nf_resnet50", "nf_regnet_b1", "dm_nfnet_f0", "nfnet_f0", "dm_nf_resnet50"]
)
def test_outputs_stay_the_same_and_nothing_is_standardized(name, size):
    model = timm.create_model(name).eval()
    for key, p in model.named_parameters():
        if key.endswith(("gain", "bias")):
            nn.init.uniform_(p, 0.5, 1.5)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(x)
        plain = reparameterize(model)
        assert plain is model
        assert not any(isinstance(module, STANDARDIZED) for module in plain.modules())
        assert golden.relative_error(plain(x), expected.numpy()) < 1e-5


def test_a_network_inside_another_module_is_found_and_the_rest_is_unchanged():
    model = nn.Sequential(timm.create_model("test_nfnet", num_classes=0), nn.Conv2d(3, 3, 1)).eval()
    other = model[1]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model[0](x)
        reparameterize(model)
        assert golden.relative_error(model[0](x), expected.numpy()) < 1e-5
    assert model[1] is other


def test_a_convolution_alone_dtype_layout_mode_and_frozen_weights_are_kept():
    conv = ScaledStdConv2dSame(8, 16, 3, stride=2).double().to(memory_format=torch.channels_last).eval()
    conv.weight.requires_grad = False
    plain = reparameterize(conv)
    x = torch.randn(1, 8, 9, 10, dtype=torch.float64)
    assert torch.allclose(plain(x), conv(x))
    assert plain.weight.dtype == torch.float64
    assert plain.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.weight.requires_grad
    assert not plain.training


def test_timms_classes_and_other_models_are_unchanged():
    before = ScaledStdConv2d.forward, ScaledStdConv2dSame.forward
    twin = timm.create_model("test_nfnet")
    reparameterize(timm.create_model("test_nfnet"))
    assert (ScaledStdConv2d.forward, ScaledStdConv2dSame.forward) == before
    assert any(isinstance(module, STANDARDIZED) for module in twin.modules())
