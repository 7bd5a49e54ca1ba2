"""After any fault, the repo is unchanged or complete, and the same command finishes the push."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import golden
import huggingface_hub
import pytest
import timm
import torch
from fresh_process import run_fresh
from hub_server import Fault
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file

from nfnet_timm.cli import main
from nfnet_timm.formats.safetensors_file import read_header
from nfnet_timm.publish.folder import build_repo, show_repo
from nfnet_timm.publish.push import push
from nfnet_timm.publish.push import tag_commit as tag
from nfnet_timm.publish.sources import open_model
from nfnet_timm.publish.verify import verify

SOURCE = golden.DATA / "nfnet_tiny_haiku_2021.npz"
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "tiny"
    build_repo(open_model(SOURCE), "org/tiny", folder, "apache-2.0")
    return folder


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Skip the waits of the client, which are 1, 2, 4, 8 and 8 seconds between its attempts."""
    monkeypatch.setattr(f"{huggingface_hub.utils._http.__name__}.time.sleep", lambda _: None)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_complete(hub, folder, revision="main"):
    return contents(folder).items() <= hub.files("org/tiny", revision).items()


def is_untouched(hub):
    return "org/tiny" not in hub.repos or set(hub.files("org/tiny")) == {".gitattributes"}


def test_files_of_a_killed_run_are_not_pushed(hub, built, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(built, folder)
    (folder / ".nfnet-timm-zg6sgyq4").mkdir()
    (folder / ".nfnet-timm-.lock").touch()
    assert "zg6sgyq4" not in show_repo(folder, "org/tiny", "main")
    push(folder, "org/tiny")
    assert set(hub.files("org/tiny")) == {".gitattributes", *FILES}


def test_all_files_arrive_in_one_commit_with_its_message_and_a_second_push_makes_none(hub, built):
    first, new = push(built, "org/tiny", message="weights of Monday")
    assert new
    assert push(built, "org/tiny") == (first, False)
    assert [c.title for c in hub.repos["org/tiny"].history("main")] == ["weights of Monday", "initial commit"]
    assert is_complete(hub, built)


def test_other_content_is_overwritten_only_with_force_which_leaves_files_of_other_names(hub, built):
    push(built, "org/tiny")
    hub.push("org/tiny", "notes.txt", b"mine")
    theirs = hub.push("org/tiny", "config.json", b"{}")
    with pytest.raises(ValueError, match=r"has other content at main: config.json would change.*--force"):
        push(built, "org/tiny")
    assert hub.repos["org/tiny"].branches["main"] == theirs
    push(built, "org/tiny", force=True)
    assert hub.files("org/tiny")["notes.txt"] == b"mine"
    assert is_complete(hub, built)


def test_a_branch_and_a_tag_are_made(hub, built):
    commit, _ = push(built, "org/tiny", revision="v2")
    assert is_complete(hub, built, "v2")
    assert set(hub.files("org/tiny")) == {".gitattributes"}
    tag("org/tiny", "released", commit)
    tag("org/tiny", "released", commit)
    assert hub.repos["org/tiny"].tags == {"released": commit}
    other, _ = push(built, "org/tiny")
    with pytest.raises(ValueError, match="choose another name for the tag"):
        tag("org/tiny", "released", other)


def test_option_private_makes_a_private_repo_and_refuses_a_public_one(hub, built, monkeypatch):
    push(built, "org/tiny", private=True)
    assert hub.repos["org/tiny"].private
    assert verify("org/tiny").difference < 1e-6
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match="it is private and the access token may not read it"):
        verify("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.repos["org/tiny"].private = False
    with pytest.raises(ValueError, match="exists and is public"):
        push(built, "org/tiny", private=True)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "no access token: log in"),
        ("hf_unknown", "does not accept the access token"),
        ("hf_reader", "no write access"),
    ],
)
def test_rejected_token_gives_an_error_that_does_not_show_it(hub, built, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((ValueError, OSError), match=message) as error:
        push(built, "org/tiny")
    assert not token or token not in str(error.value)
    assert is_untouched(hub)


BEFORE_THE_COMMIT = {
    "making the repo": ("POST", "/api/repos/create"),
    "reading the repo": ("GET", "/api/models/org/tiny/revision/main"),
    "validating the card": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "asking where to upload": ("POST", "/objects/batch"),
    "uploading": ("PUT", "/lfs/"),
    "the commit": ("POST", "/commit/"),
}


@pytest.mark.parametrize("action", [500, "cut"])
@pytest.mark.parametrize("stage", BEFORE_THE_COMMIT)
def test_lasting_fault_leaves_the_repo_unchanged_and_the_next_run_finishes(hub, built, stage, action):
    before = contents(built)
    fault = Fault(*BEFORE_THE_COMMIT[stage], action, times=99)
    hub.faults.append(fault)
    with pytest.raises(OSError, match=r"failed: .*To do: run the same command again"):
        push(built, "org/tiny")
    assert fault.times < 99
    assert is_untouched(hub)
    assert contents(built) == before
    hub.faults.clear()
    assert push(built, "org/tiny")[1]
    assert is_complete(hub, built)
    assert len(hub.repos["org/tiny"].commits) == 2


def test_lasting_request_for_a_pause_gives_an_error(hub, built):
    hub.faults.append(Fault("POST", "/commit/", 429, times=99, headers={"Retry-After": "7"}))
    with pytest.raises(OSError, match="run the command again in some minutes"):
        push(built, "org/tiny")
    assert is_untouched(hub)


def test_commit_whose_answer_is_lost_counts_as_pushed(hub, built):
    hub.faults.append(Fault("POST", "/commit/", "lost"))
    commit, new = push(built, "org/tiny")
    assert new
    assert hub.repos["org/tiny"].branches["main"] == commit
    assert is_complete(hub, built)
    assert push(built, "org/tiny") == (commit, False)


def test_push_of_another_user_in_between_is_kept_and_gives_an_error(hub, built):
    hub.faults.append(Fault("POST", "/commit/", lambda: hub.push("org/tiny", "README.md", b"theirs")))
    with pytest.raises(OSError, match="another push came first and yours was not made"):
        push(built, "org/tiny")
    assert hub.files("org/tiny")["README.md"] == b"theirs"
    assert "model.safetensors" not in hub.files("org/tiny")
    with pytest.raises(ValueError, match="other content"):
        push(built, "org/tiny")
    push(built, "org/tiny", force=True)
    assert is_complete(hub, built)


def test_two_simultaneous_pushes_of_the_same_content_both_succeed(hub, built):
    together = threading.Barrier(2)
    hub.faults.append(Fault("POST", "/commit/", together.wait, times=2))
    commits = []
    threads = [threading.Thread(target=lambda: commits.append(push(built, "org/tiny")[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert commits == [hub.repos["org/tiny"].branches["main"]] * 2
    assert len(hub.repos["org/tiny"].commits) == 2
    assert is_complete(hub, built)


def test_verify_reports_the_commit_and_the_hashes(hub, built):
    commit, _ = push(built, "org/tiny")
    report = verify("org/tiny")
    assert report.commit == commit
    assert set(report.files) == FILES
    assert report.difference < 1e-6
    assert report.bad_cached == []
    assert verify("org/tiny", commit).commit == commit


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_download_with_a_wrong_bit_is_found(hub, built, name):
    push(built, "org/tiny")
    hub.faults.append(Fault("GET", f"/resolve/.*/{name}", "flip"))
    with pytest.raises(ValueError, match=f"the hash of the download of {name} is .*: the Hub records "):
        verify("org/tiny")
    assert verify("org/tiny").difference < 1e-6


def test_a_damaged_file_in_the_cache_is_found_and_removed(hub, built, capsys):
    push(built, "org/tiny")
    hub.faults.append(Fault("GET", r"/resolve/.*/model.safetensors", "flip"))
    damaged = Path(hf_hub_download("org/tiny", "model.safetensors"))
    assert damaged.read_bytes() != (built / "model.safetensors").read_bytes()
    assert Path(hf_hub_download("org/tiny", "model.safetensors")) == damaged  # the client keeps the damaged file
    assert verify("org/tiny").bad_cached == [damaged]
    assert main(["verify", "org/tiny"]) == 1
    output = capsys.readouterr()
    assert f"DAMAGED in your cache: {damaged}" in output.out
    assert "--remove" in output.err
    assert main(["verify", "org/tiny", "--remove"]) == 0
    assert (
        Path(hf_hub_download("org/tiny", "model.safetensors")).read_bytes()
        == (built / "model.safetensors").read_bytes()
    )


def test_wrong_weights_are_detected_by_the_recorded_logits(hub, built, tmp_path):
    arrays = load_file(built / "model.safetensors")
    arrays["head.fc.bias"] += 0.1
    pushed_by_others(hub, built, tmp_path, arrays=arrays)
    with pytest.raises(ValueError, match=r"the logits of org/tiny at .* differ by"):
        verify("org/tiny")


def test_a_repo_without_recorded_logits_can_be_verified(hub, built, capsys):
    push(built, "org/tiny")
    files = hub.files("org/tiny")
    size = int.from_bytes(files["model.safetensors"][:8], "little")
    header = files["model.safetensors"][: 8 + size].replace(b'"logits"', b'"letter"')
    hub.push("org/tiny", "model.safetensors", header + files["model.safetensors"][8 + size :])
    assert main(["verify", "org/tiny"]) == 0
    assert "no recorded logits to compare with" in capsys.readouterr().out


def pushed_by_others(hub, built, tmp_path, header=None, config=None, arrays=None):
    """Push ``built`` to org/tiny, with other entries in its header, another config.json or other arrays."""
    push(built, "org/tiny")
    metadata = {**read_header(built / "model.safetensors"), **(header or {})}
    if arrays is not None:
        del metadata["arrays_sha256"]
    save_file(arrays or load_file(built / "model.safetensors"), tmp_path / "theirs.safetensors", metadata)
    hub.push("org/tiny", "model.safetensors", (tmp_path / "theirs.safetensors").read_bytes())
    if config is not None:
        hub.push("org/tiny", "config.json", config)


@pytest.mark.parametrize(
    "logits",
    [
        "[1.0]",
        "[NaN" + ", 1.0" * 7 + "]",
        "[[1.0]" + ", 1.0" * 7 + "]",
        "",
        "[" * 100_000,
        "[1" + "0" * 400 + ", 1" * 7 + "]",
    ],
)
def test_malformed_recorded_logits_give_a_one_line_error(hub, built, tmp_path, capsys, logits):
    pushed_by_others(hub, built, tmp_path, {"logits": logits})
    capsys.readouterr()
    assert main(["verify", "org/tiny"]) == 1
    captured = capsys.readouterr()
    assert "within" not in captured.out
    assert "logits" in captured.err
    assert captured.err.count("\n") == 1


def test_arrays_that_do_not_have_the_hash_in_their_header_are_found(hub, built, capsys):
    push(built, "org/tiny")
    content = bytearray((built / "model.safetensors").read_bytes())
    content[-4] ^= 1
    hub.push("org/tiny", "model.safetensors", bytes(content))
    capsys.readouterr()
    assert main(["verify", "org/tiny"]) == 1
    error = capsys.readouterr().err
    assert "the arrays of org/tiny/model.safetensors do not have the hash in its header" in error
    assert error.count("\n") == 1


def test_a_repo_without_safetensors_is_named(hub, capsys):
    hub.push("org/tiny", "pytorch_model.bin", b"weights")
    assert main(["verify", "org/tiny"]) == 1
    error = capsys.readouterr().err
    assert "org/tiny has no safetensors file, but " in error
    assert "pytorch_model.bin" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "config", [b"{}", b'{"architecture": "resnet18"}', b'{"architecture": ["a"]}', b'{"architectures": ["BertModel"]}']
)
def test_only_hashes_are_compared_for_a_network_of_another_package(hub, built, tmp_path, capsys, config):
    arrays = {"bn1.num_batches_tracked": torch.tensor(5), "weight": torch.ones(3)}
    pushed_by_others(hub, built, tmp_path, {"logits": "yes"}, config, arrays)
    capsys.readouterr()
    assert main(["verify", "org/tiny"]) == 0
    out = capsys.readouterr().out
    assert "README.md, config.json, model.safetensors: hashes as recorded by the Hub" in out
    assert "within" not in out


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (b"{", "JSON"),
        (b'{"architecture": "nfnet_f0", "num_classes": 10}', "stages.2"),
        (b'{"architecture": "nfnet_f0", "num_classes": 1' + b"0" * 30 + b"}", "a size is too large: num_classes=1000"),
        (b'{"architecture": "nfnet_f9"}', "config.json is of 'nfnet_f9', but nfnet-timm wrote the weights"),
    ],
)
def test_unreadable_config_gives_a_one_line_error_with_the_name_of_the_repo(
    hub, built, tmp_path, capsys, config, expected
):
    pushed_by_others(hub, built, tmp_path, config=config)
    capsys.readouterr()
    assert main(["verify", "org/tiny"]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert "org/tiny" in error
    assert "/tmp" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("repo", "arguments", "message"),
    [
        ("org/nothing", [], "the repo or revision does not exist"),
        ("org/tiny", ["--revision", "v9"], "the repo or revision does not exist"),
        ("bad name", [], "bad name"),
    ],
)
def test_user_error_in_verify_gives_a_one_line_error(hub, built, capsys, repo, arguments, message):
    push(built, "org/tiny")
    capsys.readouterr()
    assert main(["verify", repo, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unreachable_hub_gives_an_error(built, monkeypatch, hub):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(OSError, match=r"creating org/tiny failed: .*To do: run the same command again"):
        push(built, "org/tiny")


def test_offline_mode_gives_an_error_that_says_how_to_leave_it(capsys):
    assert main(["verify", "org/tiny"]) == 1  # HF_HUB_OFFLINE is set here
    assert "To do: offline mode is on: unset HF_HUB_OFFLINE" in capsys.readouterr().err


STAGES = {
    "while the repo is made": ("POST", "/api/repos/create"),
    "while the weights are uploaded": ("PUT", "/lfs/"),
    "while the commit is made": ("POST", "/commit/"),
    "while the result is downloaded": ("GET", "/resolve/"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_the_repo_unchanged_or_complete_and_the_next_run_finishes(hub, tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    command = ["publish", str(SOURCE), "org/tiny", "--license", "mit"]
    code = f"""
import os, signal
from huggingface_hub import constants
from nfnet_timm.cli import main
os.chdir({str(tmp_path)!r})
os.environ["HF_TOKEN"] = "hf_writer"
constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = False, "hf"
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    open("child", "w").write(str(os.getpid()))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os._exit(main({command!r}))
"""
    answer = threading.Event()

    def interrupt():
        os.kill(int(Path("child").read_text()), signal.SIGINT)
        answer.wait(20)  # the request is on its way until the client is gone

    hub.faults.append(Fault(*STAGES[stage], interrupt))
    out = run_fresh(code)
    answer.set()
    assert out.splitlines()[-1] == "130"
    assert "nfnet-timm: interrupted; run the same command again" in out
    assert "Traceback" not in out
    if "org/tiny" in hub.repos:
        names = set(hub.files("org/tiny")) - {".gitattributes"}
        assert names in (set(), FILES)
    assert {path.name for path in (tmp_path / "hub-repos" / "tiny").iterdir()} == FILES
    hub.faults.clear()
    assert main(command) == 0
    assert is_complete(hub, tmp_path / "hub-repos" / "tiny")


@pytest.mark.slow
def test_client_with_xet_pushes_inline_files(hub, tmp_path):
    hub.inline = True
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_XET"}
    command = ["publish", str(SOURCE), "org/tiny", "--license", "mit"]
    code = f"from nfnet_timm.cli import main; assert main({command!r}) == 0\n"
    code += "import timm; timm.create_model('hf-hub:org/tiny', pretrained=True)"
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert is_complete(hub, tmp_path / "hub-repos" / "tiny")
    assert not any("/lfs/" in path or "xet" in path for _, path in hub.log)
    assert timm.create_model("hf-hub:org/tiny", pretrained=True).num_classes == 10


# --- branches and tags


def test_new_branch_keeps_the_other_files_of_main(hub, built):
    """The error of a push that would replace other content advises to do this."""
    hub.push("org/tiny", "config.json", b"{}")
    hub.push("org/tiny", "notes.txt", b"mine")
    main_before = hub.repos["org/tiny"].branches["main"]
    with pytest.raises(ValueError, match="or --revision to use another branch"):
        push(built, "org/tiny")
    commit, new = push(built, "org/tiny", revision="v2")
    assert new
    assert is_complete(hub, built, "v2")
    assert hub.repos["org/tiny"].branches == {"main": main_before, "v2": commit}
    assert push(built, "org/tiny", revision="v2") == (commit, False)
    hub.push("org/tiny", "config.json", b"[]", branch="v2")
    with pytest.raises(ValueError, match="has other content at v2: config.json would change"):
        push(built, "org/tiny", revision="v2")


@pytest.mark.parametrize("stage", ["preupload", "upload", "commit"])
def test_new_branch_is_removed_if_its_commit_fails(hub, built, stage):
    hub.push("org/tiny", "config.json", b"{}")
    before = dict(hub.repos["org/tiny"].branches)
    paths = {"preupload": ("POST", "/preupload/"), "upload": ("POST", "objects/batch"), "commit": ("POST", "/commit/")}
    hub.faults.append(Fault(*paths[stage], 500, times=99))
    with pytest.raises(OSError, match="pushing to org/tiny failed"):
        push(built, "org/tiny", revision="v2")
    assert hub.repos["org/tiny"].branches == before
    hub.faults.clear()
    push(built, "org/tiny", revision="v2")
    assert is_complete(hub, built, "v2")


def test_a_new_branch_of_the_same_content_is_made_without_a_commit(hub, built):
    commit, _ = push(built, "org/tiny")
    assert push(built, "org/tiny", revision="v2") == (commit, False)
    assert hub.repos["org/tiny"].branches == {"main": commit, "v2": commit}


def test_tag_of_another_commit_gives_an_error_before_the_push(hub, built):
    hub.push("org/tiny", "notes.txt", b"mine")
    repo = hub.repos["org/tiny"]
    repo.tags["v1"] = repo.branches["main"]
    before = dict(repo.branches)
    with pytest.raises(ValueError, match=r"has the tag v1 at .*: choose another name for the tag. Nothing was"):
        push(built, "org/tiny", tag="v1", force=True)
    assert repo.branches == before
    commit, _ = push(built, "org/tiny", tag="v2", force=True)
    tag("org/tiny", "v2", commit)
    assert push(built, "org/tiny", tag="v2") == (commit, False)
    hub.push("org/tiny", "more.txt", b"more")
    with pytest.raises(ValueError, match="has the tag v2 at"):  # of the commit before
        push(built, "org/tiny", tag="v2")


def test_a_repo_with_other_folders_is_verified_and_published_to(hub, built, capsys):
    push(built, "org/tiny")
    hub.push("org/tiny", "onnx/config.json", b"{}")
    hub.push("org/tiny", "onnx/model.safetensors", (built / "model.safetensors").read_bytes())
    hub.push("org/tiny", "a/b/README.md", b"text")
    report = verify("org/tiny")
    assert report.difference < 1e-6
    assert {"config.json", "onnx/config.json", "a/b/README.md"} < set(report.files)
    command = ["publish", str(SOURCE), "org/tiny", "--license", "apache-2.0", "--out", str(built)]
    assert main(command) == 0
    assert "logits as recorded" in capsys.readouterr().out


def test_repo_with_weights_only_in_a_subfolder_has_no_logits_to_compare(hub, built):
    for name in FILES:
        hub.push("org/tiny", f"timm/{name}", (built / name).read_bytes())
    assert verify("org/tiny").difference is None


@pytest.mark.parametrize("answer", ["y", "n", None])
def test_ctrl_d_at_the_question_means_no(hub, built, capsys, monkeypatch, answer):
    push(built, "org/tiny")
    cached = Path(hf_hub_download("org/tiny", "config.json"))
    cached.resolve().write_bytes(b"damaged")

    def reply(_):
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    assert main(["verify", "org/tiny"]) == (0 if answer == "y" else 1)
    assert cached.exists() == (answer != "y")
    assert "Traceback" not in capsys.readouterr().err
