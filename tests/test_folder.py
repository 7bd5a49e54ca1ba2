"""A saved folder is complete or absent, has no pickle, and the same bytes every time."""

import json

import golden
import pytest
import timm
from safetensors import safe_open

from nfnet_timm.folder import save_folder


def test_a_folder_holds_weights_and_config_alone_and_loads(tiny, tmp_path):
    model = tiny()
    save_folder(model, tmp_path / "a" / "model", golden.TINY, {"source": "here"})
    assert sorted(p.name for p in (tmp_path / "a" / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model"]
    with safe_open(tmp_path / "a" / "model" / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata == {"format": "pt", "source": "here", "arrays_sha256": metadata["arrays_sha256"]}
    config = json.loads((tmp_path / "a" / "model" / "config.json").read_text())
    assert config["architecture"] == "nfnet_f0"
    loaded = timm.create_model(f"local-dir:{tmp_path / 'a' / 'model'}", pretrained=True)
    assert all(p.equal(loaded.get_parameter(name)) for name, p in model.named_parameters())


def test_the_same_model_gives_the_same_bytes(tiny, tmp_path):
    for name in "ab":
        save_folder(tiny(), tmp_path / name, golden.TINY)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_of_ours_is_replaced(tiny, tmp_path):
    save_folder(tiny(), tmp_path / "out", golden.TINY)
    other = tiny()
    other.head.fc.bias.data.fill_(3)
    save_folder(other, tmp_path / "out", golden.TINY)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert loaded.head.fc.bias.equal(other.head.fc.bias)


def test_a_folder_with_other_files_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds other files \\(thesis.tex\\): expected a folder, new or empty"):
        save_folder(tiny(), tmp_path, golden.TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        save_folder(tiny(), tmp_path / "thesis.tex", golden.TINY)


def test_a_failed_write_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nfnet_timm.folder.save_config_for_hf", full)
    with pytest.raises(OSError, match="No space left"):
        save_folder(tiny(), tmp_path / "out", golden.TINY)
    assert list(tmp_path.iterdir()) == []
