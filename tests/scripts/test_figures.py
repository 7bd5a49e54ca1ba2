"""The scripts that draw: the picture comes from the JSON file alone; mistakes are one line."""

import json
from pathlib import Path

import pytest
import timm
from golden import ROOT
from PIL import Image

FOLDER = Path("scripts/figures")
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "small"),
    [("clipped_layers", ["--epochs", "1"]), ("signal_controls", ["--batch", "1", "--pixels", "32"])],
)
def test_a_run_writes_its_results_and_draws_them(run_script, name, small, tmp_path):
    assert run_script(FOLDER / f"{name}.py", *small, "--out", tmp_path / "new")[0] == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{name}.json", f"{name}.png"}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_each_picture_is_shown_on_a_page(picture):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"pictures/{picture.name})" in page.read_text() for page in pages)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_the_pictures_in_docs_are_those_of_the_recorded_results(run_script, picture, tmp_path):
    (tmp_path / f"{picture.stem}.json").write_text(picture.with_suffix(".json").read_text())
    status, _, error = run_script(FOLDER / f"{picture.stem}.py", "--from-json", "--out", tmp_path)
    assert status == 0, error
    with Image.open(tmp_path / picture.name) as drawn, Image.open(picture) as recorded:
        assert drawn.size == recorded.size
        # Fonts and versions of matplotlib differ a little, other results a lot.
        small = [list(image.convert("L").resize((64, 48)).tobytes()) for image in (drawn, recorded)]
    assert sum(abs(a - b) for a, b in zip(*small, strict=True)) / len(small[0]) < 4


@pytest.mark.parametrize("text", ["[]", '{"signals": {}}', '{"signals": {"dm_nf_resnet50": 1}}'])
def test_results_of_another_shape_are_an_error_in_one_line(run_script, tmp_path, text):
    (tmp_path / "signal_controls.json").write_text(text)
    status, _, error = run_script(FOLDER / "signal_controls.py", "--from-json", "--out", tmp_path)
    assert status == 2
    assert "signal_controls.json: " in error.splitlines()[-1]


def test_published_accuracies_are_distinguished_from_those_measured_by_timm():
    record = json.loads((ROOT / "docs" / "pictures" / "accuracy_latency.json").read_text())
    by = {row["name"]: (row["top1"], row["by"]) for row in record["rows"]}
    assert by["nfnet_f1"] == by["tf_efficientnet_b7"] == (84.7, "published")
    assert by["tf_efficientnet_b3"][1] == "measured by timm"


def test_ctrl_c_ends_a_run_with_one_line_and_writes_nothing(run_script, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(timm, "create_model", interrupted)
    status, _, error = run_script(FOLDER / "signal_controls.py", "--out", tmp_path / "out")
    assert (status, error.splitlines()[-1]) == (1, "stopped; nothing was written")
    assert not (tmp_path / "out").exists()
