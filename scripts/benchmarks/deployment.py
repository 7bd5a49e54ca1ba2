"""Measures inference on a CPU in the forms in which networks are deployed, of this package and of timm's networks.

    pip install onnx onnxscript onnxruntime openvino
    python scripts/benchmarks/deployment.py              a quarter of an hour on two cores
    python scripts/benchmarks/deployment.py --compile    also torch.compile, which takes half an hour more

F0 has the same weights in both packages. timm has no NF-ResNet-50 as published. int8 is ONNX Runtime's static
quantization of convolutions, calibrated on random images. Repetitions alternate between the forms. Prints a Markdown
table of medians, ms per image, and the difference of the logits from eager mode, relative to their norm. The weights
are random, so int8 is also tried on a network that `nfnet-timm demo` trains on digits: how many of its test images keep
their class.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from networks import same_weights, with_skip_gains
from results import RESULTS, new_file, positive, run, table, write_json
from timm.utils import reparameterize_model
from torch import Tensor, nn

from nfnet_timm import demo

Form = Callable[[Tensor], Any]
PIXELS = {"F0": 192, "NF-ResNet-50": 224}
LIBRARIES = ("onnx", "onnxscript", "onnxruntime", "openvino")


def main() -> None:
    """Measure every form of every network, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], help="images at a time (%(default)s)")
    parser.add_argument("--repeat", type=positive, default=15, help="repetitions of each (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, for the first batch size")
    parser.add_argument("--json", type=new_file, default=RESULTS / "deployment.json", help="(%(default)s)")
    args = parser.parse_args()
    if missing := [name for name in LIBRARIES if not importlib.util.find_spec(name)]:
        parser.error(f"{missing[0]} is not installed: pip install {' '.join(LIBRARIES)}")
    warnings.simplefilter("ignore")  # of the exporters
    rows = [row for name in PIXELS for batch in args.batch for row in measured(name, batch, args)]
    print(deployment_table(rows))
    same, images = same_classes_in_int8()
    print(f"\n{same} of {images} digits keep their class in int8")
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(args.json, {**machine, "rows": rows, "int8_same_classes": same, "int8_images": images})


def networks_of(name: str) -> dict[str, nn.Module]:
    """Return our network and, for F0, timm's with the same weights."""
    if name == "F0":
        return dict(zip(("this package", "timm"), same_weights(), strict=True))
    return {"this package": with_skip_gains("dm_nf_resnet50")}


def measured(name: str, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each form of the networks, timed in turns."""
    x = torch.randn(batch, 3, PIXELS[name], PIXELS[name])
    rows: list[dict[str, Any]] = []
    functions: list[Form] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for package, network in networks_of(name).items():
            expected = network.eval()(x)
            for form, function in forms(network, x, Path(folder), args.compile and batch == args.batch[0]):
                print(f"{name}, batch {batch}, {package}, {form}", file=sys.stderr)
                difference = float((torch.as_tensor(np.asarray(function(x))) - expected).norm() / expected.norm())
                facts = {"network": f"{name}, {package}", "batch": batch, "form": form, "difference": difference}
                rows.append({**facts, "milliseconds": []})
                functions.append(function)
        for i in range(args.repeat + 2):  # the first two are not counted
            for row, function in zip(rows, functions, strict=True):
                time.sleep(0.2)  # until the threads of the form before no longer wait for work in a busy loop
                start = time.perf_counter()
                function(x)
                if i >= 2:
                    row["milliseconds"].append(1000 * (time.perf_counter() - start) / batch)
    return rows


def forms(network: Any, x: Tensor, folder: Path, compiled: bool) -> Iterator[tuple[str, Form]]:
    """Yield each form of ``network`` with a function that runs it."""
    yield "eager", network
    if compiled:
        yield "torch.compile", torch.compile(network)
    if not hasattr(network, "reparameterize"):  # timm's
        yield "ONNX Runtime", onnx_runtime(exported(network, x, folder / "timm.onnx"))
        return
    plain = reparameterize_model(network)
    yield "reparameterized", plain
    if compiled:
        yield "reparameterized, torch.compile with freezing", torch.compile(plain, options={"freezing": True})
    path = exported(plain, x, folder / "model.onnx")
    yield "reparameterized, ONNX Runtime", onnx_runtime(path)
    yield "reparameterized, ONNX Runtime, int8", onnx_runtime(quantized(path, [torch.randn_like(x)] * 4))
    yield "reparameterized, OpenVINO", openvino(plain, x)


def exported(network: nn.Module, x: Tensor, path: Path) -> Path:
    """Write ``network`` for images of the shape of ``x`` to an ONNX file, and return its path."""
    torch.onnx.export(network, (x,), path, dynamo=True, external_data=False, verbose=False)
    return path


def onnx_runtime(path: Path) -> Form:
    """Return a function that runs an ONNX file on as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})[0]


def quantized(path: Path, batches: list[Tensor]) -> Path:
    """Return the path of the int8 version of an ONNX file, calibrated on ``batches``."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quant_pre_process, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": batch.numpy()} for batch in batches])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared, result = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    options: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        # Weights of 7 bits: with 8, sums overflow on processors without VNNI instructions.
        "reduce_range": True,
        # Only convolutions: NF-ResNets pad with -inf before max pooling, and with an int8 padding all outputs are 0.
        "op_types_to_quantize": ["Conv"],
    }
    quantize_static(str(prepared), str(result), Images(), **options)
    return result


def same_classes_in_int8() -> tuple[int, int]:
    """Return how many test images of a trained network on digits keep their class in int8, and how many there are."""
    digits = demo.load_images()
    network, _ = demo.train(digits, epochs=8, clip_factor=demo.CLIP_FACTOR)
    images = digits.test
    with tempfile.TemporaryDirectory() as folder:
        path = exported(reparameterize_model(network), images, Path(folder) / "model.onnx")
        batches = [part for part in digits.train.split(len(images)) if len(part) == len(images)]
        forms = onnx_runtime(path), onnx_runtime(quantized(path, batches))
        float32, int8 = (form(images).argmax(1) for form in forms)
    return int((float32 == int8).sum()), len(images)


def openvino(network: nn.Module, x: Tensor) -> Form:
    """Return a function that runs ``network`` in OpenVINO on as many threads as torch uses."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(ov.convert_model(network, example_input=x), "CPU", settings)
    return lambda x: compiled(x.numpy())[0]


def deployment_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of medians, with the differences from eager mode."""
    cells = []
    for row in rows:
        times = f"{median(row['milliseconds']):.0f}"
        cells.append([row["network"], str(row["batch"]), row["form"], times, f"{row['difference']:.0e}"])
    return table(["", "batch:", "", "ms:", "difference from eager:"], cells)


if __name__ == "__main__":
    run(main)
