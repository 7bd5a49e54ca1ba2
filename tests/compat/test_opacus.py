"""Opacus: per-sample gradients and norms of the layers here, and private training."""

import copy
import gc
import weakref
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from compat_table import images_and_labels
from peak_memory import memory
from torch import nn

from nfnet_timm.models.block import NormFreeBlock

opacus = pytest.importorskip("opacus")

from opacus import GradSampleModule, PrivacyEngine  # noqa: E402
from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost  # noqa: E402

import nfnet_timm.privacy  # noqa: E402, F401  # registers

pytestmark = [
    pytest.mark.library("opacus"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),  # of a stem, whose input has none
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning"),
    pytest.mark.filterwarnings("ignore:PrivacyEngine:UserWarning"),
]

TOLERANCE = 5e-5  # relative, for all samples of a parameter together

SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96), "num_classes": 10}
# Name, arguments, pixels: odd ones pad the strided convolutions on one side.
NETWORKS = {
    "NFNet": ("nfnet_f0", {**SMALL, "group_size": 8, "depths": (1, 2, 1, 1)}, 49),
    "NF-RegNet": ("dm_nf_regnet_b0", {**SMALL, "group_size": 8, "width_factor": 1.0}, 33),
    "dilated NF-ResNet": ("dm_nf_resnet50", {**SMALL, "output_stride": 8}, 48),
    "recomputing": ("nfnet_f0", {**SMALL, "group_size": 8, "recompute_acts": True}, 48),
}


def network(kind="NFNet"):
    """In training mode, with residual branches, gains of both signs, some rows that are clamped and a gain of zero."""
    name, kwargs, _ = NETWORKS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).train()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("skipinit_gain"):
                p.fill_(0.3)
            elif key.endswith(".gain"):
                p.uniform_(-1, 2)
        conv = model.stages[1][0].conv1
        conv.weight[3:6].mul_(1e-4)  # far below eps
        conv.gain[7] = 0
        nn.init.normal_(model.head.fc.weight, std=0.1)
    return model


def batch(kind="NFNet", n=2):
    pixels = NETWORKS[kind][2]
    torch.manual_seed(1)
    return torch.randn(n, 3, pixels, pixels), torch.arange(n)


def one_at_a_time(model, x, y):
    """The gradient of each sample, by name, (N, ...), each computed alone."""
    grads = []
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return {name: torch.stack([sample[name] for sample in grads]) for name in grads[0]}


def error(found, expected):
    return ((found - expected).norm() / expected.norm().clamp(min=1e-9)).item()


def backward(wrapped, x, y):
    F.cross_entropy(wrapped(x), y).backward()
    return dict(wrapped._module.named_parameters())


def check(wrap, model, x, y, tolerance=TOLERANCE):
    """Compare what Opacus finds for each parameter that is trained with the gradients of one sample at a time."""
    expected = one_at_a_time(model, x, y)
    params = backward(wrap(copy.deepcopy(model)), x, y)
    for key, p in params.items():
        if not p.requires_grad:
            assert getattr(p, "grad_sample", None) is None
        elif wrap is Ghost:
            assert error(p._norm_sample, expected[key].reshape(len(x), -1).norm(dim=1)) < tolerance, key
        else:
            assert error(p.grad_sample.float(), expected[key]) < tolerance, key
            assert error(p.grad, expected[key].mean(0)) < tolerance, key


both = pytest.mark.parametrize("wrap", [GradSampleModule, Ghost])


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_equal_those_of_one_sample_at_a_time(kind):
    """Per-sample gradients of every parameter equal those of one sample at a time within 5e-5, relative."""
    check(GradSampleModule, network(kind), *batch(kind))


@pytest.mark.parametrize("kind", NETWORKS)
def test_norms_of_ghost_clipping_equal_those_of_the_gradients(kind):
    """Ghost clipping's norms of every parameter equal those of one sample at a time within 5e-5, relative."""
    check(Ghost, network(kind), *batch(kind))


@both
@pytest.mark.parametrize("frozen", ["skipinit_gain", ".gain", "bias", "conv2.weight", "stages.0"])
def test_frozen_parameters_get_none_and_change_no_other(wrap, frozen):
    model = network()
    for key, p in model.named_parameters():
        p.requires_grad_(frozen not in key)
    check(wrap, model, *batch())


def test_vectors_as_skip_gains_and_a_reparameterized_network_are_taken():
    for model in (network().vectorize_skip_gains(), timm.utils.reparameterize_model(network()).train()):
        check(GradSampleModule, model, *batch())


def test_under_autocast_gradients_are_those_of_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        check(GradSampleModule, network(), *batch(), tolerance=0.1)


def test_two_forward_passes_before_their_backward_passes_add_up_as_opacus_has_it():
    model, (x, y) = network(), batch(n=4)
    expected = one_at_a_time(model, x, y)
    wrapped = GradSampleModule(copy.deepcopy(model))
    first, second = wrapped(x[:2]), wrapped(x[2:])
    F.cross_entropy(second, y[2:]).backward()
    F.cross_entropy(first, y[:2]).backward()
    for key, p in wrapped._module.named_parameters():
        assert error(p.grad_sample, expected[key][:2] + expected[key][2:]) < TOLERANCE, key


