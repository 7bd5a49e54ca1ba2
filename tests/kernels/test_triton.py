"""The Triton kernels give the right numbers. On a CPU they run in Triton's interpreter.

Triton decides whether to interpret a kernel when the kernel is defined. So one test runs this file in a second process
with the interpreter. On a machine with a GPU, ``scripts/benchmarks/benchmark_gpu.sh`` runs these tests, compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nfnet_timm.kernels.check import KERNELS, compare
from nfnet_timm.kernels.clip.settings import Clipping
from nfnet_timm.kernels.standardize.reference import standardize_formula
from nfnet_timm.optim.agc import unitwise_norm

pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs alone")
import triton
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nfnet_timm.kernels.clip import triton as clip_triton
from nfnet_timm.kernels.standardize import triton as standardize_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="no GPU here; test_the_kernels_are_right_in_the_interpreter runs these"
)
EPS = 1e-4


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter")
@pytest.mark.skipif(DEVICE == "cuda", reason="the GPU runs them")
def test_the_kernels_are_right_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest"]  # which would import timm
    command += ["-p", "no:xdist", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def arrays(shape, dtype):
    """Return a weight, a gain and a gradient. Rows are clamped (0), constant (1), far from zero (2) and large (3)."""
    g = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=g) * (shape[1] ** -0.5)
    weight[0] *= 1e-3
    weight[1] = 0.25
    weight[2] += 3
    weight[3] *= 100
    gain, grad = torch.rand(shape[0], generator=g) + 0.5, torch.randn(shape, generator=g)
    return weight.to(DEVICE, dtype), gain.to(DEVICE, dtype), grad.to(DEVICE, dtype)


def error(actual, expected):
    """Return the largest difference in a row, relative to the largest value of that row."""
    actual, expected = actual.detach().double().reshape(len(expected), -1), expected.detach().reshape(len(expected), -1)
    return float(((actual - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=1e-9)).max())


# From a depthwise kernel to a 3 x 3 convolution of 512 channels. Only one is a power of two.
FAN_INS = [(9, torch.float32), (64, torch.bfloat16), (147, torch.float16), (4608, torch.float32)]


@runs_kernels
@pytest.mark.parametrize(("fan_in", "dtype"), FAN_INS)
def test_weight_and_gradients_equal_the_formula_in_float64(fan_in, dtype):
    weight, gain, grad = arrays((6, fan_in), dtype)
    exact = [x.double().requires_grad_() for x in (weight, gain)]
    expected = standardize_formula(*exact, 1.7, EPS)
    grads = torch.autograd.grad(expected, exact, grad.double())
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    out = standardize_triton.standardize(weight, gain, 1.7, EPS, dtype)
    assert out.dtype == dtype
    assert error(out[[0, 2, 3, 4, 5]], expected[[0, 2, 3, 4, 5]]) < 2e-6 + rounding
    # In a row without variance, only the rounding error of its mean is left: on a GPU up to 2 units in the last place.
    assert float(out[1].abs().max()) < 1.7 * 1.5 * EPS**-0.5 * 2 * torch.finfo(torch.float32).eps * 0.25
    grad_weight, grad_gain = standardize_triton.standardize_backward(grad, weight, gain, 1.7, EPS)
    assert (grad_weight.dtype, grad_gain.dtype) == (dtype, dtype)
    assert error(grad_weight, grads[0]) < 5e-6 + rounding
    assert float((grad_gain.double() - grads[1]).norm() / grads[1].norm()) < 5e-6 + rounding


SHAPES = [(5, 3, 3, 3), (4, 2000, 1, 1), (3, 1030), (1, 7), (7, 1), (2500,), (), (6, 1, 1, 1), (2, 4608)]


@runs_kernels
@pytest.mark.parametrize(
    ("dtypes", "scale"), [((torch.float32, torch.float32), 8.0), ((torch.float32, torch.bfloat16), None)]
)
def test_clipping_in_one_launch_equals_the_published_rule(dtypes, scale):
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=g).to(DEVICE, dtypes[0]) for shape in SHAPES]
    weights[0] = weights[0].to(memory_format=torch.channels_last)
    grads = [(torch.randn(shape, generator=g) * 0.05).to(DEVICE, dtypes[1]) for shape in SHAPES]
    grads[1][0], grads[2][1, 5] = 0, float("nan")
    factors = [0.01 if i % 2 else 0.02 for i in range(len(SHAPES))]
    expected = []
    for weight, grad, factor in zip(weights, grads, factors, strict=True):
        limit = unitwise_norm(weight.double()).clamp(min=1e-3) * factor * (scale or 1)
        expected.append(grad.double() * (limit / unitwise_norm(grad.double())).clamp(max=1))
    grad_scale = None if scale is None else torch.tensor(scale, device=DEVICE)
    clip_triton.clip_(weights, grads, [Clipping(factor, 1e-3) for factor in factors], grad_scale)
    rounding = 1e-6 if dtypes[1] == torch.float32 else 1.1 * torch.finfo(dtypes[1]).eps
    for grad, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.double(), exact, rtol=rounding, atol=1e-7, equal_nan=True)


@runs_kernels
def test_the_search_in_the_table_finds_each_tensor():
    for count in (1, 2, 3, 16, 17):
        weights = [torch.full((i % 3 + 1, 5), float(i + 1), device=DEVICE) for i in range(count)]
        grads = [torch.full_like(w, 1e3) for w in weights]
        clip_triton.clip_(weights, grads, [Clipping(0.5)] * count, None)
        for weight, grad in zip(weights, grads, strict=True):
            torch.testing.assert_close(grad, 0.5 * weight)


@runs_kernels
def test_the_first_use_finds_every_kernel_right():
    for name in KERNELS:
        result = compare(name, torch.device(DEVICE))
        assert result.is_right, f"{name}: {result}"


TARGETS = [("cuda", 80, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]


def build(kernel, types, constants, target):
    """Compile ``kernel`` for ``target``, with arguments of Triton's ``types``."""
    signature = dict(zip(kernel.arg_names, [*types, *("constexpr" for _ in constants)], strict=True))
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget(*target), options={"num_warps": 4})


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
@pytest.mark.filterwarnings("ignore")  # Triton warns that the machine has no GPU
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
def test_every_kernel_compiles(target):
    constants = {"HAS_SCALE": True, "WEIGHT": tl.float32, "GRAD": tl.bfloat16, "ACC": tl.float32}
    constants |= {"HALVINGS": 8, "BLOCK": clip_triton.BLOCK}
    built = [build(clip_triton.clip_kernel, ["*i64", "i32", "fp32", "fp32", "*fp32"], constants, target)]
    for kernel, tensors in ((standardize_triton.standardize_kernel, 3), (standardize_triton.backward_kernel, 5)):
        built.append(build(kernel, ["*bf16"] * tensors + ["i32", "fp32", "fp32"], {"BLOCK": 2048}, target))
    assert all(compiled.asm["cubin" if target[0] == "cuda" else "hsaco"] for compiled in built)
