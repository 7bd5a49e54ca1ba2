"""After any fault, the repo is unchanged or complete, and the same command finishes the push. verify finds damage."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import golden
import huggingface_hub
import pytest
import torch
from hub_server import Fault
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file, save_file

from nfnet_timm.cli import main
from nfnet_timm.formats.safetensors_file import read_header
from nfnet_timm.publish.push import publish, push
from nfnet_timm.publish.sources import open_model
from nfnet_timm.publish.verify import verify

COMMAND = Path(sys.executable).parent / "nfnet-timm"
SOURCE = golden.DATA / "nfnet_tiny_haiku_2021.npz"
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Skip the waits of the client, which are 1, 2, 4, 8 and 8 seconds between its attempts."""
    monkeypatch.setattr(f"{huggingface_hub.utils._http.__name__}.time.sleep", lambda _: None)


def is_complete(hub, folder, revision="main"):
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return files.items() <= hub.files("org/tiny", revision).items()


def is_untouched(hub):
    repo = hub.repos.get("org/tiny")
    return repo is None or (set(repo.branches) == {"main"} and set(hub.files("org/tiny")) == {".gitattributes"})


def test_all_files_arrive_in_one_commit_and_a_second_push_makes_none(hub, built):
    (built / ".nfnet-timm-new").mkdir()  # of a killed run
    first, new = push(built, "org/tiny", message="weights of Monday")
    assert new
    assert push(built, "org/tiny") == (first, False)
    assert [c.title for c in hub.repos["org/tiny"].commits.values()] == ["initial commit", "weights of Monday"]
    assert is_complete(hub, built)
    assert set(hub.files("org/tiny")) == {".gitattributes", *FILES}


def test_other_content_is_replaced_only_with_force_or_on_a_new_branch(hub, built_once):
    hub.push("org/tiny", "notes.txt", b"mine")
    theirs = hub.push("org/tiny", "config.json", b"{}")
    with pytest.raises(ValueError, match="other content at main: README.md, config.json, model.safetensors would"):
        push(built_once, "org/tiny")
    commit, new = push(built_once, "org/tiny", revision="v2")
    assert new
    assert hub.repos["org/tiny"].branches == {"main": theirs, "v2": commit}
    assert push(built_once, "org/tiny", revision="v2") == (commit, False)
    hub.push("org/tiny", "config.json", b"[]", branch="v2")
    with pytest.raises(ValueError, match="has other content at v2: config.json would change.*--force"):
        push(built_once, "org/tiny", revision="v2")
    push(built_once, "org/tiny", force=True)
    assert hub.files("org/tiny")["notes.txt"] == b"mine"
    assert is_complete(hub, built_once)


def test_a_tag_is_never_moved_and_is_checked_before_the_push(hub, built_once):
    source = open_model(SOURCE)
    for _ in range(2):
        commit = publish(source, built_once, "org/tiny", tag="v1")[0].commit
    assert hub.repos["org/tiny"].tags == {"v1": commit}
    assert push(built_once, "org/tiny", tag="v1", revision="same") == (commit, False)  # a branch without a new commit
    assert hub.repos["org/tiny"].branches == {"main": commit, "same": commit}
    theirs = hub.push("org/tiny", "config.json", b"{}")
    with pytest.raises(ValueError, match=r"has the tag v1 at .*: choose another name for the tag. Nothing was"):
        push(built_once, "org/tiny", tag="v1", force=True)
    assert hub.repos["org/tiny"].branches["main"] == theirs
    assert hub.repos["org/tiny"].tags == {"v1": commit}


@pytest.mark.parametrize(
    "names", [{"revision": "v1"}, {"tag": "main"}, {"tag": "dev"}, {"revision": "v2", "tag": "v2"}]
)
def test_no_name_becomes_both_a_branch_and_a_tag(hub, built_once, names):
    commit, _ = push(built_once, "org/tiny")
    push(built_once, "org/tiny", revision="dev")
    HfApi().create_tag("org/tiny", tag="v1")
    with pytest.raises(ValueError, match="would be a branch and a tag of org/tiny.*Nothing was pushed"):
        push(built_once, "org/tiny", **names)
    assert hub.repos["org/tiny"].branches == {"main": commit, "dev": commit}
    assert hub.repos["org/tiny"].tags == {"v1": commit}


