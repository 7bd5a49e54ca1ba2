"""Each program in examples/ runs on real images, and says what it prints."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PROGRAM = Path(sys.executable).parent / "nfnet-timm"
TINY = "dm_nf_regnet_b0"  # the smallest that has a name


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of folders of real scans, as ImageFolder has it."""
    root, data = tmp_path_factory.mktemp("images"), load_digits()
    for i, (image, digit) in enumerate(zip(data.images[:120], data.target, strict=False)):
        folder = root / ("val" if i % 5 == 0 else "train") / f"digit {digit}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((40, 40)).convert("RGB").save(folder / f"{i}.png")
    return root


def run(name, *args, cwd, launcher=(sys.executable,), code=0):
    command = [*launcher, str(EXAMPLES / name), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=500)
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def fine_tune(digits, cwd, *args, **kwargs):
    small = ["--model", TINY, "--img-size", 32, "--batch-size", 16, "--workers", 0, "--cpu", "--lr", 0.05]
    return run("fine_tune.py", digits, *small, *args, cwd=cwd, **kwargs)


def weights(folder):
    return torch.load(folder / "fine_tuned" / "last.pth.tar", weights_only=False)


@pytest.mark.library("accelerate")
def test_fine_tune_goes_on_where_it_stopped(digits, tmp_path):
    """fine_tune.py (Accelerate) that stops after an epoch and goes on ends in the same weights, to the bit."""
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    out = fine_tune(digits, tmp_path / "straight", "--epochs", 3)
    assert re.findall(r"epoch (\d) of 3: loss \d\.\d{3}, accuracy of the EMA [\d.]+ %", out) == ["1", "2", "3"]
    assert "Classes: digit 0, digit 1, digit 2" in out
    script = (
        "import sys, runpy, timm.utils; save = timm.utils.CheckpointSaver.save_checkpoint\n"
        "def save_once(self, epoch, metric=None): save(self, epoch, metric); sys.exit(7)\n"
        "timm.utils.CheckpointSaver.save_checkpoint = save_once\n"
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    fine_tune(digits, tmp_path / "broken", "--epochs", 3, launcher=(sys.executable, "-c", script), code=7)
    out = fine_tune(digits, tmp_path / "broken", "--epochs", 3, "--resume")
    assert re.findall(r"epoch (\d) of 3", out) == ["2", "3"]
    straight, broken = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    for part in ("state_dict", "state_dict_ema"):
        assert all(p.equal(broken[part][key]) for key, p in straight[part].items())


def test_fine_tune_ends_with_the_line_that_publishes(digits, tmp_path):
    """The line that fine_tune.py ends with publishes what it trained, with class names and its figure."""
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    out = fine_tune(digits, tmp_path, "--epochs", 1, "--output", "my run")
    line = shlex.split(out.splitlines()[-1])
    assert line[:2] == ["nfnet-timm", "publish"]
    line[3] = "org/name"
    command = [PROGRAM, *line[1:], "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    card = (tmp_path / "hub-repos" / "name" / "README.md").read_text()
    assert "digit 0, digit 1" in card
    assert "examples/fine_tune.py of nfnet_timm. This repository contains the moving average (EMA)" in card
    assert re.search(r"Top-1 accuracy in percent at 32 pixels", card)


def test_fine_tune_publishes_its_best_epoch_when_asked_to(digits, tmp_path, hub):
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    fine_tune(digits, tmp_path, "--epochs", 1, "--push-to-hub", "org/digits", "--license", "mit")
    model = timm.create_model("hf-hub:org/digits", pretrained=True)
    assert model.pretrained_cfg["label_names"] == [f"digit {i}" for i in range(10)]
    assert model.pretrained_cfg["input_size"] == [3, 32, 32]
    best = torch.load(tmp_path / "fine_tuned" / "model_best.pth.tar", weights_only=False)["state_dict_ema"]
    assert all(tensor.equal(best[name]) for name, tensor in model.state_dict().items())
    card = hub.files("org/digits")["README.md"].decode()
    name = re.escape(digits.name)
    assert re.search(rf"\| top1, as stated by the owner \| [\d.]+, {name} \|", card)
    assert "licence" in fine_tune(digits, tmp_path, "--push-to-hub", "org/digits", code=2)


@pytest.mark.library("datasets")
def test_fine_tune_takes_a_dataset_of_the_hub(digits, tmp_path):
    """fine_tune.py takes a dataset of the Hub's library by its name, in bfloat16."""
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    pytest.importorskip("datasets", reason="scripts/ci/compat.sh has datasets")
    shutil.copytree(digits, tmp_path / "org" / "digits")  # by which datasets knows a name that is a folder, offline
    out = fine_tune("cache", tmp_path, "--dataset", "hfds/org/digits", "--epochs", 1, "--mixed-precision", "bf16")
    assert "Classes: digit 0, digit 1, digit 2" in out
    assert (tmp_path / "fine_tuned" / "class_names.txt").read_text().splitlines() == [f"digit {i}" for i in range(10)]


@pytest.mark.library("accelerate")
def test_two_processes_of_fine_tune_train_together(digits, tmp_path):
    """fine_tune.py under `accelerate launch` with two processes trains one network."""
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    out = fine_tune(digits, tmp_path, "--epochs", 1, launcher=launcher)
    assert out.count("epoch 1 of 1: loss") == 1
    assert all(p.isfinite().all() for p in weights(tmp_path)["state_dict"].values())


def test_ctrl_c_says_how_to_go_on(digits, tmp_path):
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    command = [sys.executable, EXAMPLES / "fine_tune.py", digits, "--model", TINY, "--img-size", "32", "--epochs", "90"]
    process = subprocess.Popen(
        [*map(str, command), "--cpu", "--workers", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 120
    while not (tmp_path / "fine_tuned" / "last.pth.tar").exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert "stopped; --resume continues after the last complete epoch" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "there is no folder nowhere/train: expected one folder in it per class"),
        (["DIGITS", "--model", "nfnet_f00"], "--model nfnet_f00: expected a name of timm.list_models()"),
    ],
)
def test_mistakes_are_one_line(args, message, digits, tmp_path):
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    args = [str(digits) if arg == "DIGITS" else arg for arg in args]
    assert message in run("fine_tune.py", *args, cwd=tmp_path, code=2).splitlines()[-1]


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help_needs_no_extra(run_python, example):
    out = run_python(
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('sklearn', 'matplotlib', 'accelerate', 'datasets', 'opacus'))\n"
        f"sys.argv = ['{example}', '--help']\n"
        f"runpy.run_path({str(EXAMPLES / example)!r}, run_name='__main__')"
    )
    assert f"usage: {example}" in out


