"""Adaptive gradient clipping equals the authors'."""

import golden
import numpy as np
import pytest
import torch

from nfnet_timm.formats.haiku_names import from_haiku
from nfnet_timm.kernels.clip.reference import clip_alike_
from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.optim.agc import ClippedParam, adaptive_clip_grad_, clip_each_, clip_stats, unitwise_norm

CASES = np.load(golden.DATA / "agc_cases.npz")
NAMES = sorted({key.rsplit("/", 1)[0] for key in CASES.files})


def clip(param: torch.Tensor, grad: torch.Tensor, clip_factor: float, **kwargs) -> torch.Tensor:
    p = torch.nn.Parameter(param.clone())
    p.grad = grad.clone()
    adaptive_clip_grad_([p], clip_factor, **kwargs)
    assert torch.equal(p, param)
    return p.grad


def ours(array: np.ndarray) -> torch.Tensor:
    """Convert Haiku's layout (units on the last axis) to ours (units on dim 0)."""
    tensor = torch.from_numpy(array)
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous() if tensor.dim() >= 2 else tensor


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_authors(name):
    param, grad, clipped = (ours(CASES[f"{name}/{kind}"]) for kind in ("param", "grad", "clipped"))
    result = clip(param, grad, float(name.split("/")[-1]))
    assert torch.allclose(result, clipped, rtol=1e-6, atol=0)


def test_clipping_twice_equals_once():
    param, grad = torch.randn(8, 4, 3, 3), 100 * torch.randn(8, 4, 3, 3)
    once = clip(param, grad, 0.01)
    assert torch.allclose(clip(param, once, 0.01), once, rtol=1e-6)


def test_units_equal_the_authors():
    """There is one norm for each output of a kernel or matrix, and one for each vector or scalar."""
    for name, tensor in from_haiku(golden.tree("nfnet_tiny_train")).items():
        units = tensor.shape[0] if name.endswith("weight") else 1
        assert unitwise_norm(tensor).numel() == units, name


def test_parameters_without_a_gradient_are_skipped():
    adaptive_clip_grad_(torch.nn.Parameter(torch.ones(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_of_every_dtype_are_at_least_float32(dtype):
    torch.manual_seed(0)
    param, grad = torch.randn(6, 50).to(dtype), (30 * torch.randn(6, 50)).to(dtype)
    result = clip(param, grad, 0.01)
    assert result.dtype == dtype
    expected = clip(param.float(), grad.float(), 0.01)
    assert torch.allclose(result.float(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-7)


def test_a_float16_gradient_whose_square_overflows_is_clipped():
    grad = torch.full((2, 100), 60_000.0, dtype=torch.float16)
    result = clip(torch.ones(2, 100, dtype=torch.float16), grad, 0.01)
    assert torch.allclose(result.float(), torch.full((2, 100), 0.01), rtol=1e-3)


def test_channels_last_does_not_change_the_result():
    torch.manual_seed(0)
    tensors = torch.randn(8, 4, 3, 3), 100 * torch.randn(8, 4, 3, 3)
    channels_last = [x.to(memory_format=torch.channels_last) for x in tensors]
    assert torch.allclose(clip(*channels_last, 0.01), clip(*tensors, 0.01), rtol=1e-5)


def test_error_if_nonfinite_raises_and_nothing_is_clipped():
    good, bad = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(2))
    good.grad, bad.grad = torch.full((3, 3), 9.0), torch.tensor([1.0, float("inf")])
    with pytest.raises(RuntimeError, match="a gradient is NaN.*error_if_nonfinite=False"):
        adaptive_clip_grad_([good, bad], 0.01, error_if_nonfinite=True)
    assert (good.grad == 9).all()
    adaptive_clip_grad_([good, bad], 0.01)
    assert (good.grad < 9).all()


def test_nothing_is_clipped_if_one_gradient_is_refused():
    first = torch.nn.Parameter(torch.ones(4, 4))
    first.grad = torch.full((4, 4), 100.0)
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(5, 3\) has a sparse gradient.*sparse=False"):
        adaptive_clip_grad_([first, embedding.weight], 0.01)
    assert (first.grad == 100).all()


@pytest.mark.slow
def test_captured_by_compile_without_a_graph_break():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s)) for s in ((8, 4, 3, 3), (5, 7), (6,), ())]
    for p in params:
        p.grad = 50 * torch.randn_like(p)
    expected = [clip(p.detach(), p.grad, 0.01) for p in params]
    torch.compile(adaptive_clip_grad_, fullgraph=True, backend="aot_eager")(params, 0.01)
    for p, e in zip(params, expected, strict=True):
        assert torch.allclose(p.grad, e, rtol=1e-5)