@both
def test_an_empty_batch_is_taken(wrap):
    """An empty batch, which Poisson sampling may draw, is accepted."""
    params = backward(wrap(network()), torch.zeros(0, 3, 49, 49), torch.zeros(0, dtype=torch.long))
    assert {len(p._norm_sample if wrap is Ghost else p.grad_sample) for p in params.values()} == {0}


def test_nothing_is_kept_after_a_step_and_nothing_at_all_without_opacus():
    model, (x, y) = network(), batch()
    kept = []
    for block in (m for m in model.modules() if isinstance(m, NormFreeBlock)):
        block.conv3.register_forward_hook(lambda *args: kept.append(weakref.ref(args[2])))
    wrapped = GradSampleModule(model)
    backward(wrapped, x, y)
    gc.collect()
    assert [ref for ref in kept if ref() is not None] == []
    assert all(not block.activations for block in wrapped.modules() if isinstance(block, NormFreeBlock))
    plain = wrapped.to_standard_module()
    loss = F.cross_entropy(plain(x), y)
    assert not any(len(block._forward_hooks) for block in plain.modules() if isinstance(block, NormFreeBlock))
    loss.backward()


def test_the_mode_that_would_count_twice_is_refused():
    with pytest.raises(ValueError, match='"functorch" would count the layers inside a block twice'):
        GradSampleModule(network(), force_functorch=True)(batch()[0])


@pytest.mark.parametrize(("name", "pixels"), [("nfnet_f0", 49), ("dm_nf_resnet50", 64)])
def test_memory_of_ghost_clipping_grows_with_the_batch_no_faster_than_without_privacy(name, pixels):
    """With ghost clipping the peak of memory grows with the batch no faster than without privacy."""
    growth = {}
    for label, wrap in (("ghost", Ghost), ("plain", lambda model: model)):
        wrapped = wrap(timm.create_model(name, num_classes=10, depths=(1, 1, 1, 1)).train())

        def step(n, wrapped=wrapped):
            F.cross_entropy(wrapped(torch.randn(n, 3, pixels, pixels)), torch.zeros(n, dtype=torch.long)).backward()
            wrapped.zero_grad(set_to_none=True)

        step(1)
        once, twice = (memory(partial(step, n))[0] for n in (12, 24))
        growth[label] = twice - once
    assert growth["ghost"] <= 1.02 * growth["plain"]


def made_private(model, optimizer, x, y, max_grad_norm, mode):
    """The network, the optimizer, the loss and batches of 8 in order, without noise."""
    criterion = nn.CrossEntropyLoss()
    private, optimizer, *criteria, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8),
        noise_multiplier=0.0,
        max_grad_norm=max_grad_norm,
        poisson_sampling=False,
        grad_sample_mode=mode,
        **({"criterion": criterion} if mode == "ghost" else {}),
    )
    return private, optimizer, criteria[0] if criteria else criterion, loader


@pytest.mark.parametrize(("mode", "opt"), [("hooks", "sgd"), ("ghost", "agc-sgd")])
def test_make_private_without_noise_and_with_a_wide_bound_is_plain_training(mode, opt):
    """PrivacyEngine.make_private (hooks and ghost) without noise, and a bound out of reach, trains as a plain loop."""
    x, y = images_and_labels(24)
    model = network()
    plain = copy.deepcopy(model)

    def optimizer_of(network):
        return timm.optim.create_optimizer_v2(network, opt, lr=0.05, momentum=0.9)

    optimizer = optimizer_of(model)
    private, optimizer, loss_of, loader = made_private(model, optimizer, x, y, 1e6, mode)
    plain_optimizer = optimizer_of(plain)
    for images, labels in loader:
        optimizer.zero_grad()
        loss_of(private(images), labels).backward()
        optimizer.step()
        plain_optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        plain_optimizer.step()
    theirs = dict(plain.named_parameters())
    for key, p in private._module.named_parameters():
        torch.testing.assert_close(p, theirs[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_make_private_bounds_what_one_sample_does(mode):
    """In a step without noise, one sample moves the weights by at most the bound, in both modes."""
    x, y = images_and_labels(8)
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    private, optimizer, loss_of, loader = made_private(model, optimizer, x, y, 0.01, mode)
    ((images, labels),) = list(loader)
    optimizer.zero_grad()
    loss_of(private(images), labels).backward()
    optimizer.step()
    moved = torch.cat([(p.detach() - before[key]).flatten() for key, p in private._module.named_parameters()])
    assert 0 < moved.norm().item() <= 0.01 * (1 + 1e-4)


def test_checkpointing_that_opacus_would_count_twice_is_refused_with_what_works():
    model = network()
    wrapped = GradSampleModule(model)
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="set_reentrant_ckpt"):
        wrapped(batch()[0])


@both
def test_reentrant_checkpointing_gives_the_gradients_of_one_sample_at_a_time(wrap):
    model = network()
    model.set_grad_checkpointing()
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(True)
    try:
        check(wrap, model, *batch())
    finally:
        timm.layers.set_reentrant_ckpt(before)


def test_a_network_without_opacus_compiles_to_one_graph(tiny):
    """After the import of nfnet_timm.privacy, a network without Opacus compiles to one graph."""
    model, x = tiny().train(), torch.randn(2, 3, 33, 33)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
