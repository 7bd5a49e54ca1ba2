"""`nfnet-timm publish`: the folder that it builds, the errors, and the repo on the Hub."""

import json
import shutil
import signal
from pathlib import Path

import golden
import pytest
import timm
import torch
from finalizers import signal_in_a_finalizer
from fresh_process import run_fresh
from hub_server import Fault
from huggingface_hub import hf_hub_download
from safetensors import safe_open

from nfnet_timm.cli import main
from nfnet_timm.publish.fingerprints import logits_of
from nfnet_timm.publish.folder import build_repo, save_folder
from nfnet_timm.publish.sources import open_model

SOURCE = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")
FILES = {"README.md", "config.json", "model.safetensors"}
BUILT = "hub-repos/tiny"


def same_network(a, b):
    assert all(p.equal(b.get_parameter(name)) for name, p in a.named_parameters())
    torch.testing.assert_close(logits_of(a), logits_of(b))


@pytest.fixture
def publish(tmp_path, monkeypatch, capsys):
    """Run `nfnet-timm publish SOURCE org/tiny`, and return its exit status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, source=SOURCE, repo="org/tiny", license="apache-2.0"):
        status = main(["publish", str(source), repo, "--license", license, *arguments])
        captured = capsys.readouterr()
        assert "hf_writer" not in captured.out + captured.err
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "tiny"
    build_repo(open_model(Path(SOURCE)), "org/tiny", folder, "apache-2.0")
    return folder


@pytest.fixture
def built(built_once, tmp_path):
    """Return a folder as `nfnet-timm publish SOURCE org/tiny` builds it, where it builds it."""
    return Path(shutil.copytree(built_once, tmp_path / BUILT))


def test_published_repo_is_complete_and_loads_from_the_hub(hub, publish, tmp_path):
    status, out, _ = publish()
    assert status == 0
    files = hub.files("org/tiny")
    assert set(files) == FILES | {".gitattributes"}
    assert {name: (tmp_path / BUILT / name).read_bytes() for name in FILES}.items() <= files.items()
    assert [c.title for c in hub.repos["org/tiny"].history("main")] == ["Publish tiny", "initial commit"]
    commit = hub.repos["org/tiny"].branches["main"]
    assert f"pushed: commit {commit}" in out
    expected = timm.create_model(f"local-dir:{tmp_path / BUILT}", pretrained=True).eval()
    same_network(timm.create_model("hf-hub:org/tiny", pretrained=True).eval(), expected)
    same_network(timm.create_model(f"hf-hub:org/tiny@{commit}", pretrained=True).eval(), expected)
    config = Path(hf_hub_download("org/tiny", "config.json", revision=commit))
    assert json.loads(config.read_text())["num_classes"] == 10


def test_failed_verification_reports_the_commit_and_the_next_run_verifies(hub, publish):
    hub.faults.append(Fault("GET", r"/resolve/.*/model.safetensors", "flip"))
    status, _, error = publish()
    commit = hub.repos["org/tiny"].branches["main"]
    assert status == 1
    assert (
        f"org/tiny was pushed as commit {commit}, but was not verified: the hash of the download of model.safe" in error
    )
    status, out, _ = publish()
    assert status == 0
    assert f"nothing to push, the repo has the same content: commit {commit}" in out


@pytest.mark.slow
def test_the_same_source_gives_the_same_bytes_in_every_process(built):
    """safetensors' save_file orders the metadata differently in each process."""
    before = contents(built)
    for i in range(3):
        command = ["publish", SOURCE, "org/tiny", "--license", "apache-2.0", "--dry-run", "--out", str(built) + str(i)]
        run_fresh(f"from nfnet_timm.cli import main; assert main({command!r}) == 0")
        assert contents(Path(command[-1])) == before


def test_a_dry_run_shows_all_and_sends_nothing(hub, publish, tmp_path):
    status, out, _ = publish("--dry-run")
    assert status == 0
    for text in (f"{hub.endpoint}/org/tiny, branch main", "config.json", "license: apache-2.0", "nothing was pushed"):
        assert text in out
    assert f"{(tmp_path / BUILT / 'model.safetensors').stat().st_size:,} bytes  model.safetensors" in out
    assert hub.log == []


