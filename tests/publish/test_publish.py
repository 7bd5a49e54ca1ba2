"""`nfnet-timm publish`: the folder that it builds, the errors, and the repo on the Hub."""

import json
import signal
from pathlib import Path

import golden
import pytest
import timm
import torch
from fresh_process import run_fresh
from hub_server import Fault
from safetensors import safe_open

from nfnet_timm.cli import main
from nfnet_timm.publish.fingerprints import logits_of
from nfnet_timm.publish.folder import build_repo, save_folder
from nfnet_timm.publish.sources import open_model

SOURCE = golden.DATA / "nfnet_tiny_haiku_2021.npz"
FILES = {"README.md", "config.json", "model.safetensors"}
BUILT = Path("hub-repos/tiny")


def same_network(a, b):
    assert all(p.equal(b.get_parameter(name)) for name, p in a.named_parameters())
    torch.testing.assert_close(logits_of(a), logits_of(b))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_published_repo_is_complete_and_loads_from_the_hub(hub, publish):
    status, out, _ = publish(SOURCE, "--tag", "v1")
    assert status == 0
    files = hub.files("org/tiny")
    assert set(files) == FILES | {".gitattributes"}
    assert contents(BUILT).items() <= files.items()
    commit = hub.repos["org/tiny"].branches["main"]
    assert f"pushed: commit {commit}" in out
    assert hub.repos["org/tiny"].tags == {"v1": commit}
    expected = timm.create_model(f"local-dir:{BUILT}", pretrained=True).eval()
    same_network(timm.create_model(f"hf-hub:org/tiny@{commit}", pretrained=True).eval(), expected)
    with safe_open(BUILT / "model.safetensors", "pt") as weights:
        metadata = weights.metadata()
    assert metadata["source"] == "nfnet_tiny_haiku_2021.npz"
    assert metadata["source_bytes"] == str(SOURCE.stat().st_size)
    assert torch.allclose(torch.tensor(json.loads(metadata["logits"])), logits_of(expected)[:8], rtol=1e-5)


class Finalizer:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_signal_that_a_finalizer_drops_stops_the_run_before_the_push(hub, publish, monkeypatch):
    """Python prints and drops an exception that a finalizer raises, so the program goes on."""
    dropped = []
    monkeypatch.setattr("sys.unraisablehook", lambda event: dropped.append(event.exc_type))
    monkeypatch.setattr("nfnet_timm.publish.folder.show_repo", lambda *_: Finalizer() and "")
    status, _, error = publish(SOURCE)
    assert dropped == [KeyboardInterrupt]
    assert status == 130
    assert "interrupted; run the same command again" in error
    assert hub.log == []


def test_failed_verification_reports_the_commit_and_the_next_run_verifies(hub, publish):
    hub.faults.append(Fault("GET", r"/resolve/.*/model.safetensors", "flip"))
    status, _, error = publish(SOURCE)
    commit = hub.repos["org/tiny"].branches["main"]
    assert status == 1
    assert f"was pushed as commit {commit}, but was not verified: the hash of the download of model.safe" in error
    status, out, _ = publish(SOURCE)
    assert status == 0
    assert f"nothing to push, the repo has the same content: commit {commit}" in out


@pytest.mark.slow
def test_the_same_source_gives_the_same_bytes_in_another_process(built, tmp_path):
    """safetensors' save_file orders the metadata differently in each process."""
    out = tmp_path / "out"
    command = ["publish", str(SOURCE), "org/tiny", "--license", "mit", "--dry-run", "--out", str(out)]
    run_fresh(f"from nfnet_timm.cli import main; assert main({command!r}) == 0")
    assert contents(out) == contents(built)


def test_a_dry_run_shows_all_and_sends_nothing(hub, publish):
    status, out, _ = publish(SOURCE, "--dry-run")
    assert status == 0
    for text in (f"{hub.endpoint}/org/tiny, branch main", "config.json", "license: mit", "nothing was pushed"):
        assert text in out
    assert f"{(BUILT / 'model.safetensors').stat().st_size:,} bytes  model.safetensors" in out
    assert hub.log == []


def test_converted_folder_publishes_the_same_as_its_file_and_says_its_hash_is_not_recomputed(publish, built):
    assert main(["convert", str(SOURCE), "--out", "tiny"]) == 0
    before = contents(Path("tiny"))
    _, out, _ = publish("tiny", "--dry-run", "--out", "b")
    assert contents(Path("tiny")) == before
    assert "not recomputed" in out
    assert (built / "config.json").read_text() == Path("b/config.json").read_text()
    cards = [(folder / "README.md").read_text().splitlines() for folder in (built, Path("b"))]
    (different,) = [lines for lines in zip(*cards, strict=True) if lines[0] != lines[1]]
    assert ["not recomputed" in line for line in different] == [False, True]
    # The folder of the source is replaced only with --overwrite.
    assert publish("tiny", "--dry-run", "--out", "tiny")[0] == 1
    assert contents(Path("tiny")) == before


