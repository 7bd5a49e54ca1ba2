"""Groups, the clipping hook, timm's registry, and the authors' five training steps."""

import copy
import gc
import pickle
import warnings
import weakref

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
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from nfnet_timm.formats.haiku_names import from_haiku, to_haiku
from nfnet_timm.optim import SAM, agc_param_groups, attach_agc, create_optimizer
from nfnet_timm.optim.agc import adaptive_clip_grad_, clip_stats, unitwise_norm

SMALL = {**golden.TINY, "depths": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
DUPLICATE = {"copied": copy.deepcopy, "pickled": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.fixture
def tiny(tiny):
    """Build smaller networks than the fixture of all tests."""
    return lambda **kwargs: tiny(**{**SMALL, **kwargs})


def loss_of(model, seed=0):
    """Return the loss on random images."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 3, 32, 32, generator=g), torch.randint(10, (4,), generator=g)
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def backward(model, seed=0, scale=1.0):
    loss = loss_of(model, seed)
    (loss * scale).backward()
    return loss.detach()


def by_name(optimizer, model, *keys):
    """Return the entries ``keys`` of the group of every parameter, by its name. Each parameter is in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = [
        (names[id(p)], tuple(group[key] for key in keys)) for group in optimizer.param_groups for p in group["params"]
    ]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def not_clipped(optimizer, model):
    """Return the names of the parameters that a step does not clip; all gradients are too large."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    optimizer.step()
    return [name for name, p in model.named_parameters() if (p.grad.abs() == 1e3).any()]


# --- groups, and steps


@pytest.mark.parametrize(("opt", "scheduler"), [("sgd", None), ("agc-sgd", "torch"), ("sgd", "timm")])
def test_every_parameter_is_in_the_authors_group_with_its_learning_rate(tiny, opt, scheduler):
    model = tiny()
    lr = 0.1 if scheduler else torch.tensor(0.1, dtype=torch.float64)
    optimizer = create_optimizer(model, opt, lr=lr, weight_decay=2e-5, layer_decay=0.7)
    if scheduler == "torch":
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    elif scheduler == "timm":
        create_scheduler_v2(optimizer, "cosine", num_epochs=4)[0].step(0)
    expected = {}
    for group in param_groups_layer_decay(model, layer_decay=0.7):
        for name, p in model.named_parameters():
            if any(p is q for q in group["params"]):
                clip_factor = None if name == "head.fc.weight" else 0.01
                decay = 2e-5 if name.endswith("weight") else 0.0
                expected[name] = clip_factor, decay, pytest.approx(0.1 * group["lr_scale"])
    found = by_name(optimizer, model, "clip_factor", "weight_decay", "lr")
    assert {name: (clip, decay, float(rate)) for name, (clip, decay, rate) in found.items()} == expected
    assert len({float(rate) for *_, rate in found.values()}) > 5
    assert lr == 0.1


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    ("name", "wrap", "layer_decay"),
    [
        ("resnet18", compiled, 0.7),
        ("vit_tiny_patch16_224", nn.DataParallel, None),
        ("dm_nfnet_f0", lambda model: model, 0.7),
        ("dm_nfnet_f0", lambda model: model, None),
    ],
)
def test_classifier_and_norms_of_other_models_are_found_in_the_usual_wrappers(name, wrap, layer_decay):
    model = timm.create_model(name, device="meta", num_classes=7)
    frozen, first = next(iter(model.named_parameters()))
    first.requires_grad = False
    groups = agc_param_groups(wrap(model), weight_decay=0.1, layer_decay=layer_decay)
    found = by_name(torch.optim.SGD(groups, lr=0.1), model, "clip_factor", "weight_decay")
    assert set(found) == {name for name, _ in model.named_parameters()} - {frozen}
    classifier = model.pretrained_cfg["classifier"] + ".weight"
    assert {n: each for n, each in found.items() if each[0] is None} == {classifier: (None, 0.1)}
    for parameter, (_, decay) in found.items():
        if "norm" in parameter or ".bn" in parameter or parameter.endswith((".bias", ".gain", "pos_embed")):
            assert decay == 0, parameter
    assert any(decay for _, decay in found.values())


def assert_equal_the_authors(found, expected, kind):
    """Compare arrays by Haiku's names with the entries ``kind/MODULE::NAME`` of ``expected``."""
    names = [key for key in expected.files if key.startswith(f"{kind}/")]
    assert len(names) == sum(map(len, found.values())) == 131
    for key in names:
        module, param = key.removeprefix(f"{kind}/").split("::")
        assert golden.relative_error(torch.from_numpy(found[module][param]), expected[key]) < 1e-4, key


def test_gradients_and_five_steps_equal_the_authors():
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
            if step == 0:
                grads = to_haiku({name: p.grad for name, p in model.named_parameters()})
                assert_equal_the_authors(grads, expected, "grad0")
            optimizer.step()
    assert losses[0] == pytest.approx(expected["losses"][0], rel=1e-5)
    assert losses == pytest.approx(expected["losses"].tolist(), abs=1e-4)
    assert_equal_the_authors(to_haiku(model.state_dict()), expected, "final")


def test_an_agc_optimizer_and_its_plain_one_exchange_states(tiny):
    model = tiny()
    kwargs = {"lr": 0.1, "weight_decay": 2e-5, "layer_decay": 0.7}
    plain, clipping = (create_optimizer_v2(model, name, **kwargs) for name in ("sgd", "agc-sgd"))
    for start, resumed in ((plain, clipping), (clipping, plain)):
        backward(model)
        start.step()
        resumed.load_state_dict(copy.deepcopy(start.state_dict()))
        exempt = not_clipped(resumed, model)
        assert exempt == (["head.fc.weight"] if resumed is clipping else [name for name, _ in model.named_parameters()])


def train(model, optimizer, scheduler, steps):
    for step in steps:
        scheduler.step_update(step)
        for part in range(2):  # two backward passes for each step
            backward(model, seed=10 * step + part)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("opt", ["agc-sgd", "lookahead_agc-sgd"])
def test_a_resumed_run_takes_the_same_steps(tiny, opt, tmp_path):
    def setup(clip_factor=0.02):
        model = tiny().train().double()
        optimizer = create_optimizer_v2(model, opt, lr=0.05, weight_decay=1e-4, clip_factor=clip_factor)
        scheduler, _ = create_scheduler_v2(
            optimizer, "cosine", num_epochs=4, step_on_epochs=False, updates_per_epoch=2, warmup_epochs=1
        )
        return model, optimizer, scheduler

    whole, first, second = setup(), setup(), setup(clip_factor=0.5)  # the state has the clip factor
    train(*whole, range(3))
    train(*first, range(2))
    torch.save({"model": first[0].state_dict(), "optimizer": first[1].state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second[0].load_state_dict(saved["model"])
    second[1].load_state_dict(saved["optimizer"])
    train(*second, range(2, 3))
    # Not bit-identical: on a CPU, the rounding of torch's operations depends on the alignment of memory.
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def accumulate(model):
    """Sum the gradients of two passes, as a training loop or a closure does."""
    return sum(backward(model, seed, scale=10.0) for seed in range(2))


@pytest.mark.parametrize("how", ["before the step", "in a closure", "in a closure by keyword"])
def test_accumulated_gradients_are_clipped_once_as_their_sum(tiny, how):
    model, sum_of = tiny(), tiny()
    optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1)
    if how == "before the step":
        loss = accumulate(model)
        optimizer.step()
    elif how == "in a closure":
        loss = optimizer.step(lambda: accumulate(model))
    else:
        loss = optimizer.step(closure=lambda: accumulate(model))
    assert torch.equal(loss, accumulate(sum_of))
    adaptive_clip_grad_([p for name, p in sum_of.named_parameters() if name != "head.fc.weight"], 0.01)
    create_optimizer_v2(sum_of, "sgd", lr=0.1).step()
    for p, expected in zip(model.parameters(), sum_of.parameters(), strict=True):
        assert torch.equal(p.grad, expected.grad)
        assert torch.equal(p, expected)


@pytest.mark.parametrize(("fused", "unscale"), [(False, False), (True, False), (True, True)])
def test_a_gradient_scaler_does_not_change_clipping(tiny, fused, unscale):
    results = []
    for scaled in (False, True):
        model = tiny()
        optimizer = create_optimizer(model, "sgd", lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        scaler.scale(loss_of(model) * 30).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_timms_clip_mode_agc_equals_ours_for_our_networks(tiny):
    """Vectors are one unit in timm, too. ``--clip-mode agc`` does not clip the last two parameters."""
    ours, theirs = tiny(), tiny()
    for model in (ours, theirs):
        backward(model, scale=100.0)
    assert [name for name, _ in theirs.named_parameters()][-2:] == ["head.fc.weight", "head.fc.bias"]
    dispatch_clip_grad(list(theirs.parameters())[:-2], 0.01, mode="agc")
    adaptive_clip_grad_(list(ours.parameters())[:-2], 0.01)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5)


# --- timm's registry


def test_a_name_is_a_class_with_the_options_of_its_base():
    cls = get_optimizer_class("agc-sgd", bind_defaults=False)
    assert issubclass(cls, torch.optim.SGD)
    group = cls([nn.Parameter(torch.ones(2))], 0.1, momentum=0.5, clip_factor="0.02").param_groups[0]  # --opt-kwargs
    assert [group[key] for key in ("lr", "momentum", "clip_factor", "clip_eps")] == [0.1, 0.5, 0.02, 0.001]


def test_numbers_may_be_text_as_yaml_reads_2e_5(tiny):
    model, keys = tiny(), ("clip_factor", "clip_eps", "weight_decay", "lr")
    numbers = {"weight_decay": 2e-5, "clip_factor": 0.02, "clip_eps": 1e-4, "layer_decay": 0.7}
    texts = {name: str(number) for name, number in numbers.items()}
    found, expected = (by_name(create_optimizer(model, lr=0.1, **each), model, *keys) for each in (texts, numbers))
    assert found == expected


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")  # timm's kron
def test_every_name_builds_an_optimizer_that_clips(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # timm's kron compiles for a minute
    described = dict(list_optimizers("agc-*", with_description=True))
    assert {"agc-sgd", "agc-adamw", "agc-lamb", "agc-lion", "agc-adafactor"} <= set(described)
    for name, description in described.items():
        assert "adaptive gradient clipping" in description, name
        assert "_" not in name
        cls = get_optimizer_class(name, bind_defaults=False)
        assert pickle.loads(pickle.dumps(cls)) is cls  # libraries pickle the class for other processes
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
        optimizer = create_optimizer_v2(model, name, lr=1e-3)
        (1e4 * model(torch.randn(2, 3, 4, 4)).square().sum()).backward()
        before = unitwise_norm(model[0].weight.grad).max()
        optimizer.step()
        assert unitwise_norm(model[0].weight.grad).max() < before, name
        assert all(p.isfinite().all() for p in model.parameters()), name


# --- the classifier in wrappers, copies and groups


def assign(model):
    """Load as a model on the meta device does: the parameters become new objects."""
    model.load_state_dict({key: tensor.clone() for key, tensor in model.state_dict().items()}, assign=True)
    return model


def replaced(model):
    model.head.fc = nn.Linear(64, 10)
    return model


def pruned(model):
    prune.l1_unstructured(model.head.fc, "bias", 0.3)
    return model


CHANGES = {
    "wrapped": lambda model: model,
    "assigned": assign,
    **DUPLICATE,
    "replaced": replaced,
    "reparameterized": lambda model: model.reparameterize(),
    "parametrized": lambda model: weight_norm(model.head.fc) and model,
    "bias pruned": pruned,
    "compiled": compiled,
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_all_except_the_classifiers_weight_is_clipped_in_any_wrapper(tiny, change):
    model = nn.Sequential(change(tiny()))  # has none of timm's methods
    exempt = not_clipped(create_optimizer_v2(model, "agc-sgd", lr=0.0, weight_decay=1e-4), model)
    assert exempt
    assert all(".head.fc." in name and "bias" not in name for name in exempt)


@pytest.mark.parametrize(
    ("opt", "copier"),
    [
        ("sgd", DUPLICATE["copied"]),
        ("agc-adamw", DUPLICATE["copied"]),
        ("agc-sgd", DUPLICATE["pickled"]),
        ("lookahead_sgd", lambda pair: pair),
        ("lookahead_agc-sgd", lambda pair: pair),
    ],
)
def test_optimizers_and_their_copies_exempt_a_classifier_that_is_added_later(tiny, opt, copier):
    model = nn.Sequential(tiny())
    body = [p for name, p in model.named_parameters() if ".head." not in name]
    model, optimizer = copier((model, attach_agc(create_optimizer_v2(body, opt, lr=0.0))))
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [p for name, p in model.named_parameters() if ".head." in name]})
    assert not_clipped(optimizer, model) == ["0.head.fc.weight"]


def test_optimizers_do_not_keep_networks_alive():
    model = timm.create_model("nfnet_f0", **SMALL)
    optimizer = create_optimizer_v2(model.parameters(), "agc-sgd", lr=0.1)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    optimizer.step()


HEADS = {  # and the parameters that are not clipped
    "a sequence": (lambda m: setattr(m, "head", nn.Sequential(nn.Flatten(), nn.Linear(4, 2))), ["head.1.weight"]),
    "removed": (lambda m: delattr(m, "head"), []),
    "an error": (lambda m: m.__dict__.update(get_classifier=lambda: 1 / 0), ["head.fc.weight"]),
}


@pytest.mark.parametrize(("change", "expected"), HEADS.values(), ids=HEADS)
def test_a_network_with_a_replaced_head_does_not_affect_other_optimizers(tiny, change, expected):
    odd, model = tiny(), tiny()
    change(odd)
    assert not_clipped(create_optimizer_v2(model, "agc-sgd", lr=0.0), model) == ["head.fc.weight"]
    assert not_clipped(create_optimizer(odd, lr=0.0), odd) == expected


def test_a_classifier_outside_the_network_gives_a_warning_and_can_be_exempted(tiny):
    model = nn.Sequential(tiny(num_classes=0), nn.Linear(64, 5))
    with pytest.warns(RuntimeWarning, match=r"1\.weight.*no_clip="):
        optimizer = create_optimizer(model, lr=0.0)
    assert not_clipped(optimizer, model) == []
    kernel = [f"0.final_conv.{name}" for name in ("weight", "bias", "gain")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for no_clip, expected in (
            ((), []),
            ("1.weight", ["1.weight"]),
            (iter(["1.w*", "0.final_conv.*"]), [*kernel, "1.weight"]),
        ):
            assert not_clipped(create_optimizer(model, lr=0.0, no_clip=no_clip), model) == expected
        create_optimizer(model[0], lr=0.0)  # a backbone alone


def test_stats_report_the_classifier_as_not_clipped(tiny):
    model = tiny()
    backward(model, scale=1e4)
    stats = clip_stats(model.named_parameters())
    assert stats["head.fc.weight"].clipped == 0 < stats["head.fc.weight"].max_ratio
    assert stats["stem.conv1.weight"].clipped > 0


# --- attach_agc, and optimizers of other libraries


def test_attach_agc_keeps_the_optimizer_and_a_second_call_changes_what_the_user_has_not_changed(tiny):
    plain = torch.optim.SGD(agc_param_groups(tiny()), lr=0.1)
    assert attach_agc(plain) is plain
    exempt = [group["clip_factor"] is None for group in plain.param_groups]
    own = exempt.index(False)
    plain.param_groups[own]["clip_factor"] = 0.5
    attach_agc(plain, 0.02)
    expected = [None if e else 0.5 if i == own else 0.02 for i, e in enumerate(exempt)]
    assert any(exempt)
    assert [group["clip_factor"] for group in plain.param_groups] == expected

    off = attach_agc(torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1.0), None)
    assert off.param_groups[0]["clip_factor"] is None
    assert attach_agc(off, 0.01).param_groups[0]["clip_factor"] == 0.01


class Lookahead(torch.optim.Optimizer):
    """Like torch_optimizer's Lookahead, which has its own defaults and no hooks."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.defaults = {**optimizer.defaults}

    def step(self, closure=None):
        return self.optimizer.step(closure)


OTHERS = {
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
    other = torch.optim.SGD(agc_param_groups(model), lr=0.0)  # without attach_agc
    assert not_clipped(other, model) == [name for name, _ in model.named_parameters()]


# --- mistakes


MISTAKES = [
    (lambda m: create_optimizer(m, weight_decay=-1.0), "weight_decay=-1.0: expected a number of at least 0"),
    (lambda m: create_optimizer(m, layer_decay=0), "layer_decay=0: expected a number above 0"),
    (lambda m: create_optimizer(m, clip_factor=0), "clip_factor=0: expected a number above 0.*None"),
    (lambda m: attach_agc(torch.optim.SGD(m.parameters()), clip_eps=0), "clip_eps=0: expected a number above 0"),
    (lambda m: adaptive_clip_grad_(m.parameters(), eps=0), "clip_eps=0: expected a number above 0"),
    (lambda m: create_optimizer(m.parameters(), lr=0.1), r"generator.*create_optimizer_v2.*agc-sgd"),
    (lambda m: create_optimizer(m, layer_decay=0.8, layer_decay_min_scale=0.1), "layer_decay_min_scale=0.1 has no eff"),
    (lambda m: create_optimizer(m, no_clip="fc.*"), r"no_clip='fc\.\*' matches no parameter.*head\.fc\.weight"),
    (lambda m: create_optimizer(m, no_clip=[m.head.fc.bias]), r"(?s)no_clip=Parameter.*matches no parameter"),
    (lambda m: create_optimizer(m, "adahessian", lr=0.1), "Adahessian differentiates gradients"),
    (lambda m: attach_agc(create_optimizer_v2(m, "lookahead_adahessian", lr=0.1)), "differentiates gradients"),
    (lambda m: attach_agc(torch.optim.SGD(m.parameters(), differentiable=True)), "SGD differentiates"),
    (attach_agc, "NormFreeNet runs no hooks"),
    (lambda m: adaptive_clip_grad_(m.named_parameters()), r"tuple: expected tensors.*model\.parameters\(\)"),
    (lambda m: clip_stats(m.parameters()), r"generator: expected names.*model\.named_parameters\(\)"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_mistakes_are_refused_with_what_was_expected(tiny, mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake(tiny())


@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf"), 10**400, "much", True, [0.01]])
def test_a_step_with_a_wrong_clip_factor_changes_nothing(tiny, value):
    model = tiny()
    optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1)
    backward(model, scale=100.0)
    before, grad = [p.detach().clone() for p in model.parameters()], model.stem.conv1.weight.grad.clone()
    optimizer.param_groups[-1]["clip_factor"] = value
    with pytest.raises(ValueError, match="clip_factor=.*expected a number above 0"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(model.stem.conv1.weight.grad, grad)
