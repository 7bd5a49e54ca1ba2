"""Recomputing activations takes less memory and changes nothing else."""

import copy
import io

import pytest
import timm
import torch
from peak_memory import memory

SMALL = {"channels": (32, 32, 64, 64), "group_size": 8, "num_classes": 10}
TINY = {**SMALL, "depths": (1, 1, 1, 1)}


def gradients(model, x):
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def kept_bytes(model, x):
    """Return the bytes that are kept for the backward pass."""
    return memory(lambda: model(x).sum())[1]


def pair(name="nfnet_f0", **kwargs):
    """Return the same network twice, the second with recompute_acts."""
    torch.manual_seed(0)
    plain = timm.create_model(name, **{**SMALL, "depths": (1, 2, 1, 1), **kwargs})
    for key, p in plain.named_parameters():
        if key.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.5)
    recomputing = timm.create_model(name, recompute_acts=True, **{**SMALL, "depths": (1, 2, 1, 1), **kwargs})
    recomputing.load_state_dict(plain.state_dict())
    return plain, recomputing


def assert_same_gradients(models, x):
    expected, found = (gradients(model, x) for model in models)
    assert all(a.equal(b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50", "dm_nf_regnet_b0"])
def test_loss_and_gradients_are_bit_identical(name):
    plain, recomputing = pair(name)
    x = torch.randn(2, 3, 65, 64)
    assert_same_gradients((plain, recomputing), x)
    assert_same_gradients((plain, copy.deepcopy(recomputing)), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_gradients((plain, recomputing), x)
    with torch.autograd.graph.save_on_cpu():  # hooks of others take precedence
        assert_same_gradients((plain, recomputing), x)


def test_derivatives_by_other_ways_are_the_same():
    plain, recomputing = pair(depths=(1, 1, 1, 1))
    x = torch.randn(2, 3, 32, 32)
    results = []
    for model in (plain, recomputing):
        weight = model.stages[1][0].conv2.weight
        (first,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), weight)[0])
    assert torch.allclose(*results, rtol=1e-4, atol=1e-6 * float(results[0].abs().max()))
    parameters = dict(recomputing.named_parameters())
    loss_of = lambda p, x: torch.func.functional_call(recomputing, p, (x,)).square().mean()  # noqa: E731
    samples = torch.vmap(torch.func.grad(loss_of), (None, 0))(parameters, x[:, None])
    for i in range(2):
        for a, b in zip(gradients(plain, x[i : i + 1])[1:], samples.values(), strict=True):
            assert torch.allclose(a, b[i], rtol=1e-4, atol=1e-6 * float(a.abs().max() + 1))
    loss = recomputing(x).square().mean()
    once = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    twice = torch.autograd.grad(loss, list(parameters.values()))
    assert all(a.equal(b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_regnet_b0"])
def test_feature_maps_take_less_than_62_percent_of_the_memory_and_none_after_the_step(name):
    plain, recomputing = pair(name)
    x = torch.randn(4, 3, 128, 128)
    weights = sum(p.numel() * 4 for key, p in plain.named_parameters() if "conv" in key and p.dim() == 4)
    maps = [kept_bytes(model, x) - weights for model in (plain, recomputing)]
    assert maps[1] < 0.62 * maps[0]
    after = [memory(lambda m=model: m(x).sum().backward())[1] for model in (plain, recomputing)]
    assert after[0] == after[1]  # the gradients of the parameters, and nothing else


@pytest.mark.parametrize(("name", "checkpointing"), [("dm_nf_resnet50", False), ("nfnet_f0", True)])
def test_with_relu_or_checkpointed_blocks_it_takes_no_more_memory(name, checkpointing):
    models, x = pair(name), torch.randn(2, 3, 64, 64, requires_grad=True)
    for model in models:
        model.set_grad_checkpointing(checkpointing)
    assert kept_bytes(models[1], x) <= kept_bytes(models[0], x)
    assert_same_gradients(models, x)


def doubled(module, args, output):
    output.mul_(2)


def halved_input(module, args, output=None):
    args[0].mul_(0.5)


CHANGES = {
    "an activation": lambda m: m.stages[0][0].act2.register_forward_hook(doubled),
    "an activation, by a copy": lambda m: m.stages[0][0].act2.register_forward_hook(lambda a, b, out: out * 2),
    "a convolution's input": lambda m: m.stages[1][0].conv2.register_forward_pre_hook(halved_input),
    "an activation's input, afterwards": lambda m: m.stages[1][0].act3.register_forward_hook(halved_input),
    "an activation's input": lambda m: m.stages[1][0].act3.register_forward_pre_hook(lambda a, b: (b[0] * 0.5,)),
    "a block": lambda m: m.stages[2][0].register_forward_hook(doubled),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_hooks_that_change_maps_give_the_plain_networks_gradients_or_error(change):
    plain, recomputing = pair(depths=(1, 1, 1, 1))
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, recomputing):
        change(model)
    try:
        gradients(plain, x)
    except RuntimeError as error:
        assert "inplace" in str(error)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(recomputing, x)
    else:
        assert_same_gradients((plain, recomputing), x)


def test_a_changed_input_is_not_recomputed_from_if_the_activation_itself_gets_no_gradient():
    block = pair(depths=(1, 1, 1, 1))[1].stages[1][0]
    block.act3.register_forward_hook(halved_input)
    loss = block(torch.randn(2, 32, 8, 8)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, block.conv3.weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("act_layer", ["gelu_tanh", "silu", "celu"])
def test_a_scripted_block_gives_the_outputs_and_gradients_of_the_plain_one(act_layer):
    block = timm.create_model("nfnet_f0", recompute_acts=True, act_layer=act_layer, **TINY).stages[0]
    scripted, x = torch.jit.script(block), torch.randn(1, 16, 9, 8)
    for expected, actual in zip(*(gradients(module, x) for module in (block, scripted)), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    assert torch.jit.load(io.BytesIO(buffer.getvalue()))(x).isfinite().all()


def test_a_saved_network_loads_and_a_saved_feature_map_contains_no_module():
    """A feature map from a hook can be saved to a file, and loaded without this package."""
    model, x = timm.create_model("nfnet_f0", recompute_acts=True, **TINY), torch.randn(1, 3, 33, 33)
    maps = []
    for module in (model.stem.act2, model.stages[1][0].act3, model.stages[1][0].conv2, model.stages[1][0]):
        module.register_forward_hook(lambda module, args, out: maps.append(out))
    logits = model(x)
    for y in maps:
        assert torch.equal(saved_and_loaded(y, weights_only=True), y)
        assert y.__dict__ == {}
    for module in model.modules():
        module._forward_hooks.clear()
    assert torch.equal(saved_and_loaded(model, weights_only=False)(x), logits)


def saved_and_loaded(value, weights_only):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=weights_only)
