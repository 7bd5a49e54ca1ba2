"""Groups, the clipping hook, timm's registry, and the authors' five training steps."""

import copy
import inspect
import pickle
import threading
import warnings

import golden
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from nfnet_timm.formats.haiku_names import from_haiku, to_haiku
from nfnet_timm.optim import SAM, agc_param_groups, attach_agc, create_optimizer
from nfnet_timm.optim.agc import adaptive_clip_grad_, clip_stats, unitwise_norm

AGC_NAMES = list_optimizers("agc-*")
SMALL = {**golden.TINY, "depths": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}


@pytest.fixture
def tiny(tiny):
    """Build smaller networks than the fixture of all tests."""
    return lambda **kwargs: tiny(**{**SMALL, **kwargs})


def backward(model, seed=0, scale=1.0):
    """Compute the gradients of a loss on random images, multiplied by ``scale``."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 3, 32, 32, generator=g), torch.randint(10, (4,), generator=g)
    loss = F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
    (loss * scale).backward()
    return loss.detach()


def settings(optimizer, model) -> dict[str, tuple]:
    """Return (clip_factor, weight_decay) of every parameter by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["clip_factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def authors_settings(model) -> dict[str, tuple]:
    out = {}
    for name, _ in model.named_parameters():
        if name == "head.fc.weight":
            out[name] = (None, 2e-5)
        else:
            out[name] = (0.01, 2e-5 if name.endswith("weight") else 0.0)
    return out


@pytest.mark.parametrize("how", ["groups", "ours", "timm_agc_name"])
def test_every_parameter_is_in_the_authors_group(tiny, how):
    model = tiny()
    if how == "groups":
        optimizer = torch.optim.SGD(agc_param_groups(model, 2e-5), lr=0.1)
    elif how == "ours":
        optimizer = create_optimizer(model, "sgd", lr=0.1, weight_decay=2e-5)
    else:
        optimizer = create_optimizer(model, "agc-sgd", lr=0.1, weight_decay=2e-5)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert settings(optimizer, model) == authors_settings(model)


def test_five_steps_equal_the_authors():
    expected = np.load(golden.DATA / "nfnet_tiny_train.npz")
    lr, momentum, weight_decay, clipping, eps = (float(h) for h in expected["hyper"])
    model = timm.create_model("nfnet_f0", **golden.TINY)
    model.load_state_dict(from_haiku(golden.tree("nfnet_tiny_train")))
    optimizer = create_optimizer_v2(
        model, "agc-sgd", lr=lr, momentum=momentum, weight_decay=weight_decay, clip_factor=clipping, clip_eps=eps
    )
    x, y = golden.images(expected["input"]), torch.from_numpy(expected["labels"]).long()
    losses = []
    for step in range(6):
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.item())
        if step < 5:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses == pytest.approx(expected["losses"].tolist(), abs=1e-4)
    final = to_haiku(model.state_dict())
    names = [key for key in expected.files if key.startswith("final/")]
    assert len(names) == 131
    for key in names:
        module, param = key.removeprefix("final/").split("::")
        assert golden.relative_error(torch.from_numpy(final[module][param]), expected[key]) < 1e-4, key


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "dm_nfnet_f0"])
def test_classifier_and_norms_of_other_models_are_found(name):
    model = timm.create_model(name, device="meta", **({} if name != "vit_tiny_patch16_224" else {"num_classes": 7}))
    optimizer = torch.optim.SGD(agc_param_groups(model, weight_decay=0.1), lr=0.1)
    found = settings(optimizer, model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    classifier = model.pretrained_cfg["classifier"] + ".weight"
    assert [n for n, (clip, _) in found.items() if clip is None] == [classifier]
    assert found[classifier][1] == 0.1
    for parameter, (_, decay) in found.items():
        if "norm" in parameter or ".bn" in parameter or parameter.endswith((".bias", ".gain", "pos_embed")):
            assert decay == 0, parameter
    assert any(decay for _, decay in found.values())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "nf_resnet26", "dm_nf_regnet_b0"])
