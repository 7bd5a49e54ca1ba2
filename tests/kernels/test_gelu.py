"""The fast tanh GELU equals torch's, with all derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from nfnet_timm.layers.activations import GELUTanh

act = GELUTanh()


def exact(x):
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 5, 7)])
@pytest.mark.parametrize("grad", [False, True])
def test_gelu_equals_torchs_to_float32_rounding(shape, grad):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape, requires_grad=grad)
    before = x.detach().clone()
    assert torch.allclose(act(x), exact(x.double()).float(), rtol=1e-6, atol=5e-7)
    assert torch.equal(x, before)


def test_extreme_values_equal_torchs():
    x = torch.tensor([float("nan"), float("inf"), 1e30, 1e4, 20.0, 1e-30, 0.0, -0.0, -1e-30, -5.0])
    assert torch.allclose(act(x), exact(x), rtol=1e-6, atol=5e-7, equal_nan=True)
    x = torch.tensor([-20.0, -1e4, -1e18])
    assert torch.equal(act(x), exact(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
def test_second_forward_mode_and_batched_derivatives_equal_torchs():
    torch.manual_seed(0)
    x, tangent = torch.randn(5, requires_grad=True), torch.randn(5)
    results = []
    for f in (act, exact):
        with forward_ad.dual_level():
            along = forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))).tangent
        (batched,) = torch.autograd.grad(f(x), x, torch.eye(5), is_grads_batched=True)
        (first,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        results.append([along, batched, second])
    torch.testing.assert_close(*results)


# The larger tensors are activated in parts. The last part may be smaller, or each part may be one sample.
@pytest.mark.parametrize("shape", [(1000,), (7, 3, 160, 170), (2, 3, 400, 401), (300_000,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded_once(dtype, shape):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape).to(dtype)
    assert act(x).dtype == dtype
    assert torch.allclose(act(x), exact(x.double()).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_compiled_gelu_equals_torchs_and_exported_gelu_is_one_operation():
    x = torch.randn(4, 5)
    assert torch.allclose(torch.compile(act, fullgraph=True, backend="aot_eager")(x), exact(x), atol=1e-6)
    nodes = [node.target for node in torch.export.export(act, (x,)).graph.nodes if node.op == "call_function"]
    assert nodes == [torch.ops.aten.gelu.default]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7, 3, 160, 170)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_is_preserved(dtype, shape):
    x = torch.randn(shape).to(dtype=dtype, memory_format=torch.channels_last)
    assert act(x).is_contiguous(memory_format=torch.channels_last)
