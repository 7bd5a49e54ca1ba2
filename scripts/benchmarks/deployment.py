"""Measures inference on a CPU in the forms that networks are deployed in, of this package and of timm's networks.

    pip install openvino onnxruntime onnxscript
    python scripts/benchmarks/deployment.py             twenty minutes on two cores

F0 has the same weights in both packages. timm's nf_resnet50 is its own design with other widths than the published
NF-ResNet-50, so its times are context and not a comparison. Repetitions alternate between the forms. Prints a Markdown
table of medians in milliseconds per image, and the largest relative difference of the logits from eager mode. A form
whose library is not installed is left out. int8 is ONNX Runtime's static quantization, calibrated on random images.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from networks import same_weights
from records import RESULTS, new_file, positive, write_json
from tables import table
from timm.utils import reparameterize_model
from torch import Tensor, nn

import nfnet_timm

NETWORKS = ("F0", "NF-ResNet-50")
Form = Callable[[Tensor], Any]


def main() -> None:
    """Measure every form of every network, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS, help="(both)")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], help="images at a time (%(default)s)")
    parser.add_argument("--pixels", type=positive, default=192, help="height and width of the images (%(default)s)")
    parser.add_argument("--repeat", type=positive, default=15, help="repetitions of each (%(default)s)")
    parser.add_argument("--json", type=new_file, default=RESULTS / "deployment.json", help="(%(default)s)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of the exporters
    rows = [row for name in args.network for batch in args.batch for row in measured(name, batch, args)]
    columns = ["network", "batch:", "form", "this package, ms:", "timm, ms:", "difference from eager:"]
    print(table(columns, list(cells(rows))))
    record = {"threads": torch.get_num_threads(), "torch": torch.__version__, "pixels": args.pixels, "rows": rows}
    write_json(args.json, record)


def networks_of(name: str) -> dict[str, nn.Module]:
    """Return our network and timm's."""
    if name == "F0":
        return dict(zip(("nfnet_timm", "timm"), same_weights("f0"), strict=True))
    torch.manual_seed(0)
    both = {"nfnet_timm": timm.create_model("dm_nf_resnet50"), "timm": timm.create_model("nf_resnet50")}
    for network in both.values():
        for key, p in network.named_parameters():
            if key.endswith("skipinit_gain"):
                nn.init.constant_(p, 0.5)
            elif key.endswith("fc.weight"):
                nn.init.normal_(p, std=0.01)
    return both


def measured(name: str, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each form of both networks, timed in turns."""
    x = torch.randn(batch, 3, args.pixels, args.pixels)
    rows: list[dict[str, Any]] = []
    functions: list[Form] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for package, network in networks_of(name).items():
            network.eval()
            expected = network(x)
            for form, function in forms(network, x, Path(folder) / package):
                print(f"{name}, batch {batch}, {package}, {form}", file=sys.stderr)
                found = torch.as_tensor(np.asarray(function(x)))
                difference = float((found - expected).norm() / expected.norm())
                row: dict[str, Any] = {
                    "network": name,
                    "batch": batch,
                    "package": package,
                    "form": form,
                    "difference": difference,
                }
                rows.append(row | {"milliseconds": []})
                functions.append(function)
        for i in range(args.repeat + 2):  # the first two are not counted
            for row, function in zip(rows, functions, strict=True):
                start = time.perf_counter()
                function(x)
                if i >= 2:
                    row["milliseconds"].append(1000 * (time.perf_counter() - start) / batch)
    return rows


def forms(network: nn.Module, x: Tensor, folder: Path) -> Iterator[tuple[str, Form]]:
    """Yield each form that the installed libraries can make of ``network``, with a function that runs it."""
    folder.mkdir(exist_ok=True)
    # nfnet_timm's function, as timm's own leaves timm's standardized convolutions as they are.
    plain = reparameterize_model(network) if hasattr(network, "reparameterize") else None
    plain = plain if plain is not None else nfnet_timm.reparameterize(copy.deepcopy(network))
    yield "eager", network
    yield "eager, reparameterized", plain
    yield "torch.compile", torch.compile(network)
    yield "torch.compile, reparameterized, freezing", torch.compile(plain, options={"freezing": True})
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        path = folder / "model.onnx"
        torch.onnx.export(plain, (x,), path, dynamo=True, verbose=False)
        yield "ONNX Runtime", onnx_runtime(path)
        yield "ONNX Runtime, int8", onnx_runtime(quantized(path, x))
    if importlib.util.find_spec("openvino"):
        yield "OpenVINO", openvino(plain, x)


def onnx_runtime(path: Path) -> Form:
    """Return a function that runs an ONNX file on as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})[0]


def quantized(path: Path, x: Tensor) -> Path:
    """Return the path of the int8 version of an ONNX file, calibrated on four random batches."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quant_pre_process, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": torch.randn_like(x).numpy()} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared, result = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(result), Images(), quant_format=QuantFormat.QDQ, per_channel=True)
    return result


def openvino(network: nn.Module, x: Tensor) -> Form:
    """Return a function that runs ``network`` in OpenVINO on as many threads as torch uses."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(ov.convert_model(network, example_input=x), "CPU", settings)
    return lambda x: compiled(x.numpy())[0]


def cells(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    for row in rows:
        if row["package"] != "nfnet_timm":
            continue
        keys = ("network", "batch", "form")
        theirs = next((r for r in rows if r["package"] == "timm" and all(r[k] == row[k] for k in keys)), None)
        times = [f"{median(r['milliseconds']):.0f}" if r else "" for r in (row, theirs)]
        yield [row["network"], str(row["batch"]), row["form"], *times, f"{row['difference']:.0e}"]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: no results were written")