def test_each_trainable_parameter_is_in_exactly_one_group(name):
    model = timm.create_model(name, device="meta")
    next(model.parameters()).requires_grad = False
    for layer_decay in (None, 0.7):
        groups = agc_param_groups(model, 0.1, layer_decay=layer_decay)
        grouped = [id(p) for group in groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kwargs", [{}, {"weight_decay": 2e-5}, {"weight_decay": 2e-5, "layer_decay": 0.7}])
def test_an_agc_optimizer_and_its_plain_one_exchange_states(tiny, kwargs):
    model = tiny()
    plain, clipping = (create_optimizer_v2(model, name, lr=0.1, **kwargs) for name in ("sgd", "agc-sgd"))
    members = [[[id(p) for p in group["params"]] for group in o.param_groups] for o in (plain, clipping)]
    assert members[0] == members[1]
    torch.optim.lr_scheduler.LambdaLR(clipping, [lambda _: 1.0] * len(plain.param_groups))
    for start, resumed in ((plain, clipping), (clipping, plain)):
        backward(model)
        start.step()
        resumed.load_state_dict(copy.deepcopy(start.state_dict()))
        exempt = not_clipped(resumed, model)
        assert exempt == (["head.fc.weight"] if resumed is clipping else [name for name, _ in model.named_parameters()])


@pytest.mark.parametrize("scheduler", [None, "torch", "timm"])
def test_layer_decay_scales_learning_rates_with_any_scheduler(tiny, scheduler):
    model = tiny()
    optimizer = create_optimizer(model, "sgd", lr=0.1, weight_decay=2e-5, layer_decay=0.7)
    assert settings(optimizer, model) == authors_settings(model)
    if scheduler == "torch":
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    elif scheduler == "timm":
        create_scheduler_v2(optimizer, "cosine", num_epochs=4)[0].step(0)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    timm_groups = param_groups_layer_decay(model, layer_decay=0.7)
    expected = {names[id(p)]: 0.1 * group["lr_scale"] for group in timm_groups for p in group["params"]}
    assert rates == pytest.approx(expected)
    assert len(set(rates.values())) > 5


def train(model, optimizer, scheduler, steps):
    for step in steps:
        scheduler.step_update(step)
        for part in range(2):  # two backward passes for each step
            backward(model, seed=10 * step + part)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("opt", ["agc-sgd", "agc-adamw", "lookahead_agc-sgd"])
def test_a_resumed_run_takes_the_same_steps(tiny, opt, tmp_path):
    def setup():
        model = tiny().train().double()
        optimizer = create_optimizer_v2(model, opt, lr=0.05, weight_decay=1e-4, clip_factor=0.02)
        scheduler, _ = create_scheduler_v2(
            optimizer, "cosine", num_epochs=4, step_on_epochs=False, updates_per_epoch=2, warmup_epochs=1
        )
        return model, optimizer, scheduler

    whole = setup()
    train(*whole, range(4))
    first = setup()
    train(*first, range(2))
    torch.save({"model": first[0].state_dict(), "optimizer": first[1].state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = setup()
    second[0].load_state_dict(saved["model"])
    second[1].load_state_dict(saved["optimizer"])
    train(*second, range(2, 4))
    # Not bit-identical: on a CPU, the rounding of torch's operations depends on the alignment of memory.
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_clip_factor_is_saved_in_the_state(tiny):
    model = tiny()
    saved = create_optimizer_v2(model, "agc-sgd", lr=0.1, clip_factor=0.05).state_dict()
    other = create_optimizer_v2(model, "agc-sgd", lr=0.1)
    other.load_state_dict(saved)
    assert {g["clip_factor"] for g in other.param_groups} == {0.05}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("opt", ["sgd", "agc-adamw"])
def test_a_copy_clips_as_the_original_does(tiny, opt, copied):
    model = tiny()
    optimizer = create_optimizer(model, opt, lr=1e-3, clip_factor=0.02)
    model, optimizer = copied((model, optimizer))
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.defaults["clip_factor"] == 0.02
    backward(model, scale=1e6)
    expected = 0.02 * unitwise_norm(model.final_conv.weight).clamp_min(1e-3)
    optimizer.step()
    torch.testing.assert_close(unitwise_norm(model.final_conv.weight.grad), expected)


def test_a_name_is_a_class_with_the_options_of_its_base():
    cls = get_optimizer_class("agc-sgd", bind_defaults=False)
    assert issubclass(cls, torch.optim.SGD)
    assert inspect.signature(cls) == inspect.signature(torch.optim.SGD)
    p = nn.Parameter(torch.ones(2))
    group = cls([p], 0.1, momentum=0.5, clip_factor=0.02, clip_eps=0.01).param_groups[0]
    assert [group[key] for key in ("lr", "momentum", "clip_factor", "clip_eps")] == [0.1, 0.5, 0.02, 0.01]


def test_accumulated_gradients_are_clipped_once_as_their_sum(tiny):
    model, sum_of = tiny(), tiny()
    for seed in range(3):
        backward(model, seed, scale=10.0)
        backward(sum_of, seed, scale=10.0)
    limited = [p for name, p in sum_of.named_parameters() if name != "head.fc.weight"]
    adaptive_clip_grad_(limited, 0.01)
    create_optimizer_v2(model, "agc-sgd", lr=0.1).step()
    for p, expected in zip(model.parameters(), sum_of.parameters(), strict=True):
        assert torch.equal(p.grad, expected.grad)


def test_a_closures_gradients_are_clipped(tiny):
    results = []
    for closure in (False, True):
        model = tiny()
        optimizer = create_optimizer(model, "sgd", lr=0.1)

        def loss(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            return backward(model, scale=100.0)

        if closure:
            assert optimizer.step(loss).isfinite()
        else:
            loss()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_list_of_named_parameters_exempts_the_classifier(tiny):
    model = tiny()
    optimizer = create_optimizer_v2(list(model.named_parameters()), "agc-sgd", lr=0.0)
    assert not_clipped(optimizer, model) == ["head.fc.weight"]


@pytest.mark.parametrize(
    ("fused", "unscale"), [(None, False), (None, True), (False, False), (True, False), (True, True)]
)
def test_a_gradient_scaler_does_not_change_clipping(tiny, fused, unscale):
    results = []
    for scaled in (False, True):
        model = tiny()
        optimizer = create_optimizer(model, "sgd", lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(4, 3, 32, 32, generator=g), torch.randint(10, (4,), generator=g)
        scaler.scale(F.cross_entropy(model(x), y) * 30).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_timms_clip_mode_agc_equals_ours_for_our_networks(tiny):
    """Vectors are one unit in timm, too. ``--clip-mode agc`` does not clip the last two parameters."""
    ours, theirs = tiny(), tiny()
    for model in (ours, theirs):
        backward(model, scale=100.0)
    names = [name for name, _ in theirs.named_parameters()]
    assert names[-2:] == ["head.fc.weight", "head.fc.bias"]
    dispatch_clip_grad(list(theirs.parameters())[:-2], 0.01, mode="agc")
    adaptive_clip_grad_(list(ours.parameters())[:-2], 0.01)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5)


def test_agc_names_have_descriptions_and_no_underscore():
    assert {"agc-sgd", "agc-adamw", "agc-lamb", "agc-lion", "agc-adafactor"} <= set(AGC_NAMES)
    assert not any("_" in name for name in AGC_NAMES)
    for name, description in list_optimizers("agc-*", with_description=True):
        assert "adaptive gradient clipping" in description, name


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")  # timm's kron
@pytest.mark.parametrize("name", AGC_NAMES)
def test_every_name_builds_an_optimizer_that_clips(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # timm's kron compiles for a minute
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    optimizer = create_optimizer_v2(model, name, lr=1e-3)
    (1e4 * model(torch.randn(2, 3, 4, 4)).square().sum()).backward()
    before = unitwise_norm(model[0].weight.grad).max()
    optimizer.step()
    assert unitwise_norm(model[0].weight.grad).max() < before
    assert all(p.isfinite().all() for p in model.parameters())


# --- the classifier in wrappers, copies and groups


class Wrapper(nn.Module):
    """Has parameters, but none of timm's methods."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return self.inner(x)


def assign(model):
    """Load as a model on the meta device does: the parameters become new objects."""
    model.load_state_dict({key: tensor.clone() for key, tensor in model.state_dict().items()}, assign=True)
    return model


def pretrained(model):
    state_dict = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    overlay = {"state_dict": state_dict, "num_classes": 10}
    return timm.create_model("nfnet_f0", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)


def replaced(model):
    model.head.fc = nn.Linear(64, 10)
    return model


def parametrized(model):
    torch.nn.utils.parametrizations.weight_norm(model.head.fc)
    return model


CHANGES = {
    "pretrained": pretrained,
    "assigned": assign,
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "an average": lambda model: timm.utils.ModelEmaV3(model).module,
    "moved": lambda model: model.double().float(),
    "reset": lambda model: model.reset_classifier(5) or model,
    "replaced": replaced,
    "reparameterized": lambda model: model.reparameterize(),
    "parametrized": parametrized,
    "recomputing": lambda model: timm.create_model("nfnet_f0", recompute_acts=True, **SMALL),
    "without gradients": lambda model: copy.deepcopy(model.requires_grad_(False)).requires_grad_(True),
}


WRAPPERS = {
    "bare": lambda model: model,
    "in a module": Wrapper,  # which hides timm's methods
    "in two": lambda model: Wrapper(Wrapper(model)),
    "in a sequence": lambda model: nn.Sequential(model, nn.Identity()),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model),
}


def not_clipped(optimizer, model):
    """Return the names of the parameters that a step does not clip; all gradients are too large."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    optimizer.step()
    return [name for name, p in model.named_parameters() if (p.grad.abs() == 1e3).any()]


@pytest.mark.parametrize(
    ("change", "wrapper"),
    [*((change, "in a module") for change in CHANGES), *(("pretrained", wrapper) for wrapper in WRAPPERS)],
)
def test_all_except_the_classifiers_weight_is_clipped_in_any_wrapper(tiny, change, wrapper):
    model = WRAPPERS[wrapper](CHANGES[change](tiny()))
    exempt = not_clipped(create_optimizer_v2(model, "agc-sgd", lr=0.0, weight_decay=1e-4), model)
    assert exempt
    assert all(".head.fc." in f".{name}" and not name.endswith("bias") for name in exempt)


@pytest.mark.parametrize("how", ["twin", "lookahead", "attached", "attached lookahead", "copied", "pickled"])
def test_a_classifier_added_later_is_not_clipped(tiny, how):
    model = Wrapper(tiny())
    body = [p for name, p in model.named_parameters() if ".head." not in name]
    head = [p for name, p in model.named_parameters() if ".head." in name]
    if "lookahead" in how:
        optimizer = create_optimizer_v2(body, "lookahead_sgd" if "attached" in how else "lookahead_agc-sgd", lr=0.0)
    else:
        optimizer = create_optimizer_v2(body, "sgd" if how == "attached" else "agc-sgd", lr=0.0)
    if "attached" in how:
        attach_agc(optimizer)
    if how in ("copied", "pickled"):
        copier = copy.deepcopy if how == "copied" else lambda x: pickle.loads(pickle.dumps(x))
        model, optimizer = copier((model, optimizer))
        head = [p for name, p in model.named_parameters() if ".head." in name]
    optimizer.add_param_group({"params": head})
    assert not_clipped(optimizer, model) == ["inner.head.fc.weight"]


def test_optimizers_do_not_keep_networks_alive():
    import gc
    import weakref

    model = timm.create_model("nfnet_f0", **SMALL)
    optimizer = create_optimizer_v2(model.parameters(), "agc-sgd", lr=0.1)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    optimizer.step()


# --- optimizers that cannot clip


def test_an_optimizer_that_differentiates_gradients_is_refused(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="Adahessian differentiates gradients.*timm's create_optimizer_v2"):
        create_optimizer(model, "adahessian", lr=0.1)
    with pytest.raises(ValueError, match="differentiates gradients"):
        attach_agc(create_optimizer_v2(model, "lookahead_adahessian", lr=0.1))


def test_attach_agc_makes_a_torch_optimizer_clip_and_keeps_its_type(tiny):
    model = tiny()
    plain = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(plain, 1)
    before = plain.param_groups
    optimizer = attach_agc(plain, clip_factor=0.02)
    assert optimizer is plain
    assert optimizer.param_groups is before
    backward(model)
    optimizer.step()
    scheduler.step()
    attach_agc(optimizer, clip_factor=0.04)
    assert [group["clip_factor"] for group in optimizer.param_groups] == [0.04]
    assert not_clipped(optimizer, model) == ["head.fc.weight"]


class Lookahead(torch.optim.Optimizer):
    """Like torch_optimizer's Lookahead, which has its own defaults and no hooks."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.defaults = {**optimizer.defaults}

    def step(self, closure=None):
        return self.optimizer.step(closure)


OTHERS = {
    "a wrapper": lambda params: Lookahead(torch.optim.SGD(params, lr=0.0)),
    "two wrappers": lambda params: Lookahead(Lookahead(torch.optim.SGD(params, lr=0.0))),
    "SAM": lambda params: SAM(torch.optim.SGD(params, lr=0.0)),
    "without a step yet": lambda params: type("Own", (torch.optim.Adagrad,), {})(params, lr=0.0),
}


@pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
def test_optimizers_of_other_libraries_clip(tiny, build):
    model = tiny()
    optimizer = attach_agc(build(model.parameters()), clip_factor=0.02)
    if isinstance(optimizer, SAM):
        optimizer = optimizer.optimizer
    assert not_clipped(optimizer, model) == ["head.fc.weight"]


def test_zero_redundancy_optimizer_clips_with_one_of_the_two_settings(tiny):
    """It keeps the arguments of the optimizer inside as its own defaults, without the ones that are left out."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, other = tiny(), tiny()
        agc_sgd = get_optimizer_class("agc-sgd", bind_defaults=False)
        sharded = ZeroRedundancyOptimizer(model.parameters(), agc_sgd, lr=0.1, clip_factor=0.01)
        plain = agc_sgd(other.parameters(), lr=0.1, clip_factor=0.01)
        for network, optimizer in ((model, sharded), (other, plain)):
            backward(network)
            optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    for p, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=0)


def test_an_optimizer_without_hooks_is_refused():
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            self.param_groups, self.defaults = [{"params": list(params)}], {}

        def step(self, closure=None):
            return None

    with pytest.raises(ValueError, match="adaptive_clip_grad_"):
        attach_agc(Own([nn.Parameter(torch.ones(2))]))


def test_other_optimizers_are_not_clipped(tiny):
    model = tiny()
    attach_agc(torch.optim.SGD(model.parameters(), lr=0.0))
    plain = torch.optim.SGD(agc_param_groups(model), lr=0.0)
    assert not_clipped(plain, model) == [name for name, _ in model.named_parameters()]


BAD = [0, -0.01, float("nan"), float("inf"), "much", True, [0.01]]


@pytest.mark.parametrize(
    ("key", "value"), [*(("clip_factor", value) for value in BAD), ("clip_eps", 0), ("clip_eps", "much")]
)
def test_a_setting_that_is_not_above_0_is_refused_and_nothing_changes(tiny, key, value):
    model = tiny()
    for build in (create_optimizer, create_optimizer_v2):
        with pytest.raises(ValueError, match=f"{key}=.*None"):
            build(model, "agc-sgd", lr=0.1, **{key: value})
    with pytest.raises(ValueError, match=key):
        attach_agc(torch.optim.SGD(model.parameters(), lr=0.1), **{key: value})
    with pytest.raises(ValueError, match=key):
        agc_param_groups(model, **{key: value})
    backward(model, scale=100.0)
    grad = model.stem.conv1.weight.grad.clone()
    with pytest.raises(ValueError, match=key):
        adaptive_clip_grad_(model.parameters(), **{key.replace("clip_eps", "eps"): value})
    optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1)
    optimizer.param_groups[-1][key] = value
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=key):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(model.stem.conv1.weight.grad, grad)


def test_text_is_converted_to_a_number_and_none_disables_clipping(tiny):
    model = tiny()
    optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.0, clip_factor="0.05", clip_eps="1e-2")
    assert [(g["clip_factor"], g["clip_eps"]) for g in optimizer.param_groups] == [(0.05, 0.01)]
    optimizer.param_groups[0]["clip_factor"] = None
    everything = [name for name, _ in model.named_parameters()]
    assert not_clipped(optimizer, model) == everything
    assert not_clipped(create_optimizer_v2(model, "agc-sgd", lr=0.0, clip_factor=None), model) == everything
    backward(model, scale=100.0)
    before = model.stem.conv1.weight.grad.clone()
    adaptive_clip_grad_(model.parameters(), None)
    assert torch.equal(model.stem.conv1.weight.grad, before)


# --- classifiers outside the networks of this package


class WithHead(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(64, 5)

    def forward(self, x):
        return self.fc(self.backbone(x))


def test_a_classifier_outside_the_network_gives_a_warning_and_can_be_exempted(tiny):
    model = WithHead(tiny(num_classes=0))
    with pytest.warns(RuntimeWarning, match=r"fc\.weight.*no_clip="):
        optimizer = create_optimizer(model, lr=0.0)
    assert not_clipped(optimizer, model) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not_clipped(create_optimizer(model, lr=0.0, no_clip=()), model) == []
        for no_clip in ("fc.weight", ["fc.weight"], "fc.w*"):
            assert not_clipped(create_optimizer(model, lr=0.0, no_clip=no_clip), model) == ["fc.weight"]
        patterns = ("fc.weight", "backbone.final_conv.*")
        expected = [*(f"backbone.final_conv.{name}" for name in ("weight", "bias", "gain")), "fc.weight"]
        assert not_clipped(create_optimizer(model, lr=0.0, no_clip=patterns), model) == expected
        create_optimizer(tiny(num_classes=0), lr=0.0)  # a backbone alone
    with pytest.raises(ValueError, match=r"no_clip='head\.\*'"):
        create_optimizer(model, lr=0.0, no_clip="head.*")


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel, lambda m: m])
def test_the_classifier_of_any_timm_model_is_found_in_the_usual_wrappers(wrap):
    model = timm.create_model("resnet18", num_classes=10)
    optimizer = create_optimizer(wrap(model), lr=0.0, weight_decay=0.1, no_clip="conv1.weight")
    assert not_clipped(optimizer, model) == ["conv1.weight", "fc.weight"]


