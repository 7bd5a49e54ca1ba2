"""A network that is traced or exported at one size is right at all other sizes, odd or even."""

import pytest
import timm
import torch
from families import as_trained, families
from torch.export import Dim

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the older exporter is deprecated
    pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1"),  # its form of F.pad causes this
]

SIZES = [(64, 64), (75, 98), (33, 47)]

FAMILIES = families(channels=(32, 32, 64, 64))
FAMILIES["reparameterized"] = FAMILIES["NFNet"]
FAMILIES["equal gains"] = FAMILIES["NFNet"]  # as newly initialised


@pytest.fixture
def model(request):
    """Build the network of a family."""
    name, kwargs = FAMILIES[request.param]
    if request.param == "equal gains":
        return timm.create_model(name, **kwargs).eval()
    model = as_trained(name, **kwargs)
    return model.reparameterize() if request.param == "reparameterized" else model


def of(*names):
    return pytest.mark.parametrize("model", names, indirect=True)


def compare(function, model, sizes=SIZES, batch=2):
    """Compare the outputs of ``function``, logits or feature maps, with those of ``model`` at each size."""
    for size in sizes:
        x = torch.randn(batch, 3, *size)
        with torch.no_grad():
            found, expected = function(x), model(x)
        if isinstance(expected, torch.Tensor):
            expected, found = [expected], found if isinstance(found, list) else [found]
        for a, b in zip(found, expected, strict=True):
            assert tuple(a.shape) == b.shape, size
            assert (torch.as_tensor(a) - b).norm() < 1e-5 * b.norm(), size


def compare_in_onnxruntime(path, model, sizes=SIZES):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compare(lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()}), model, sizes)


def traced(model):
    return torch.jit.trace(model, torch.randn(2, 3, 75, 98), strict=False)


@pytest.mark.filterwarnings("ignore:Encountering a list at the output of the tracer")  # caused by features_only
@of("NF-ResNet", "NF-RegNet", "features_only")
def test_a_traced_network_is_right_at_any_size(model):
    with torch.no_grad():
        compare(traced(model), model)


@pytest.mark.parametrize(("model", "script"), [("NFNet", traced), ("NF-RegNet", torch.jit.script)], indirect=["model"])
def test_torch_optimizes_for_inference(model, script):
    """Activations go to oneDNN, which lacks the tanh form of GELU. Without our view, the process crashes."""
    with torch.no_grad():
        compare(torch.jit.optimize_for_inference(script(model)), model, [SIZES[0], *SIZES])


@pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")
@of("NF-ResNet", "NF-RegNet", "output_stride")
def test_onnx_runtime_equals_torch_at_any_size_for_the_older_exporter(model, tmp_path):
    """The arguments are those of timm's onnx_export.py."""
    pytest.importorskip("onnx")
    names, axes = {"input_names": ["input"], "output_names": ["output"]}, {2: "height", 3: "width"}
    axes = {"input": axes, "output": axes}
    x, path = torch.randn(2, 3, 64, 64), tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=False, dynamic_axes=axes, **names)
    compare_in_onnxruntime(path, model)


@of("NFNet")
def test_a_program_is_right_at_any_batch_size(model):
    batch = Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    compare(program.module(), model, [(64, 64)], batch=5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the exporter itself warns
@of("NFNet", "output_stride", "features_only", "reparameterized")
def test_a_program_and_its_onnx_file_are_right_at_any_size_from_33_pixels(model, tmp_path):
    """From 33 pixels on. Below, the last feature map has one pixel, for which torch.export needs another program."""
    pytest.importorskip("onnxscript")
    sizes = {2: Dim("height", min=33), 3: Dim("width", min=33)}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(sizes,))
    compare(program.module(), model)
    torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    compare_in_onnxruntime(tmp_path / "model.onnx", model)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@of("equal gains")
def test_onnx_runtime_equals_torch_at_a_fixed_size(model, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (torch.randn(2, 3, 97, 66),), tmp_path / "model.onnx", dynamo=dynamo, verbose=False)
    compare_in_onnxruntime(tmp_path / "model.onnx", model, [(97, 66)])
