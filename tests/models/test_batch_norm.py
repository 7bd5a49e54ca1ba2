"""with_batch_norm replaces only what its docstring lists."""

import pytest
import timm
import torch
from torch import nn

from nfnet_timm import with_batch_norm
from nfnet_timm.layers import WSConv2d
from nfnet_timm.models.block import NormFreeBlock
from nfnet_timm.optim import create_optimizer

SMALL = {"depths": (1, 2, 1, 1), "channels": (32, 64, 96, 96), "num_classes": 10}
NETWORKS = {
    "nfnet": ("nfnet_f0", {"group_size": 8}),
    "nf_resnet": ("dm_nf_resnet50", {}),
    "nf_regnet": ("dm_nf_regnet_b0", {"group_size": 8}),
    "dilated": ("dm_nf_resnet50", {"output_stride": 16, "in_chans": 1}),
    "recomputing": ("nfnet_f0", {"group_size": 8, "recompute_acts": True, "drop_path_rate": 0.1}),
}
each = pytest.mark.parametrize(("name", "arguments"), NETWORKS.values(), ids=NETWORKS)


def build(name, arguments):
    return timm.create_model(name, **SMALL, **arguments)


def images(model, batch=2):
    return torch.randn(batch, model.in_chans, 48, 64)


@each
def test_outputs_and_feature_maps_have_the_shapes_of_the_networks(name, arguments):
    model, twin = build(name, arguments).eval(), with_batch_norm(build(name, arguments)).eval()
    x = images(model)
    with torch.no_grad():
        assert twin(x).shape == model(x).shape
        (_, ours), (_, theirs) = model.forward_intermediates(x), twin.forward_intermediates(x)
    assert [f.shape for f in theirs] == [f.shape for f in ours]


@each
def test_only_standardized_convolutions_and_skip_gains_are_replaced(name, arguments):
    model, twin = build(name, arguments), build(name, arguments)
    assert with_batch_norm(twin) is twin
    convs = {key: m for key, m in model.named_modules() if isinstance(m, WSConv2d)}
    blocks = {key for key, m in model.named_modules() if isinstance(m, NormFreeBlock)}
    own = {f"{key}.{name}" for key in convs for name in ("weight", "bias", "gain")}
    others = {key: p.shape for key, p in model.named_parameters() if key not in own}
    found = {key: p.shape for key, p in twin.named_parameters()}
    new = {}
    for key, conv in convs.items():
        new[f"{key}.0.weight"] = conv.weight.shape
        new[f"{key}.1.weight"] = new[f"{key}.1.bias"] = conv.bias.shape
    assert found == {**others, **new}
    frozen = {key for key, p in twin.named_parameters() if not p.requires_grad}
    assert frozen == {f"{key}.skipinit_gain" for key in blocks}
    assert all(p == 1 for key, p in twin.named_parameters() if key in frozen)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in twin.modules()) == len(convs)


@each
def test_it_trains_with_finite_gradients_on_every_parameter(name, arguments):
    model = with_batch_norm(build(name, arguments)).train()
    for block in model.modules():
        if isinstance(block, NormFreeBlock):
            nn.init.ones_(block.conv3[1].weight)
    nn.init.normal_(model.head.fc.weight)  # of NF-RegNets it starts at 0
    optimizer = create_optimizer(model, "sgd", lr=0.01, clip_factor=0.1)
    loss = nn.functional.cross_entropy(model(images(model, 4)), torch.arange(4))
    loss.backward()
    for p in model.parameters():
        assert (p.grad is None) == (not p.requires_grad)
        assert p.grad is None or (p.grad.isfinite().all() and p.grad.abs().sum() > 0)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_at_the_start_each_block_is_its_shortcut():
    model = with_batch_norm(build("nfnet_f0", {"group_size": 8})).eval()
    block = model.stages[1][1]
    x = torch.randn(2, 64, 8, 8)
    assert block(x).equal(x)


def test_dtype_device_mode_and_wrappers_are_kept():
    model = nn.ModuleDict({"net": build("nfnet_f0", {"group_size": 8}).double().eval(), "own": nn.Conv2d(3, 3, 1)})
    own = model["own"]
    assert with_batch_norm(model) is model
    assert model["own"] is own
    assert {p.dtype for p in model["net"].parameters()} == {torch.float64}
    assert not any(m.training for m in model["net"].modules())
    meta = with_batch_norm(timm.create_model("dm_nf_resnet50", device="meta"))
    assert all(p.is_meta for p in meta.parameters())


@pytest.mark.parametrize(
    "change", [lambda m: m.reparameterize(), with_batch_norm, lambda m: m.head], ids=["fused", "twice", "head"]
)
def test_a_model_without_standardized_convolutions_is_refused(change):
    model = change(build("nfnet_f0", {"group_size": 8}))
    with pytest.raises(ValueError, match=type(model).__name__):
        with_batch_norm(model)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_init_weights_keeps_the_conversion(device):
    twin = with_batch_norm(build(*NETWORKS["nfnet"]).to(device))
    twin = twin.to_empty(device="cpu")
    twin.init_weights()
    for block in (m for m in twin.modules() if isinstance(m, NormFreeBlock)):
        assert block.skipinit_gain == 1
        assert not block.conv3[1].weight.any()
        assert block.conv2[0].weight.std().item() == pytest.approx(
            (2 / block.conv2[0].weight[0].numel()) ** 0.5, rel=0.2
        )


def test_the_memory_format_of_weights_is_kept():
    twin = with_batch_norm(build(*NETWORKS["nfnet"]).to(memory_format=torch.channels_last))
    assert twin.stages[0][0].conv2[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("model", [None, WSConv2d(3, 8, 3), nn.Linear(2, 2)])
def test_other_values_than_networks_are_refused(model):
    with pytest.raises(ValueError, match="expected a network of nfnet_timm"):
        with_batch_norm(model)
