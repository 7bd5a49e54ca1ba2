"""``nfnet-timm doctor`` finds errors of an environment, also if torch or timm is missing or too old."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from nfnet_timm.cli import main
from nfnet_timm.kernels import check

SITE = Path(sysconfig.get_paths()["purelib"])
CODE = "import sys; from nfnet_timm.cli import main; sys.exit(main(['doctor']))"


@pytest.fixture
def run_in(tmp_path):
    """Return a function that runs doctor in a new environment, which lacks some of the installed packages."""

    def run(without=(), files=None, **variables):
        python = tmp_path / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
        site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
        for entry in SITE.iterdir():
            if not any(entry.name == name or entry.name.startswith(f"{name}-") for name in without):
                (site / entry.name).symlink_to(entry)
        for name, text in (files or {}).items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        env = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **variables}
        result = subprocess.run([python, "-c", CODE], capture_output=True, text=True, env=env, cwd=tmp_path)
        return result.returncode, result.stdout, result.stderr

    return run


@pytest.fixture
def quick(monkeypatch):
    """Skip the fresh process that imports timm, to save time."""
    result = subprocess.CompletedProcess([], 0, "nfnet_timm.models.nfnet\n", "")
    monkeypatch.setattr("nfnet_timm.doctor.subprocess.run", lambda *_, **__: result)


def test_correct_environment_has_no_errors_and_the_token_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_everybodys_eyes")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "access token: there" in out
    assert "hf_not" not in out
    if find_spec("triton"):
        assert "no GPU, so nothing to check" in out
    assert "timm's nfnet_f0: ours" in out
    for package in ("torch", "timm", "huggingface-hub"):
        assert f"\n{package}: " in out
    assert "plugin nfnet_timm of timm.optim: nfnet-timm: loads" in out
    assert "WRONG" not in out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("is_right", [True, False])
def test_the_kernels_are_compared_on_every_gpu(capsys, monkeypatch, is_right):
    asked = []

    def compare(name, device):
        asked.append((name, str(device)))
        return check.Comparison(0.5, None if is_right else RuntimeError("no ptxas"), 0.1)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "some GPU")
    monkeypatch.setattr(check, "compare", compare)
    monkeypatch.setattr(check, "is_wanted", lambda: True)
    assert main(["doctor"]) == (0 if is_right else 1)
    assert asked == [(name, f"cuda:{i}") for i in range(2) for name in check.KERNELS]
    assert ("no ptxas" in capsys.readouterr().out) == (not is_right)


@pytest.mark.usefixtures("quick")
def test_a_relative_cache_is_reported_by_its_full_path(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "relative/hub")
    assert main(["doctor"]) == 0
    assert f"Hub's cache: {tmp_path / 'relative/hub'}\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("place", ["file/hub", "dangling/hub"])
def test_a_cache_that_cannot_be_written_is_reported(capsys, monkeypatch, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / place))
    assert main(["doctor"]) == 1
    out, error = capsys.readouterr()
    assert re.search(rf"Hub's cache: .*{place} cannot be written.*\n    WRONG.*HF_HOME", out)
    assert "1 thing is wrong" in error


@pytest.mark.usefixtures("quick")
def test_a_package_that_cannot_be_imported_is_named(capsys, monkeypatch):
    def broken(name):
        raise ImportError("no luck")

    monkeypatch.setattr("nfnet_timm.doctor.import_module", broken)
    assert main(["doctor"]) == 1
    assert "import timm.models: ImportError: no luck\n    WRONG." in capsys.readouterr().out


def test_missing_package_is_reported_with_the_command_to_run(run_in):
    status, out, error = run_in(without=["torch"])
    assert status == 1
    assert "\ntorch: missing\n    WRONG. To do: pip install --upgrade 'torch>=" in out
    assert "import timm.models: ModuleNotFoundError" in out
    assert error.count("\n") == 1
    assert error.startswith("nfnet-timm: error: ")


def test_old_timm_is_reported_with_the_required_version(run_in):
    files = {
        "timm-1.0.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: timm\nVersion: 1.0.9\n",
        "timm/__init__.py": "from timm import models",
        "timm/models.py": "def model_entrypoint(name): return print",
        "timm/optim.py": "",
    }
    status, out, error = run_in(without=["timm"], files=files)
    assert status == 1
    assert "timm: 1.0.9\n    WRONG. To do: expected >=1.0.29: pip install --upgrade" in out
    assert "plugin nfnet_timm of timm.models: nfnet-timm: " in out
    assert "timm's nfnet_f0: not ours, but of builtins" in out
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_wrong_variable_of_the_hubs_client_is_named(run_in):
    status, out, error = run_in(HF_HUB_ETAG_TIMEOUT="abc")
    assert status == 1
    assert "HF_HUB_ETAG_TIMEOUT" in out
    assert "Traceback" not in error


@pytest.mark.slow
def test_another_plugin_that_fails_is_named(run_in):
    files = {
        "broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n",
        "broken-1.0.dist-info/entry_points.txt": "[timm.models]\nbroken = broken_plugin\n",
        "broken_plugin.py": "raise RuntimeError('no luck')",
    }
    status, out, _ = run_in(files=files)
    assert status == 1
    assert "plugin broken of timm.models: broken: RuntimeError: no luck\n    WRONG." in out
    assert "timm's nfnet_f0: ours" in out


@pytest.mark.usefixtures("quick")
def test_variables_that_switch_the_plugin_off_are_named(capsys, monkeypatch):
    names = ("NFNET_TIMM_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD")
    for name in names:
        monkeypatch.setenv(name, "0")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert all(f"off, by {name}=0\n    WRONG." in out for name in names)
