"""A network that is traced or exported at one size is right at all other sizes, odd or even."""

import numpy as np
import pytest
import timm
import torch
from families import families
from torch import nn
from torch.export import Dim

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the older exporter is deprecated
    pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1"),  # its form of F.pad causes this
]

SIZES = [(64, 64), (96, 96), (224, 224), (225, 225), (97, 65), (80, 80), (100, 100), (200, 200), (75, 133), (33, 47)]

FAMILIES = families()


@pytest.fixture(params=FAMILIES)
def build(request):
    """Build a network of each family: newly initialised with equal gains, or with random gains as after training."""

    def build(trained):
        name, kwargs = FAMILIES[request.param]
        model = timm.create_model(name, **kwargs).eval()
        for key, p in model.named_parameters():
            if trained and key.endswith(("gain", "bias")):
                nn.init.uniform_(p, 0.5, 1.5)
            elif key.endswith("fc.weight"):  # in NF-RegNets it is 0, and the logits would not depend on the input
                nn.init.normal_(p, std=0.1)
        return model

    return build


def outputs(result):
    """Return all outputs as arrays: logits or feature maps."""
    return [y.detach().numpy() for y in ([result] if isinstance(result, torch.Tensor) else result)]


def assert_equal(found, expected, size):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape, size
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b), size


def check_in_onnxruntime(path, model, sizes):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in sizes:
        x = torch.randn(2, 3, *size)
        assert_equal(session.run(None, {session.get_inputs()[0].name: x.numpy()}), outputs(model(x)), size)


@pytest.mark.filterwarnings("ignore:Encountering a list at the output of the tracer")  # caused by features_only
@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
def test_a_traced_network_is_right_at_any_size(build, size):
    model = build(trained=True)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(2, 3, *size), strict=False)
        for other in SIZES:
            x = torch.randn(3, 3, *other)
            assert_equal(outputs(traced(x)), outputs(model(x)), other)


@pytest.mark.filterwarnings("ignore:Encountering a list at the output of the tracer")
@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(SIZES, id="dynamic"),
        pytest.param([(225, 225)], id="225", marks=pytest.mark.slow),
        pytest.param([(97, 65)], id="97"),
        pytest.param([(256, 313)], id="256", marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_equals_torch_for_the_older_exporter(build, trained, sizes, tmp_path):
    """The exporter is called as in timm's onnx_export.py."""
    pytest.importorskip("onnx")
    model = build(trained)
    size = (64, 64) if len(sizes) > 1 else sizes[0]
    names = [f"output{i}" for i in range(len(outputs(model(torch.randn(1, 3, 64, 64)))))]
    axes = {name: {2: "height", 3: "width"} for name in ["input", *names]} if len(sizes) > 1 else None
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (torch.randn(2, 3, *size),),
        path,
        dynamo=False,
        dynamic_axes=axes,
        input_names=["input"],
        output_names=names,
    )
    check_in_onnxruntime(path, model, sizes)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the exporter itself warns
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, [(97, 65)]], ids=["dynamic", "97"])
def test_onnx_runtime_equals_torch_for_the_newer_exporter(build, trained, sizes, tmp_path):
    pytest.importorskip("onnxscript")
    model = build(trained)
    size = (64, 64) if len(sizes) > 1 else sizes[0]
    dynamic = {2: Dim("height", min=33), 3: Dim("width", min=33)} if len(sizes) > 1 else None
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(2, 3, *size),), path, dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    check_in_onnxruntime(path, model, sizes)


@pytest.mark.slow
def test_an_exported_program_is_right_at_any_size_from_33_pixels(build):
    """From 33 pixels on. Below, the last feature map has one pixel, for which torch.export needs another program."""
    model = build(trained=True)
    dynamic = {2: Dim("height", min=33), 3: Dim("width", min=33)}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dynamic,)).module()
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 3, *size)
            assert_equal(outputs(program(x)), outputs(model(x)), size)
