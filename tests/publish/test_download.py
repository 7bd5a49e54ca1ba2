"""A download gives the released file or none, for any fault of the server, and continues after an interruption."""

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from nfnet_timm.cli import main
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.download import download

CONTENT = bytes(range(256)) * 4096  # a megabyte


class Handler(BaseHTTPRequestHandler):
    """Sends CONTENT from the requested byte on, or acts as in ``server.fault``."""

    def do_GET(self):
        server = self.server
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        begin = int(asked[1]) if asked else 0
        server.log.append(begin)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            return self.send_error(fault)
        if begin >= len(server.content):
            return self.send_error(416)
        ranged = asked is not None and fault != "no ranges"
        body = server.content[begin if ranged else 0 :]
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        server.half_sent.set()
        server.go_on.wait(60)
        if fault == "cut":
            self.close_connection = True
        else:
            self.wfile.write(body[half:])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serve CONTENT in place of the released F0."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.faults, server.log = CONTENT, [], []
        server.half_sent, server.go_on = threading.Event(), threading.Event()
        server.go_on.set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        released = load_published()["checkpoints"]["nfnet_f0.dm_in1k"]
        monkeypatch.setitem(released, "url", "http://{}:{}/F0_haiku.npz".format(*server.server_address))
        monkeypatch.setitem(released, "md5", hashlib.md5(CONTENT).hexdigest())
        monkeypatch.setitem(released, "bytes", len(CONTENT))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # bytes per write
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
        monkeypatch.chdir(tmp_path)
        yield server
        server.shutdown()


def names(folder):
    return [p.name for p in folder.iterdir()]


def test_a_file_is_downloaded_once(server, tmp_path, capsys):
    assert main(["download", "f0", "--to", "files"]) == 0
    assert (tmp_path / "files" / "F0_haiku.npz").read_bytes() == CONTENT
    assert "downloaded, has the recorded MD5" in capsys.readouterr().out
    assert main(["download", "F0", "nfnet_f0", "nfnet_f0.dm_in1k", "--to", "files"]) == 0
    assert capsys.readouterr().out.count("already there") == 3
    assert server.log == [0]
    assert names(tmp_path / "files") == ["F0_haiku.npz"]


def test_a_cut_download_is_resumed_where_it_was_cut_also_by_the_next_run(server, tmp_path, capsys):
    server.faults = ["cut", 503]
    assert main(["download", "f0"]) == 1
    error = capsys.readouterr().err
    assert "503" in error
    assert "run the same command again" in error
    assert names(tmp_path) == ["F0_haiku.npz.part"]
    server.faults = ["cut"]
    assert main(["download", "f0"]) == 0
    assert server.log == [0, *[len(CONTENT) // 2] * 2, len(CONTENT) * 3 // 4]
    assert names(tmp_path) == ["F0_haiku.npz"]
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT


@pytest.mark.parametrize("known_size", [True, False])
@pytest.mark.parametrize(
    ("beginning", "fault"),
    [(CONTENT[:1000], "no ranges"), (CONTENT, None), (b"x" * 1000, None), (CONTENT + b"more", None)],
    ids=["whole again", "complete", "of another file", "too long"],
)
def test_a_partial_file_is_completed_or_removed(server, tmp_path, monkeypatch, beginning, fault, known_size):
    if not known_size:
        monkeypatch.delitem(load_published()["checkpoints"]["nfnet_f0.dm_in1k"], "bytes")
    (tmp_path / "F0_haiku.npz.part").write_bytes(beginning)
    server.faults = [fault]
    assert main(["download", "f0"]) == 0
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT
    assert names(tmp_path) == ["F0_haiku.npz"]


def test_a_file_with_another_md5_is_neither_kept_nor_replaced(server, tmp_path, capsys):
    server.content = b"y" + CONTENT[1:]
    assert main(["download", "f0"]) == 1
    assert f"sends another file: its MD5 is {hashlib.md5(server.content).hexdigest()}" in capsys.readouterr().err
    assert names(tmp_path) == []
    (tmp_path / "F0_haiku.npz").write_text("precious")
    assert main(["download", "f0"]) == 1
    assert "F0_haiku.npz exists and is not the released file" in capsys.readouterr().err
    assert (tmp_path / "F0_haiku.npz").read_text() == "precious"
    assert server.log == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f0"], "http://127.0.0.1.* the file no longer exists"),
        (["f7"], "'f7': expected one of f0, f1, f2, f3, f4, f5, f6"),
        (["f0", "--to", "file"], "file is a file: expected a folder"),
    ],
)
def test_error_says_what_to_do(server, tmp_path, capsys, arguments, message):
    (tmp_path / "file").touch()
    server.faults = [404]
    assert main(["download", *arguments]) == 1
    assert re.fullmatch(f"nfnet-timm: error: .*{message}.*\n", capsys.readouterr().err)


def test_one_of_two_runs_downloads_and_the_other_waits(server, tmp_path):
    server.go_on.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(download, "f0", tmp_path)
        assert server.half_sent.wait(60)
        second = pool.submit(download, "f0", tmp_path)
        server.go_on.set()
        assert [first.result()[1], second.result()[1]] == [True, False]
    assert server.log == [0]
    assert names(tmp_path) == ["F0_haiku.npz"]
