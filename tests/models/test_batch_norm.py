"""with_batch_norm replaces only what its docstring lists."""

import pytest
import timm
import torch
from torch import nn

from nfnet_timm import with_batch_norm
from nfnet_timm.layers import WSConv2d
from nfnet_timm.models.block import NormFreeBlock

SMALL = {"depths": (1, 2, 1, 1), "channels": (32, 64, 96, 96), "num_classes": 10}
NETWORKS = {
    "nfnet": ("nfnet_f0", {"group_size": 8, "recompute_acts": True, "drop_path_rate": 0.1}),
    "nf_resnet": ("dm_nf_resnet50", {"output_stride": 16, "in_chans": 1}),
    "nf_regnet": ("dm_nf_regnet_b0", {"group_size": 8}),
}


@pytest.fixture(params=NETWORKS)
def build(request):
    """Return a function that builds the network of a family."""
    name, arguments = NETWORKS[request.param]
    return lambda: timm.create_model(name, **SMALL, **arguments)


def nfnet():
    return timm.create_model("nfnet_f0", **SMALL, group_size=8)


def test_only_standardized_convolutions_and_skip_gains_are_replaced(build):
    model, twin = build(), build()
    assert with_batch_norm(twin) is twin
    convs = {key: m for key, m in model.named_modules() if isinstance(m, WSConv2d)}
    blocks = {key for key, m in model.named_modules() if isinstance(m, NormFreeBlock)}
    assert {twin.get_submodule(key).alpha for key in blocks} == {1.0}
    own = {f"{key}.{name}" for key in convs for name in ("weight", "bias", "gain")}
    others = {key: p.shape for key, p in model.named_parameters() if key not in own}
    new = {}
    for key, conv in convs.items():
        new[f"{key}.0.weight"] = conv.weight.shape
        new[f"{key}.1.weight"] = new[f"{key}.1.bias"] = conv.bias.shape
    assert {key: p.shape for key, p in twin.named_parameters()} == {**others, **new}
    frozen = {key: p for key, p in twin.named_parameters() if not p.requires_grad}
    assert frozen == {f"{key}.skipinit_gain": torch.ones(()) for key in blocks}
    x = torch.randn(2, model.in_chans, 48, 64)
    with torch.no_grad():
        (_, ours), (_, theirs) = model.eval().forward_intermediates(x), twin.eval().forward_intermediates(x)
    assert [f.shape for f in theirs] == [f.shape for f in ours]


def test_dtype_layout_mode_and_other_modules_are_kept():
    model = nn.ModuleDict({"net": nfnet(), "own": nn.Conv2d(3, 3, 1)}).double().eval()
    model.to(memory_format=torch.channels_last)
    own = model["own"]
    assert with_batch_norm(model) is model
    assert model["own"] is own
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(m.training for m in model.modules())
    assert model["net"].stages[0][0].conv2[0].weight.is_contiguous(memory_format=torch.channels_last)


OTHERS = {"fused": lambda m: m.reparameterize(), "twice": with_batch_norm, "a convolution": lambda m: m.stem.conv1}


@pytest.mark.parametrize("change", [*OTHERS.values(), lambda m: None], ids=[*OTHERS, "nothing"])
def test_a_model_without_standardized_convolutions_inside_is_refused_with_its_class(change):
    model = change(nfnet())
    with pytest.raises(ValueError, match=f"model is {type(model).__name__}, with no WSConv2d inside: expected"):
        with_batch_norm(model)


def test_on_the_meta_device_init_weights_keeps_the_conversion():
    twin = with_batch_norm(nfnet().to("meta")).to_empty(device="cpu")
    twin.init_weights()
    for block in (m for m in twin.modules() if isinstance(m, NormFreeBlock)):
        assert block.skipinit_gain == 1
        assert not block.conv3[1].weight.any()
        weight = block.conv2[0].weight
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.2)
    x = torch.randn(2, 64, 8, 8)
    block = twin.eval().stages[1][1]
    assert block(x).equal(x)