def test_publish_says_that_a_state_dict_has_no_preprocessing_and_how_to_add_it(publish, tiny):
    torch.save(tiny().state_dict(), "average.pth")  # as avg_checkpoints.py of timm writes it
    options = ["--model", "nfnet_f0", "--model-kwargs", "depths=(1,2,2,1)", "channels=(32,64,96,96)", "group_size=8"]
    _, out, _ = publish("average.pth", "--dry-run", *options)
    assert "the image size and the preprocessing are those of nfnet_f0, because a state dict has none" in out
    assert "may be the defaults of the network" in " ".join((BUILT / "README.md").read_text().split())
    config = json.loads((BUILT / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 40, 40], "test_input_size": None}
    (BUILT / "config.json").write_text(json.dumps(config))
    (BUILT / "README.md").unlink()
    assert publish(BUILT, "--dry-run", "--overwrite")[0] == 0
    assert "| image size | 40 x 40 pixels" in (BUILT / "README.md").read_text()


def test_the_options_of_a_run_are_not_taken_for_its_weights(publish):
    Path("args.yaml").touch()
    assert "pass a checkpoint in the same folder, such as model_best.pth.tar" in publish("args.yaml")[2]


def test_card_and_class_descriptions_of_a_folder_are_kept(publish, built, tmp_path):
    mine = built.rename(tmp_path / "mine")
    (mine / "README.md").write_bytes((mine / "README.md").read_bytes().replace(b"\n", b"\r\n") + b"By hand.")
    config = mine / "config.json"
    labels = {"label_names": list("abcdefghij"), "label_descriptions": {"a": "the first letter"}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **labels}))
    before = contents(mine)
    assert publish("mine", "--dry-run")[0] == 0
    assert contents(mine) == before
    assert (BUILT / "README.md").read_bytes() == before["README.md"]
    assert labels.items() <= json.loads((BUILT / "config.json").read_text()).items()
    status, _, error = publish("mine", "--dry-run", license="apache-2.0")
    assert status == 1
    assert "--license apache-2.0: the existing card says mit; change it in README.md" in error


@pytest.mark.parametrize("source", [SOURCE, BUILT], ids=["of the source", "of the folder"])
def test_next_run_pushes_an_edited_card(hub, publish, built, source):
    card = built / "README.md"
    card.write_bytes(card.read_bytes().replace(b"license: mit", "license: mit\nlanguage: ü # mine".encode()) + b"Mine.")
    before = contents(built)
    status, out, error = publish(source)
    assert status == 0, error
    assert contents(built) == before
    assert before.items() <= hub.files("org/tiny").items()
    assert ("kept" in out) == (source == SOURCE)
    head = hub.repos["org/tiny"].branches["main"]
    assert publish(source, "--overwrite")[0] == 0
    assert contents(built) == before
    assert hub.repos["org/tiny"].branches["main"] == head


@pytest.mark.parametrize("source", [SOURCE, BUILT], ids=["of the source", "of the folder"])
def test_edited_licence_is_kept_or_gives_an_error(publish, built, source):
    card = built / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: apache-2.0"))
    before = contents(built)
    for options in ((), ("--overwrite",)):
        status, _, error = publish(source, "--dry-run", *options)
        assert status == 1
        assert "--license mit" in error
        assert contents(built) == before
    assert publish(source, "--dry-run", "--overwrite", license="apache-2.0")[0] == 0
    assert contents(built)["README.md"] == before["README.md"]
    assert json.loads((built / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"


@pytest.mark.parametrize("change", ["weights", "names", "repo", "config"])
def test_a_card_of_another_model_or_repo_is_replaced_only_with_overwrite(publish, built, change):
    card, config = built / "README.md", built / "config.json"
    card.write_text(card.read_text() + "Mine.")
    source, options, repo = SOURCE, [], "org/tiny"
    if change == "weights":
        model = open_model(SOURCE).model
        model.head.fc.bias.data += 1
        save_folder(model, "other", golden.TINY)
        source = "other"
    elif change == "names":
        Path("names.txt").write_text("\n".join("abcdefghij"))
        options = ["--class-names", "names.txt"]
    elif change == "repo":
        repo = "elsewhere/tiny"
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "mine": 1}))
    before = contents(built)
    status, _, error = publish(source, "--dry-run", *options, repo=repo)
    assert status == 1
    assert f"{BUILT} exists, and README.md" in error
    assert "pass --overwrite" in error
    assert contents(built) == before
    assert publish(source, "--dry-run", "--overwrite", *options, repo=repo)[0] == 0
    assert b"Mine." not in contents(built)["README.md"]


def test_a_secret_in_the_card_is_found(tmp_path):
    source = open_model(SOURCE)
    source.metadata["source"] = "hf_" + "a1B2" * 8
    with pytest.raises(ValueError, match=r"contains text like an access token"):
        build_repo(source, "org/tiny", tmp_path / "out", "mit")
