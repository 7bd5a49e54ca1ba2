"""Adaptive gradient clipping is the authors'."""

import golden
import numpy as np
import pytest
import torch

from nfnet_timm.agc import adaptive_clip_grad_, unitwise_norm
from nfnet_timm.haiku import from_haiku

CASES = np.load(golden.DATA / "agc_cases.npz")
NAMES = sorted({key.rsplit("/", 1)[0] for key in CASES.files})


def clip(param: torch.Tensor, grad: torch.Tensor, clip_factor: float, **kwargs) -> torch.Tensor:
    p = torch.nn.Parameter(param.clone())
    p.grad = grad.clone()
    adaptive_clip_grad_([p], clip_factor, **kwargs)
    assert torch.equal(p, param)
    return p.grad


def ours(array: np.ndarray) -> torch.Tensor:
    """From Haiku's layout (unit on the last axis) to ours (unit on dim 0)."""
    tensor = torch.from_numpy(array)
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous() if tensor.dim() >= 2 else tensor


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_authors(name):
    param, grad, clipped = (ours(CASES[f"{name}/{kind}"]) for kind in ("param", "grad", "clipped"))
    result = clip(param, grad, float(name.split("/")[-1]))
    assert torch.allclose(result, clipped, rtol=1e-6, atol=0)


def test_clipped_norm_never_exceeds_ratio():
    torch.manual_seed(0)
    for shape in ((), (7,), (5, 3), (8, 4, 3, 3)):
        param, grad = torch.randn(shape), 100 * torch.randn(shape)
        ratio = unitwise_norm(clip(param, grad, 0.01)) / unitwise_norm(param)
        assert (ratio <= 0.01 * (1 + 1e-6)).all()


def test_clipping_twice_equals_once():
    param, grad = torch.randn(8, 4, 3, 3), 100 * torch.randn(8, 4, 3, 3)
    once = clip(param, grad, 0.01)
    assert torch.allclose(clip(param, once, 0.01), once, rtol=1e-6)


def test_small_gradient_is_untouched():
    param, grad = torch.randn(8, 4), 1e-4 * torch.randn(8, 4)
    assert torch.equal(clip(param, grad, 0.01), grad)


def test_zero_initialised_parameter_still_moves():
    assert clip(torch.tensor(0.0), torch.tensor(5.0), 0.01, eps=1e-3).item() == pytest.approx(1e-5)


def test_zero_gradient_stays_zero():
    assert not clip(torch.randn(3, 2), torch.zeros(3, 2), 0.01).any()


@pytest.mark.parametrize("shape", [(16,), (16, 1, 1, 1), ()])
def test_gain_is_one_unit(shape):
    assert unitwise_norm(torch.ones(shape)).item() == pytest.approx(max(1, 16 * bool(shape)) ** 0.5)


def test_units_of_the_network_are_those_of_the_authors_tree():
    """A norm for each output of a kernel or matrix, one for each vector or scalar."""
    for name, tensor in from_haiku(golden.tree("nfnet_tiny_train")).items():
        units = tensor.shape[0] if name.endswith("weight") else 1
        assert unitwise_norm(tensor).numel() == units, name


def test_parameters_without_a_gradient_are_passed_over():
    adaptive_clip_grad_(torch.nn.Parameter(torch.ones(3)))
