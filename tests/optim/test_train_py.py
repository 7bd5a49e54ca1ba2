"""timm's own train.py trains on an ImageFolder of handwritten digits. It does not import this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from compat_table import write_digits

from nfnet_timm.cli import main

SCRIPT = os.environ.get("TIMM_TRAIN_SCRIPT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SCRIPT, reason="TIMM_TRAIN_SCRIPT, the path of timm's train.py, is not set; no wheel contains the script"
    ),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), 256)


@pytest.fixture
def train(digits, tmp_path):
    def run(*arguments: str, name: str = "run", batch: int = 32, model_kwargs: tuple = ()):
        command = [sys.executable, SCRIPT, "--data-dir", digits, "--device", "cpu", "--workers", "1"]
        command += ["--model", "nfnet_f0", "--model-kwargs", "depths=(1,1,1,1)", "channels=(32,64,96,96)"]
        command += ["group_size=8", *model_kwargs, "--num-classes", "10"]
        command += ["--input-size", "3", "32", "32", "--sched", "cosine"]
        command += ["--warmup-epochs", "0", "--lr", "0.1", "--batch-size", str(batch), "--checkpoint-hist", "10"]
        command += ["--output", tmp_path, "--experiment", name, *arguments]
        result = subprocess.run(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
        return result.stdout + result.stderr, tmp_path / name

    return run


def checkpoint(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / f"{name}.pth.tar", weights_only=False)


AGC_SGD = ("--opt", "agc-sgd", "--opt-kwargs", "clip_factor=0.01")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--clip-mode", "agc", "--clip-grad", "0.01", "--opt", "sgd"),
        (*AGC_SGD, "--amp", "--amp-dtype", "bfloat16", "--model-ema", "--grad-accum-steps", "4"),
        (*AGC_SGD, "--torchcompile"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_trains_silently(train, arguments):
    out, folder = train(*arguments, "--epochs", "2", batch=8 if "4" in arguments else 32)
    assert "Warning" not in out
    saved = checkpoint(folder)
    assert "skipinit_gain" in "".join(saved["state_dict"])
    assert all(p.isfinite().all() for p in saved["state_dict"].values())
    if "agc-sgd" in arguments:
        assert {g["clip_factor"] for g in saved["optimizer"]["param_groups"]} == {0.01}


@pytest.fixture
def publish(tmp_path):
    """Return a function that builds the repository of a checkpoint, and returns the model, the card and the config."""

    def run(path: Path):
        out = tmp_path / "digits"
        options = ["--license", "mit", "--dry-run", "--yes", "--out", str(out)]
        assert main(["publish", str(path), "org/digits", *options]) == 0
        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        return model, (out / "README.md").read_text(), json.loads((out / "config.json").read_text())

    return run


def test_a_checkpoint_of_train_py_can_be_published(train, publish, capsys):
    _, folder = train(*AGC_SGD, "--model-ema", "--epochs", "1", model_kwargs=("recompute_acts=True",))
    model, _, config = publish(folder / "model_best.pth.tar")
    assert "weights: the moving average (EMA)" in capsys.readouterr().out
    average = checkpoint(folder, "model_best")["state_dict_ema"]
    assert all(p.equal(average[name]) for name, p in model.state_dict().items())
    assert config["label_names"] == [f"digit {i}" for i in range(10)]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert "recompute_acts" not in config["model_args"]


def test_an_unmeasured_average_with_another_pooling_and_one_channel_is_published_as_trained(train, publish):
    options = ("--gp", "max", "--input-size", "1", "32", "32", "--model-ema", "--model-ema-force-cpu", "--epochs", "1")
    _, folder = train(*AGC_SGD, *options)
    model, card, _ = publish(folder / "model_best.pth.tar")
    average = checkpoint(folder, "model_best")["state_dict_ema"]
    assert all(p.equal(average[name]) for name, p in model.state_dict().items())
    assert model.head.global_pool.pool_type == "max"
    assert model(torch.ones(1, 1, 32, 32)).shape == (1, 10)
    assert "Top-1" not in card
    assert "model-index" not in card


def test_a_run_resumes_with_the_other_kind_of_clipping(train):
    theirs = ("--opt", "sgd", "--clip-mode", "agc", "--clip-grad", "0.01")
    _, folder = train(*theirs, "--epochs", "1", name="first")
    for epochs, (name, options) in enumerate((("second", AGC_SGD), ("third", theirs)), 2):
        _, folder = train(*options, "--epochs", str(epochs), "--resume", str(folder / "last.pth.tar"), name=name)
        assert checkpoint(folder)["epoch"] == epochs - 1
        assert all(p.isfinite().all() for p in checkpoint(folder)["state_dict"].values())
