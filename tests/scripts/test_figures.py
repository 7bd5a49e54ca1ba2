"""The scripts that draw: small runs, the same picture from the same JSON, Ctrl-C and mistakes in a line."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
# Arguments that make a run small.
SMALL = {
    "accuracy_latency": None,  # its networks have one size; test_accuracy_latency_... draws from figures
    "agc_stability": ["--seeds", "1"],
    "batch_size": ["--images", "32", "--epochs", "1", "--batches", "4", "16", "--seeds", "2"],
    "clipped_layers": ["--epochs", "1"],
    "signal_controls": ["--batch", "2", "--pixels", "32"],
}


def run(name, *args, code=0):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def digest(path):
    with Image.open(path) as picture:
        return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["batch_size", "clipped_layers", "signal_controls"])
def test_the_picture_is_drawn_from_the_figures_alone(name, tmp_path):
    out = run(name, *SMALL[name], "--out", tmp_path)
    picture, figures = tmp_path / f"{name}.png", tmp_path / f"{name}.json"
    assert f"picture: {picture}, figures: {figures}" in out
    first = digest(picture)
    picture.unlink()
    run(name, "--from-json", "--out", tmp_path)
    assert digest(picture) == first


@pytest.mark.parametrize("path", sorted((SCRIPTS.parent / "docs" / "pictures").glob("*.json")), ids=lambda p: p.stem)
def test_the_pictures_in_docs_are_those_of_the_figures_beside_them(path, tmp_path):
    (tmp_path / path.name).write_text(path.read_text())
    script = "agc_stability" if path.stem == "agc_ablation" else path.stem
    options = ["--ablation"] if path.stem == "agc_ablation" else []
    run(script, "--from-json", *options, "--out", tmp_path)
    with Image.open(tmp_path / f"{path.stem}.png") as again, Image.open(path.with_suffix(".png")) as there:
        assert again.size == there.size
        # Other fonts and versions of matplotlib draw a little differently; another figure would differ a lot.
        small = [picture.convert("L").resize((64, 48)) for picture in (again, there)]
        difference = [abs(a - b) for a, b in zip(*(list(p.tobytes()) for p in small), strict=True)]
        assert sum(difference) / len(difference) < 4


def test_accuracy_latency_tells_published_from_measured_by_timm():
    record = json.loads((SCRIPTS.parent / "docs" / "pictures" / "accuracy_latency.json").read_text())
    by = {row["name"]: (row["top1"], row["by"]) for row in record["rows"]}
    assert by["nfnet_f1"] == by["tf_efficientnet_b7"] == (84.7, "published")
    assert by["tf_efficientnet_b3"][1] == "measured by timm"


def test_ctrl_c_ends_in_a_line_and_writes_nothing(tmp_path):
    command = [sys.executable, str(SCRIPTS / "batch_size.py"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(20)  # into the first runs, which take longer than the test waits
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=20)[1]
    assert "stopped; nothing was written" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "signal_controls",
            ["--from-json", "--out", "nowhere"],
            "--from-json: there is no nowhere/signal_controls.json",
        ),
        ("batch_size", ["--images", "9999"], "--images 9999: there are 1437 to train with"),
        ("batch_size", ["--batches", "0"], "'0': expected a whole number of at least 1"),
        ("clipped_layers", ["--out", __file__], "is a file: expected a folder, new or there"),
        ("accuracy_latency", ["--device", "cuda"], "--device cuda: torch finds no GPU here; leave it out"),
    ],
)
def test_mistakes_are_a_line(name, args, message):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *args]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1]
