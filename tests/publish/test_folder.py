"""A saved folder is complete or unchanged, has no pickle, and has the same bytes every time."""

import itertools
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

from nfnet_timm.publish.folder import save_folder
from nfnet_timm.publish.locks import locked
from nfnet_timm.publish.staging import written_beside


@pytest.fixture
def other(tiny):
    """Return a network with other weights than ``tiny``."""
    model = tiny()
    model.head.fc.bias.data.fill_(3)
    return model


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_folder_has_only_weights_and_config_and_loads(tiny, tmp_path):
    model, folder = tiny(), tmp_path / "a" / "model"
    save_folder(model, folder, golden.TINY)
    assert names(folder) == ["config.json", "model.safetensors"]
    assert names(tmp_path / "a") == ["model"]
    assert folder.stat().st_mode == tmp_path.joinpath("a").stat().st_mode
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert all(p.equal(loaded.get_parameter(name)) for name, p in model.named_parameters())


def test_saved_folder_is_replaced_only_with_overwrite(tiny, other, tmp_path):
    folder = tmp_path / "out"
    save_folder(tiny(), folder, golden.TINY, card="mine")
    (folder / ".DS_Store").touch()  # the Finder of macOS makes it
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"out exists, and README.md, model.safetensors would change: pass --overwr"):
        save_folder(other, folder, golden.TINY)
    assert contents(tmp_path) == before
    save_folder(tiny(), folder, golden.TINY, card="mine")  # the same content needs no overwrite
    save_folder(other, folder, golden.TINY, overwrite=True)
    assert names(folder) == [".DS_Store", "config.json", "model.safetensors"]
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).head.fc.bias.equal(other.head.fc.bias)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: (out / "thesis").mkdir(parents=True), r"other files \(thesis\): move them away"),
        (lambda out: (out / "README.md").mkdir(parents=True), "README.md is a directory or a pipe: expected a file"),
        (lambda out: out.touch(), "out is a file: expected a folder"),
        (lambda out: out.symlink_to("unmounted"), "out is a link to something that does not exist: expected a folder"),
    ],
)
def test_other_files_are_not_replaced(tiny, tmp_path, make, message):
    make(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def save_with(events, model, folder, monkeypatch):
    """Save ``model`` to ``folder``. ``events`` has errors and signals by the number of the move that they precede."""
    replace, numbers = os.replace, itertools.count()

    def eventful(a, b):
        event = events.get(next(numbers))
        if isinstance(event, BaseException):
            raise event
        if event is not None:
            os.kill(os.getpid(), event)
        replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr("nfnet_timm.publish.staging.os.replace", eventful)
        save_folder(model, folder, golden.TINY, card="another", overwrite=True)


@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize(
    ("error", "existing"), [(OSError(5, "Input/output error"), True), (KeyboardInterrupt(), True), (OSError(), False)]
)
def test_error_while_files_are_moved_leaves_the_folder_unchanged(
    tiny, other, tmp_path, monkeypatch, at, error, existing
):
    if existing:
        save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    before = contents(tmp_path)
    try:
        save_with({at: error}, other, tmp_path / "out", monkeypatch)
    except (OSError, KeyboardInterrupt) as raised:
        assert contents(tmp_path) == before
        assert isinstance(raised, KeyboardInterrupt) or "Nothing was changed" in str(raised)
    else:
        assert at >= (8 if existing else 5)
    assert [p.name for p in tmp_path.rglob(".*")] == []


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("second", [signal.SIGINT, OSError(5, "Input/output error")])
def test_second_ctrl_c_or_error_while_files_are_put_back_loses_no_files(tiny, other, tmp_path, monkeypatch, at, second):
    """After an error of the disk, the next run puts them back."""
    save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    before = contents(tmp_path)
    with pytest.raises((OSError, KeyboardInterrupt)) as raised:
        save_with({at: KeyboardInterrupt(), at + 1: second}, other, tmp_path / "out", monkeypatch)
    if isinstance(second, OSError):
        assert any(Path(re.search(r"moved to (\S+):", str(raised.value))[1]).iterdir())
        save_folder(tiny(), tmp_path / "out", golden.TINY, card="mine")
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.rglob(".*")] == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system to write to")
def test_a_link_to_a_folder_on_another_disk_is_written(tiny, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other_disk:
        (tmp_path / "link").symlink_to(other_disk)
        save_folder(tiny(), tmp_path / "link", golden.TINY)
        assert names(Path(other_disk)) == ["config.json", "model.safetensors"]


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


def test_files_of_killed_runs_are_removed_by_the_next_run(tiny, tmp_path):
    (tmp_path / "out" / ".nfnet-timm-new").mkdir(parents=True)
    (tmp_path / "out" / ".nfnet-timm-new" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out" / ".nfnet-timm-.lock").touch()
    (tmp_path / ".nfnet-timm-file.npz").write_bytes(b"half")
    save_folder(tiny(), tmp_path / "out", golden.TINY)
    assert names(tmp_path / "out") == ["config.json", "model.safetensors"]
    with written_beside(tmp_path / "file.npz") as partial:
        partial.write_bytes(b"whole")
    assert names(tmp_path) == ["file.npz", "out"]


def test_a_second_run_waits_for_the_first_and_says_so(tiny, other, tmp_path, capsys):
    entered, go_on = threading.Event(), threading.Event()

    def slow(folder):
        entered.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(save_folder, tiny(), tmp_path / "out", golden.TINY, card="first", finish=slow)
        assert entered.wait(60)
        second = pool.submit(save_folder, other, tmp_path / "out", golden.TINY, card="second")
        while str(tmp_path / "out") not in capsys.readouterr().err:
            time.sleep(0.01)
        assert not second.done()
        go_on.set()
        first.result()
        with pytest.raises(ValueError, match="--overwrite"):
            second.result()
    assert (tmp_path / "out" / "README.md").read_text() == "first"


def test_two_runs_never_have_the_same_lock(tmp_path, monkeypatch):
    inside, most, sleep = [0], [0], time.sleep
    monkeypatch.setattr("nfnet_timm.publish.locks.time.sleep", lambda _: sleep(1e-4))

    def run():
        for _ in range(20):
            with locked(tmp_path / "out"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                sleep(1e-4)
                inside[0] -= 1

    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(run) for _ in range(3)]:
            each.result()
    assert most == [1]
    assert list((tmp_path / "out").iterdir()) == []
