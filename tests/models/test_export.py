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

SIZES = [(64, 64), (97, 65), (80, 100), (75, 133), (33, 47)]

FAMILIES = families(channels=(32, 32, 64, 64))
FAMILIES["reparameterized"] = FAMILIES["NFNet"]
FAMILIES["equal gains"] = FAMILIES["NFNet"]  # as newly initialised; the others have random gains, as after training


@pytest.fixture
def model(request):
    """Build the network of a family."""
    name, kwargs = FAMILIES[request.param]
    model = timm.create_model(name, **kwargs).eval()
    for key, p in model.named_parameters():
        if request.param != "equal gains" and key.endswith(("gain", "bias")):
            nn.init.uniform_(p, 0.5, 1.5)
        elif key.endswith("fc.weight"):  # in NF-RegNets it is 0, and the logits would not depend on the input
            nn.init.normal_(p, std=0.1)
    return model.reparameterize() if request.param == "reparameterized" else model


def of(*names):
    return pytest.mark.parametrize("model", names, indirect=True)


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
@of("NFNet", "NF-ResNet", "NF-RegNet", "output_stride", "features_only")
def test_a_traced_network_is_right_at_any_size(model):
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(2, 3, 75, 98), strict=False)
        for size in SIZES:
            x = torch.randn(3, 3, *size)
            assert_equal(outputs(traced(x)), outputs(model(x)), size)


def export_as_timm_does(model, size, path, dynamic):
    """Call the older exporter as timm's onnx_export.py does."""
    names = [f"output{i}" for i in range(len(outputs(model(torch.randn(1, 3, 64, 64)))))]
    axes = {name: {2: "height", 3: "width"} for name in ["input", *names]} if dynamic else None
    x = torch.randn(2, 3, *size)
    options = {"dynamo": False, "dynamic_axes": axes, "input_names": ["input"], "output_names": names}
    torch.onnx.export(model, (x,), path, **options)


@pytest.mark.filterwarnings("ignore:Encountering a list at the output of the tracer")
@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
@of(*FAMILIES)
def test_onnx_runtime_equals_torch_at_any_size_for_the_older_exporter(model, tmp_path):
    pytest.importorskip("onnx")
    export_as_timm_does(model, (64, 64), tmp_path / "model.onnx", dynamic=True)
    check_in_onnxruntime(tmp_path / "model.onnx", model, SIZES)


@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
@of("NFNet", "NF-ResNet", "NF-RegNet", "output_stride")
def test_onnx_runtime_equals_torch_at_a_fixed_size_for_the_older_exporter(model, tmp_path):
    pytest.importorskip("onnx")
    export_as_timm_does(model, (97, 66), tmp_path / "model.onnx", dynamic=False)
    check_in_onnxruntime(tmp_path / "model.onnx", model, [(97, 66)])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the exporter itself warns
@of("NFNet", "output_stride", "features_only", "reparameterized")
def test_a_program_and_its_onnx_file_are_right_at_any_size_from_33_pixels(model, tmp_path):
    """From 33 pixels on. Below, the last feature map has one pixel, for which torch.export needs another program."""
    pytest.importorskip("onnxscript")
    sizes = {2: Dim("height", min=33), 3: Dim("width", min=33)}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(sizes,))
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 3, *size)
            assert_equal(outputs(program.module()(x)), outputs(model(x)), size)
    torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    check_in_onnxruntime(tmp_path / "model.onnx", model, SIZES)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@of("equal gains")
def test_onnx_runtime_equals_torch_at_a_fixed_size_for_the_newer_exporter(model, tmp_path):
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (torch.randn(2, 3, 97, 66),), tmp_path / "model.onnx", dynamo=True, verbose=False)
    check_in_onnxruntime(tmp_path / "model.onnx", model, [(97, 66)])
