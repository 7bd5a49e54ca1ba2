"""The first use of a kernel checks it. Functions with typical mistakes replace the kernels here.

tests/kernels/test_triton.py runs the same comparison on the real kernels, in Triton's interpreter or on a GPU.
"""

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nfnet_timm.kernels import check, clip, standardize
from nfnet_timm.kernels.clip.reference import clip_by_torch_
from nfnet_timm.kernels.standardize import operation as standardize_op
from nfnet_timm.kernels.standardize.operation import backward_by_torch, standardize_by_torch

pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs alone")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Replace the kernels by torch's operations, which are right, and forget earlier comparisons."""
    from nfnet_timm.kernels.clip import triton as clip_triton
    from nfnet_timm.kernels.standardize import triton as standardize_triton

    monkeypatch.setattr(check, "_is_right", {})
    check.is_wanted.cache_clear()
    monkeypatch.delenv("NFNET_TIMM_TRITON", raising=False)
    monkeypatch.setattr(standardize_triton, "standardize", standardize_by_torch)
    monkeypatch.setattr(standardize_triton, "backward", backward_by_torch)
    monkeypatch.setattr(clip_triton, "clip_", clip_by_torch_)
    yield {
        "standardize": lambda f: monkeypatch.setattr(standardize_triton, "standardize", f),
        "standardize_backward": lambda f: monkeypatch.setattr(standardize_triton, "backward", f),
        "clip": lambda f: monkeypatch.setattr(clip_triton, "clip_", f),
    }
    check.is_wanted.cache_clear()


def never_clamped(weight, gain, scale, eps, dtype):
    return standardize_by_torch(weight, gain, scale, 1e-30, dtype)


def power_of_two_only(weight, gain, scale, eps, dtype):
    out = standardize_by_torch(weight, gain, scale, eps, dtype)
    out.flatten(1)[:, 1 << (weight[0].numel().bit_length() - 1) :] = 0
    return out


def infinite_without_variance(weight, gain, scale, eps, dtype):
    out = standardize_by_torch(weight, gain, scale, eps, dtype)
    out[1] = float("nan")
    return out


def in_float32(weight, gain, scale, eps, dtype):
    return standardize_by_torch(weight, gain, scale, eps, torch.float32)


def wrong_in_bfloat16(weight, gain, scale, eps, dtype):
    out = standardize_by_torch(weight, gain, scale, eps, dtype)
    return out if dtype == torch.float32 else out * 1.1


def mean_in_half_precision(weight, gain, scale, eps, dtype):
    return standardize_by_torch(weight.bfloat16().float(), gain, scale, eps, dtype)


def no_clamp_in_the_gradient(grad, weight, gain, scale, eps):
    grad_weight, grad_gain = backward_by_torch(grad, weight, gain, scale, eps)
    grad_weight[0] *= 1.01
    return grad_weight, grad_gain


def gain_without_scale(grad, weight, gain, scale, eps):
    grad_weight, grad_gain = backward_by_torch(grad, weight, gain, scale, eps)
    return grad_weight, grad_gain / scale


def without_eps(weights, grads, clippings, grad_scale):
    clip_by_torch_(weights, grads, [clipping._replace(clip_eps=1e-9) for clipping in clippings], grad_scale)


def without_scale(weights, grads, clippings, grad_scale):
    clip_by_torch_(weights, grads, clippings, None)


def without_the_last(weights, grads, clippings, grad_scale):
    clip_by_torch_(weights[:-1], grads[:-1], clippings[:-1], grad_scale)


def always_scaled_up(weights, grads, clippings, grad_scale):
    clip_by_torch_(weights, grads, clippings, grad_scale)
    grads[1][0] *= 2


def first_block_only(weights, grads, clippings, grad_scale):
    tail = grads[1][:, 1024:].clone()
    clip_by_torch_(weights, grads, clippings, grad_scale)
    grads[1][:, 1024:] = tail


def raises(*args):
    raise RuntimeError("no ptxas for sm_999")


WRONG = [
    *[("standardize", f) for f in (never_clamped, power_of_two_only, infinite_without_variance, in_float32)],
    *[("standardize", f) for f in (wrong_in_bfloat16, mean_in_half_precision, raises)],
    *[("standardize_backward", f) for f in (no_clamp_in_the_gradient, gain_without_scale, raises)],
    *[("clip", f) for f in (without_eps, without_scale, without_the_last, always_scaled_up, first_block_only, raises)],
]


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=[f"{name}: {f.__name__}" for name, f in WRONG])
def test_a_kernel_with_one_wrong_branch_is_not_used_and_gives_one_warning(kernels, name, wrong):
    kernels[name](wrong)
    with pytest.warns(RuntimeWarning, match=f"kernel {name} .*cpu.*NFNET_TIMM_TRITON=0") as warned:
        assert not check.has_right_kernel(name, CPU)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check.has_right_kernel(name, CPU)
        for other in check.KERNELS.keys() - {name}:
            assert check.has_right_kernel(other, CPU)


@pytest.mark.parametrize("name", check.KERNELS)
def test_a_right_kernel_is_compared_once_and_keeps_the_random_state(kernels, name):
    state = torch.random.get_rng_state()
    assert check.has_right_kernel(name, CPU)
    kernels[name](raises)
    assert check.has_right_kernel(name, CPU)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_under_a_dispatch_mode_nothing_is_compared_and_no_result_is_stored(kernels):
    with FlopCounterMode(display=False):
        assert not check.has_right_kernel("clip", CPU)
    assert check.has_right_kernel("clip", CPU)


def test_the_environment_switches_kernels_off_without_a_warning(kernels, monkeypatch):
    monkeypatch.setenv("NFNET_TIMM_TRITON", "0")
    kernels["clip"](raises)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check.has_right_kernel("clip", CPU)


@pytest.mark.filterwarnings("ignore:nfnet_timm's Triton kernel")
@pytest.mark.parametrize("name", check.KERNELS)
def test_a_network_trains_correctly_if_a_kernel_is_broken(kernels, name, tiny, monkeypatch):
    """The CPU pretends to be a GPU here."""
    from nfnet_timm.optim import create_optimizer

    def steps():
        model = tiny().train()
        optimizer = create_optimizer(model, "sgd", lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 32, 32)).square().sum().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    expected = steps()
    kernels[name](raises)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: True))
    monkeypatch.setattr(standardize, "is_eager_on_cpu", lambda x: False)
    for module in (standardize, clip):
        monkeypatch.setattr(module, "is_on_a_device", lambda x: True)
    monkeypatch.setattr(standardize_op, "_current", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    for p, other in zip(steps(), expected, strict=True):
        torch.testing.assert_close(p, other, rtol=1e-4, atol=1e-6)
    assert check._is_right[name, CPU] is False