@pytest.mark.library("opacus")
def test_private_prints_what_was_spent(tmp_path):
    """private.py (Opacus) trains, in both modes, and prints epsilon and delta."""
    pytest.importorskip("opacus", reason="scripts/ci/compat.sh has Opacus")
    for mode in ([], ["--ghost"]):
        out = run("private.py", "--epochs", 6, *mode, cwd=tmp_path)
        assert float(re.search(r"epoch 6: ([\d.]+)%", out)[1]) > 40  # guessing gives 10
        assert re.search(r"spent: epsilon ([78]\.\d\d) at delta 3.4e-04, with a noise multiplier of \d\.\d\d", out)


@pytest.mark.slow
def test_sam_prints_an_accuracy_for_each_run(tmp_path):
    out = run("sam.py", "--epochs", 20, cwd=tmp_path)
    accuracies = re.findall(r"^(without SAM|SAM|SAM, ascent on a fifth) +test accuracy ([\d.]+)% after", out, re.M)
    assert [label for label, _ in accuracies] == ["without SAM", "SAM", "SAM, ascent on a fifth"]
    assert all(float(accuracy) > 50 for _, accuracy in accuracies)


@pytest.mark.slow
def test_features_finds_neighbours_and_draws_them(tmp_path):
    command = [PROGRAM, "demo", "--epochs", "3"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    out = run("features.py", "--model", "local-dir:nfnet-demo/model", cwd=tmp_path)
    assert float(re.search(r"neighbour of ([\d.]+)% of 300 digits is the same", out)[1]) > 90
    with Image.open(tmp_path / "neighbours.png") as picture:
        assert picture.size > (300, 300)
    error = run("features.py", "--out", "nowhere/x.png", cwd=tmp_path, code=2)
    assert "--out nowhere/x.png: there is no folder nowhere; make it first" in error


@pytest.mark.parametrize(("split", "code"), [("validation", 1), ("train", 2)])
def test_fine_tune_stops_where_validation_has_no_images_of_its_own(digits, tmp_path, split, code):
    """fine_tune.py measures no accuracy on the images of the training."""
    pytest.importorskip("accelerate", reason="scripts/ci/compat.sh has Accelerate")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(digits / "train")
    error = fine_tune(tmp_path / "data", tmp_path, "--epochs", 1, "--val-split", split, code=code)
    assert f"--val-split {split}" in error or f"both {split}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "fine_tuned").exists()
