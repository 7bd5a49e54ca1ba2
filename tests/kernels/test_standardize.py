"""The formula equals the authors', and every implementation equals the formula, with derivatives of every kind.

"cpu" is torch's kernel for group normalization. "device" is one operation, as on other devices than a CPU; here the CPU
pretends to be such a device.
"""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

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


on_a_device = pytest.mark.parametrize("path", ["device"], indirect=True)


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


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it, of the formula's tangent
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no rule for batches in its own kernel
@pytest.mark.parametrize("clamped", [False, True])
def test_second_forward_mode_and_batched_derivatives_equal_the_formula(clamped, path):
    """In float64 on a CPU. A device has no float64."""
    values = arrays((6, 36), clamped, torch.float64 if path == "cpu" else torch.float32)
    tangents, upstream = [torch.randn_like(x) for x in values], torch.randn(5, 6, 36, dtype=values[0].dtype)

    def derivatives(values, tangents, upstream, function):
        out = function(*values, 1.7, EPS)
        batched = torch.autograd.grad(out, values, upstream, is_grads_batched=True, retain_graph=True)
        first = torch.autograd.grad(out.pow(3).sum(), values, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), values)
        with torch.no_grad(), forward_ad.dual_level():
            duals = [forward_ad.make_dual(v.detach(), t) for v, t in zip(values, tangents, strict=True)]
            return *batched, *second, forward_ad.unpack_dual(function(*duals, 1.7, EPS)).tangent

    expected = derivatives(exact(values), [t.double() for t in tangents], upstream.double(), standardize_formula)
    tolerance = 1e-9 if path == "cpu" else 1e-4
    for found, other in zip(derivatives(values, tangents, upstream, standardize), expected, strict=True):
        assert (found.double() - other).abs().max() <= tolerance * other.abs().max()


@on_a_device
@pytest.mark.parametrize(("frozen", "create_graph"), [(0, True), (1, True), (1, False)])
def test_a_frozen_weight_or_gain_gets_no_gradient(frozen, create_graph, path):
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


@on_a_device
def test_transforms_and_exports_use_the_formula(path):
    weight, gain = (x.detach() for x in arrays(clamped=False))
    several = torch.vmap(lambda w: standardize(w, gain, 1.0, EPS))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(several[0], standardize_formula(weight, gain, 1.0, EPS))
    conv, x = WSConv2d(8, 12, 3), torch.randn(1, 8, 3, 3)
    program = torch.export.export(conv, (x,))
    assert not any("nfnet_timm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), conv(x))


def test_a_network_has_the_same_gradients_on_a_device_in_both_layouts(tiny, monkeypatch):
    x, gradients = torch.randn(2, 3, 64, 64), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = tiny(**SMALL).to(memory_format=memory_format)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        pretend_to_be_a_device(monkeypatch)
    for found, expected in zip(*gradients, strict=True):
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-7


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_weight_of_a_convolution_equals_the_authors_in_its_layout(memory_format, path):
    """Source: base.py in deepmind-research/nfnets: (w - mean) * gain * rsqrt(max(var * fan_in, eps))."""
    conv = WSConv2d(8, 12, 3, stride=2, groups=2, scale=1.7)
    torch.nn.init.uniform_(conv.gain, 0.5, 1.5)
    conv.weight.data[::5] *= 1e-3  # clamped by eps
    conv.weight.data[1] = 3.25  # without variance
    conv.double().to(memory_format=memory_format)
    weight, gain = conv.weight.detach().numpy(), conv.gain.detach().numpy()
    mean, var = weight.mean((1, 2, 3), keepdims=True), weight.var((1, 2, 3), keepdims=True)
    factor = 1.7 * gain[:, None, None, None] / np.sqrt(np.maximum(var * weight[0].size, 1e-4))
    found = conv.standardized_weight()
    np.testing.assert_allclose(found.detach().numpy(), (weight - mean) * factor, rtol=1e-12, atol=1e-13)
    conv.float()
    for actual in (found, conv.standardized_weight()):
        assert actual.is_contiguous(memory_format=memory_format)


def test_with_eps_0_no_row_is_clamped(path):
    weight, gain = arrays(clamped=False)
    weight.data[0] *= 1e-3
    out = standardize(weight, gain, 1.0, 0.0)
    assert close(out, standardize_formula(*exact((weight, gain)), 1.0, 0.0), 1e-4)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum(), (weight, gain)))
