"""The demo writes its results even if the download of pretrained weights fails."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Fault
from matplotlib.figure import Figure

from nfnet_timm import demo
from nfnet_timm.cli import main

REPO = "timm/dm_nfnet_f0.dm_in1k"
GET = ("GET", r"/resolve/.*/model.safetensors")


@pytest.fixture
def run(hub, tmp_path, monkeypatch, capfd):
    """Return a function that runs the demo with a few images and returns its exit status and output."""
    digits = demo.load_images()
    names = ("train", "train_classes", "test", "test_classes")
    few = replace(digits, **{name: getattr(digits, name)[:16] for name in names})
    monkeypatch.setattr(demo, "load_images", lambda: few)
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())  # drawing takes a second
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["demo", "--epochs", "1", *arguments])
        return status, *capfd.readouterr()

    return run


def are_complete(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["curves.png", "model"]
    assert sorted(p.name for p in (folder / "model").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "fault",
    [
        None,  # a file that is not a safetensors file
        Fault(*GET, "short", times=99),
        Fault(*GET, 500, times=99),
        Fault(*GET, "lost", times=99),
        Fault("HEAD", ".*", "lost", times=99),
    ],
    ids=["garbage", "short", "error 500", "lost", "HEAD lost"],
)
def test_network_errors_do_not_affect_the_results(hub, run, tmp_path, fault):
    hub.push(REPO, "model.safetensors", b"x" * 3_000_000)
    hub.push(REPO, "config.json", b"{}")
    hub.faults += [fault] if fault else []
    status, out, error = run()
    assert status == 0
    assert "Traceback" not in error
    assert "no photograph is classified" in out
    assert out.rstrip().endswith("caveats")
    are_complete(tmp_path / "nfnet-demo")


def test_missing_repo_does_not_fail_the_demo(run, tmp_path):
    assert run()[0] == 0
    are_complete(tmp_path / "nfnet-demo")


def test_size_and_how_to_skip_are_printed_before_the_download(hub, run):
    announced = []
    hub.push(REPO, "model.safetensors", b"x" * 3_000_000)
    hub.faults.append(Fault(*GET, lambda: announced.append("GET")))
    _, out, _ = run()
    assert announced == ["GET"]
    assert "3 MB" in out
    assert "Ctrl-C" in out
    assert "HF_HUB_OFFLINE" in out


@pytest.mark.parametrize(("how", "status"), [("SIGINT", 0), ("SIGTERM", 143)])
def test_interrupted_download_does_not_advise_to_run_again(hub, run, tmp_path, how, status):
    """Ctrl-C skips the photograph; SIGTERM ends the program."""

    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, getattr(signal, how))

    hub.push(REPO, "model.safetensors", b"x" * 3_000_000)
    hub.faults.append(Fault(*GET, interrupt, times=9))
    found, out, error = run()
    assert found == status
    assert "same command" not in out + error
    are_complete(tmp_path / "nfnet-demo")


def test_ctrl_c_does_not_block_the_next_run_and_results_are_replaced_only_with_overwrite(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(demo, "save_folder", interrupt)
        assert run()[0] == 130
    assert list((tmp_path / "nfnet-demo").iterdir()) == []
    assert run()[0] == 0
    status, out, error = run()
    assert (status, out) == (1, "")  # nothing is trained
    assert "model would be replaced: pass --overwrite" in error
    assert run("--overwrite")[0] == 0


def test_file_in_place_of_the_folder_gives_a_one_line_error(run, tmp_path):
    (tmp_path / "nfnet-demo").touch()
    status, _, error = run()
    assert status == 1
    assert "nfnet-demo" in error
    assert error.count("\n") == 1
    assert os.path.getsize(tmp_path / "nfnet-demo") == 0
