"""The fused standardization equals the formula in float64, with derivatives of every kind."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, vmap

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
def test_batched_gradients_equal_the_formula():
    weight, gain = arrays(shape=(6, 4), clamped=False)
    upstream = torch.randn(5, 6, 4)
    results = [
        torch.autograd.grad(out, (weight, gain), upstream, is_grads_batched=True)
        for out in (published(weight, gain), standardize_formula(weight, gain, 1.0, EPS))
    ]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


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
