"""Sharpness-aware minimization equals its formula, and works with optimizers, schedulers, scalers and processes."""

import copy
import pickle

import numpy as np
import pytest
import timm
import timm.scheduler
import torch
import torch.nn.functional as F
from distributed_worker import launch, sam_case
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from nfnet_timm.optim import SAM, create_optimizer


def linear(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Linear(5, 3, dtype=dtype)


def closure_of(model, x, y):
    def closure():
        loss = F.mse_loss(model(x), y, reduction="sum")
        loss.backward()
        return loss

    return closure


def data(n=8, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(n, 5, dtype=dtype), torch.randn(n, 3, dtype=dtype)


def train_by_the_formula(model, parts, lr, reduction):
    """Take three steps with radius 0.3 and return the losses after each ascent.

    ``parts`` contains (x, y) for the ascent and (x, y) for the step. Each part has its own ascent, as in a process of
    its own, and the gradients of the step are averaged.
    """
    params, losses = list(model.parameters()), []
    optimizer = torch.optim.SGD(params, lr=lr, momentum=0.9)
    for _ in range(3):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        for (ascent_x, ascent_y), (x, y) in parts:
            grads = torch.autograd.grad(F.mse_loss(model(ascent_x), ascent_y, reduction=reduction), params)
            norm = sum(g.square().sum() for g in grads).sqrt()
            for p, start, g in zip(params, before, grads, strict=True):
                p.data.copy_(start + 0.3 * g / norm)
            loss = F.mse_loss(model(x), y, reduction=reduction)
            (loss / len(parts)).backward()
            losses.append(loss.item())
            for p, start in zip(params, before, strict=True):
                p.data.copy_(start)
        optimizer.step()
    return losses


@pytest.mark.parametrize("images", [8, 2])
def test_three_steps_equal_the_formula(images):
    """The ascent uses the gradients of the first ``images`` rows."""
    model, (x, y) = linear(), data()
    expected, frozen = copy.deepcopy(model), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = SAM(torch.optim.SGD([*model.parameters(), frozen], lr=0.01, momentum=0.9), rho=0.3)
    ascent = None if images == len(x) else closure_of(model, x[:images], y[:images])
    losses = [optimizer.step(closure_of(model, x, y), ascent).item() for _ in range(3)]
    parts = [((x[:images], y[:images]), (x, y))]
    assert losses == pytest.approx(train_by_the_formula(expected, parts, lr=0.01, reduction="sum"), rel=1e-12)
    for p, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-12, atol=0)
    assert frozen.tolist() == [1, 1]


@pytest.mark.parametrize("rho", [0.0, np.float32(0.0), torch.tensor(0.0)])
def test_radius_zero_equals_the_optimizer_inside_bit_by_bit(rho):
    (x, y), ours, plain = data(), linear(), linear()
    sam = SAM(torch.optim.AdamW(ours.parameters(), lr=0.1), rho=rho)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for _ in range(3):
        sam.step(closure_of(ours, x, y))
        optimizer.zero_grad()
        closure_of(plain, x, y)()
        optimizer.step()
    assert all(p.equal(q) for p, q in zip(ours.parameters(), plain.parameters(), strict=True))


def test_descent_is_clipped_and_ascent_is_not(tiny):
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    model = tiny().train()
    plain = copy.deepcopy(model)
    sam = SAM(create_optimizer(model, "sgd", lr=1.0, momentum=0.9, clip_factor=1e-3), rho=0.05)
    seen = []

    def closure():
        seen.append([p.detach().clone() for p in model.parameters()])
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    sam.step(closure)
    ascents = torch.cat([(b - a).flatten() for a, b in zip(*seen, strict=True)])
    assert ascents.norm().item() == pytest.approx(0.05, rel=1e-4)  # the whole radius: these gradients are not clipped
    F.cross_entropy(plain(x), y).backward()
    grads = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(ascents / ascents.norm(), grads / grads.norm(), rtol=0, atol=2e-5)
    for (name, p), before in zip(model.named_parameters(), seen[0], strict=True):
        if name.endswith("conv1.weight"):  # Nesterov's first step is 1.9 times the clipped gradient
            moved = (p.detach() - before).flatten(1).norm(dim=1)
            assert bool((moved <= 1.9e-3 * before.flatten(1).norm(dim=1).clamp(min=1e-3) * (1 + 1e-4)).all()), name


def momentum_sam(model):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), rho=0.3)


def by_state_dicts(model, sam):
    saved = pickle.loads(pickle.dumps((model.state_dict(), sam.state_dict())))
    model = linear(seed=5)
    sam = momentum_sam(model)
    model.load_state_dict(saved[0])
    sam.load_state_dict(saved[1])
    return model, sam


def by_distributed_checkpoint(model, sam):  # it makes a step without a closure, so it gets the optimizer inside
    saved = pickle.loads(pickle.dumps(get_state_dict(model, sam.optimizer)))
    model = linear(seed=5)
    sam = momentum_sam(model)
    set_state_dict(model, sam.optimizer, model_state_dict=saved[0], optim_state_dict=saved[1])
    return model, sam


def by_copy(*pair):
    return copy.deepcopy(pair)