def test_option_private_makes_a_private_repo_and_refuses_a_public_one(hub, built_once, monkeypatch):
    push(built_once, "org/tiny", private=True)
    assert hub.repos["org/tiny"].private
    assert verify("org/tiny").difference < 1e-6
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match="it is private and the access token may not read it"):
        verify("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.repos["org/tiny"].private = False
    with pytest.raises(ValueError, match="exists and is public"):
        push(built_once, "org/tiny", private=True)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "no access token: log in"),
        ("hf_unknown", "does not accept the access token"),
        ("hf_reader", "no write access"),
        ("\u201chf_writer\u201d", "characters other than ASCII"),
    ],
)
def test_rejected_token_gives_an_error_that_does_not_show_it(hub, built_once, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((ValueError, OSError), match=message) as error:
        push(built_once, "org/tiny")
    assert not token or token not in str(error.value)
    assert is_untouched(hub)


STAGES = {
    "making the repo": ("POST", "/api/repos/create"),
    "reading the repo": ("GET", "/api/models/org/tiny/revision/main"),
    "uploading": ("PUT", "/lfs/"),
    "the commit": ("POST", "/commit/"),
    "downloading": ("GET", "/resolve/"),
}


@pytest.mark.parametrize(
    ("stage", "action", "advice"),
    [
        *((stage, 500, "run the same command again") for stage in list(STAGES)[:4]),
        ("uploading", "cut", "run the same command again"),
        ("the commit", 429, "run the command again in some minutes"),
    ],
)
def test_lasting_fault_leaves_the_repo_unchanged_and_the_next_run_finishes(hub, built_once, stage, action, advice):
    """Without a new branch: the second run would find other content there."""
    fault = Fault(*STAGES[stage], action, times=99, headers={"Retry-After": "7"})
    hub.faults.append(fault)
    with pytest.raises(OSError, match=f"failed: .*To do: .*{advice}"):
        push(built_once, "org/tiny", revision="v2")
    assert fault.times < 99
    assert is_untouched(hub)
    hub.faults.clear()
    assert push(built_once, "org/tiny", revision="v2")[1]
    assert is_complete(hub, built_once, "v2")
    assert len(hub.repos["org/tiny"].commits) == 2


def test_commit_whose_answer_is_lost_counts_as_pushed(hub, built_once):
    hub.faults.append(Fault("POST", "/commit/", "half"))
    commit, new = push(built_once, "org/tiny")
    assert new
    assert hub.repos["org/tiny"].branches["main"] == commit
    assert is_complete(hub, built_once)
    assert push(built_once, "org/tiny") == (commit, False)


def test_two_simultaneous_pushes_of_the_same_content_both_succeed(hub, built_once):
    together = threading.Barrier(2)
    hub.faults.append(Fault("POST", "/commit/", together.wait, times=2))
    commits = []
    threads = [threading.Thread(target=lambda: commits.append(push(built_once, "org/tiny")[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert commits == [hub.repos["org/tiny"].branches["main"]] * 2
    assert len(hub.repos["org/tiny"].commits) == 2
    assert is_complete(hub, built_once)


def test_push_of_another_user_in_between_is_kept_and_gives_an_error(hub, built_once):
    hub.faults.append(Fault("POST", "/commit/", lambda: hub.push("org/tiny", "README.md", b"theirs")))
    with pytest.raises(OSError, match="another push came first and yours was not made"):
        push(built_once, "org/tiny")
    assert hub.files("org/tiny")["README.md"] == b"theirs"
    assert "model.safetensors" not in hub.files("org/tiny")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_the_repo_unchanged_or_complete_and_the_next_run_finishes(hub, tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    command = ["publish", str(SOURCE), "org/tiny", "--license", "mit"]
    process = subprocess.Popen([COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    answer, requests = threading.Event(), []

    def interrupt():
        requests.extend(hub.log)
        process.send_signal(signal.SIGINT)
        answer.wait(20)  # the request is on its way until the client is gone

    hub.faults.append(Fault(*STAGES[stage], interrupt))
    out, _ = process.communicate()
    answer.set()
    assert process.returncode == 130
    assert "nfnet-timm: interrupted; run the same command again" in out
    assert "Traceback" not in out
    assert hub.log == requests  # it ends at once, and does not try again after a timeout
    if "org/tiny" in hub.repos:
        names = set(hub.files("org/tiny")) - {".gitattributes"}
        assert names in (set(), FILES)
    assert {path.name for path in (tmp_path / "hub-repos" / "tiny").iterdir()} == FILES
    hub.faults.clear()
    assert main(command) == 0
    assert is_complete(hub, tmp_path / "hub-repos" / "tiny")


# --- verify


def pushed_by_others(hub, built, header=None, config=None, arrays=None):
    """Push ``built`` to org/tiny, with other entries in its header, another config.json or other arrays."""
    for name in FILES:
        hub.push("org/tiny", name, (built / name).read_bytes())
    metadata = {**read_header(built / "model.safetensors"), **(header or {})}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    save_file(arrays or load_file(built / "model.safetensors"), "theirs.safetensors", metadata)
    hub.push("org/tiny", "model.safetensors", Path("theirs.safetensors").read_bytes())
    if config is not None:
        hub.push("org/tiny", "config.json", config)


def test_verify_reports_the_commit_and_the_hashes_also_of_a_repo_with_other_folders(hub, built_once):
    commit, _ = push(built_once, "org/tiny")
    hub.push("org/tiny", "onnx/config.json", b"{}")
    head = hub.push("org/tiny", "onnx/model.safetensors", (built_once / "model.safetensors").read_bytes())
    assert verify("org/tiny", commit).commit == commit
    report = verify("org/tiny")
    assert report.commit == head
    assert set(report.files) == {*FILES, "onnx/config.json", "onnx/model.safetensors"}
    assert report.difference < 1e-6
    assert report.bad_cached == []


@pytest.mark.parametrize("answer", ["y", "n", "--remove", "closed"])
def test_a_damaged_file_in_the_cache_is_found_and_removed_after_a_yes(hub, built_once, capsys, monkeypatch, answer):
    push(built_once, "org/tiny")
    hub.faults.append(Fault("GET", r"/resolve/.*/model.safetensors", "flip"))
    damaged = Path(hf_hub_download("org/tiny", "model.safetensors"))

    monkeypatch.setattr("sys.stdin.isatty", lambda: answer != "--remove", raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if answer == "closed":
        monkeypatch.setattr("sys.stdin", None)
    is_removed = answer in ("y", "--remove")
    assert main(["verify", "org/tiny", *(["--remove"] if answer == "--remove" else [])]) == (not is_removed)
    out, error = capsys.readouterr()
    assert f"DAMAGED in your cache: {damaged}" in out
    assert ("--remove" in error) == (not is_removed)
    assert damaged.exists() == (not is_removed)


def no_logits(hub, built):
    pushed_by_others(hub, built, {"logits": None})


def in_a_folder(hub, built):
    for name in FILES:
        hub.push("org/tiny", f"timm/{name}", (built / name).read_bytes())


def of_another_package(hub, built):
    arrays = {"bn1.num_batches_tracked": torch.tensor(5)}
    pushed_by_others(hub, built, {"logits": "yes", "arrays_sha256": None}, b'{"architecture": ["a"]}', arrays)


@pytest.mark.parametrize("push_theirs", [no_logits, in_a_folder, of_another_package])
def test_only_hashes_are_compared_without_recorded_logits(hub, built, capsys, monkeypatch, push_theirs):
    monkeypatch.chdir(built.parent)
    push_theirs(hub, built)
    assert main(["verify", "org/tiny"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors: hashes as recorded by the Hub" in out
    assert "no recorded logits to compare with" in out


def other_arrays(hub, built):
    arrays = load_file(built / "model.safetensors")
    arrays["head.fc.bias"] += 0.1
    pushed_by_others(hub, built, {"arrays_sha256": None}, arrays=arrays)


def flipped_bit(hub, built):
    content = bytearray((built / "model.safetensors").read_bytes())
    content[-4] ^= 1
    hub.push("org/tiny", "config.json", (built / "config.json").read_bytes())
    hub.push("org/tiny", "model.safetensors", bytes(content))


def logits(text):
    return lambda hub, built: pushed_by_others(hub, built, {"logits": text})


def config(text):
    return lambda hub, built: pushed_by_others(hub, built, config=text)


@pytest.mark.parametrize(
    ("push_theirs", "message"),
    [
        (other_arrays, "the logits of org/tiny at"),
        (flipped_bit, "the arrays of org/tiny/model.safetensors do not have the hash in its header"),
        (logits("[1.0]"), "1 logits to compare with, expected 8"),
        (logits("[NaN" + ", 1.0" * 7 + "]"), "logits"),
        (logits("[" * 100_000), "logits that cannot be read"),
        (config(b"{"), "org/tiny/config.json is not JSON"),
        (config(b'{"architecture": "nfnet_f0", "num_classes": 10}'), "stages.2"),
        (lambda hub, built: hub.push("org/tiny", "pytorch_model.bin", b""), "org/tiny has no safetensors file, but "),
        (lambda hub, built: hub.push("org/other", "config.json", b"{}"), "the repo or revision does not exist"),
    ],
)
def test_missing_damaged_or_hostile_repo_gives_a_one_line_error(hub, built, capsys, monkeypatch, push_theirs, message):
    monkeypatch.chdir(built.parent)
    push_theirs(hub, built)
    assert main(["verify", "org/tiny"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "/tmp" not in error
    assert error.count("\n") == 1


def test_names_of_a_hostile_repo_do_not_control_the_terminal(hub, built_once, capsys):
    push(built_once, "org/tiny")
    hub.push("org/tiny", "a\x1b[2J\n  logits as recorded.json", b"{}")
    assert main(["verify", "org/tiny"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 3


@pytest.mark.parametrize(
    ("action", "code", "message"),
    [
        (401, "RepoNotFound", "To do: the repo or revision does not exist"),  # without an access token
        (401, "GatedRepo", "To do: ask for access on the page of the repo"),
        (403, "GatedRepo", "To do: ask for access on the page of the repo"),
        (b"<html>", "", "the answer cannot be read: JSONDecodeError .*To do: run the same command"),
    ],
)
def test_error_for_an_answer_of_the_hub_says_what_to_do(hub, built_once, action, code, message):
    push(built_once, "org/tiny")
    hub.faults.append(Fault("GET", "/api/models/", action, headers={"X-Error-Code": code}))
    with pytest.raises(OSError, match=f"reading org/tiny failed: .*{message}"):
        verify("org/tiny")


def test_unreachable_hub_and_offline_mode_give_an_error_that_says_what_to_do(hub, built_once, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(OSError, match=r"creating org/tiny failed: .*To do: run the same command again"):
        push(built_once, "org/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="To do: offline mode is on: unset HF_HUB_OFFLINE"):
        verify("org/tiny")