HEADS = {  # and the parameters that are not clipped
    "a sequence": (lambda m: setattr(m, "head", nn.Sequential(nn.Flatten(), nn.Linear(4, 2))), ["head.1.weight"]),
    "none": (lambda m: setattr(m, "head", nn.Identity()), []),
    "removed": (lambda m: delattr(m, "head"), []),
    "no module": (lambda m: m.__dict__.update(get_classifier=lambda: 3), []),
    "an error": (lambda m: m.__dict__.update(get_classifier=lambda: 1 / 0), ["head.fc.weight"]),
}


@pytest.mark.parametrize(("change", "expected"), HEADS.values(), ids=HEADS)
def test_a_network_with_a_replaced_head_does_not_affect_other_optimizers(tiny, change, expected):
    odd = tiny()
    change(odd)
    model = tiny()
    assert not_clipped(create_optimizer_v2(model, "agc-sgd", lr=0.0), model) == ["head.fc.weight"]
    assert not_clipped(create_optimizer(odd, lr=0.0), odd) == expected


def test_networks_may_be_built_while_another_thread_runs_a_step(tiny):
    model, stop, errors = tiny(), threading.Event(), []
    optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.0)
    backward(model)

    def build():
        try:
            while not stop.is_set():
                timm.create_model("nfnet_f0", device="meta", **SMALL)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    try:
        for _ in range(20):
            optimizer.step()
    finally:
        stop.set()
        thread.join()
    assert not errors


