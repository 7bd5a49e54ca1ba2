"""Runs code as in a fresh interpreter, without its slow start.

A process imports torch and the packages that timm needs, but not timm. ``import torch`` has then called our hook, or
not if the environment says so. Each run is a fork of this process, so timm and nfnet_timm are imported anew.
"""

import atexit
import json
import os
import subprocess
import sys
from functools import cache

import pytest

PROCESS = """
import json, os, sys, tempfile, traceback, warnings
import torch
with_torch = set(sys.modules)
import torchvision, torchvision.models.feature_extraction, torch._dynamo.symbolic_convert
import torch.distributed.fsdp, torch.distributed.tensor, torch.fx, torch.jit, torch.nn.parallel, torch.utils.checkpoint
import huggingface_hub.hf_api, numpy, PIL.ImageChops, safetensors.torch, tqdm.auto, yaml
assert not any(name.split(".")[0] == "timm" for name in sys.modules)
for line in sys.stdin:
    run = json.loads(line)
    with tempfile.TemporaryFile("w+") as output:
        if not (child := os.fork()):
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = 1
            try:
                sys.path[:0] = run["path"]
                if run["warnings"]:
                    warnings.simplefilter(run["warnings"])
                exec(compile(run["code"], "code", "exec"), {"__name__": "__main__", "with_torch": with_torch})
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitpid(child, 0)[1]
        output.seek(0)
        print(json.dumps([status, output.read()]), flush=True)
"""


@cache
def _process(environment):
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}, **dict(environment)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # closes its input, which ends it
    return process


def run_fresh(code: str, path: tuple[str, ...] = (), warnings: str | None = None, **environment: str) -> str:
    """Return the output of ``code``, including warnings and errors; the test fails if ``code`` raises.

    ``code`` has the name ``with_torch``, the modules that were there after ``import torch``.

    Args:
        path: Folders for the beginning of ``sys.path``.
        warnings: What to do with warnings: "error" is ``python -W error``.
        environment: Variables that are set from the start. Each set of them costs a process.
    """
    process = _process(frozenset(environment.items()))
    process.stdin.write(json.dumps({"code": code, "path": [str(p) for p in path], "warnings": warnings}) + "\n")
    process.stdin.flush()
    status, output = json.loads(process.stdout.readline())
    if status:
        pytest.fail(f"status {status}\n{output}")
    return output
