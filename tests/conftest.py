import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# huggingface_hub reads these variables when it is imported. The tests' Hub has this port, see ``hub_server``.
LISTENING = socket.socket()
LISTENING.bind(("127.0.0.1", 0))
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_ENDPOINT="http://{}:{}".format(*LISTENING.getsockname()),
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    NO_PROXY="127.0.0.1",
)

import huggingface_hub
import timm
import torch
from golden import TINY
from hub_server import Hub

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT


def pytest_unconfigure():
    LISTENING.close()


@pytest.fixture(autouse=True)
def seeded():
    """Make random numbers and compilation independent of the tests before."""
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # after a test of another size, sizes are symbolic and compile minutes slower


@pytest.fixture
def tiny():
    """Return a function that builds a tiny NFNet in eval mode, with skip gains of 0.7 instead of 0."""

    def build(**kwargs):
        torch.manual_seed(0)
        model = timm.create_model("nfnet_f0", **{**TINY, **kwargs}).eval()
        for name, p in model.named_parameters():
            if name.endswith("skipinit_gain"):
                torch.nn.init.constant_(p, 0.7)
        return model

    return build


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory):
    """Run a Hub server during all tests."""
    hub = Hub(tmp_path_factory.mktemp("hub"), LISTENING)
    yield hub
    hub.stop()


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch):
    """Return an empty Hub. The client in this process and in its children has write access to it."""
    hub_server.reset()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    for name, value in {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_writer"}.items():
        monkeypatch.setenv(name, value)
    return hub_server


@pytest.fixture
def run_python():
    """Return a function that runs code in a fresh interpreter and returns its output, including warnings."""

    def run(code: str, python: str = sys.executable, **env: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "PYTHONPATH")}
        result = subprocess.run(
            [python, "-c", code],
            env={**clean, "HF_HUB_OFFLINE": "1", **env},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=Path(__file__).parent.parent.parent,  # not the project folder, so that the installed package is tested
        )
        if result.returncode:
            pytest.fail(f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result.stdout + result.stderr

    return run
