"""The scripts that draw: the picture comes from the JSON file alone; mistakes are one line."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from golden import ROOT
from PIL import Image

FOLDER = Path("scripts/figures")
PICTURES = ROOT / "docs" / "pictures"


def digest(path):
    with Image.open(path) as picture:
        return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("clipped_layers", ["--epochs", "1"]),
        ("signal_controls", ["--batch", "1", "--pixels", "32"]),
    ],
)
def test_a_run_writes_results_from_which_the_same_picture_is_drawn_again(run_script, name, small, tmp_path):
    command = [sys.executable, ROOT / FOLDER / f"{name}.py", *small, "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    picture = tmp_path / f"{name}.png"
    first = digest(picture)
    picture.unlink()
    assert run_script(FOLDER / f"{name}.py", "--from-json", "--out", tmp_path)[0] == 0
    assert digest(picture) == first


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem != "accuracy_latency"))
        for path in sorted(PICTURES.glob("*.png"))
    ],
)
def test_the_pictures_in_docs_are_those_of_the_recorded_results(run_script, picture, tmp_path):
    name, options = picture.stem, ["--from-json"]
    if name == "accuracy_latency":
        options = []
    else:
        (tmp_path / f"{picture.stem}.json").write_text(picture.with_suffix(".json").read_text())
    status, _, error = run_script(FOLDER / f"{name}.py", *options, "--out", tmp_path)
    assert status == 0, error
    with Image.open(tmp_path / picture.name) as drawn, Image.open(picture) as recorded:
        assert drawn.size == recorded.size
        # Fonts and versions of matplotlib differ a little, other results a lot.
        small = [list(image.convert("L").resize((64, 48)).tobytes()) for image in (drawn, recorded)]
    assert sum(abs(a - b) for a, b in zip(*small, strict=True)) / len(small[0]) < 4


def test_published_accuracies_are_distinguished_from_those_measured_by_timm():
    record = json.loads((ROOT / "benchmarks" / "results" / "step_time.json").read_text())
    by = {row["name"]: (row["top1"], row["by"]) for row in record["rows"]}
    assert by["nfnet_f1"] == by["tf_efficientnet_b7"] == (84.7, "published")
    assert by["tf_efficientnet_b3"][1] == "measured by timm"


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_one_line_and_writes_nothing(tmp_path):
    command = [sys.executable, ROOT / FOLDER / "signal_controls.py", "--out", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr.read(1)  # the progress bar: it measures
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("signal_controls", ["--from-json", "--out", "nowhere"], "nowhere/signal_controls.json"),
        ("signal_controls", ["--batch", "0"], "--batch 0"),
        ("batch_size", ["--processes", "-1"], "--processes -1"),
        ("clipped_layers", ["--out", __file__], __file__),
        ("accuracy_latency", ["--json", "nowhere.json"], "nowhere.json"),
        ("accuracy_latency", ["--json", str(ROOT / "benchmarks" / "results" / "cpu.json")], "cpu.json"),
        ("accuracy_latency", ["--json", str(ROOT / "benchmarks" / "results" / "parity.json")], "rows"),
    ],
)
def test_a_mistake_is_one_line(run_script, monkeypatch, tmp_path, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, error = run_script(FOLDER / f"{name}.py", *arguments)
    assert status
    assert out == ""
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.rglob("*.png"))
