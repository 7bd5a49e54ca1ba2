"""The scaled-standardized convolutions of any model become plain ones with the same outputs."""

import copy

import golden
import pytest
import timm
import torch
from families import as_trained
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame
from torch import nn
from torch.nn.utils import prune

from nfnet_timm import reparameterize
from nfnet_timm.layers import WSConv2d

SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96)}
NETWORKS = {
    "eca_nfnet_l0": {**SMALL, "group_size": 8},
    "nf_resnet50": SMALL,
    "dm_nfnet_f0": {**SMALL, "group_size": 8},
    "nfnet_f0": {**SMALL, "group_size": 8},
    "dm_nf_resnet50": SMALL,
    "dm_nf_regnet_b0": {**SMALL, "width_factor": 1.0},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_the_same_and_nothing_is_standardized(name):
    model = as_trained(name, **NETWORKS[name])
    found = [copy.deepcopy(model)]
    assert reparameterize(found[0]) is found[0]
    if type(model).__module__.startswith("nfnet_timm"):
        found.append(timm.utils.reparameterize_model(model))  # as --reparam of train.py and validate.py does
    with torch.no_grad():
        for plain in found:
            assert not any(isinstance(m, (ScaledStdConv2d, ScaledStdConv2dSame, WSConv2d)) for m in plain.modules())
            assert not any(key.endswith(".gain") for key in plain.state_dict())
            x = torch.randn(2, 3, 97, 65)
            for images in (x, x.to(memory_format=torch.channels_last)):
                assert golden.relative_error(plain(images), model(x).numpy()) < 1e-5


def test_dtype_layout_mode_frozen_weights_and_other_modules_are_kept():
    conv = ScaledStdConv2dSame(8, 16, 3, stride=2).double().to(memory_format=torch.channels_last).eval()
    conv.weight.requires_grad = False
    model = nn.Sequential(conv, nn.Conv2d(16, 3, 1))
    other = model[1]
    for plain in (reparameterize(conv), reparameterize(model)[0]):
        x = torch.randn(1, 8, 9, 10, dtype=torch.float64)
        assert torch.allclose(plain(x), conv(x))
        assert plain.weight.dtype == torch.float64
        assert plain.weight.is_contiguous(memory_format=torch.channels_last)
        assert not plain.weight.requires_grad
        assert not plain.training
    assert model[1] is other


@pytest.mark.parametrize("layer", [WSConv2d, ScaledStdConv2d])
def test_pruned_arrays_become_plain_parameters(layer):
    model = nn.Sequential(layer(8, 16, 3))
    nn.init.ones_(model[0].bias)
    for name in ("weight", "bias"):
        prune.random_unstructured(model[0], name, amount=0.5)
    x = torch.randn(1, 8, 9, 10)
    expected = model(x)
    plain = reparameterize(model)
    torch.testing.assert_close(plain(x), expected)
    assert [name for name, _ in plain.named_parameters()] == ["0.weight", "0.bias"]
