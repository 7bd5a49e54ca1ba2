"""A released file converts to a folder, gets a card with its published accuracy, and converts back exactly.

authors_file.py writes files in the format of the released ones. Its file of F0 has 285,976,842 bytes, as the released
one, and other values. Where the size does not matter, a small network is recorded as a released one.
"""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import authors_file
import golden
import numpy as np
import pytest
import timm
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nfnet_timm.cli import main
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.fingerprints import identify
from nfnet_timm.publish.folder import save_folder
from nfnet_timm.recipes import recipe

NAME = "nfnet_f0.dm_in1k"
SMALL = "dm_nf_regnet_b0"
CHECKPOINT = f"{SMALL}.dm_in1k"
BUILT = Path("hub-repos/tiny")


@pytest.fixture(autouse=True)
def card_of_a_small_network(monkeypatch):
    """Give the small network a recipe, as released ones have, and skip the counting, which takes seconds."""
    monkeypatch.setattr("nfnet_timm.publish.card.recipe", lambda _: recipe("nfnet_f0"))
    monkeypatch.setattr("nfnet_timm.publish.card.multiply_adds", lambda _: 12.3)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """Return the file of a small network and its MD5."""
    path = tmp_path_factory.mktemp("released") / "B0_haiku.npz"
    authors_file.write(golden.tree("nf_regnet_b0"), path)
    return path, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def record(monkeypatch):
    """Return a function that records the small network as a released one with some MD5."""

    def record(md5):
        entry = {**load_published()["checkpoints"][NAME], "file": "B0_haiku.npz", "md5": md5}
        monkeypatch.setitem(load_published()["checkpoints"], CHECKPOINT, entry)

    return record


@pytest.mark.slow
def test_file_of_the_released_size_converts_loads_and_converts_back_exactly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    authors_file.write(golden.tree("nfnet_f0"), "F0_haiku.npz")
    size = (tmp_path / "F0_haiku.npz").stat().st_size
    assert size == authors_file.RELEASED_F0_BYTES == load_published()["checkpoints"][NAME]["bytes"]
    assert main(["convert", "F0_haiku.npz", "--out", "nfnet_f0"]) == 0
    out = capsys.readouterr().out
    assert "F0_haiku.npz: nfnet_f0, 71,489,284 parameters" in out
    assert re.search("F0_haiku.npz has the MD5 [0-9a-f]{32}, which no released file has", out)
    assert main(["convert", "nfnet_f0", "--out", "back.npz"]) == 0
    tree = read_tree("F0_haiku.npz")
    golden.assert_same_tree(read_tree("back.npz"), tree)
    folder = timm.create_model("local-dir:nfnet_f0", pretrained=True)
    direct = timm.create_model("nfnet_f0", pretrained=True, pretrained_cfg_overlay={"file": "F0_haiku.npz"})
    assert all(p.equal(direct.get_parameter(name)) for name, p in folder.named_parameters())
    kernel = tree["NFNet/~/nf_block_3/~/conv1"]["w"]
    assert np.array_equal(direct.stages[2][0].conv2.weight.detach().numpy(), kernel.transpose(3, 2, 0, 1))


def test_file_with_the_recorded_hash_gets_the_published_accuracy(small_file, record, publish):
    path, md5 = small_file
    record(md5)
    Path("renamed.bin").symlink_to(path)  # a name decides nothing
    status, out, _ = publish("renamed.bin", "--dry-run", license=None)
    assert status == 0
    assert f"renamed.bin is the file that the authors released as {CHECKPOINT}" in out
    card = ModelCard.load(BUILT / "README.md")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["imagenet-1k"])
    assert max(result.metric_value for result in card.data.eval_results if "Top-1" in result.metric_name) == 83.6
    assert f"Its MD5 is the recorded one, `{md5}`" in " ".join(card.text.split())
    _, _, error = publish("renamed.bin", "--dry-run", "--out", "b", license="mit")
    assert f"{CHECKPOINT} was released under apache-2.0; leave the option out" in error


