"""Recomputing activations takes less memory and changes nothing else."""

import copy
import io

import pytest
import timm
import torch

from nfnet_timm.compat.torch import has_saved_tensors_hooks
from nfnet_timm.layers.activations import ACTIVATIONS
from nfnet_timm.layers.recompute import _Kept, _Origin, _origins

NETWORKS = ["nfnet_f0", "dm_nf_resnet50", "dm_nf_seresnet50", "dm_nf_regnet_b0"]


SMALL = {"channels": (32, 32, 64, 64), "group_size": 8}
TINY = {**SMALL, "depths": (1, 1, 1, 1)}


def gradients(model, x):
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def kept_bytes(model, x):
    """Return the bytes that are kept for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def storages(node):
        if node is None or node in seen:
            return
        seen.add(node)
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                value = getattr(node, name)
                for saved in value if isinstance(value, (tuple, list)) else [value]:
                    tensor = getattr(saved, "data", None)  # the result of the hook, or the tensor
                    while isinstance(tensor, _Origin):
                        tensor = tensor.input
                    if isinstance(tensor, _Kept):
                        tensor = tensor.tensor
                    if isinstance(tensor, torch.Tensor):
                        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        for parent, _ in node.next_functions:
            storages(parent)

    seen = set()
    storages(model(x).sum().grad_fn)
    return sum(size for pointer, size in kept.items() if pointer not in own)


def pair(name, **kwargs):
    torch.manual_seed(0)
    kwargs = {"depths": (1, 2, 1, 1), "num_classes": 10, **SMALL, **kwargs}
    plain = timm.create_model(name, **kwargs)
    for key, p in plain.named_parameters():
        if key.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.5)
    recomputing = timm.create_model(name, recompute_acts=True, **kwargs)
    recomputing.load_state_dict(plain.state_dict())
    return plain, recomputing


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pixels", [64, 97])
def test_loss_and_gradients_are_bit_identical(name, pixels):
    plain, recomputing = pair(name)
    x = torch.randn(2, 3, pixels, pixels)
    for expected, actual in zip(gradients(plain, x), gradients(recomputing, x), strict=True):
        assert torch.equal(expected, actual)


def test_second_derivatives_are_the_same():
    plain, recomputing = pair("nfnet_f0")
    x = torch.randn(2, 3, 32, 32)
    results = []
    for model in (plain, recomputing):
        weight = model.stages[1][0].conv2.weight
        (first,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), weight)[0])
    assert torch.allclose(*results, rtol=1e-4, atol=1e-6 * float(results[0].abs().max()))


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_regnet_b0"])
def test_feature_maps_take_less_than_62_percent_of_the_memory(name):
    plain, recomputing = pair(name)
    x = torch.randn(4, 3, 192, 192)
    weights = sum(p.numel() * 4 for key, p in plain.named_parameters() if "conv" in key and p.dim() == 4)
    maps = [kept_bytes(model, x) - weights for model in (plain, recomputing)]
    assert maps[1] < 0.62 * maps[0]


def test_recomputing_takes_no_more_memory_with_relu():
    plain, recomputing = pair("dm_nf_resnet50")
    x = torch.randn(2, 3, 64, 64)
    assert kept_bytes(recomputing, x) <= kept_bytes(plain, x)


def test_recomputing_takes_no_more_memory_with_checkpointed_blocks():
    plain, recomputing = pair("nfnet_f0")
    x = torch.randn(2, 3, 96, 96, requires_grad=True)
    plain.set_grad_checkpointing()
    recomputing.set_grad_checkpointing()
    assert kept_bytes(recomputing, x) <= kept_bytes(plain, x)
    for expected, actual in zip(gradients(plain, x), gradients(recomputing, x), strict=True):
        assert torch.equal(expected, actual)


def test_an_interrupt_in_a_convolution_leaves_no_hook_behind(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    model = timm.create_model("nfnet_f0", recompute_acts=True, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.conv2d", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(1, 3, 32, 32))
    assert not has_saved_tensors_hooks()


def doubled(module, args, output):
    output.mul_(2)


def halved_input(module, args):
    args[0].mul_(0.5)


CHANGES = {
    "an activation": lambda m: m.stages[0][0].act2.register_forward_hook(doubled),
    "an activation, by a copy": lambda m: m.stages[0][0].act2.register_forward_hook(lambda a, b, out: out * 2),
    "the first activation of a block": lambda m: m.stages[1][0].act1.register_forward_hook(doubled),
    "a convolution's input": lambda m: m.stages[1][0].conv2.register_forward_pre_hook(halved_input),
    "an activation's input": lambda m: m.stages[1][0].act3.register_forward_pre_hook(lambda a, b: (b[0] * 0.5,)),
    "a block": lambda m: m.stages[2][0].register_forward_hook(lambda a, b, out: out * 0.5),
    "every activation": lambda m: [
        a.register_forward_hook(doubled) for a in m.modules() if type(a).__name__.endswith("GELUTanh")
    ],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_hooks_that_change_maps_give_the_plain_networks_gradients_or_error(change):
    plain, recomputing = pair("nfnet_f0")
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, recomputing):
        change(model)
    try:
        expected = gradients(plain, x)
    except RuntimeError as error:
        assert "inplace" in str(error)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(recomputing, x)
        return
    for a, b in zip(expected, gradients(recomputing, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("index", range(5))
def test_a_feature_map_changed_in_place_fails_as_in_the_plain_network(index):
    x = torch.randn(2, 3, 64, 64)
    results = []
    for model in pair("nfnet_f0"):
        features = model.forward_intermediates(x, intermediates_only=True)
        features[index].mul_(0.5)
        try:
            sum(f.square().mean() for f in features).backward()
            results.append([p.grad for p in model.parameters()])
        except RuntimeError as error:
            results.append(str(error)[:120])
    assert type(results[0]) is type(results[1])
    if isinstance(results[0], str):
        assert "modified by an inplace operation" in results[1]
    else:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_weight_changed_between_the_passes_fails_as_in_the_plain_network():
    for model in pair("nfnet_f0"):
        loss = model(torch.randn(2, 3, 32, 32)).sum()
        with torch.no_grad():
            model.head.fc.weight.mul_(2)
            model.stages[0][0].conv1.bias.mul_(2)  # autograd does not save it
            for block in (model.stages[0][0], model.stages[1][0]):
                block.conv2.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_retained_graph_gives_the_same_gradients_twice():
    _, recomputing = pair("nfnet_f0")
    loss = recomputing(torch.randn(2, 3, 64, 64)).square().mean()
    once = torch.autograd.grad(loss, list(recomputing.parameters()), retain_graph=True)
    twice = torch.autograd.grad(loss, list(recomputing.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_other_hooks_on_saved_tensors_take_precedence():
    plain, recomputing = pair("nfnet_f0")
    x = torch.randn(2, 3, 64, 64)
    with torch.autograd.graph.save_on_cpu():
        for a, b in zip(gradients(plain, x), gradients(recomputing, x), strict=True):
            assert torch.equal(a, b)


def test_a_feature_network_is_checkpointed_too():
    kept = []
    for enable in (False, True):
        torch.manual_seed(0)
        small = {**SMALL, "depths": (1, 2, 2, 1)}
        features = timm.create_model("nfnet_f0", features_only=True, recompute_acts=True, **small)
        features.set_grad_checkpointing(enable)

        class Summed(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return sum(f.mean() for f in self.inner(x))

        kept.append(kept_bytes(Summed(features), torch.randn(2, 3, 96, 96, requires_grad=True)))
    assert kept[1] < 0.5 * kept[0]


def test_recomputing_works_with_copies_features_autocast_and_func():
    plain, recomputing = pair("nfnet_f0", **TINY)
    x = torch.randn(2, 3, 32, 32)
    for expected, actual in zip(gradients(plain, x), gradients(copy.deepcopy(recomputing), x), strict=True):
        assert torch.equal(expected, actual)
    buffer = io.BytesIO()
    torch.save(recomputing, buffer)
    with torch.no_grad():
        assert torch.equal(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        for expected, actual in zip(gradients(plain, x), gradients(recomputing, x), strict=True):
            assert torch.equal(expected, actual)
    parameters = dict(recomputing.named_parameters())
    grads = torch.func.grad(lambda p: torch.func.functional_call(recomputing, p, (x,)).square().mean())(parameters)
    for expected, actual in zip(gradients(plain, x)[1:], grads.values(), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-4, atol=1e-6 * float(expected.abs().max() + 1))
    features = timm.create_model("nfnet_f0", features_only=True, recompute_acts=True, **TINY)
    sum(f.mean() for f in features(x)).backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("part", ["", *sorted(ACTIVATIONS)])
def test_a_scripted_network_gives_the_logits_and_gradients_of_the_plain_one(part):
    """The whole network with the authors' activation, and the first block with each other one."""
    model = timm.create_model("nfnet_f0", recompute_acts=True, act_layer=part or "gelu_tanh", **TINY)
    x = torch.randn(1, 3, 33, 32)
    if part:
        model, x = model.stages[0], torch.randn(1, 16, 9, 8)
    scripted = torch.jit.script(model)
    for expected, actual in zip(*(gradients(module, x) for module in (model, scripted)), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    assert torch.jit.load(io.BytesIO(buffer.getvalue()))(x).isfinite().all()


def test_a_feature_map_saved_to_a_file_contains_no_module():
    """A feature map from a hook can be saved to a file, and loaded without this package."""
    model = timm.create_model("nfnet_f0", recompute_acts=True, **TINY)
    maps = []
    for module in (model.stem.act2, model.stages[1][0].act3, model.stages[1][0].conv2, model.stages[1][0]):
        module.register_forward_hook(lambda module, args, out: maps.append(out))
    model(torch.randn(1, 3, 33, 33))
    for x in maps:
        buffer = io.BytesIO()
        torch.save(x, buffer)
        assert torch.equal(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True), x)
        assert x.__dict__ == {}


def test_origins_of_freed_maps_are_freed():
    model = timm.create_model("nfnet_f0", recompute_acts=True, **TINY)
    before = len(_origins)
    loss = model(torch.randn(1, 3, 33, 33)).sum()
    loss.backward()
    del loss
    assert len(_origins) == before
