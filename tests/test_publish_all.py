"""scripts/publish_all.py: one failure does not keep the others, and a second run does what is left."""

import shutil
import sys
from pathlib import Path

import golden
import pytest
from hub_server import Fault

from nfnet_timm.facts import load_facts

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import publish_all


@pytest.fixture
def run(hub, tmp_path, monkeypatch):
    """Run it on two tiny files, which are taken for the released ones."""
    facts = load_facts()
    names = ("nfnet_f0.dm_in1k", "nfnet_f1.dm_in1k")
    monkeypatch.setitem(facts, "checkpoints", {name: facts["checkpoints"][name] for name in names})
    by_file = {checkpoint["file"]: name for name, checkpoint in facts["checkpoints"].items()}
    monkeypatch.setattr("nfnet_timm.sources._recognise", lambda source: by_file[source.metadata["source"]])
    for file in by_file:
        shutil.copy(golden.DATA / "nfnet_tiny_haiku_dict.npz", tmp_path / file)
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
    assert "download https://storage.googleapis.com/dm-nfnets/F1_haiku.npz" in capsys.readouterr().err


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
