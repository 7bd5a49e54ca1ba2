"""Weight standardization as one operation, as on other devices than a CPU. The CPU pretends to be such a device."""

import pytest
import torch
from torch.autograd import forward_ad

from nfnet_timm.kernels import standardize as chosen
from nfnet_timm.kernels.eager import is_on_a_device
from nfnet_timm.kernels.standardize import standardize
from nfnet_timm.kernels.standardize.reference import standardize_formula

EPS = 1e-4


@pytest.fixture(autouse=True)
def a_device(monkeypatch):
    monkeypatch.setattr(chosen, "is_eager_on_cpu", lambda x: False)
    monkeypatch.setattr(chosen, "is_on_a_device", lambda x: is_on_a_device(x.detach().to("meta")))


@pytest.fixture
def arrays():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    weight[0] *= 1e-4  # clamped
    return weight.requires_grad_(), (torch.rand(6) + 0.5).requires_grad_()


def exact(arrays):
    return [x.detach().double().requires_grad_() for x in arrays]


def close(actual, expected, tolerance=5e-6):
    return bool((actual.double() - expected).abs().max() <= tolerance * expected.abs().max())


def test_standardize_runs_the_operation(arrays):
    assert "StandardizeBackward" in type(standardize(*arrays, 1.7, EPS).grad_fn).__name__


def test_weight_and_gradients_equal_the_formula(arrays):
    doubles, upstream = exact(arrays), torch.randn(6, 4, 3, 3)
    out, expected = standardize(*arrays, 1.7, EPS), standardize_formula(*doubles, 1.7, EPS)
    assert close(out, expected, 2e-6)
    found = torch.autograd.grad(out, arrays, upstream)
    for grad, other in zip(found, torch.autograd.grad(expected, doubles, upstream.double()), strict=True):
        assert close(grad, other)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_frozen_weight_or_gain_gets_no_gradient(arrays, frozen, create_graph):
    arrays[frozen].requires_grad_(False)
    out = standardize(*arrays, 1.0, EPS)
    (grad,) = torch.autograd.grad(out.square().sum(), [arrays[1 - frozen]], create_graph=create_graph)
    assert grad.shape == arrays[1 - frozen].shape


def test_second_derivatives_equal_the_formula(arrays):
    def penalty(weight, gain, function):
        out = function(weight, gain, 1.7, EPS)
        first = torch.autograd.grad(out.pow(3).sum(), (weight, gain), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (weight, gain))

    weight, gain = arrays[0].detach()[1:].requires_grad_(), arrays[1].detach()[1:].requires_grad_()
    found = penalty(weight, gain, standardize)
    for grad, expected in zip(found, penalty(*exact((weight, gain)), standardize_formula), strict=True):
        assert close(grad, expected, 1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it, of the formula's tangent
def test_forward_mode_derivatives_equal_the_formula(arrays):
    tangents = [torch.randn_like(x) for x in arrays]

    def tangent(values, directions, function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(v, d) for v, d in zip(values, directions, strict=True)]
            return forward_ad.unpack_dual(function(*duals, 1.7, EPS)).tangent

    expected = tangent(exact(arrays), [t.double() for t in tangents], standardize_formula)
    assert close(tangent(arrays, tangents, standardize), expected, 1e-5)
    with torch.no_grad():  # forward mode computes derivatives also under no_grad
        assert close(tangent([x.detach() for x in arrays], tangents, standardize), expected, 1e-5)


def test_under_autocast_the_result_has_its_dtype_and_gradients_are_float32(arrays):
    with torch.autocast("cpu", torch.bfloat16):
        out = standardize(*arrays, 1.0, EPS)
    assert out.dtype == torch.bfloat16
    for grad in torch.autograd.grad(out, arrays, torch.ones_like(out)):
        assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_standardized_in_float32(arrays, dtype):
    weight, gain = (x.detach().to(dtype) for x in arrays)
    out = standardize(weight, gain, 1.0, EPS)
    assert out.dtype == dtype
    expected = standardize_formula(weight.double(), gain.double(), 1.0, EPS)
    assert close(out, expected, torch.finfo(dtype).eps)


def test_float64_uses_the_formula(arrays):
    doubles = exact(arrays)
    assert torch.equal(standardize(*doubles, 1.0, EPS), standardize_formula(*doubles, 1.0, EPS))
    assert torch.autograd.gradcheck(lambda w, g: standardize(w, g, 1.0, EPS), (doubles[0][1:], doubles[1][1:]))


def test_transforms_and_exports_use_the_formula(arrays):
    weight, gain = (x.detach() for x in arrays)
    expected = standardize_formula(weight, gain, 1.0, EPS)
    several = torch.func.vmap(lambda w: standardize(w, gain, 1.0, EPS))(torch.stack([weight, 2 * weight]))
    assert close(several[0], expected.double())
    program = torch.export.export(Module(), (weight, gain))
    assert not any("nfnet_timm" in str(node.target) for node in program.graph.nodes)
    assert close(program.module()(weight, gain), expected.double())


class Module(torch.nn.Module):
    def forward(self, weight, gain):
        return standardize(weight, gain, 1.0, EPS)


def test_a_network_has_the_same_gradients_as_with_the_formula(tiny, monkeypatch):
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for path in (is_on_a_device, lambda x: False):
        monkeypatch.setattr(chosen, "is_on_a_device", lambda x, path=path: path(x.detach().to("meta")))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            model = tiny().to(memory_format=memory_format)
            model(x).square().sum().backward()
            gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        for grad, expected in zip(other, gradients[0], strict=True):
            assert float((grad - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-7


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it fails, as if it were not installed
import timm, torch
import nfnet_timm.publish.sources
from nfnet_timm import adaptive_clip_grad_
for device in ("cpu", "meta"):
    with torch.device(device):
        model = timm.create_model("nfnet_f0", depths=(1, 1, 1, 1), channels=(32, 64, 96, 96), group_size=8)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        adaptive_clip_grad_(model.parameters())
assert not {"jax", "orbax"} & set(sys.modules)  # which only Orbax checkpoints need
print(torch.ops.nfnet_timm.standardize(torch.randn(4, 9), torch.ones(4), 1.0, 1e-4, torch.float32).norm(dim=1).tolist())
"""


def test_without_triton_everything_works_without_a_warning(run_python):
    printed = run_python(WITHOUT_TRITON, args=("-W", "error"))
    assert printed.count("\n") == 1
    assert [round(float(norm), 5) for norm in printed.strip("[]\n").split(", ")] == [1.0] * 4
