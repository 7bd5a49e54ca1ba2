"""A saved folder is complete or does not exist, has no pickle, and has the same bytes every time."""

import json
import os
import re
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import golden
import pytest
import timm
from fresh_process import run_fresh
from safetensors import safe_open

from nfnet_timm.publish.folder import save_folder
from nfnet_timm.publish.locks import locked
from nfnet_timm.publish.staging import written_beside


def other_network(tiny):
    model = tiny()
    model.head.fc.bias.data.fill_(3)
    return model


def test_folder_has_only_weights_and_config_and_loads(tiny, tmp_path):
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


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_saved_folder_is_replaced_only_with_overwrite(tiny, tmp_path):
    save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    before = contents(tmp_path)
    other = other_network(tiny)
    with pytest.raises(ValueError, match=r"out exists, and README.md, model.safetensors would change: pass --overwr"):
        save_folder(other, tmp_path / "out", golden.TINY)
    assert contents(tmp_path) == before
    save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")  # the same content needs no overwrite
    save_folder(other, tmp_path / "out", golden.TINY, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert loaded.head.fc.bias.equal(other.head.fc.bias)


def test_folder_with_other_files_is_not_changed(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="contains other files \\(thesis.tex\\): expected a folder, new or empty"):
        save_folder(tiny(), tmp_path, golden.TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        save_folder(tiny(), tmp_path / "thesis.tex", golden.TINY)


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_directory_in_the_place_of_a_file_is_not_replaced(tiny, tmp_path, name):
    thesis = tmp_path / "out" / name / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    with pytest.raises(ValueError, match=f"{name} is a directory: expected a file; move it away"):
        save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine", overwrite=True)
    assert contents(tmp_path) == {thesis.relative_to(tmp_path): b"precious"}


def test_a_failed_write_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nfnet_timm.publish.folder.save_config", full)
    with pytest.raises(OSError, match="No space left"):
        save_folder(tiny(), tmp_path / "out", golden.TINY)
    assert list(tmp_path.iterdir()) == []


def save_with(replace, model, folder, monkeypatch):
    """Save ``model`` to ``folder`` while ``replace`` stands for ``os.replace``."""
    with monkeypatch.context() as patch:
        patch.setattr("nfnet_timm.publish.staging.os.replace", replace)
        save_folder(model, folder, golden.TINY, card="another", overwrite=True)


@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize(
    ("error", "existing"), [(OSError(5, "Input/output error"), True), (KeyboardInterrupt(), True), (OSError(), False)]
)
def test_error_while_files_are_moved_leaves_the_folder_unchanged(tiny, tmp_path, monkeypatch, at, error, existing):
    if existing:
        save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    before = contents(tmp_path)
    replace, calls = os.replace, []

    def failing(a, b):
        calls.append(a)
        if len(calls) == at + 1:
            raise error
        replace(a, b)

    try:
        save_with(failing, other_network(tiny), tmp_path / "out", monkeypatch)
    except (OSError, KeyboardInterrupt):
        assert contents(tmp_path) == before
    else:
        assert at >= (8 if existing else 5)
    assert [p.name for p in tmp_path.rglob(".*")] == []


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("second", ["Ctrl-C", "error"])
def test_second_ctrl_c_or_error_while_files_are_put_back_loses_no_files(tiny, tmp_path, monkeypatch, at, second):
    """After an error of the disk, the next run puts them back."""
    save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    before = contents(tmp_path)
    replace, calls = os.replace, []

    def failing(a, b):
        calls.append(a)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        if len(calls) == at + 2:
            if second == "error":
                raise OSError(5, "Input/output error")
            os.kill(os.getpid(), signal.SIGINT)
        replace(a, b)

    with pytest.raises((OSError, KeyboardInterrupt)) as raised:
        save_with(failing, other_network(tiny), tmp_path / "out", monkeypatch)
    if second == "error":
        assert any(Path(re.search(r"moved to (\S+):", str(raised.value))[1]).iterdir())
        save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.rglob(".*")] == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system to write to")
@pytest.mark.parametrize("how", ["link", "inside"])
def test_a_folder_on_another_disk_is_written(tiny, tmp_path, how):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        target = tmp_path / "link" if how == "link" else Path(other) / "new"
        if how == "link":
            target.symlink_to(other)
        assert os.stat(other).st_dev != os.stat(tmp_path).st_dev
        for value in (1, 2):
            model = tiny()
            model.head.fc.bias.data.fill_(value)
            save_folder(model, target, golden.TINY, card="card", overwrite=True)
        assert sorted(p.name for p in target.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert target.is_symlink() == (how == "link")
        loaded = timm.create_model(f"local-dir:{target}", pretrained=True)
        assert bool((loaded.head.fc.bias == 2).all())


KILLED = """
import os, shutil
os.chdir(folder)
from pathlib import Path
import timm
from nfnet_timm.publish.folder import save_folder
from nfnet_timm.publish.staging import written_beside
from nfnet_timm.publish.locks import locked

ARGS = dict(depths=(1, 1, 1, 1), channels=(32, 64, 96, 96), group_size=8, num_classes=10)
first, second = (timm.create_model("nfnet_f0", **ARGS) for _ in range(2))
save_folder(first, "first", ARGS, card="mine")
replace, calls = os.replace, []


def killed(a, b):
    calls.append(a)
    if len(calls) == at:
        os._exit(9)  # nothing is cleaned up
    replace(a, b)


for at in range(1, 20):
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree("first", "out")
    child = os.fork()
    if not child:
        os.replace = killed
        save_folder(second, "out", ARGS, overwrite=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    try:
        save_folder(first, "out", ARGS, card="mine")
    except ValueError as error:  # all new files are in place
        assert "--overwrite" in str(error), error
        print("new")
    else:
        print("old")
        assert all((Path("out") / f.name).read_bytes() == f.read_bytes() for f in Path("first").iterdir())
    print(at, sorted(f.name for f in Path("out").iterdir()))
    save_folder(second, "out", ARGS, overwrite=True)
    assert sorted(f.name for f in Path("out").iterdir()) == ["config.json", "model.safetensors"]
"""


def test_killed_run_loses_no_files_and_does_not_block_the_next_run(tmp_path):
    out = run_fresh(f"folder = {str(tmp_path)!r}\n{KILLED}")
    assert out.count("old") >= 6
    assert "\n7 ['README.md', 'config.json', 'model.safetensors']" in out


def test_files_of_killed_runs_are_ignored_and_removed_by_the_next_run(tiny, tmp_path):
    (tmp_path / "out" / ".nfnet-timm-abc").mkdir(parents=True)
    (tmp_path / "out" / ".nfnet-timm-abc" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out" / ".nfnet-timm-.lock").touch()
    (tmp_path / ".nfnet-timm-file.npz").write_bytes(b"half")
    save_folder(tiny(), tmp_path / "out", golden.TINY)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    with written_beside(tmp_path / "file.npz") as partial:
        partial.write_bytes(b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.npz", "out"]


def test_two_runs_at_once_write_one_folder_after_the_other(tiny, tmp_path, capsys):
    entered, go_on = threading.Event(), threading.Event()

    def slow(folder):
        entered.set()
        assert go_on.wait(60)

    other = other_network(tiny)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(save_folder, tiny(), tmp_path / "out", golden.TINY, card="first", finish=slow)
        assert entered.wait(60)
        second = pool.submit(save_folder, other, tmp_path / "out", golden.TINY, card="second")
        while str(tmp_path / "out") not in capsys.readouterr().err:  # the message says for which folder it waits
            time.sleep(0.01)
        assert not second.done()
        go_on.set()
        first.result()
        with pytest.raises(ValueError, match="--overwrite"):
            second.result()
    assert (tmp_path / "out" / "README.md").read_text() == "first"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_run_writes_after_waiting_for_a_run_that_failed(tiny, tmp_path):
    entered, go_on = threading.Event(), threading.Event()

    def unfit(folder):
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
        entered.set()
        assert go_on.wait(60)
        raise ValueError("unfit")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(save_folder, tiny(), tmp_path / "out", golden.TINY, finish=unfit)
        assert entered.wait(60)
        second = pool.submit(save_folder, tiny(), tmp_path / "out", golden.TINY)
        time.sleep(0.3)
        go_on.set()
        with pytest.raises(ValueError, match="unfit"):
            first.result()
        second.result()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_two_runs_never_have_the_same_lock(tmp_path):
    inside, most = [0], [0]

    def run():
        for _ in range(50):
            with locked(tmp_path / "out"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(1e-4)
                inside[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_has_the_usual_permissions(tiny, tmp_path):
    (tmp_path / "usual").mkdir()
    save_folder(tiny(), tmp_path / "out", golden.TINY)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
