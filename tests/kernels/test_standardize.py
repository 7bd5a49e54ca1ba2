"""Every implementation of standardization equals the formula in float64, with derivatives of every kind.

"cpu" is torch's kernel for group normalization. "device" is one operation, as on other devices than a CPU; here the CPU
pretends to be such a device.
"""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

from nfnet_timm.kernels import standardize as chosen
from nfnet_timm.kernels.eager import is_on_a_device
from nfnet_timm.kernels.standardize import standardize
from nfnet_timm.kernels.standardize.reference import standardize_formula
from nfnet_timm.layers.ws_conv import WSConv2d

EPS = 1e-4
SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 32, 64, 64)}


def pretend_to_be_a_device(monkeypatch):
    monkeypatch.setattr(chosen, "is_eager_on_cpu", lambda x: False)
    monkeypatch.setattr(chosen, "is_on_a_device", lambda x: is_on_a_device(x.detach().to("meta")))


@pytest.fixture(params=["cpu", "device"])
def path(request, monkeypatch):
    if request.param == "device":
        pretend_to_be_a_device(monkeypatch)
    return request.param


@pytest.fixture
def a_device(monkeypatch):
    pretend_to_be_a_device(monkeypatch)


def arrays(shape=(12, 8, 3, 3), clamped=True, dtype=torch.float32):
    """Return weights and gains. Row 3 is far from zero. If ``clamped``, rows 0, 5 and 10 are clamped, 1 is constant."""
    weight = torch.randn(shape, dtype=dtype)
    weight[3:4] += 10
    if clamped:
        weight[::5] *= 1e-4
        weight[1:2] = 3.25
    return weight.requires_grad_(), torch.rand(shape[0], dtype=dtype).add(0.5).requires_grad_()


def exact(values):
    return [x.detach().double().requires_grad_() for x in values]


def close(actual, expected, tolerance):
    """Return whether the error of each row is within ``tolerance``, relative to the norm of the row or to 1e-3."""
    error = (actual.double() - expected).flatten(1).norm(dim=1)
    return bool((error <= tolerance * expected.flatten(1).norm(dim=1).clamp(min=1e-3)).all())


@pytest.mark.parametrize(
    ("shape", "clamped"),
    [((12, 8, 3, 3), False), ((12, 8, 3, 3), True), ((12, 700, 1, 1), True), ((12, 5), False), ((12, 1, 1, 1), True)],
)
def test_weight_and_gradients_equal_the_formula_in_float64(shape, clamped, path, monkeypatch):
    weight, gain = arrays(shape, clamped)
    doubles = exact((weight, gain))
    expected = standardize_formula(*doubles, 1.7, EPS)
    if path == "device" or not clamped:  # the formula must not be called
        monkeypatch.delattr("nfnet_timm.kernels.standardize.standardize_formula")
    actual = standardize(weight, gain, 1.7, EPS)
    upstream = torch.randn(shape)
    actual.backward(upstream)
    expected.backward(upstream.double())
    # The device subtracts the mean once, so the rounding error of its mean remains where nothing else is left.
    rows = [i for i in range(12) if path == "cpu" or i != 1]
    assert close(actual[rows], expected[rows], 2e-6)
    assert close(weight.grad[rows], doubles[0].grad[rows], 5e-6 if path == "device" else 2e-6)
    assert torch.allclose(gain.grad.double(), doubles[1].grad, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
@pytest.mark.parametrize("clamped", [False, True])
def test_first_second_and_forward_mode_derivatives_equal_finite_differences(clamped, path):
    weight, gain = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, dtype=torch.float64).requires_grad_()
    if clamped:
        weight[0] *= 1e-3
    weight.requires_grad_()

    def function(weight, gain):
        return standardize(weight, gain, 1.0, EPS)

    assert torch.autograd.gradcheck(function, (weight, gain), eps=1e-7, atol=1e-4, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (weight, gain), eps=1e-7, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it, of the formula's tangent
def test_on_a_device_second_and_forward_mode_derivatives_equal_the_formula(a_device):
    values = arrays((6, 36), clamped=False)
    tangents = [torch.randn_like(x) for x in values]

    def derivatives(values, tangents, function):
        out = function(*values, 1.7, EPS)
        first = torch.autograd.grad(out.pow(3).sum(), values, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), values)
        with torch.no_grad(), forward_ad.dual_level():
            duals = [forward_ad.make_dual(v.detach(), t) for v, t in zip(values, tangents, strict=True)]
            return *second, forward_ad.unpack_dual(function(*duals, 1.7, EPS)).tangent

    expected = derivatives(exact(values), [t.double() for t in tangents], standardize_formula)
    for found, other in zip(derivatives(values, tangents, standardize), expected, strict=True):
        assert (found.double() - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no rule for its own kernel
def test_batched_gradients_equal_the_formula():
    weight, gain = arrays((6, 4), clamped=False)
    upstream = torch.randn(5, 6, 4)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(function(weight, gain, 1.0, EPS), (weight, gain), upstream, is_grads_batched=True)
            for function in (standardize, standardize_formula)
        )
    )


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_frozen_weight_or_gain_gets_no_gradient(frozen, create_graph, a_device):
    values = arrays()
    values[frozen].requires_grad_(False)
    out = standardize(*values, 1.0, EPS)
    (grad,) = torch.autograd.grad(out.square().sum(), [values[1 - frozen]], create_graph=create_graph)
    assert grad.shape == values[1 - frozen].shape