def test_signal_that_a_finalizer_drops_stops_the_run_before_the_push(hub, publish, monkeypatch):
    def dropped(*args):
        signal_in_a_finalizer(signal.SIGINT, monkeypatch)
        return ""

    monkeypatch.setattr("nfnet_timm.publish.folder.show_repo", dropped)
    status, _, error = publish()
    assert status == 130
    assert "interrupted; run the same command again" in error
    assert hub.log == []


def test_header_identifies_the_source(built):
    with safe_open(built / "model.safetensors", "pt") as weights:
        metadata = weights.metadata()
    assert metadata["format"] == "pt"
    assert metadata["source"] == "nfnet_tiny_haiku_2021.npz"
    assert metadata["source_bytes"] == str(Path(SOURCE).stat().st_size)
    assert len(metadata["source_sha256"]) == 64
    model = timm.create_model(f"local-dir:{built}", pretrained=True).eval()
    assert torch.allclose(torch.tensor(json.loads(metadata["logits"])), logits_of(model)[:8], rtol=1e-5)


def test_converted_folder_publishes_the_same_as_its_file_and_says_its_hash_is_not_recomputed(publish, built, tmp_path):
    assert main(["convert", SOURCE, "--out", str(tmp_path / "converted")]) == 0
    built.rename(tmp_path / "a")
    _, out, _ = publish("--dry-run", "--out", "b", source="converted")
    assert "not recomputed" in out
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()
    cards = [(tmp_path / folder / "README.md").read_text().splitlines() for folder in "ab"]
    different = [lines for lines in zip(*cards, strict=True) if lines[0] != lines[1]]
    assert len(different) == 1
    assert "not recomputed" not in different[0][0]
    assert "not recomputed" in different[0][1]
    a, b = (timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True).eval() for folder in "ab")
    same_network(a, b)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_published_folder_is_not_changed(publish, tmp_path):
    assert main(["convert", SOURCE, "--out", str(tmp_path / "tiny")]) == 0
    before = contents(tmp_path / "tiny")
    assert publish("--dry-run", source="tiny")[0] == 0
    assert contents(tmp_path / "tiny") == before
    assert set(contents(tmp_path / BUILT)) == FILES
    # The folder of the source is replaced only with --overwrite.
    assert publish("--dry-run", "--out", "tiny", source="tiny")[0] == 1
    assert contents(tmp_path / "tiny") == before


def test_existing_card_and_class_descriptions_are_kept(publish, built, tmp_path):
    built.rename(tmp_path / "mine")
    card = tmp_path / "mine" / "README.md"
    card.write_text(card.read_text() + "\nWritten by hand.\n")
    config = tmp_path / "mine" / "config.json"
    labels = {"label_names": list("abcdefghij"), "label_descriptions": {"a": "the first letter"}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **labels}))
    before = contents(tmp_path / "mine")
    assert publish("--dry-run", source="mine")[0] == 0
    assert contents(tmp_path / "mine") == before
    assert (tmp_path / BUILT / "README.md").read_text().endswith("Written by hand.\n")
    assert labels.items() <= json.loads((tmp_path / BUILT / "config.json").read_text()).items()
    status, _, error = publish("--dry-run", source="mine", license="mit")
    assert status == 1
    assert "--license mit: the existing card says apache-2.0; change it in README.md" in error


EDITS = {
    "a sentence": lambda card: card + b"\nWritten by hand.\n",
    "line endings": lambda card: card.replace(b"\n", b"\r\n") + b"Mine.",
    "metadata": lambda card: card.replace(b"library_name: timm", "library_name: timm\nlanguage: ü # mine".encode()),
    "rewritten": lambda card: card[: card.index(b"\n---\n", 4)] + b"\n---\n\n# Short\n",
}


@pytest.mark.parametrize(
    ("edit", "source"),
    [*((edit, SOURCE) for edit in EDITS), ("line endings", BUILT), ("metadata", BUILT), ("rewritten", "mine")],
    ids=lambda value: {SOURCE: "of the source", BUILT: "of the folder", "mine": "elsewhere"}.get(value, value),
)
def test_next_run_pushes_an_edited_card(hub, publish, built, tmp_path, edit, source):
    card = built / "README.md"
    card.write_bytes(EDITS[edit](card.read_bytes()))
    before = contents(built)
    if source == "mine":
        built.rename(tmp_path / "mine")
    status, out, error = publish(source=source)
    assert status == 0, error
    assert contents(built) == before
    assert before.items() <= hub.files("org/tiny").items()
    assert ("kept" in out) == (source == SOURCE)
    head = hub.repos["org/tiny"].branches["main"]
    assert publish("--overwrite", source=source)[0] == 0
    assert contents(built) == before
    assert hub.repos["org/tiny"].branches["main"] == head


