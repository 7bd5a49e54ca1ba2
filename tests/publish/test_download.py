"""A download gives the released file or none, for any fault of the server, and continues after an interruption."""

import hashlib
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning  # Python 3.11's own from there on
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fresh_process import run_fresh
from huggingface_hub import constants

from nfnet_timm.cli import main
from nfnet_timm.publish.checkpoints import load_published

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


def test_a_file_is_downloaded_once(server, tmp_path, capsys):
    assert main(["download", "f0", "--to", "files"]) == 0
    assert (tmp_path / "files" / "F0_haiku.npz").read_bytes() == CONTENT
    assert "downloaded, has the recorded MD5" in capsys.readouterr().out
    assert main(["download", "F0", "nfnet_f0", "nfnet_f0.dm_in1k", "--to", "files"]) == 0
    assert capsys.readouterr().out.count("already there") == 3
    assert server.log == [0]
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["F0_haiku.npz"]


def test_a_cut_connection_is_resumed_where_it_was_cut(server, tmp_path):
    server.faults = ["cut", "cut"]
    assert main(["download", "f0"]) == 0
    assert server.log == [0, len(CONTENT) // 2, len(CONTENT) * 3 // 4]
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT


def test_partial_download_is_kept_for_the_next_run(server, tmp_path, capsys):
    server.faults = ["cut", 503]
    assert main(["download", "f0"]) == 1
    error = capsys.readouterr().err
    assert "503" in error
    assert "run the same command again" in error
    assert error.count("nfnet-timm: error") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz.part"]
    assert main(["download", "f0"]) == 0
    assert server.log[-1] == len(CONTENT) // 2
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz"]


@pytest.mark.parametrize("known_size", [True, False])
def test_a_server_without_ranges_gives_the_whole_file_again(server, tmp_path, monkeypatch, known_size):
    if not known_size:
        monkeypatch.delitem(load_published()["checkpoints"]["nfnet_f0.dm_in1k"], "bytes")
    (tmp_path / "F0_haiku.npz.part").write_bytes(CONTENT[:1000])
    server.faults = ["no ranges"]
    assert main(["download", "f0"]) == 0
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT


@pytest.mark.parametrize("known_size", [True, False])
@pytest.mark.parametrize("beginning", [b"x" * 1000, CONTENT, CONTENT + b"more"], ids=["other", "complete", "longer"])
def test_download_is_right_with_any_partial_file_of_an_earlier_run(
    server, tmp_path, monkeypatch, beginning, known_size
):
    if not known_size:
        monkeypatch.delitem(load_published()["checkpoints"]["nfnet_f0.dm_in1k"], "bytes")
    (tmp_path / "F0_haiku.npz.part").write_bytes(beginning)
    assert main(["download", "f0"]) == 0
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz"]


def test_download_with_wrong_md5_is_not_kept(server, tmp_path, capsys):
    server.content = b"y" + CONTENT[1:]
    assert main(["download", "f0"]) == 1
    assert f"sends another file: its MD5 is {hashlib.md5(server.content).hexdigest()}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_existing_file_with_wrong_md5_is_not_replaced(server, tmp_path, capsys):
    (tmp_path / "F0_haiku.npz").write_text("precious")
    assert main(["download", "f0"]) == 1
    assert "F0_haiku.npz exists and is not the released file" in capsys.readouterr().err
    assert (tmp_path / "F0_haiku.npz").read_text() == "precious"
    assert server.log == []


@pytest.mark.parametrize(
    ("fault", "message"), [(404, "no longer exists"), (403, "no longer public"), (429, "too many requests")]
)
def test_error_for_a_refusal_says_what_to_do(server, capsys, fault, message):
    server.faults = [fault] * 10
    assert main(["download", "f0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nfnet-timm: error: downloading http://127.0.0.1")
    assert message in error


@pytest.mark.parametrize("name", ["f7", "nfnet_f0.dm_im21k", "F0_haiku.npz", ""])
def test_a_name_that_was_not_released_is_refused(capsys, name):
    assert main(["download", name]) == 1
    assert "expected one of f0, f1, f2, f3, f4, f5, f6" in capsys.readouterr().err


@pytest.mark.parametrize("faults", [[], ["cut", 503]], ids=["first succeeds", "first fails"])
def test_one_of_two_runs_downloads_and_the_other_waits(server, tmp_path, capsys, faults):
    server.faults = list(faults)
    server.go_on.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(main, ["download", "f0"])
        assert server.half_sent.wait(60)
        second = pool.submit(main, ["download", "f0"])
        with pytest.raises(StillRunning):
            second.result(0.5)
        server.go_on.set()
        assert (first.result(), second.result()) == (1 if faults else 0, 0)
    out, err = capsys.readouterr()
    assert out.count("has the recorded MD5") == (1 if faults else 2)
    assert out.count(": downloaded, has") == 1
    assert err.count("F0_haiku.npz") >= 1  # the message says for which file it waits
    assert server.log == ([0, len(CONTENT) // 2, len(CONTENT) // 2] if faults else [0])
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz"]
    assert (tmp_path / "F0_haiku.npz").read_bytes() == CONTENT


def in_another_process(folder, before="pass"):
    """Return code that runs `nfnet-timm download f0` from the test server in a child, and prints how this ends."""
    released = {key: load_published()["checkpoints"]["nfnet_f0.dm_in1k"][key] for key in ("url", "md5", "bytes")}
    return f"""
import os, resource
from huggingface_hub import constants
from nfnet_timm.cli import main
from nfnet_timm.publish.checkpoints import load_published
os.chdir({str(folder)!r})
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    open("child", "w").write(str(os.getpid()))
    load_published()["checkpoints"]["nfnet_f0.dm_in1k"].update({released!r})
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
    constants.HF_HUB_OFFLINE = False
    {before}
    os._exit(main(["download", "f0"]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_next_run_continues_after_a_killed_run_and_leaves_only_the_file(server, tmp_path, how):
    server.go_on.clear()
    partial = tmp_path / "F0_haiku.npz.part"
    with ThreadPoolExecutor() as pool:
        run = pool.submit(run_fresh, in_another_process(tmp_path))
        assert server.half_sent.wait(60)
        while not partial.exists() or not partial.stat().st_size:
            pass
        os.kill(int((tmp_path / "child").read_text()), how)
        assert run.result().splitlines()[-1] == ("-9" if how == signal.SIGKILL else "143")
    server.go_on.set()
    (tmp_path / "child").unlink()
    arrived = partial.stat().st_size
    assert main(["download", "f0"]) == 0
    assert server.log == [0, arrived]
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz"]


def test_full_disk_gives_an_error_and_the_next_run_continues(server, tmp_path):
    out = run_fresh(in_another_process(tmp_path, "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))"))
    assert out.splitlines()[-1] == "1"
    assert "Traceback" not in out
    assert "File too large" in out
    (tmp_path / "child").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz.part"]
    assert main(["download", "f0"]) == 0
    assert server.log[-1] > 0


def test_missing_network_gives_a_one_line_error(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["download", "f0"]) == 1  # HF_HUB_OFFLINE is set here
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
