"""The demo trains, and its results are complete or not there."""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from nfnet_timm import demo
from nfnet_timm.cli import main


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_ctrl_c_leaves_nothing_and_results_are_replaced_only_with_overwrite(tmp_path, monkeypatch, capsys):
    digits = demo.load_images()
    few = {name: getattr(digits, name)[:16] for name in ("train", "train_classes", "test", "test_classes")}
    monkeypatch.setattr(demo, "load_images", lambda: replace(digits, **few))
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())  # drawing takes a second
    monkeypatch.chdir(tmp_path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "save_folder", interrupt)
        assert main(["demo", "--epochs", "1"]) == 130
    assert names(tmp_path / "nfnet-demo") == []
    assert main(["demo", "--epochs", "1"]) == 0
    assert names(tmp_path / "nfnet-demo") == ["curves.png", "model"]
    capsys.readouterr()
    assert main(["demo", "--epochs", "1"]) == 1
    out, error = capsys.readouterr()
    assert out == ""  # nothing is trained
    assert "model would be replaced: pass --overwrite" in error
    assert main(["demo", "--epochs", "1", "--overwrite"]) == 0
    (tmp_path / "other" / "curves.png").mkdir(parents=True)
    capsys.readouterr()
    assert main(["demo", "--out", "other", "--epochs", "1", "--overwrite"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert "curves.png is a directory" in error