def test_folder_is_identified_by_its_header_until_an_array_is_changed(small_file, record, publish, capsys):
    record(small_file[1])
    assert main(["convert", str(small_file[0]), "--out", "b0"]) == 0
    assert f"released as {CHECKPOINT}" in capsys.readouterr().out
    _, out, _ = publish("b0", "--dry-run", license=None)
    assert f"released as {CHECKPOINT}, according to the header written at conversion" in out
    card = ModelCard.load(BUILT / "README.md")
    assert (card.data.license, card.data.eval_results) == ("apache-2.0", None)
    assert card.text.count("not recomputed") == 2
    for published in ("83.6", "top-1", "MD5 is the recorded one"):
        assert published not in str(card)
    weights = Path("b0/model.safetensors")
    arrays = load_file(weights)
    arrays["head.fc.bias"] = arrays["head.fc.bias"] + 1
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    save_file(arrays, weights, metadata)  # the header still has the hash of the file
    _, _, error = publish("b0", "--dry-run", "--out", "other")
    assert "model.safetensors do not have the hash in its header" in error
    del metadata["arrays_sha256"]
    save_file(arrays, weights, metadata)
    _, _, error = publish("b0", "--dry-run", "--out", "other", license=None)
    assert "not that of a released file; choose one for your own weights" in error
    assert publish("b0", "--dry-run", "--out", "other")[0] == 0
    assert "83.6" not in Path("other/README.md").read_text()
    assert "B0_haiku" not in Path("other/README.md").read_text()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="GNU coreutils has the tool whose list this is")
def test_hash_of_a_directory_is_that_of_the_output_of_sha256sum(tmp_path):
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "one").write_bytes(b"1")
    (folder / "b" / "two").write_bytes(b"22")
    listing = subprocess.run(["sha256sum", "b/two", "one"], cwd=folder, capture_output=True, check=True).stdout
    sha256 = hashlib.sha256(listing).hexdigest()
    assert identify(folder) == {"source": "a", "source_bytes": "3", "source_sha256": sha256}


CLAIM = {"source": "F0_haiku.npz", "source_bytes": "285976842", "source_sha256": "0" * 64, "source_md5": "a" * 32}


@pytest.mark.parametrize(("name", "arguments"), [(SMALL, {"num_classes": 10}), ("nfnet_f0", golden.TINY)])
def test_header_and_config_do_not_identify_another_network_as_released(record, publish, name, arguments):
    record(CLAIM["source_md5"])
    save_folder(timm.create_model(name, **arguments), "random", arguments, CLAIM)
    path = Path("random/config.json")
    config = json.loads(path.read_text())
    config["pretrained_cfg"] |= {"license": "mit", "origin_url": "https://example.org", "hf_hub_id": "a/b", "tag": "x"}
    path.write_text(json.dumps(config))
    assert "--license" in publish("random", "--dry-run", license=None)[2]
    status, out, _ = publish("random", "--dry-run", license="cc0-1.0")
    assert status == 0
    card = ModelCard.load(BUILT / "README.md")
    assert (card.data.license, card.data.datasets, card.data.eval_results) == ("cc0-1.0", None, None)
    for claimed in ("F0_haiku", "83.6", "0" * 64, CLAIM["source_md5"], "ImageNet-1k"):
        assert claimed not in card.text
        assert claimed not in out
    config = json.loads((BUILT / "config.json").read_text())["pretrained_cfg"]
    assert config["license"] == "cc0-1.0"
    assert not {"origin_url", "hf_hub_id", "tag"} & set(config)


@pytest.mark.parametrize(
    "claim", [{"source": "<img src=x onerror=alert(1)>"}, {"source": "a|b\nc"}, {"source_sha256": "<script>"}]
)
def test_malformed_names_and_hashes_in_a_header_are_not_repeated(tiny, publish, claim):
    save_folder(tiny(), "folder", golden.TINY, {"source": "mine.npz", **claim})
    assert publish("folder", "--dry-run")[0] == 0
    assert next(iter(claim.values())) not in (BUILT / "README.md").read_text()


def test_other_content_with_the_same_name_is_own_weights_or_released_on_the_word_of_the_user(
    small_file, record, publish
):
    path, md5 = small_file
    record("0" * 32)
    _, _, error = publish(path, "--dry-run", license=None)
    assert "the hash of the weights is not that of a released file" in error
    assert f"--checkpoint {CHECKPOINT}" in error
    assert publish(path, "--dry-run")[0] == 0
    card = ModelCard.load(BUILT / "README.md")
    assert (card.data.license, card.data.datasets, card.data.eval_results) == ("mit", None, None)
    assert "ImageNet" not in card.text.split("## Citation")[0]
    _, out, _ = publish(path, "--dry-run", "--out", "out", "--checkpoint", CHECKPOINT, license=None)
    assert f"is published as the released {CHECKPOINT} on your word" in out
    text = " ".join(Path("out/README.md").read_text().split())
    assert f"Its MD5, `{md5}`, is **not the recorded one**" in text
    assert "83.6" in text
    for claim, message in (
        ("nfnet_f1.dm_in1k", f"this is not nfnet_f1.dm_in1k: its arrays are those of {SMALL}"),
        ("nfnet_f9", "there is no released checkpoint 'nfnet_f9': expected one of nfnet_f0.dm_in1k"),
    ):
        assert message in publish(path, "--dry-run", "--out", "b", "--checkpoint", claim)[2]
