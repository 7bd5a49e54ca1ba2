"""examples/fine_tune.py runs on real images, and its output is what it says."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from compat_table import write_digits
from golden import ROOT
from PIL import Image

from nfnet_timm.cli import main

pytest.importorskip("accelerate")

PROGRAM = ROOT / "examples" / "fine_tune.py"
OPTIONS = ["--model", "dm_nf_regnet_b0", "--img-size", "32", "--workers", "0", "--cpu", "--lr", "0.05"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"), 80)


def fine_tune(data, cwd, *args, launcher=(sys.executable,), code=0):
    command = [*launcher, PROGRAM, data, *OPTIONS, "--batch-size", 16, *args]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, timeout=500)
    assert result.returncode == code, result.stderr
    assert code != 1 or "Traceback" not in result.stderr
    return result.stdout if code == 0 else result.stderr


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """The output of two epochs, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("trained")
    return fine_tune(digits, folder, "--epochs", 2, "--output", "my run"), folder


def test_fine_tune_prints_each_epoch_and_the_line_that_publishes_the_best(trained, tmp_path, monkeypatch):
    """The line that fine_tune.py ends with publishes what it trained, with class names and its figure."""
    out, folder = trained
    assert re.findall(r"epoch (\d) of 2: loss \d\.\d{3}, accuracy of the EMA [\d.]+ %", out) == ["1", "2"]
    assert "Classes: digit 0, digit 1, digit 2" in out
    monkeypatch.chdir(folder)
    program, *line = shlex.split(out.splitlines()[-1])
    assert (program, line[0]) == ("nfnet-timm", "publish")
    line[2] = "org/name"
    assert main([*line, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "digit 0, digit 1" in card
    assert "examples/fine_tune.py of nfnet_timm. This repository contains the moving average (EMA)" in card
    assert "Top-1 accuracy in percent at 32 pixels" in card


@pytest.mark.library("accelerate")
def test_fine_tune_goes_on_where_it_stopped(digits, trained, tmp_path):
    """fine_tune.py (Accelerate) that stops after an epoch and goes on ends in the same weights, to the bit."""
    script = (
        "import sys, runpy, timm.utils; save = timm.utils.CheckpointSaver.save_checkpoint\n"
        "def save_once(self, epoch, metric=None): save(self, epoch, metric); sys.exit(7)\n"
        "timm.utils.CheckpointSaver.save_checkpoint = save_once\n"
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    fine_tune(digits, tmp_path, "--epochs", 2, launcher=(sys.executable, "-c", script), code=7)
    best = tmp_path / "fine_tuned" / "model_best.pth.tar"
    saved = torch.load(best, weights_only=False)
    best.unlink()  # it is a link to last.pth.tar
    torch.save({**saved, "metric": 101.0}, best)
    out = fine_tune(digits, tmp_path, "--epochs", 2, "--resume")
    assert re.findall(r"epoch (\d) of 2", out) == ["2"]
    straight, broken = (
        torch.load(folder / "last.pth.tar", weights_only=False)
        for folder in (trained[1] / "my run", tmp_path / "fine_tuned")
    )
    for part in ("state_dict", "state_dict_ema"):
        assert all(p.equal(broken[part][key]) for key, p in straight[part].items())
    assert torch.load(best, weights_only=False)["metric"] == 101  # a worse epoch did not replace it


def test_fine_tune_publishes_its_best_epoch_when_asked_to(digits, tmp_path, hub):
    fine_tune(digits, tmp_path, "--epochs", 1, "--push-to-hub", "org/digits", "--license", "mit")
    model = timm.create_model("hf-hub:org/digits", pretrained=True)
    assert model.pretrained_cfg["label_names"] == [f"digit {i}" for i in range(10)]
    assert model.pretrained_cfg["input_size"] == [3, 32, 32]
    best = torch.load(tmp_path / "fine_tuned" / "model_best.pth.tar", weights_only=False)["state_dict_ema"]
    assert all(tensor.equal(best[name]) for name, tensor in model.state_dict().items())
    card = hub.files("org/digits")["README.md"].decode()
    assert re.search(rf"\| top1, as stated by the owner \| [\d.]+, {re.escape(digits.name)} \|", card)


@pytest.mark.library("datasets")
def test_fine_tune_takes_a_dataset_of_the_hub(digits, tmp_path):
    """fine_tune.py takes a dataset of the Hub's library by its name, in bfloat16."""
    pytest.importorskip("datasets")
    shutil.copytree(digits, tmp_path / "org" / "digits")  # by which datasets knows a name that is a folder, offline
    fine_tune("cache", tmp_path, "--dataset", "hfds/org/digits", "--epochs", 1, "--mixed-precision", "bf16")
    assert (tmp_path / "fine_tuned" / "class_names.txt").read_text().splitlines() == [f"digit {i}" for i in range(10)]


@pytest.mark.library("accelerate")
def test_two_processes_of_fine_tune_train_together(digits, tmp_path):
    """fine_tune.py under `accelerate launch` with two processes trains one network."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    out = fine_tune(digits, tmp_path, "--epochs", 1, launcher=launcher)
    assert out.count("epoch 1 of 1: loss") == 1
    saved = torch.load(tmp_path / "fine_tuned" / "last.pth.tar", weights_only=False)["state_dict"]
    assert all(p.isfinite().all() for p in saved.values())


def test_ctrl_c_says_how_to_go_on(digits, tmp_path):
    command = [sys.executable, PROGRAM, digits, *OPTIONS, "--epochs", "90"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not (tmp_path / "fine_tuned" / "last.pth.tar").exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert "stopped; --resume continues after the last complete epoch" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda data: shutil.rmtree(data / "val"), "--val-split validation"),
        (lambda data: (data / "val" / "digit 3").rename(data / "val" / "drei"), "val has images of drei"),
        (lambda data: shutil.copy(*data.glob("train/digit 3/3.png"), data / "train"), "images lie directly in"),
    ],
)
def test_fine_tune_explains_folders_that_are_no_splits_or_no_classes(digits, tmp_path, mistake, message):
    data = shutil.copytree(digits, tmp_path / "data")
    mistake(data)
    assert message in fine_tune(data, tmp_path, "--epochs", 1, code=1)
    assert not (tmp_path / "fine_tuned").exists()


def test_fine_tune_numbers_the_classes_of_validation_as_those_of_training(tmp_path):
    """timm numbers the folders of each split by themselves, and here validation has no black images."""
    for folder, value, count in (("train/black", 0, 24), ("train/white", 255, 24), ("val/white", 255, 4)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / "data" / folder / f"{i}.png")
    assert "accuracy of the EMA 100.0 %" in fine_tune(tmp_path / "data", tmp_path, "--epochs", 2).splitlines()[-4]


def test_fine_tune_explains_weights_that_do_not_exist_or_fit(trained, digits):
    for arguments in (["--pretrained"], ["--model", "dm_nf_regnet_b1", "--resume", "--output", "my run"]):
        assert "--model" in fine_tune(digits, trained[1], "--epochs", 1, *arguments, code=1)
