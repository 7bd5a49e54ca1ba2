"""The command line: its output and exit status. A user error gives one line, not a traceback."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file

import nfnet_timm
from nfnet_timm.cli import main
from nfnet_timm.publish import convert, folder

COMMAND = Path(sys.executable).parent / "nfnet-timm"
SOURCE = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")


def test_convert_to_a_folder_and_back(tmp_path, monkeypatch, capsys):
    folder, file = tmp_path / "out", tmp_path / "back.npz"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["convert", SOURCE, "--out=~/out"]) == 0  # a shell does not expand this "~"
    out = capsys.readouterr().out
    assert "nfnet_tiny_haiku_2021.npz: nfnet_f0, 178,272 parameters, SHA-256 " in out
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in out
    assert main(["convert", "~/out", "--out", str(file)]) == 0
    assert "131 arrays in 52 modules" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "missing.npz", "--out", "out"], "missing.npz does not exist: expected one of the authors' files"),
        (["convert", SOURCE, "--out", "out.npz"], "cannot convert"),
        (["convert", "folder", "--out", "out.npz"], "has no model.safetensors"),
        (["convert", "damaged", "--out", "out.npz"], "model.safetensors is damaged, or is not a safetensors file"),
        (["convert", SOURCE, "--out", "link"], "link is a link to something that does not exist: expected a folder"),
        (["convert", SOURCE, "--out", "empty.npz/out"], "cannot write empty.npz/out"),
        (["demo", "--out", "link"], "link is a link to something that does not exist: expected a folder"),
        (["demo", "--out", "empty.npz"], "empty.npz is a file: expected a folder"),
        (["download", "f7"], "'f7': expected one of f0, f1, f2, f3, f4, f5, f6"),
        (["download", "f0", "--to", "empty.npz"], "empty.npz is a file: expected a folder"),
        (["publish", "missing.npz", "org/tiny"], "missing.npz does not exist: expected one of the authors' files"),
        (["publish", ".", "org/tiny"], "train.py, pass one of its files, such as model_best.pth.tar"),
        (["publish", SOURCE, "just-a-name"], "expected ORGANIZATION/NAME"),
        (["publish", SOURCE, "org/bad name"], "org/bad name"),
        (["publish", SOURCE, "org/tiny", "--revision", "a b"], "'a b' cannot be the name of a branch"),
        (["publish", SOURCE, "org/tiny", "--tag", "x..y"], "'x..y' cannot be the name of a tag"),
        (
            ["publish", SOURCE, "org/tiny", "--class-names", "no.txt"],
            "no.txt cannot be read (No such file or directory)",
        ),
        (["publish", SOURCE, "org/tiny", "--license", "mit", "--out", "link"], "link is a link to something that does"),
        (["verify", "bad name"], "bad name"),
        (["verify", "org/tiny", "--revision", ""], "the revision is empty: expected a branch, a tag or a commit"),
    ],
)
def test_user_error_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    """The client of the Hub is offline, so these errors need no network."""
    monkeypatch.chdir(tmp_path)
    Path("empty.npz").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("unmounted")
    Path("damaged").mkdir()
    Path("damaged/model.safetensors").write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("nfnet-timm: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def converted(tmp_path, dtype):
    """Return a folder that `nfnet-timm convert` wrote, with weights in ``dtype``."""
    out = tmp_path / "folder"
    assert main(["convert", SOURCE, "--out", str(out)]) == 0
    weights = {name: value.to(dtype) for name, value in load_file(out / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def test_half_precision_weights_convert_back_to_a_file_in_a_new_folder(tmp_path):
    folder, file, second = converted(tmp_path, torch.bfloat16), tmp_path / "no" / "such" / "x.npz", tmp_path / "second"
    assert main(["convert", str(folder), "--out", str(file)]) == 0
    assert [p.name for p in file.parent.iterdir()] == ["x.npz"]
    assert main(["convert", str(file), "--out", str(second)]) == 0
    written, read = load_file(folder / "model.safetensors"), load_file(second / "model.safetensors")
    assert {name: value.float() for name, value in written.items()}.keys() == read.keys()
    for name, value in written.items():
        torch.testing.assert_close(read[name], value.float(), rtol=0, atol=0)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("unmounted")])
def test_existing_file_is_replaced_only_with_overwrite_and_a_directory_never(tmp_path, capsys, make):
    mine, file = converted(tmp_path, torch.float32), tmp_path / "back.npz"
    make(file)
    assert main(["convert", str(mine), "--out", str(file)]) == 1
    message = (
        f"{file} is a directory or a pipe: expected a file" if file.is_dir() else f"{file} exists: pass --overwrite"
    )
    assert message in capsys.readouterr().err
    assert main(["convert", str(mine), "--out", str(file), "--overwrite"]) == file.is_dir()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_the_existing_file_unchanged(tmp_path, monkeypatch, capsys, error):
    mine, file = converted(tmp_path, torch.float32), tmp_path / "back.npz"
    file.write_bytes(b"mine")

    def fail(tree, path):
        Path(path).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(convert, "write_tree", fail)
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", str(mine), "--out", str(file), "--overwrite"]) in (1, 130)
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else "[Errno 28] No space left on device"
    assert message in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_clean_up_as_ctrl_c_does(tmp_path, monkeypatch, capsys, how):
    """Terminals and `timeout` send SIGHUP and SIGTERM twice."""
    number, rmtree, interrupted = getattr(signal, how), shutil.rmtree, []

    def again(*args, **kwargs):
        if how != "SIGINT":
            os.kill(os.getpid(), number)
        rmtree(*args, **kwargs)

    def interrupt(*_):
        interrupted.append(number)
        monkeypatch.setattr(shutil, "rmtree", again)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(folder, "save_config", interrupt)
    assert main(["convert", SOURCE, "--out", str(tmp_path / "out")]) == 128 + number
    assert interrupted
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_that_another_error_hides_is_reported_as_an_interruption(tmp_path, monkeypatch, capsys):
    def to_folder(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as torch's C++ code does
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(convert, "convert_to_folder", to_folder)
    assert main(["convert", SOURCE, "--out", str(tmp_path / "out")]) == 143
    assert "interrupted" in capsys.readouterr().err


def test_ignored_signal_stays_ignored(tmp_path, monkeypatch):
    """nohup ignores SIGHUP."""
    write = folder.write_weights

    def hung_up(*args):
        os.kill(os.getpid(), signal.SIGHUP)
        write(*args)

    monkeypatch.setattr(folder, "write_weights", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["convert", SOURCE, "--out", str(tmp_path / "out")]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_missing_extra_is_reported_with_the_command_to_install_it(monkeypatch, capsys):
    monkeypatch.delattr(nfnet_timm, "demo", raising=False)
    monkeypatch.setitem(sys.modules, "nfnet_timm.demo", None)  # stands for a demo that imports a missing package
    assert main(["demo"]) == 1
    assert "the demo needs `pip install '.[demo]'`" in capsys.readouterr().err


class Interrupted:
    def find_spec(self, *_):
        raise KeyboardInterrupt


def test_ctrl_c_during_an_import_shows_no_traceback(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "nfnet_timm.recipes", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    assert main(["recipe", "nfnet_f0"]) == 130
    assert capsys.readouterr().err == "nfnet-timm: interrupted; run the same command again\n"


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


def test_names_that_the_output_cannot_encode_are_written_as_escapes(tmp_path):
    run = [COMMAND, "convert", SOURCE, "--out", str(tmp_path / "\u72ac")]
    result = subprocess.run(run, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True)
    assert result.returncode == 0
    assert rb"\u72ac" in result.stdout
    assert result.stderr == b""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo", "--epochs", "0"],
        ["demo", "--out", ""],
        ["publish", "--out", ""],
        ["publish", "w.pth", "org/name", "--model-kwargs", "depths"],
        ["publish", "w.pth", "org/name", "--model-kwargs", "a b=1"],
        ["convert", "F0_haiku.npz", "--out", "s3://bucket/nfnet_f0"],
        ["convert", "F0_haiku.npz", "--out", "\udcff"],  # a byte that is not UTF-8
    ],
)
def test_wrong_usage_ends_with_2_names_the_value_and_shows_no_traceback(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "usage: nfnet-timm" in error
    assert (repr(arguments[-1]) if arguments else "COMMAND") in error


@pytest.mark.parametrize(
    ("option", "text"), [("--help", "convert"), ("--version", f"nfnet-timm {nfnet_timm.__version__}\n")]
)
def test_help_and_version_do_not_import_torch(run_python, option, text):
    code = f"from nfnet_timm.cli import main\nmain([{option!r}])"
    out = run_python(f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n{code}")
    assert text in out
    assert out.endswith("False\n")