def test_edited_licence_is_kept_or_gives_an_error(publish, built):
    card = built / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: mit"))
    before = contents(built)
    for source in (SOURCE, BUILT):
        for options in ((), ("--overwrite",)):
            status, _, error = publish("--dry-run", *options, source=source)
            assert status == 1
            assert "--license apache-2.0" in error
            assert contents(built) == before
    for source in (BUILT, SOURCE):
        assert publish("--dry-run", source=source, license="mit")[0] == 0
        assert contents(built)["README.md"] == before["README.md"]
        assert json.loads((built / "config.json").read_text())["pretrained_cfg"]["license"] == "mit"


@pytest.mark.parametrize("change", ["weights", "names", "repo"])
def test_a_card_of_another_model_or_repo_is_not_kept(publish, built, tmp_path, change):
    card = built / "README.md"
    card.write_text(card.read_text() + "Mine.")
    before = contents(built)
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    model = open_model(Path(SOURCE)).model
    model.head.fc.bias.data += 1
    save_folder(model, tmp_path / "other", golden.TINY)
    arguments = {
        "weights": ((), {"source": "other"}),
        "names": (("--class-names", "names.txt"), {}),
        "repo": ((), {"repo": "elsewhere/tiny"}),
    }
    options, more = arguments[change]
    status, _, error = publish("--dry-run", *options, **more)
    assert status == 1
    assert "README.md" in error
    assert "--overwrite" in error
    assert contents(built) == before
    assert publish("--dry-run", "--overwrite", *options, **more)[0] == 0
    assert b"Mine." not in contents(built)["README.md"]


def test_built_folder_that_was_edited_is_not_replaced(publish, built):
    config = built / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "mine": 1}))
    before = contents(built)
    status, _, error = publish("--dry-run")
    assert status == 1
    assert f"{BUILT} exists, and config.json would change: pass --overwrite" in error
    assert contents(built) == before
    assert publish("--dry-run", "--overwrite")[0] == 0
    assert contents(built) != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "missing.npz"}, "missing.npz does not exist: expected one of the authors' files"),
        ({"source": "text.npz"}, "is not a pickle"),
        ({"source": "."}, "has no config.json"),
        ({"source": "other.pth.tar"}, "'model', which is int: expected names and dense tensors"),
        ({"repo": "just-a-name"}, "expected ORGANIZATION/NAME"),
        ({"repo": "org/bad name"}, "org/bad name"),
        ({"repo": "/"}, "'/'"),
        ({"repo": "https://huggingface.co/org/name"}, "org/name': expected ORGANIZATION/NAME"),
        ({"options": ("--revision", "a b")}, "'a b' cannot be the name of a branch"),
        ({"options": ("--revision", "..")}, "'..' cannot be the name of a branch"),
        ({"options": ("--tag", "v 1")}, "'v 1' cannot be the name of a tag"),
        ({"options": ("--tag", "")}, "'' cannot be the name of a tag"),
        ({"options": ("--tag", "x..y")}, "'x..y' cannot be the name of a tag"),
        ({"names": "few.txt"}, "few.txt has 2 class names for 10 classes"),
        ({"names": "missing.txt"}, "missing.txt cannot be read (No such file or directory): expected a text file"),
    ],
)
def test_user_error_gives_a_one_line_error_and_sends_nothing(hub, publish, tmp_path, arguments, message):
    arguments = dict(arguments)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    torch.save({"model": 1}, tmp_path / "other.pth.tar")
    more = ("--class-names", arguments.pop("names")) if "names" in arguments else arguments.pop("options", ())
    status, _, error = publish(*more, **arguments)
    assert status == 1
    assert message in error
    assert error.count("\n") == 1
    assert hub.log == []


def test_own_weights_need_a_licence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["publish", SOURCE, "org/tiny", "--dry-run"]) == 1
    assert "for instance --license apache-2.0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_the_card_is_found(tmp_path, monkeypatch):
    source = open_model(Path(SOURCE))
    source.metadata["source"] = "hf_" + "a1B2" * 8
    with pytest.raises(ValueError, match=r"contains text like an access token"):
        build_repo(source, "org/tiny", tmp_path / "out", "mit")