def test_under_autocast_a_device_returns_its_dtype_and_a_cpu_float32(path):
    values = arrays()
    with torch.autocast("cpu", torch.bfloat16):
        out = standardize(*values, 1.0, EPS)
    assert out.dtype == (torch.bfloat16 if path == "device" else torch.float32)
    assert {grad.dtype for grad in torch.autograd.grad(out, values, torch.ones_like(out))} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_standardized_in_float32(dtype, path):
    weight, gain = (x.detach() for x in arrays(dtype=dtype, clamped=False))
    out = standardize(weight, gain, 1.0, EPS)
    assert out.dtype == dtype
    assert close(out, standardize_formula(weight.double(), gain.double(), 1.0, EPS), torch.finfo(dtype).eps)


class Module(torch.nn.Module):
    def forward(self, weight, gain):
        return standardize(weight, gain, 1.0, EPS)


def test_transforms_and_exports_use_the_formula(a_device):
    weight, gain = (x.detach() for x in arrays(clamped=False))
    expected = standardize_formula(weight, gain, 1.0, EPS)
    several = vmap(lambda w: standardize(w, gain, 1.0, EPS))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(several[0], expected)
    program = torch.export.export(Module(), (weight, gain))
    assert not any("nfnet_timm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(weight, gain), expected)


def test_per_sample_gradients_are_those_of_one_sample_at_a_time(tiny):
    model = tiny(**SMALL)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    together = vmap(grad(loss), (None, 0, 0))(parameters, x, y)
    for i in range(2):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            assert torch.allclose(together[name][i], p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max() + 1)), name


def test_a_network_has_the_same_gradients_on_a_device_in_both_layouts(tiny, monkeypatch):
    x, gradients = torch.randn(2, 3, 64, 64), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = tiny(**SMALL).to(memory_format=memory_format)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        pretend_to_be_a_device(monkeypatch)
    for found, expected in zip(*gradients, strict=True):
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-7


def test_channels_last_weights_give_channels_last_results(path):
    conv = WSConv2d(4, 6, 3)
    expected = conv.standardized_weight()
    actual = conv.to(memory_format=torch.channels_last).standardized_weight()
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(actual, expected, atol=1e-7)


def test_meta_and_fake_tensors_are_standardized():
    for x in (torch.empty(6, 4, device="meta"), FakeTensorMode().from_tensor(torch.empty(6, 4))):
        assert standardize(x, x[:, 0], 1.0, EPS).shape == (6, 4)
