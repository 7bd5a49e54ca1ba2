"""Adaptive gradient clipping equals the authors'."""

import golden
import numpy as np
import pytest
import torch

from nfnet_timm.kernels.clip.reference import clip_alike_
from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.optim.agc import adaptive_clip_grad_, clip_each_, clip_stats, unitwise_norm

CASES = np.load(golden.DATA / "agc_cases.npz")
NAMES = sorted({key.rsplit("/", 1)[0] for key in CASES.files})


def with_grad(param: torch.Tensor, grad: torch.Tensor) -> torch.nn.Parameter:
    p = torch.nn.Parameter(param)
    p.grad = grad
    return p


def clip(param: torch.Tensor, grad: torch.Tensor, clip_factor: float = 0.01) -> torch.Tensor:
    p = with_grad(param.clone(), grad.clone())
    adaptive_clip_grad_([p], clip_factor)
    assert torch.equal(p, param)
    return p.grad


def ours(array: np.ndarray) -> torch.Tensor:
    """Convert Haiku's layout (units on the last axis) to ours (units on dim 0)."""
    tensor = torch.from_numpy(array)
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous() if tensor.dim() >= 2 else tensor


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_authors(name):
    param, grad, clipped = (ours(CASES[f"{name}/{kind}"]) for kind in ("param", "grad", "clipped"))
    assert torch.allclose(clip(param, grad, float(name.split("/")[-1])), clipped, rtol=1e-6, atol=0)


def test_a_unit_is_a_row_or_a_whole_vector_also_in_more_dimensions():
    shapes = {(4, 3, 2, 2): 4, (5, 7): 5, (6,): 1, (): 1, (6, 1, 1, 1): 1}
    assert {shape: unitwise_norm(torch.ones(shape)).numel() for shape in shapes} == shapes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_of_every_dtype_are_at_least_float32(dtype):
    """In float16, the squares of the last gradient overflow."""
    param, grad = torch.randn(6, 50).to(dtype), (30 * torch.randn(6, 50)).to(dtype)
    grad[-1] = 60_000
    result = clip(param, grad)
    assert result.dtype == dtype
    expected = clip(param.float(), grad.float())
    assert torch.allclose(result.float(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-7)


def test_tensors_of_any_memory_layout_are_clipped_in_place():
    channels_last = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    with_gaps = torch.randn(3, 8, 5).mT, torch.randn(9)[::2]
    for x in (channels_last, *with_gaps):
        strides = x.stride() if x is channels_last else tuple(2 * s for s in x.stride())
        grad = torch.empty_strided(x.shape, strides).copy_(100 * torch.randn(x.shape))
        expected = clip(x.contiguous(), grad.contiguous())
        p = with_grad(x, grad)
        adaptive_clip_grad_(p, 0.01)
        assert p.grad is grad
        assert torch.allclose(grad, expected, rtol=1e-6)


def test_parameters_without_a_gradient_are_skipped_and_none_clips_nothing():
    first, second = with_grad(torch.ones(3, 3), torch.full((3, 3), 9.0)), torch.nn.Parameter(torch.ones(3))
    adaptive_clip_grad_([first, second], None)
    assert (first.grad == 9).all()
    adaptive_clip_grad_([first, second])
    assert (first.grad < 9).all()


@pytest.mark.parametrize("kind", ["complex64", "sparse"])
def test_nothing_is_clipped_if_one_parameter_is_refused(kind):
    first = with_grad(torch.ones(4, 4), torch.full((4, 4), 100.0))
    p = torch.nn.Parameter(torch.ones(5, 3, dtype=torch.complex64 if kind == "complex64" else torch.float32))
    p.grad = p.detach().to_sparse() if kind == "sparse" else p.detach().clone()
    with pytest.raises(ValueError, match=rf"shape \(5, 3\) .*{kind}.*clip_factor"):
        adaptive_clip_grad_([first, p], 0.01)
    assert (first.grad == 100).all()


@pytest.mark.slow
def test_captured_by_compile_without_a_graph_break():
    params = [torch.randn(s) for s in ((8, 4, 3, 3), (5, 7), (6,), ())]
    params = [with_grad(p, 50 * torch.randn_like(p)) for p in params]
    expected = [clip(p.detach(), p.grad) for p in params]
    torch.compile(adaptive_clip_grad_, fullgraph=True, backend="aot_eager")(params, 0.01)
    for p, e in zip(params, expected, strict=True):
        assert torch.allclose(p.grad, e, rtol=1e-5)


def test_stats_predict_what_clipping_does():
    a, b, c = torch.randn(10, 4), torch.randn(2, 4), torch.ones(2, 3)
    grad = 1e-6 * torch.randn(10, 4)
    grad[:3] = 100 * a[:3]
    named = {"a": with_grad(a, grad), "zero": with_grad(b, torch.zeros_like(b)), "nan": with_grad(c, 1e-9 * c.clone())}
    named["nan"].grad[0, 0] = float("nan")
    stats = clip_stats({**named, "no gradient": torch.nn.Parameter(torch.ones(3))}, 0.01)
    assert set(stats) == set(named)
    assert (stats["a"].clipped, stats["a"].max_ratio) == (pytest.approx(0.3), pytest.approx(100))
    assert stats["zero"].clipped == stats["zero"].max_ratio == 0
    assert stats["nan"].clipped == 0.5  # the step changes these gradients, too
    assert clip_stats(iter(named.items()), 0.01)["a"] == stats["a"]
    assert clip_stats(named, None) == {}
    before = grad.clone()
    adaptive_clip_grad_(named.values(), 0.01)
    assert (grad != before).any(1).tolist() == [True] * 3 + [False] * 7


def test_stats_wait_for_a_device_once(monkeypatch):
    waits = []
    for name in ("tolist", "item", "cpu", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, f=original, n=name: waits.append(n) or f(x))
    assert len(clip_stats({str(i): with_grad(torch.randn(4, i), torch.randn(4, i)) for i in range(2, 8)})) == 6
    assert waits == ["tolist"]


def test_parameters_on_several_devices_are_clipped_on_their_device():
    """The meta device is the second device. An operation on both devices would raise an error."""
    here = [with_grad(x, 100 * torch.randn_like(x)) for x in (torch.randn(4, 3), torch.randn(5))]
    there = [with_grad(p.detach().to("meta"), p.grad.to("meta")) for p in here]
    expected = [clip(p.detach(), p.grad) for p in here]
    mixed = [here[0], *there, here[1]]
    adaptive_clip_grad_(mixed, 0.01)
    # The gradient scale makes the allowed norm twice as large, so this changes nothing.
    clip_each_([(p, Clipping(0.01, 1e-3)) for p in mixed], grad_scale=torch.tensor(2.0))
    for p, grad in zip(here, expected, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-6)


def test_clipping_as_one_matrix_equals_clipping_each_parameter():
    """A GPU without Triton uses this. Kernels, matrix and vector have units of one length, in several layouts."""
    tensors = [torch.randn(shape) for shape in ((6, 4, 3, 3), (5, 36), (36,), (7, 36, 1, 1))]
    tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    # The factors are such that some units are clipped.
    params = [with_grad(x, torch.randn_like(x).mul_(10.0 ** (i - 2))) for i, x in enumerate(tensors)]
    expected = [clip(p.detach(), p.grad, 0.5) for p in params]
    assert not torch.equal(params[2].grad, expected[2])
    clip_alike_(params, [p.grad for p in params], Clipping(0.5, 1e-3), None)
    for p, grad in zip(params, expected, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-6)
