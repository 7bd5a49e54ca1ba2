"""The command line: its output and exit status. A user error gives one line, not a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch
from finalizers import signal_in_a_finalizer
from safetensors.torch import load_file, save_file

import nfnet_timm.publish.convert
import nfnet_timm.publish.folder
from nfnet_timm.cli import main

COMMAND = Path(sys.executable).parent / "nfnet-timm"
SOURCE = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_convert_to_a_folder_and_back(tmp_path, capsys):
    folder, file = tmp_path / "out", tmp_path / "back.npz"
    assert main(["convert", SOURCE, "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "nfnet_tiny_haiku_2021.npz: nfnet_f0, 178,272 parameters, SHA-256 " in out
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in out
    assert main(["convert", str(folder), "--out", str(file)]) == 0
    assert "131 arrays in 52 modules" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("missing.npz", "out", "missing.npz does not exist: expected one of the authors' files"),
        ("", "out", "'' does not exist: expected one of the authors' files"),
        ("empty.npz", "out", "empty.npz is empty"),
        ("text.npz", "out", "is not a pickle"),
        ("pipe.npz", "out", "pipe.npz is not a regular file"),
        (SOURCE, "out.npz", "cannot convert"),
        ("folder", "out", "cannot convert"),
        ("folder", "out.npz", "has no model.safetensors"),
        ("damaged", "out.npz", "damaged/model.safetensors is damaged, or is not a safetensors file"),
        (SOURCE, "folder", "contains other files (note.txt)"),
        (SOURCE, "text.npz/out", "cannot write text.npz/out"),
    ],
)
def test_user_error_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, source, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "note.txt").touch()
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", source, "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.startswith("nfnet-timm: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def converted(tmp_path, dtype):
    """Return a folder that `nfnet-timm convert` wrote, with weights in ``dtype``."""
    folder = tmp_path / "folder"
    assert main(["convert", SOURCE, "--out", str(folder)]) == 0
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_half_precision_weights_convert_back_to_a_file_in_a_new_folder(tmp_path):
    folder, file, second = converted(tmp_path, torch.bfloat16), tmp_path / "no" / "such" / "x.npz", tmp_path / "second"
    assert main(["convert", str(folder), "--out", str(file)]) == 0
    assert [p.name for p in file.parent.iterdir()] == ["x.npz"]
    assert main(["convert", str(file), "--out", str(second)]) == 0
    written, read = load_file(folder / "model.safetensors"), load_file(second / "model.safetensors")
    assert {name: value.float() for name, value in written.items()}.keys() == read.keys()
    for name, value in written.items():
        torch.testing.assert_close(read[name], value.float(), rtol=0, atol=0)


def test_weights_that_float32_cannot_hold_are_refused(tmp_path, capsys):
    assert main(["convert", str(converted(tmp_path, torch.float64)), "--out", str(tmp_path / "back.npz")]) == 1
    assert "is float64: expected float32, bfloat16 or float16" in capsys.readouterr().err
    assert not (tmp_path / "back.npz").exists()


def test_existing_output_is_replaced_only_with_overwrite(tmp_path, capsys):
    mine, file = converted(tmp_path, torch.bfloat16), tmp_path / "back.npz"
    file.write_bytes(b"mine")
    before = (mine / "model.safetensors").read_bytes()
    assert main(["convert", SOURCE, "--out", str(mine)]) == 1
    assert "model.safetensors would change: pass --overwrite" in capsys.readouterr().err
    assert main(["convert", str(mine), "--out", str(file)]) == 1
    assert "exists: pass --overwrite" in capsys.readouterr().err
    assert (mine / "model.safetensors").read_bytes() == before
    assert file.read_bytes() == b"mine"
    assert main(["convert", str(mine), "--out", str(file), "--overwrite"]) == 0
    assert main(["convert", SOURCE, "--out", str(mine), "--overwrite"]) == 0
    assert file.read_bytes() != b"mine"
    assert (mine / "model.safetensors").read_bytes() != before


def test_dangling_link_and_directory_are_not_replaced_by_a_file(tmp_path, capsys):
    mine, link, folder = converted(tmp_path, torch.float32), tmp_path / "link.npz", tmp_path / "folder.npz"
    link.symlink_to("unmounted")
    folder.mkdir()
    assert main(["convert", str(mine), "--out", str(link)]) == 1
    assert f"{link} exists: pass --overwrite" in capsys.readouterr().err
    assert link.is_symlink()
    assert main(["convert", str(mine), "--out", str(folder), "--overwrite"]) == 1
    assert f"error: {folder} is a directory: expected a file" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_the_existing_file_unchanged(tmp_path, monkeypatch, capsys, error):
    mine, file = converted(tmp_path, torch.float32), tmp_path / "back.npz"
    file.write_bytes(b"mine")

    def fail(tree, path):
        Path(path).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(nfnet_timm.publish.convert, "write_tree", fail)
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", str(mine), "--out", str(file), "--overwrite"]) in (1, 130)
    assert isinstance(error, KeyboardInterrupt) or f"No space left on device: '{file}'" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("how", "out"), [("SIGTERM", "new"), ("SIGHUP", "old"), ("SIGINT", "deep/file.npz")])
def test_signals_clean_up_as_ctrl_c_does(tmp_path, monkeypatch, capsys, how, out):
    """Terminals and `timeout` send SIGHUP and SIGTERM twice."""
    number = getattr(signal, how)
    source = SOURCE if "." not in out else str(converted(tmp_path, torch.float32))
    if out == "old":
        assert main(["convert", SOURCE, "--out", str(tmp_path / out)]) == 0
        (tmp_path / out / "config.json").write_text("{}")
    before = contents(tmp_path)
    moved = []

    def interrupted(a, b):
        moved.append(a)
        os.kill(os.getpid(), number)

    real = os.unlink

    def again(*args, **kwargs):
        if how != "SIGINT":
            os.kill(os.getpid(), number)
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("nfnet_timm.publish.staging.os.replace", interrupted)
        patch.setattr("os.unlink", again)
        assert main(["convert", source, "--out", str(tmp_path / out), "--overwrite"]) == 128 + number
    assert moved
    assert "interrupted" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("how", "to_file"), [("SIGINT", False), ("SIGTERM", True)])
def test_signal_that_a_finalizer_drops_stops_the_run_before_files_are_put_in_place(
    tmp_path, monkeypatch, capsys, how, to_file
):
    number = getattr(signal, how)
    module, name = (nfnet_timm.publish.convert, "write_tree") if to_file else (nfnet_timm.publish.folder, "_changed")
    source = str(converted(tmp_path, torch.float32)) if to_file else SOURCE
    before, real = contents(tmp_path), getattr(module, name)

    def dropped(*args):
        signal_in_a_finalizer(number, monkeypatch)
        return real(*args)

    monkeypatch.setattr(module, name, dropped)
    out = tmp_path / ("out.npz" if to_file else "out")
    assert main(["convert", source, "--out", str(out)]) == 128 + number
    assert "interrupted" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_that_another_error_hides_is_reported_as_an_interruption(tmp_path, monkeypatch, capsys):
    def convert(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as torch's C++ code does
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr("nfnet_timm.publish.convert.convert_to_folder", convert)
    assert main(["convert", str(golden.DATA / "nfnet_tiny_haiku_2021.npz"), "--out", str(tmp_path / "out")]) == 143
    assert "interrupted" in capsys.readouterr().err


def test_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    """nohup ignores SIGHUP."""
    write = nfnet_timm.publish.folder.write_weights

    def hung_up(*args):
        os.kill(os.getpid(), signal.SIGHUP)
        write(*args)

    monkeypatch.setattr(nfnet_timm.publish.folder, "write_weights", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["convert", SOURCE, "--out", str(tmp_path / "out")]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_closed_output_pipe_is_not_an_error():
    process = subprocess.Popen([COMMAND, "recipe", "nfnet_f0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")
def test_failed_output_is_an_error():
    with open("/dev/full", "w") as full:
        result = subprocess.run([COMMAND, "recipe", "nfnet_f0"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["convert"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "x"],
        ["demo", "--out", ""],
        ["publish", "", "org/name"],
        ["convert", "F0_haiku.npz", "--out", "s3://bucket/nfnet_f0"],
    ],
)
def test_wrong_usage_ends_with_2_and_no_traceback(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: nfnet-timm" in capsys.readouterr().err


def test_help_does_not_import_torch(run_python):
    out = run_python(
        "import sys\nfrom nfnet_timm.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    assert out.rstrip().endswith("False")
    assert "convert" in out
