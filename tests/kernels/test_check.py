"""The first use of a kernel checks it. Functions with typical mistakes replace the kernels here.

tests/kernels/test_triton.py runs the same comparison on the real kernels, in Triton's interpreter or on a GPU.
"""

import inspect
import sys
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nfnet_timm.kernels import check, clip, standardize
from nfnet_timm.kernels.clip.reference import clip_by_torch_
from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.kernels.standardize import operation as standardize_op
from nfnet_timm.kernels.standardize.operation import backward_by_torch, standardize_by_torch
from nfnet_timm.optim import create_optimizer

pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs alone")
from nfnet_timm.kernels.clip import triton as clip_triton
from nfnet_timm.kernels.standardize import triton as standardize_triton

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Replace the kernels by torch's operations, which are right, and forget earlier comparisons."""
    monkeypatch.setattr(check, "_is_right", {})
    check.is_wanted.cache_clear()
    monkeypatch.delenv("NFNET_TIMM_TRITON", raising=False)
    monkeypatch.setattr(standardize_triton, "standardize", standardize_by_torch)
    monkeypatch.setattr(standardize_triton, "standardize_backward", backward_by_torch)
    monkeypatch.setattr(clip_triton, "clip_", clip_by_torch_)
    homes = {"standardize": standardize_triton, "standardize_backward": standardize_triton, "clip_": clip_triton}
    yield {name.rstrip("_"): partial(monkeypatch.setattr, home, name) for name, home in homes.items()}
    check.is_wanted.cache_clear()


def wrong(kernel, changed_output=None, **changed_arguments):
    """Return ``kernel`` with a mistake: other arguments, or an output in which a function changes something."""

    def with_mistake(*args):
        arguments = inspect.signature(kernel).bind(*args).arguments | changed_arguments
        out = kernel(**arguments)
        return out if changed_output is None else changed_output(out)

    return with_mistake


def second_block_unclipped(weights, grads, clippings, grad_scale):
    tail = grads[1][:, 1024:].clone()
    clip_by_torch_(weights, grads, clippings, grad_scale)
    grads[1][:, 1024:] = tail


def raises(*args):
    raise RuntimeError("no ptxas for sm_999")


def second_half_zero(out):
    out.flatten(1)[:, 128:] = 0
    return out


MISTAKES = {
    "rows are not clamped": ("standardize", wrong(standardize_by_torch, eps=1e-30)),
    "only the first 128 of 243 weights": ("standardize", wrong(standardize_by_torch, second_half_zero)),
    "another dtype": ("standardize", wrong(standardize_by_torch, dtype=torch.float32)),
    "another scale": ("standardize", wrong(standardize_by_torch, scale=1.71)),
    "gradients of clamped rows": ("standardize_backward", wrong(backward_by_torch, eps=1e-30)),
    "gradient of the gain": ("standardize_backward", wrong(backward_by_torch, lambda out: (out[0], out[1] / 1.7))),
    "no clip_eps": ("clip", wrong(clip_by_torch_, clippings=[Clipping(0.02, 1e-9)] * 5)),
    "no grad_scale": ("clip", wrong(clip_by_torch_, grad_scale=None)),
    "only the first block": ("clip", second_block_unclipped),
    "an error": ("clip", raises),
}


@pytest.mark.parametrize(("name", "kernel"), MISTAKES.values(), ids=MISTAKES)
def test_a_kernel_with_one_wrong_branch_is_not_used_and_gives_one_warning(kernels, name, kernel):
    kernels[name](kernel)
    with pytest.warns(RuntimeWarning, match=f"kernel {name} .*cpu.*NFNET_TIMM_TRITON=0") as warned:
        assert not check.has_right_kernel(name, CPU)
    assert len(warned) == 1
    assert not check.has_right_kernel(name, CPU)  # without a second warning
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


@pytest.mark.parametrize("switch", ["the environment", "no Triton"])
def test_without_kernels_nothing_is_compared_and_nothing_warns(kernels, monkeypatch, switch):
    if switch == "no Triton":
        monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails, as if it were not installed
    else:
        monkeypatch.setenv("NFNET_TIMM_TRITON", "0")
    kernels["clip"](raises)
    assert not check.has_right_kernel("clip", CPU)


@pytest.mark.filterwarnings("ignore:nfnet_timm's Triton kernel")
@pytest.mark.parametrize("name", check.KERNELS)
def test_a_network_trains_correctly_if_a_kernel_is_broken(kernels, name, tiny, monkeypatch):
    """The CPU pretends to be a GPU here."""

    def steps():
        model = tiny(depths=(1, 1, 1, 1)).train()
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