def test_parameters_instead_of_a_model_are_refused_with_a_remedy(tiny):
    with pytest.raises(ValueError, match=r"create_optimizer_v2.*agc-sgd"):
        create_optimizer(tiny().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m: create_optimizer(m, torch.optim.SGD), r"opt is .*SGD.*expected a name"),
        (lambda m: create_optimizer(m, weight_decay="1e-4"), "weight_decay='1e-4': expected a number of at least 0"),
        (lambda m: create_optimizer(m, weight_decay=-1.0), "weight_decay=-1.0: expected"),
        (lambda m: create_optimizer(m, layer_decay=0), "layer_decay=0: expected a number above 0"),
        (lambda m: create_optimizer(m, layer_decay=float("nan")), "layer_decay=nan: expected"),
        (
            lambda m: create_optimizer(m, layer_decay=0.8, layer_decay_min_scale=0.1),
            "layer_decay_min_scale=0.1 has no effect: expected no argument about parameter groups",
        ),
        (lambda m: create_optimizer(m, no_clip=[3]), r"no_clip=\[3\]: expected a name"),
        (lambda m: attach_agc("sgd"), "optimizer is 'sgd': expected an optimizer"),
        (lambda m: attach_agc(torch.optim.SGD), "expected an optimizer"),
        (lambda m: attach_agc(m), "expected an optimizer"),
        (lambda m: clip_stats(m), r"NormFreeNet: expected those of model.named_parameters\(\)"),
        (lambda m: clip_stats(m.parameters()), r"expected pairs, as in model.named_parameters\(\)"),
        (lambda m: adaptive_clip_grad_(m), r"NormFreeNet: expected those of model.parameters\(\)"),
        (lambda m: adaptive_clip_grad_(m.named_parameters()), r"tuple: expected tensors, as in model.parameters\(\)"),
        (lambda m: adaptive_clip_grad_(m.parameters(), 10**400), "clip_factor=1000.*expected a number above 0"),
    ],
)
def test_arguments_of_a_wrong_type_or_range_are_refused_with_what_was_expected(tiny, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(tiny())


def test_a_misspelt_argument_of_the_groups_is_an_error(tiny):
    with pytest.raises(TypeError, match="weight_dcay"):
        agc_param_groups(tiny(), weight_dcay=2e-5)


def test_no_clip_may_be_an_iterator(tiny):
    model = tiny()
    optimizer = create_optimizer(model, no_clip=(name for name in ["stem.conv1.weight"]))
    assert settings(optimizer, model)["stem.conv1.weight"][0] is None


def test_layer_decay_scales_a_learning_rate_that_is_a_tensor(tiny):
    model, lr = tiny(), torch.tensor(0.1, dtype=torch.float64)
    numbers, tensors = (create_optimizer(model, "adamw", lr=rate, layer_decay=0.9) for rate in (0.1, lr))
    assert [float(g["lr"]) for g in tensors.param_groups] == pytest.approx([g["lr"] for g in numbers.param_groups])
    assert lr == 0.1


def test_a_second_attach_switches_clipping_on(tiny):
    p = nn.Parameter(torch.ones(3))
    optimizer = attach_agc(torch.optim.SGD([{"params": [p]}], lr=1.0), None)
    assert optimizer.param_groups[0]["clip_factor"] is None
    attach_agc(optimizer, 0.01)
    assert optimizer.param_groups[0]["clip_factor"] == 0.01


def test_a_second_attach_keeps_groups_that_are_exempt_or_have_their_own_factor(tiny):
    optimizer = create_optimizer(tiny(), clip_factor=0.01)
    exempt = [group["clip_factor"] is None for group in optimizer.param_groups]
    own = exempt.index(False)
    optimizer.param_groups[own]["clip_factor"] = 0.5
    attach_agc(optimizer, 0.02)
    expected = [None if e else 0.5 if i == own else 0.02 for i, e in enumerate(exempt)]
    assert any(exempt)
    assert [group["clip_factor"] for group in optimizer.param_groups] == expected


def test_a_pruned_or_parametrized_bias_of_the_classifier_is_clipped(tiny):
    from nfnet_timm.optim.param_groups import classifier_weights

    pruned, parametrized = tiny(), tiny()
    prune.l1_unstructured(pruned.head.fc, "bias", 0.3)
    register_parametrization(parametrized.head.fc, "bias", nn.Identity())
    for model in (pruned, parametrized):
        assert [tuple(p.shape) for p in classifier_weights(model)] == [(10, model.num_features)]


def test_complex_parameters_are_refused():
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="complex64"):
        adaptive_clip_grad_([p])


def test_stats_report_the_classifier_as_not_clipped(tiny):
    model = tiny()
    backward(model, scale=1e4)
    stats = clip_stats(model.named_parameters())
    assert stats["head.fc.weight"].clipped == 0 < stats["head.fc.weight"].max_ratio
    assert stats["stem.conv1.weight"].clipped > 0
