"""The fused standardization equals the formula in float64, with derivatives of every kind."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, stack_module_state, vmap

from nfnet_timm.kernels.standardize import standardize
from nfnet_timm.kernels.standardize.reference import standardize_formula
from nfnet_timm.layers.ws_conv import WSConv2d

EPS = 1e-4


def published(weight, gain):
    return standardize(weight, gain, 1.0, EPS)


def arrays(dtype=torch.float32, shape=(12, 8, 3, 3), clamped=True):
    """Return weights and gains. Row 3 is far from zero. If ``clamped``, rows 0, 5 and 10 are clamped, 1 is constant."""
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=dtype)
    weight[3:4] += 10
    if clamped:
        weight[::5] *= 1e-4
        weight[1:2] = 3.25
    return weight.requires_grad_(), torch.rand(shape[0], dtype=dtype).add(0.5).requires_grad_()


def close(actual, expected, tolerance):
    """Return whether the error of each row is within ``tolerance``, relative to the norm of the row or to 1e-3."""
    error = (actual.double() - expected).flatten(1).norm(dim=1)
    return bool((error <= tolerance * expected.flatten(1).norm(dim=1).clamp(min=1e-3)).all())


@pytest.mark.parametrize(
    ("shape", "clamped"),
    [
        *((shape, clamped) for shape in [(12, 8, 3, 3), (12, 700, 1, 1), (12, 5)] for clamped in (False, True)),
        ((12, 1, 1, 1), True),  # every row of one weight is clamped
    ],
)
def test_weight_and_gradients_equal_the_formula_in_float64(shape, clamped, monkeypatch):
    weight, gain = arrays(shape=shape, clamped=clamped)
    exact_weight, exact_gain = (x.detach().double().requires_grad_() for x in (weight, gain))
    expected = standardize_formula(exact_weight, exact_gain, 1.7, EPS)
    if not clamped:  # the formula must not be called
        monkeypatch.delattr("nfnet_timm.kernels.standardize.standardize_formula")
    actual = standardize(weight, gain, 1.7, EPS)
    assert close(actual, expected, 2e-6)
    upstream = torch.randn(shape)
    actual.backward(upstream)
    expected.backward(upstream.double())
    assert close(weight.grad, exact_weight.grad, 2e-6)
    assert torch.allclose(gain.grad.double(), exact_gain.grad, rtol=1e-5, atol=1e-5)


def test_a_row_of_one_weight_gives_zero():
    weight, gain = arrays(shape=(4, 1, 1, 1))
    assert torch.equal(published(weight, gain), torch.zeros(4, 1, 1, 1))


def test_rows_without_variance_give_zero_and_a_gradient():
    weight, gain = torch.full((2, 9), 3.25, requires_grad=True), torch.ones(2)
    out = published(weight, gain)
    assert torch.equal(out, torch.zeros(2, 9))
    out[0, 0].backward()
    assert torch.allclose(weight.grad[0], (torch.eye(9)[0] - 1 / 9) * EPS**-0.5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
@pytest.mark.parametrize("clamped", [False, True])
def test_first_second_and_forward_mode_derivatives_equal_finite_differences(clamped):
    torch.manual_seed(0)
    weight, gain = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, dtype=torch.float64).requires_grad_()
    if clamped:
        weight[0] *= 1e-3
    weight.requires_grad_()
    assert torch.autograd.gradcheck(published, (weight, gain), eps=1e-7, atol=1e-4, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(published, (weight, gain), eps=1e-7, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no rule for its own kernel
@pytest.mark.parametrize("clamped", [False, True])
def test_batched_gradients_equal_the_formula(clamped):
    weight, gain = arrays(shape=(6, 4), clamped=clamped)
    upstream = torch.randn(5, 6, 4)
    results = [
        torch.autograd.grad(out, (weight, gain), upstream, is_grads_batched=True)
        for out in (published(weight, gain), standardize_formula(weight, gain, 1.0, EPS))
    ]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_hessians_equal_the_formula():
    weight, gain = arrays(torch.float64, (3, 4))

    def hessian(f):
        return torch.func.hessian(lambda w: (f(w) ** 3).sum())(weight.detach())

    assert torch.allclose(
        hessian(lambda w: published(w, gain)), hessian(lambda w: standardize_formula(w, gain, 1.0, EPS))
    )


def test_per_sample_gradients_are_those_of_one_sample_at_a_time(tiny):
    model = tiny()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3])

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    together = vmap(grad(loss), (None, 0, 0))(parameters, x, y)
    for i in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            assert torch.allclose(together[name][i], p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max() + 1)), name


def test_a_vmapped_ensemble_equals_its_members():
    convs = [WSConv2d(4, 6, 3) for _ in range(3)]
    convs[1].weight.data[2] *= 1e-4
    parameters, buffers = stack_module_state(convs)
    skeleton = copy.deepcopy(convs[0]).to("meta")
    x = torch.randn(2, 4, 5, 5)
    together = vmap(lambda p: functional_call(skeleton, (p, buffers), (x,)))(parameters)
    for actual, conv in zip(together, convs, strict=True):
        assert torch.allclose(actual, conv(x), atol=1e-6)


@pytest.mark.parametrize("write", ["data", "copy", "optimizer", "load", "storage"])
def test_a_weight_is_never_stale(write):
    """Nothing is kept between two forward passes, so the next one sees every change of a weight."""
    torch.manual_seed(0)
    conv, other = WSConv2d(4, 6, 3).eval(), WSConv2d(4, 6, 3)
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        conv(x)
        if write == "data":
            conv.weight.data = other.weight.data.clone()
        elif write == "copy":
            conv.weight.copy_(other.weight)
        elif write == "load":
            conv.load_state_dict(other.state_dict())
        elif write == "storage":  # sharded and memory-mapped parameters are filled in this way
            conv.weight.detach().untyped_storage().copy_(other.weight.detach().untyped_storage())
        else:
            conv.weight.grad = conv.weight - other.weight
            torch.optim.SGD([conv.weight], lr=1.0).step()
        conv.bias.copy_(other.bias)
        assert torch.allclose(conv(x), other(x), atol=1e-6)


def test_channels_last_weights_give_channels_last_results():
    torch.manual_seed(0)
    conv = WSConv2d(4, 6, 3)
    expected = conv.standardized_weight()
    actual = conv.to(memory_format=torch.channels_last).standardized_weight()
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(actual, expected, atol=1e-7)


def test_meta_and_fake_tensors_are_standardized():
    for x in (torch.empty(6, 4, device="meta"), FakeTensorMode().from_tensor(torch.empty(6, 4))):
        assert published(x, x[:, 0]).shape == (6, 4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("clamped", [False, True])
def test_traced_exported_and_compiled_weights_are_the_same(clamped):
    weight, gain = (x.detach() for x in arrays(clamped=clamped))
    expected = published(weight, gain)
    for other in (
        torch.jit.trace(published, (weight, gain)),
        torch.export.export(Module(), (weight, gain)).module(),
        torch.compile(published, fullgraph=True, backend="aot_eager"),
    ):
        assert torch.allclose(other(weight, gain), expected, atol=2e-5)


class Module(torch.nn.Module):
    def forward(self, weight, gain):
        return published(weight, gain)
