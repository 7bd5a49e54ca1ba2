"""Triton compiles the kernels for several GPUs."""

import os

import pytest

triton = pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs alone")
from triton import language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from nfnet_timm.kernels.clip import triton as clip_triton  # noqa: E402
from nfnet_timm.kernels.standardize import triton as standardize_triton  # noqa: E402

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreted kernel is not compiled"),
    pytest.mark.filterwarnings("ignore"),  # Triton warns that the machine has no GPU
]

TARGETS = [("cuda", 80, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]


def build(kernel, types, constants, target):
    """Compile ``kernel`` for ``target``, with arguments of Triton's ``types``."""
    signature = dict(zip(kernel.arg_names, [*types, *("constexpr" for _ in constants)], strict=True))
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget(*target), options={"num_warps": 4})


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
def test_every_kernel_compiles(target):
    constants = {"HAS_SCALE": True, "WEIGHT": tl.float32, "GRAD": tl.bfloat16, "ACC": tl.float32}
    constants |= {"HALVINGS": 8, "BLOCK": clip_triton.BLOCK}
    built = [build(clip_triton.clip_kernel, ["*i64", "i32", "fp32", "fp32", "*fp32"], constants, target)]
    for kernel, tensors in ((standardize_triton.standardize_kernel, 3), (standardize_triton.backward_kernel, 5)):
        built.append(build(kernel, ["*bf16"] * tensors + ["i32", "fp32", "fp32"], {"BLOCK": 2048}, target))
    assert all(compiled.asm["cubin" if target[0] == "cuda" else "hsaco"] for compiled in built)
