import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import timm
import torch
from golden import TINY


@pytest.fixture
def tiny():
    """Build a tiny NFNet, in eval mode and with its residual branches switched on."""

    def build(**kwargs):
        torch.manual_seed(0)
        model = timm.create_model("nfnet_f0", **{**TINY, **kwargs}).eval()
        for name, p in model.named_parameters():
            if name.endswith("skipinit_gain"):
                torch.nn.init.constant_(p, 0.7)
        return model

    return build


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter, with warnings shown, and return what it printed."""

    def run(code: str, check: bool = True, python: str = sys.executable, args: tuple[str, ...] = (), **env: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "PYTHONPATH")}
        result = subprocess.run(
            [python, *args, "-c", code],
            env={**clean, "HF_HUB_OFFLINE": "1", **env},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=Path(__file__).parent.parent.parent,  # not the project: what is installed is tested
        )
        if check and result.returncode:
            pytest.fail(f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result.stdout + result.stderr

    return run