def test_stats_predict_what_clipping_does():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 10), "b": torch.nn.Linear(4, 2)})
    for name, p in model.named_parameters():
        p.grad = torch.zeros_like(p) if name.startswith("b") else 1e-6 * torch.randn_like(p)
    model["a"].weight.grad[:3] = 100 * model["a"].weight.detach()[:3]
    stats = clip_stats(model.named_parameters(), 0.01)
    assert stats["a.weight"].clipped == pytest.approx(0.3)
    assert stats["a.weight"].max_ratio == pytest.approx(100)
    assert stats["b.weight"].clipped == stats["b.weight"].max_ratio == 0
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    adaptive_clip_grad_(model.parameters(), 0.01)
    changed = (model["a"].weight.grad != before["a.weight"]).any(1).float().mean().item()
    assert changed == pytest.approx(stats["a.weight"].clipped)


def test_stats_wait_for_a_device_once(monkeypatch):
    waits = []
    for name in ("tolist", "item", "cpu", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, f=original, n=name: waits.append(n) or f(x))
    params = [torch.nn.Parameter(torch.randn(4, i)) for i in range(2, 8)]
    for p in params:
        p.grad = torch.randn_like(p)
    assert len(clip_stats((str(i), p) for i, p in enumerate(params))) == 6
    assert waits == ["tolist"]


def test_a_gradient_with_nan_counts_as_clipped():
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = torch.full_like(p, 1e-9)
    p.grad[0, 0] = float("nan")
    assert clip_stats({"a": p})["a"].clipped == 0.5


def test_a_gradient_that_is_not_finite_is_an_error_also_without_clipping():
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = torch.full_like(p, float("nan"))
    with pytest.raises(RuntimeError, match="a gradient is NaN"):
        adaptive_clip_grad_([p], None, error_if_nonfinite=True)


def test_stats_take_pairs_of_any_kind():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    assert clip_stats({"a": p}) == clip_stats([("a", p)]) == clip_stats([["a", p]]) == clip_stats(iter([("a", p)]))


def test_stats_skip_parameters_without_a_gradient():
    assert clip_stats({"a": torch.nn.Parameter(torch.ones(3))}) == {}


def test_parameters_on_several_devices_are_clipped_on_their_device():
    """The meta device is the second device. An operation on both devices would raise an error."""
    torch.manual_seed(0)
    here = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]
    there = [torch.nn.Parameter(p.detach().to("meta")) for p in here]
    expected = []
    for p, other in zip(here, there, strict=True):
        p.grad = 100 * torch.randn_like(p)
        other.grad = torch.empty_like(other)
        expected.append(clip(p.detach(), p.grad, 0.01))
    mixed = [here[0], there[0], there[1], here[1]]
    adaptive_clip_grad_(mixed, 0.01)
    for p, grad in zip(here, expected, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-6)
    clip_each_([ClippedParam(p, Clipping(0.01, 1e-3)) for p in mixed], grad_scale=torch.tensor(2.0))
    for p, grad in zip(here, expected, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-6)  # the allowed norm is now twice as large


def test_clipping_as_one_matrix_equals_clipping_each_parameter():
    """A GPU without Triton uses this. Kernels, matrix and vector have units of one length, in several layouts."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4, 3, 3), (5, 36), (36,), (7, 36, 1, 1))]
    params[0].data = params[0].data.contiguous(memory_format=torch.channels_last)
    expected = []
    for i, p in enumerate(params):
        p.grad = torch.randn_like(p).mul_(10.0 ** (i - 2))  # some units are clipped
        expected.append(clip(p.detach(), p.grad, 0.5))
    assert not torch.equal(params[2].grad, expected[2])
    clip_alike_(params, [p.grad for p in params], Clipping(0.5, 1e-3), None)
    for p, grad in zip(params, expected, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-6)


def test_tensors_with_gaps_or_other_layouts_are_clipped_in_place():
    torch.manual_seed(0)
    kernel, vector = torch.randn(3, 8, 5).mT, torch.randn(9)[::2]
    for x in (kernel, vector):
        p = torch.nn.Parameter(x)
        grad = p.grad = torch.empty_strided(x.shape, tuple(2 * s for s in x.stride())).copy_(100 * torch.randn(x.shape))
        expected = clip(x.contiguous(), grad.contiguous(), 0.01)
        adaptive_clip_grad_(p, 0.01)
        assert p.grad is grad
        assert torch.allclose(grad, expected, rtol=1e-6)
