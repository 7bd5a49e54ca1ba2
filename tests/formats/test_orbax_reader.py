"""Orbax checkpoints in the form of jax_privacy convert to folders. The released ones were not available for tests."""

import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import fsspec
import golden
import numpy as np
import pytest
import timm
from huggingface_hub import ModelCard

from nfnet_timm.cli import main
from nfnet_timm.formats.haiku_names import to_haiku

MINI = {"depths": (1, 1, 1, 1), "channels": (8, 16, 24, 24), "group_size": 4, "num_classes": 5}
ARCHIVES = sorted((golden.DATA / "orbax").glob("*.tar.gz"))


def mini_tree():
    shapes = to_haiku(timm.create_model("nfnet_f0", **MINI).state_dict())
    return {m: {p: golden.parameter(m, p, list(a.shape)) for p, a in ps.items()} for m, ps in shapes.items()}


def write_to(path, tree, ocdbt=True):
    """Write {"params": ..., "state": ...} with the installed Orbax."""
    import orbax.checkpoint as ocp  # takes seconds

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.fixture(scope="module")
def plain_checkpoint(tmp_path_factory):
    """Write the mini network once, with a readable file of metadata for each array."""
    return write_to(tmp_path_factory.mktemp("orbax") / "mini", {"params": mini_tree(), "state": {}}, ocdbt=False)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_checkpoints_of_2023_and_2024_load_exactly_from_a_path_and_from_a_url(archive, tmp_path):
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "checkpoint", filter="data")
    fsspec.filesystem("memory").put(str(tmp_path / "checkpoint"), f"/{archive.name}", recursive=True)
    for source in (str(tmp_path / "checkpoint"), f"memory://{archive.name}"):
        model = timm.create_model("nfnet_f0", pretrained=True, pretrained_cfg_overlay={"file": source}, **MINI)
        golden.assert_same_tree(to_haiku(model.state_dict()), mini_tree())


def test_checkpoint_of_the_installed_orbax_converts_to_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_to(tmp_path / "mini", {"params": mini_tree(), "state": {}})
    assert main(["convert", "mini", "--out", "out"]) == 0
    assert "weights of your own: no hash identifies mini as a released checkpoint" in capsys.readouterr().out
    model = timm.create_model("local-dir:out", pretrained=True)
    golden.assert_same_tree(to_haiku(model.state_dict()), mini_tree())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"weights": {"m": {"w": np.zeros(2, np.float32)}}}, "contains weights: expected 'params' and 'state'"),
        ({"params": {"m": np.zeros(2, np.float32)}}, "'m' is not a dict of parameters"),
        ({"params": {"m": {"w": np.zeros(2)}}}, "m/w is float64: expected float32"),
    ],
)
def test_checkpoint_with_another_tree_gives_a_one_line_error(tmp_path, refused, tree, message):
    write_to(tmp_path / "other", tree)
    assert re.fullmatch(f"nfnet-timm: error: other.*{message}.*", refused("other").splitlines()[-1])


def test_error_for_a_missing_extra_says_what_to_install(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "jax", None)
    (tmp_path / "_METADATA").touch()
    assert "pip install '.[orbax]'" in refused(".")


@pytest.mark.slow
def test_card_of_f0_with_21_thousand_classes_says_what_is_known_and_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("nfnet_f0", num_classes=21841)
    write_to(tmp_path / "nfnet_f0_im21k", {"params": to_haiku(model.state_dict()), "state": {}})
    options = ["--checkpoint", "nfnet_f0.dm_im21k", "--dry-run", "--out", "out"]
    assert main(["publish", "nfnet_f0_im21k", "org/f0", *options]) == 0
    card = ModelCard.load("out/README.md")
    assert (card.data.license, card.data.datasets, card.data.eval_results) == ("cc-by-4.0", ["imagenet-21k"], None)
    text = " ".join(card.text.split())
    assert "21,841 classes of ImageNet-21k" in text
    assert "No published accuracy of this checkpoint is known" in text
    assert "The publisher of this page states that it is" in text
    assert '"license": "cc-by-4.0"' in Path("out/config.json").read_text()
    loaded = timm.create_model("local-dir:out", pretrained=True)
    assert loaded.head.fc.weight.equal(model.head.fc.weight)


def edited(**changes):
    """Return a function that changes the metadata of an array in a checkpoint."""

    def edit(checkpoint):
        file = sorted(checkpoint.rglob(".zarray"))[0]
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def with_a_pipe(checkpoint):
    (checkpoint / "_METADATA").unlink()
    os.mkfifo(checkpoint / "_METADATA")


@pytest.mark.parametrize(
    "damage",
    [
        edited(shape=[1 << 40], chunks=[1 << 40]),  # more memory than any machine has
        edited(chunks=[1 << 40]),
        edited(shape=[-3]),
        edited(dtype="|O"),
        with_a_pipe,
        lambda checkpoint: (checkpoint / "_METADATA").unlink(),
        lambda checkpoint: (checkpoint / "_METADATA").write_text("[1, 2]"),
        lambda checkpoint: [file.write_bytes(b"\xff") for file in checkpoint.rglob(".zarray")],
    ],
)
def test_hostile_orbax_checkpoint_gives_a_one_line_error_soon(plain_checkpoint, tmp_path, refused, damage):
    damage(shutil.copytree(plain_checkpoint, tmp_path / "mini"))
    assert refused("mini").splitlines()[-1].startswith("nfnet-timm: error: mini")
