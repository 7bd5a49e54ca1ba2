"""publish_all.py: a failure does not stop the other checkpoints, and a second run does the rest."""

import hashlib
import shutil
import signal

import golden
import pytest
from hub_server import Fault

from nfnet_timm.publish import download, push
from nfnet_timm.publish.checkpoints import load_published


@pytest.fixture
def run(hub, tmp_path, monkeypatch, run_script):
    """Run it on two tiny files whose hashes are recorded as those of released ones; return status, stdout, stderr."""
    facts = load_published()
    sources = {"nfnet_f0.dm_in1k": "nfnet_tiny_haiku_2021.npz", "nfnet_f1.dm_in1k": "nfnet_tiny_dill2025_dict.npz"}
    released = {}
    for name, file in sources.items():
        content = (golden.DATA / file).read_bytes()
        released[name] = {**facts["checkpoints"][name], "md5": hashlib.md5(content).hexdigest()}
        (tmp_path / released[name]["file"]).write_bytes(content)
    monkeypatch.setitem(facts, "checkpoints", released)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_script("scripts/publish_all.py", ".", "--organization", "org", *arguments)


def test_the_cards_are_printed_without_any_file(run_script, monkeypatch):
    facts = load_published()
    two = {name: facts["checkpoints"][name] for name in ("nfnet_f0.dm_in1k", "nfnet_f1.dm_in1k")}
    monkeypatch.setitem(facts, "checkpoints", two)
    status, out, _ = run_script("scripts/publish_all.py", "--cards")
    assert status == 0
    assert out.count("\nlicense: ") == 2
    assert (golden.ROOT / "hub" / "cards" / "nfnet_f0.dm_in1k.md").read_text() in out


def test_a_failure_does_not_stop_the_others_the_next_run_does_the_rest_and_a_third_changes_nothing(hub, run):
    hub.faults.append(Fault("POST", "/nfnet_f0.dm_in1k/commit/", 500))
    status, _, error = run()
    assert status == 1
    assert "nfnet_f0.dm_in1k" in error.splitlines()[-1]
    assert "model.safetensors" in hub.files("org/nfnet_f1.dm_in1k")
    assert run()[0] == 0
    assert "model.safetensors" in hub.files("org/nfnet_f0.dm_in1k")
    commits = {name: dict(repo.branches) for name, repo in hub.repos.items()}
    assert set(commits) == {"org/nfnet_f0.dm_in1k", "org/nfnet_f1.dm_in1k"}
    assert run()[0] == 0
    assert {name: dict(repo.branches) for name, repo in hub.repos.items()} == commits


def test_a_missing_file_is_named_with_its_address_and_downloaded_on_demand(run, monkeypatch, tmp_path):
    content = (tmp_path / "F1_haiku.npz").read_bytes()
    (tmp_path / "F1_haiku.npz").unlink()
    status, _, error = run("--dry-run")
    assert status == 1
    assert "--download" in error
    assert "https://storage.googleapis.com/dm-nfnets/F1_haiku.npz" in error

    def fetch(name, folder):
        path = folder / load_published()["checkpoints"][name]["file"]
        path.write_bytes(content) if "f1" in name else None
        return path, True

    monkeypatch.setattr(download, "download", fetch)
    assert run("--dry-run", "--download")[0] == 0


def test_another_file_of_that_name_is_not_published(hub, run, tmp_path):
    shutil.copy(golden.DATA / "nfnet_tiny_dill2025_flatmap.npz", tmp_path / "F1_haiku.npz")
    status, _, error = run()
    assert status == 1
    assert "F1_haiku.npz" in error
    assert set(hub.repos) == {"org/nfnet_f0.dm_in1k"}


def test_a_signal_ends_it_and_the_next_run_does_the_rest(hub, run, monkeypatch):
    real = push.publish

    def interrupted(source, folder, repo_id, **options):
        if "f1" in repo_id:
            signal.raise_signal(signal.SIGTERM)
        return real(source, folder, repo_id, **options)

    monkeypatch.setattr(push, "publish", interrupted)
    assert run()[0] == 128 + signal.SIGTERM
    assert "org/nfnet_f1.dm_in1k" not in hub.repos
    monkeypatch.setattr(push, "publish", real)
    assert run()[0] == 0
    assert "model.safetensors" in hub.files("org/nfnet_f1.dm_in1k")
