"""Recomputed activations: less memory, and nothing else changes."""

import copy
import io

import pytest
import timm
import torch

NETWORKS = ["nfnet_f0", "dm_nf_resnet50", "dm_nf_seresnet50", "dm_nf_regnet_b0"]


def gradients(model, x):
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def kept_bytes(model, x):
    """Memory that lives until the backward pass and is no parameter."""
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
                    tensor = getattr(saved, "data", None)  # what the hook returned, or the tensor
                    if isinstance(tensor, torch.Tensor):
                        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        for parent, _ in node.next_functions:
            storages(parent)

    seen = set()
    storages(model(x).sum().grad_fn)
    return sum(size for pointer, size in kept.items() if pointer not in own)


def pair(name, **kwargs):
    torch.manual_seed(0)
    plain = timm.create_model(name, depths=(1, 2, 1, 1), num_classes=10, **kwargs)
    for key, p in plain.named_parameters():
        if key.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.5)
    again = timm.create_model(name, depths=(1, 2, 1, 1), num_classes=10, recompute_acts=True, **kwargs)
    again.load_state_dict(plain.state_dict())
    return plain, again


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pixels", [64, 97])
def test_loss_and_gradients_are_the_same_to_the_bit(name, pixels):
    plain, again = pair(name)
    x = torch.randn(2, 3, pixels, pixels)
    for expected, actual in zip(gradients(plain, x), gradients(again, x), strict=True):
        assert torch.equal(expected, actual)


def test_second_derivatives_are_the_same():
    plain, again = pair("nfnet_f0", channels=(16, 16, 32, 32), group_size=8)
    x = torch.randn(2, 3, 32, 32)
    results = []
    for model in (plain, again):
        weight = model.stages[1][0].conv2.weight
        (first,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), weight)[0])
    assert torch.allclose(*results, rtol=1e-4, atol=1e-6 * float(results[0].abs().max()))


@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_regnet_b0"])
def test_little_more_than_half_of_the_maps_are_kept(name):
    plain, again = pair(name)
    x = torch.randn(4, 3, 192, 192)
    weights = sum(p.numel() * 4 for key, p in plain.named_parameters() if "conv" in key and p.dim() == 4)
    maps = [kept_bytes(model, x) - weights for model in (plain, again)]
    assert maps[1] < 0.62 * maps[0]


def test_relu_which_keeps_its_output_keeps_no_more():
    plain, again = pair("dm_nf_resnet50")
    x = torch.randn(2, 3, 64, 64)
    assert kept_bytes(again, x) <= kept_bytes(plain, x)


def test_checkpointed_blocks_keep_what_they_keep_without_it():
    plain, again = pair("nfnet_f0")
    x = torch.randn(2, 3, 96, 96, requires_grad=True)
    plain.set_grad_checkpointing()
    again.set_grad_checkpointing()
    assert kept_bytes(again, x) <= kept_bytes(plain, x)
    for expected, actual in zip(gradients(plain, x), gradients(again, x), strict=True):
        assert torch.equal(expected, actual)


def test_an_error_inside_leaves_no_hook_behind():
    _, again = pair("nfnet_f0")
    with pytest.raises(ValueError, match="shape"):
        again.stages(torch.randn(1, 5, 8, 8))
    x = torch.randn(2, requires_grad=True)
    x.recompute = lambda: torch.zeros(2)
    x.square().sum().backward()
    assert torch.equal(x.grad, 2 * x)


def test_it_goes_with_copies_features_compile_autocast_func_and_inference():
    plain, again = pair("nfnet_f0", channels=(16, 16, 32, 32), group_size=8)
    x = torch.randn(2, 3, 32, 32)
    for expected, actual in zip(gradients(plain, x), gradients(copy.deepcopy(again), x), strict=True):
        assert torch.equal(expected, actual)
    buffer = io.BytesIO()
    torch.save(again, buffer)
    with torch.no_grad():
        assert torch.equal(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)(x), plain(x))
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    for expected, actual in zip(gradients(plain, x), gradients(compiled, x), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-3, atol=1e-5 * float(expected.abs().max() + 1))
    with torch.autocast("cpu", torch.bfloat16):
        for expected, actual in zip(gradients(plain, x), gradients(again, x), strict=True):
            assert torch.equal(expected, actual)
    parameters = dict(again.named_parameters())
    grads = torch.func.grad(lambda p: torch.func.functional_call(again, p, (x,)).square().mean())(parameters)
    for expected, actual in zip(gradients(plain, x)[1:], grads.values(), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-4, atol=1e-6 * float(expected.abs().max() + 1))
    features = timm.create_model("nfnet_f0", features_only=True, recompute_acts=True, depths=(1, 1, 1, 1))
    sum(f.mean() for f in features(x)).backward()
