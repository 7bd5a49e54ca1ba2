"""A download gives the released file or none, for any fault of the server, and continues after an interruption."""

import errno
import hashlib
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import Fault
from huggingface_hub import constants

from nfnet_timm.cli import main
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.download import download

CONTENT = bytes(range(256)) * 4096  # a megabyte


@pytest.fixture
def server(hub, monkeypatch, tmp_path):
    """Serve CONTENT in place of the released F0, by the server that stands for the Hub."""
    hub.push("org/nfnets", "F0_haiku.npz", CONTENT)
    released = load_published()["checkpoints"]["nfnet_f0.dm_in1k"]
    monkeypatch.setitem(released, "url", f"{hub.endpoint}/org/nfnets/resolve/main/F0_haiku.npz")
    monkeypatch.setitem(released, "md5", hashlib.md5(CONTENT).hexdigest())
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # bytes per write
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    monkeypatch.chdir(tmp_path)
    return hub


def fault(action):
    return Fault("GET", "F0_haiku.npz", action)


def begins(server):
    """Return the first byte that each request asked for."""
    return [int(re.fullmatch(r"bytes=(\d+)-", found)[1]) if found else 0 for _, _, found in server.log]


def names(folder):
    return [p.name for p in folder.iterdir()]


def test_a_file_is_downloaded_once(server, tmp_path, capsys):
    assert main(["download", "f0", "--to", "files"]) == 0
    assert (tmp_path / "files" / "F0_haiku.npz").read_bytes() == CONTENT
    assert "downloaded, has the recorded MD5" in capsys.readouterr().out
    assert main(["download", "F0", "nfnet_f0", "nfnet_f0.dm_in1k", "--to", "files"]) == 0
    assert capsys.readouterr().out.count("already there") == 3
    assert begins(server) == [0]
    assert names(tmp_path / "files") == ["F0_haiku.npz"]


def test_a_cut_download_is_resumed_where_it_was_cut_also_by_the_next_run(server, tmp_path, capsys):
    server.faults = [fault("half"), fault(503)]
    assert main(["download", "f0"]) == 1
    error = capsys.readouterr().err
    assert "503" in error
    assert "run the same command again" in error
    assert names(tmp_path) == ["F0_haiku.npz.part"]
    server.faults = [fault("half")]
    assert main(["download", "f0"]) == 0
    assert begins(server) == [0, *[len(CONTENT) // 2] * 2, len(CONTENT) * 3 // 4]
    assert names(tmp_path) == ["F0_haiku.npz"]
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("beginning", "action"),
    [(CONTENT[:1000], "whole"), (CONTENT, None), (b"x" * 1000, None), (CONTENT + b"more", None)],
    ids=["whole again", "complete", "of another file", "too long"],
)
def test_a_partial_file_is_completed_or_removed(server, tmp_path, beginning, action):
    (tmp_path / "F0_haiku.npz.part").write_bytes(beginning)
    server.faults = [fault(action)]
    assert main(["download", "f0"]) == 0
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT
    assert names(tmp_path) == ["F0_haiku.npz"]


def test_a_file_with_another_md5_is_neither_kept_nor_replaced(server, tmp_path, capsys):
    for other in (b"y" + CONTENT[1:], b"<html>log in"):
        server.push("org/nfnets", "F0_haiku.npz", other)
        assert main(["download", "f0"]) == 1
        assert f"sends another file: its MD5 is {hashlib.md5(other).hexdigest()}" in capsys.readouterr().err
        assert names(tmp_path) == []
    (tmp_path / "F0_haiku.npz").write_text("precious")
    assert main(["download", "f0"]) == 1
    assert "F0_haiku.npz exists and is not the released file" in capsys.readouterr().err
    assert (tmp_path / "F0_haiku.npz").read_text() == "precious"
    assert begins(server) == [0, 0]


@pytest.mark.parametrize("name", ["F0_haiku.npz", "F0_haiku.npz.part"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_directory_or_a_pipe_in_place_of_the_file_is_refused_at_once(server, tmp_path, capsys, name, make):
    make(tmp_path / name)
    assert main(["download", "f0"]) == 1
    assert f"{name} is a directory or a pipe: expected a file; move it away" in capsys.readouterr().err
    assert server.log == []
    assert names(tmp_path) == [name]


def test_error_for_a_full_disk_does_not_advise_to_try_again_as_it_is(server, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nfnet_timm.publish.download.http_get", full)
    assert main(["download", "f0"]) == 1
    assert "No space left on device. To do: make room on this disk" in capsys.readouterr().err
    assert names(tmp_path) == []  # no empty .part


def test_error_for_a_missing_file_has_its_address_and_says_what_to_do(server, capsys):
    server.faults = [fault(404)]
    assert main(["download", "f0"]) == 1
    assert re.fullmatch("nfnet-timm: error: .*http://127.0.0.1.* the file no longer.*\n", capsys.readouterr().err)


def test_one_of_two_runs_downloads_and_the_other_waits(server, tmp_path):
    asked, go_on = threading.Event(), threading.Event()
    server.faults = [fault(lambda: asked.set() or go_on.wait(60))]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, "f0", tmp_path)
        assert asked.wait(60)
        second = pool.submit(download, "f0", tmp_path)
        go_on.set()
        assert [first.result()[1], second.result()[1]] == [True, False]
    assert begins(server) == [0]
    assert names(tmp_path) == ["F0_haiku.npz"]
