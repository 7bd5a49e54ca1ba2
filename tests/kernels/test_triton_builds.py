"""Triton compiles the kernels for several GPUs, and they keep everything in registers."""

import os
import subprocess
from pathlib import Path

import pytest
import timm

from nfnet_timm.layers.ws_conv import WSConv2d

triton = pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs alone")
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreted kernel is not compiled"),
    pytest.mark.filterwarnings("ignore"),  # Triton warns that the machine has no GPU
]

TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]
NAMED = [*(f"nfnet_f{i}" for i in range(8)), "dm_nf_resnet50"]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def build(kernel, types, constants, target, num_warps):
    """Compile ``kernel`` for ``target``, with arguments of Triton's ``types``."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict(zip(kernel.arg_names, [*types, *("constexpr" for _ in constants)], strict=True))
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget(*target), options={"num_warps": num_warps})


def standardization(kind, dtype, options, target):
    from nfnet_timm.kernels.standardize import triton as standardize_triton

    kernel = getattr(standardize_triton, f"{kind}_kernel")
    types = [f"*{dtype}"] * (3 if kind == "standardize" else 5) + ["i32", "fp32", "fp32"]
    return build(kernel, types, {"BLOCK": options["BLOCK"]}, target, options["num_warps"])


def clipping(dtypes, target):
    from triton import language as tl

    from nfnet_timm.kernels.clip import triton as clip_triton

    names = {"fp32": tl.float32, "bf16": tl.bfloat16}
    constants = {"HAS_SCALE": True, "WEIGHT": names[dtypes[0]], "GRAD": names[dtypes[1]], "ACC": tl.float32}
    types = ["*i64", "i32", "fp32", "fp32", "*fp32"]
    return build(clip_triton.clip_kernel, types, {**constants, "HALVINGS": 8, "BLOCK": clip_triton.BLOCK}, target, 4)


def spilled(compiled, tmp_path):
    """Return cuobjdump's entries for stack and local memory, which a kernel uses if it has too few registers."""
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [CUOBJDUMP, "--dump-resource-usage", tmp_path / "kernel.cubin"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "REG:" in printed
    return [word for word in printed.split() if word.startswith(("STACK:", "LOCAL:"))]


def options_of_the_networks():
    """Return the block size and warps for every row length of F0 to F7 and NF-ResNet-50."""
    from nfnet_timm.kernels.standardize.triton import options

    fan_ins = {
        module.weight[0].numel()
        for name in NAMED
        for module in timm.create_model(name, device="meta").modules()
        if isinstance(module, WSConv2d)
    }
    assert {27, 1152, 4608} <= fan_ins
    return list({tuple(options(fan_in).items()): options(fan_in) for fan_in in sorted(fan_ins)}.values())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
def test_every_kernel_compiles(target):
    binary = "cubin" if target[0] == "cuda" else "hsaco"
    for kind in ("standardize", "backward"):
        assert standardization(kind, "bf16", {"BLOCK": 2048, "num_warps": 4}, target).asm[binary]
    assert clipping(("fp32", "bf16"), target).asm[binary]  # test_no_register_is_spilled compiles float32


@pytest.mark.slow
def test_no_register_is_spilled_on_any_shape_of_the_networks(tmp_path):
    target = ("cuda", 90, 32)
    for options in options_of_the_networks():
        for kind in ("standardize", "backward"):
            assert spilled(standardization(kind, "fp32", options, target), tmp_path) == ["STACK:0", "LOCAL:0"], options
    assert spilled(clipping(("fp32", "fp32"), target), tmp_path) == ["STACK:0", "LOCAL:0"]
