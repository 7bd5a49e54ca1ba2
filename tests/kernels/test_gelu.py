"""The fast tanh GELU equals torch's, with all derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from nfnet_timm.layers.activations import GELUTanh

act = GELUTanh()


def exact(x):
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("shape", [(), (0, 3), (20, 3, 50, 70)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_outputs_equal_torchs_and_are_rounded_once(dtype, shape):
    x = 3 * torch.randn(shape).to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    y = act(x)
    assert y.dtype == dtype
    rtol = max(1e-6, torch.finfo(dtype).eps)
    assert torch.allclose(y, exact(x.double()).to(dtype), rtol=rtol, atol=5e-7)
    assert torch.equal(x, before)
    assert x.dim() < 4 or y.is_contiguous(memory_format=torch.channels_last)


def test_extreme_values_equal_torchs():
    x = torch.tensor([float("nan"), float("inf"), 1e30, 1e4, 20.0, 1e-30, 0.0, -0.0, -1e-30, -5.0])
    assert torch.allclose(act(x), exact(x), rtol=1e-6, atol=5e-7, equal_nan=True)
    x = torch.tensor([-20.0, -1e4, -1e18])
    assert torch.equal(act(x), exact(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own use of it
def test_second_forward_mode_and_batched_derivatives_equal_torchs():
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


def test_compiled_gelu_equals_torchs_and_exported_gelu_is_one_operation():
    x = torch.randn(4, 5)
    assert torch.allclose(torch.compile(act, fullgraph=True, backend="aot_eager")(x), exact(x), atol=1e-6)
    nodes = [node.target for node in torch.export.export(act, (x,)).graph.nodes if node.op == "call_function"]
    assert nodes == [torch.ops.aten.gelu.default]
