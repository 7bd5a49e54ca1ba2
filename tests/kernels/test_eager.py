"""The fast paths for a CPU are used for plain tensors in eager mode, and for nothing else."""

import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nfnet_timm import adaptive_clip_grad_
from nfnet_timm.kernels.eager import is_eager_on_cpu


def test_a_plain_tensor_or_parameter_is_eager():
    x = torch.ones(2)
    assert is_eager_on_cpu(x)
    assert is_eager_on_cpu(torch.nn.Parameter(x))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert is_eager_on_cpu(x)


def test_gpu_kernels_are_not_imported_for_a_network_on_a_cpu(tiny, monkeypatch):
    kernels = {"nfnet_timm.kernels.standardize.triton", "nfnet_timm.kernels.clip.triton"}
    for name in kernels:
        monkeypatch.delitem(sys.modules, name, raising=False)
    model = tiny()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    adaptive_clip_grad_(model.parameters())
    assert not kernels & sys.modules.keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_traced_compiled_transformed_meta_and_fake_tensors_are_not_eager():
    answers = []

    def ask(x):
        answers.append(is_eager_on_cpu(x))
        return x * x

    x = torch.ones(2)
    with FlopCounterMode(display=False):
        ask(x)
    torch.jit.trace(ask, x, check_trace=False)
    torch.vmap(ask)(x)
    torch.func.grad(lambda x: ask(x).sum())(x)
    ask(torch.ones(2, device="meta"))
    ask(FakeTensorMode().from_tensor(x))
    assert answers == [False] * 6
    assert torch.compile(lambda x: x + is_eager_on_cpu(x), backend="eager", fullgraph=True)(x).tolist() == [1, 1]
