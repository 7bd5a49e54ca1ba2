"""The scaled-standardized convolutions of any model become plain ones with the same outputs."""

import copy

import golden
import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame
from torch import nn

from nfnet_timm import reparameterize
from nfnet_timm.layers import WSConv2d

STANDARDIZED = (ScaledStdConv2d, ScaledStdConv2dSame, WSConv2d)


SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96)}
TIMMS = {
    "eca_nfnet_l0": {**SMALL, "group_size": 8},
    "nfnet_l0": {**SMALL, "group_size": 8},
    "nf_resnet50": SMALL,
    "nf_regnet_b1": {**SMALL, "width_factor": 1.0},
    "dm_nfnet_f0": {**SMALL, "group_size": 8},
}
OURS = {
    "nfnet_f0": {**SMALL, "group_size": 8},
    "dm_nf_resnet50": SMALL,
    "dm_nf_seresnet50": SMALL,
    "dm_nf_regnet_b0": {**SMALL, "width_factor": 1.0},
}


@pytest.mark.parametrize("name", TIMMS | OURS)
def test_outputs_stay_the_same_and_nothing_is_standardized(name):
    model = timm.create_model(name, **(TIMMS | OURS)[name]).eval()
    for key, p in model.named_parameters():
        if key.endswith(("gain", "bias")):
            nn.init.uniform_(p, 0.5, 1.5)
        elif key.endswith("fc.weight"):  # of NF-RegNets it is 0
            nn.init.normal_(p, std=0.1)
    inner = copy.deepcopy(model)
    assert reparameterize(inner) is inner
    found = [inner]
    if name in OURS:
        found.append(timm.utils.reparameterize_model(model))  # as --reparam of train.py and validate.py does
        found.append(copy.deepcopy(model).reparameterize())
    with torch.no_grad():
        for plain in found:
            assert not any(isinstance(module, STANDARDIZED) for module in plain.modules())
            assert not any(key.endswith(".gain") for key in plain.state_dict())
            for size in ((64, 64), (97, 65)):
                x = torch.randn(2, 3, *size)
                assert golden.relative_error(plain(x), model(x).numpy()) < 1e-5
            channels_last = x.to(memory_format=torch.channels_last)
            assert golden.relative_error(plain(channels_last), model(x).numpy()) < 1e-5


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


def test_weights_of_a_reparameterized_network_load_into_no_other(tiny):
    with pytest.raises(RuntimeError, match=r"Missing key.*gain"):
        tiny().load_state_dict(tiny().reparameterize().state_dict())


def test_a_reparameterized_network_runs_in_bfloat16(tiny):
    model = tiny()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x).detach()
    logits = model.reparameterize().bfloat16()(x.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert golden.relative_error(logits.float(), expected.numpy()) < 3e-2