def by_pickle(*pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("moved", [by_state_dicts, by_distributed_checkpoint, by_copy, by_pickle])
def test_a_resumed_or_copied_run_is_bit_identical(moved):
    (x, y), straight, model = data(), linear(), linear()
    sam = momentum_sam(straight)
    for step in range(6):
        sam.param_groups[0]["sam_rho"] = 0.3 / (1 + step // 3)
        sam.step(closure_of(straight, x, y))
    sam = momentum_sam(model)
    for _ in range(3):
        sam.step(closure_of(model, x, y))
    sam.param_groups[0]["sam_rho"] = 0.15
    model, sam = moved(model, sam)
    for _ in range(3):
        sam.step(closure_of(model, x, y))
    assert sam.param_groups[0]["params"][0] is model.weight
    assert all(p.equal(q) for p, q in zip(straight.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("distributed", [False, True])
def test_the_state_of_a_run_without_sam_loads(distributed):
    old, model, (x, y) = linear(), linear(), data()
    plain = torch.optim.SGD(old.parameters(), lr=0.01, momentum=0.9)
    closure_of(old, x, y)()
    plain.step()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), rho=0.2)
    if distributed:  # it loads into the optimizer inside
        weights, state = get_state_dict(old, plain)
        set_state_dict(model, sam.optimizer, model_state_dict=weights, optim_state_dict=state)
    else:
        sam.load_state_dict(plain.state_dict())
    sam.step(closure_of(model, x, y))
    assert [(g["lr"], g["sam_rho"]) for g in sam.param_groups] == [(0.01, 0.2)]


def test_a_second_sam_changes_the_radius_except_of_groups_with_another_one():
    inner = torch.optim.SGD([{"params": p} for p in linear().parameters()], lr=0.1)
    SAM(inner, rho=0.1).param_groups[1]["sam_rho"] = 0.7
    sam = SAM(inner, rho="0.2")
    sam.add_param_group({"params": linear().parameters()})
    assert [group["sam_rho"] for group in inner.param_groups] == [0.2, 0.7, 0.2]


def test_schedulers_of_torch_and_timm_set_the_learning_rate():
    model, (x, y) = linear(), data()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=1.0))
    schedule = torch.optim.lr_scheduler.StepLR(sam, 1, gamma=0.1)
    sam.step(closure_of(model, x, y))
    schedule.step()
    assert sam.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    timm_schedule, _ = timm.scheduler.create_scheduler_v2(sam, "cosine", num_epochs=10)
    timm_schedule.step(5)
    assert sam.optimizer.param_groups[0]["lr"] == pytest.approx(0.5)  # halfway


@pytest.mark.parametrize("when", [1, 2])
def test_weights_are_restored_bit_by_bit_if_a_closure_is_interrupted(when):
    model, (x, y) = linear(), data()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    before, runs = [p.detach().clone() for p in model.parameters()], []

    def closure():
        runs.append(None)
        loss = closure_of(model, x, y)()
        if len(runs) == when:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_scaler_skips_only_steps_whose_gradients_overflow():
    model, (x, y) = linear(dtype=torch.float32), data(dtype=torch.float32)
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.01), rho=0.1)
    before = model.weight.detach().clone()

    def closure():
        loss = F.mse_loss(model(x), y, reduction="sum")
        scaler.scale(loss).backward()
        return loss

    sam.step(closure, scaler=scaler)
    scaler.update()
    assert model.weight.equal(before)  # 2 ** 127 times the loss is infinite
    assert scaler.get_scale() == 2.0**126
    scaler.update(1024.0)
    sam.step(closure, scaler=scaler)
    unscaled = SAM(torch.optim.SGD(plain.parameters(), lr=0.01), rho=0.1)
    unscaled.step(closure_of(plain, x, y))
    torch.testing.assert_close(model.weight, plain.weight, rtol=1e-5, atol=1e-6)


def test_gradients_of_zero_do_not_change_weights():
    model, (x, _) = linear(), data()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    before = model.weight.detach().clone()
    sam.step(closure_of(model, x, model(x).detach()))
    assert model.weight.equal(before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: SAM(torch.optim.LBFGS(p)), "optimizer is LBFGS: expected"),
        (lambda p: SAM(SAM(torch.optim.SGD(p, lr=1))), "optimizer is SAM: expected"),
        (lambda p: SAM(p, torch.optim.SGD), "optimizer is list: expected"),  # the arguments of another SAM
        (lambda p: SAM(torch.optim.SGD(p, lr=1), rho=-1), "rho=-1: expected"),
        (lambda p: SAM(torch.optim.SGD(p, lr=1), rho=float("nan")), "rho=nan: expected"),
        (lambda p: SAM(torch.optim.SGD(p, lr=1)).step(), r"step\(\) without a closure: expected step\(closure\)"),
    ],
)
def test_mistakes_are_reported_with_what_was_expected(build, message):
    with pytest.raises(ValueError, match=message):
        build(list(linear().parameters()))


@pytest.mark.slow
def test_several_processes_equal_one(tmp_path):
    for how, result in launch(tmp_path, "sam-unsynchronised", "sam-fsdp2", "sam-parts").items():
        model, x, y = sam_case()
        whole = x.flatten(0, 1), y.flatten(0, 1)
        parts = list(zip(x, y, strict=True)) if how == "sam-unsynchronised" else [whole]
        train_by_the_formula(model, [(part, part) for part in parts], lr=0.1, reduction="mean")
        torch.testing.assert_close(result["parameters"], dict(model.named_parameters()), rtol=1e-5, atol=1e-6)
