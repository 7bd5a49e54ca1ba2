"""scripts/publish_all.py: one failure does not keep the others, and a second run does what is left."""

import hashlib
import shutil

import golden
import publish_all
import pytest
from hub_server import Fault

from nfnet_timm.publish.checkpoints import load_published


@pytest.fixture
def run(hub, tmp_path, monkeypatch):
    """Run it on two tiny files, whose hashes are recorded as those of the released ones."""
    facts = load_published()
    sources = {"nfnet_f0.dm_in1k": "nfnet_tiny_haiku_2021.npz", "nfnet_f1.dm_in1k": "nfnet_tiny_dill2025_dict.npz"}
    released = {}
    for name, file in sources.items():
        content = (golden.DATA / file).read_bytes()
        released[name] = {**facts["checkpoints"][name], "md5": hashlib.md5(content).hexdigest()}
        (tmp_path / released[name]["file"]).write_bytes(content)
    monkeypatch.setitem(facts, "checkpoints", released)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: publish_all.main([".", "--organization", "org", *arguments])


def test_all_are_published_and_a_second_run_changes_nothing(hub, run, capsys):
    assert run() == 0
    assert set(hub.repos) == {"org/nfnet_f0.dm_in1k", "org/nfnet_f1.dm_in1k"}
    commits = {name: dict(repo.branches) for name, repo in hub.repos.items()}
    assert run() == 0
    assert capsys.readouterr().out.count("was there: commit") == 2
    assert {name: dict(repo.branches) for name, repo in hub.repos.items()} == commits


def test_a_failure_does_not_keep_the_others_and_the_next_run_does_the_rest(hub, run, capsys):
    hub.faults.append(Fault("POST", "/nfnet_f0.dm_in1k/commit/", 500))
    assert run() == 1
    assert "failed: nfnet_f0.dm_in1k" in capsys.readouterr().err
    assert "model.safetensors" in hub.files("org/nfnet_f1.dm_in1k")
    assert run() == 0
    assert "model.safetensors" in hub.files("org/nfnet_f0.dm_in1k")


def test_a_missing_file_is_told_with_its_address(run, capsys, tmp_path):
    (tmp_path / "F1_haiku.npz").unlink()
    assert run("--dry-run") == 1
    assert "pass --download, or fetch https://storage.googleapis.com/dm-nfnets/F1_haiku.npz" in capsys.readouterr().err


def test_missing_files_are_downloaded_when_told_to(run, monkeypatch, tmp_path):
    files = {path.name: path.read_bytes() for path in tmp_path.glob("F*.npz")}
    (tmp_path / "F1_haiku.npz").unlink()
    asked = []

    def download(name, folder):
        asked.append(name)
        (folder / "F1_haiku.npz").write_bytes(files["F1_haiku.npz"])

    monkeypatch.setattr(publish_all, "download", download)
    assert run("--dry-run", "--download") == 0
    assert asked == ["nfnet_f0.dm_in1k", "nfnet_f1.dm_in1k"]


def test_another_file_of_that_name_is_not_published(hub, run, capsys, tmp_path):
    shutil.copy(golden.DATA / "nfnet_tiny_dill2025_flatmap.npz", tmp_path / "F1_haiku.npz")
    assert run() == 1
    assert "F1_haiku.npz is not the released file: F1_haiku.npz is none of the released" in capsys.readouterr().err
    assert set(hub.repos) == {"org/nfnet_f0.dm_in1k"}


def test_ctrl_c_ends_it_and_the_next_run_does_the_rest(hub, run, monkeypatch):
    real = publish_all.publish

    def interrupted(source, folder, repo_id, **kwargs):
        if "f1" in repo_id:
            raise KeyboardInterrupt
        return real(source, folder, repo_id, **kwargs)

    monkeypatch.setattr(publish_all, "publish", interrupted)
    assert run() == 130
    assert "org/nfnet_f1.dm_in1k" not in hub.repos
    monkeypatch.setattr(publish_all, "publish", real)
    assert run() == 0
    assert "model.safetensors" in hub.files("org/nfnet_f1.dm_in1k")
