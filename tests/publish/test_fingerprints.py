"""Hashes of files and directories, and logits of models."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nfnet_timm.publish.fingerprints import identify, logits_of


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"1")
    (tmp_path / "a" / "b" / "two").write_bytes(b"22")
    return tmp_path / "a"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="GNU coreutils has the tool whose list this is")
def test_hash_of_a_directory_is_that_of_the_output_of_sha256sum(folder):
    listing = subprocess.run(["sha256sum", "b/two", "one"], cwd=folder, capture_output=True, check=True).stdout
    assert identify(folder) == {
        "source": "a",
        "source_bytes": "3",
        "source_sha256": hashlib.sha256(listing).hexdigest(),
    }


def test_current_folder_is_identified_by_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert identify(Path(".")) == identify(folder)


def test_logits_are_of_one_image_and_use_no_random_numbers(tiny):
    model = tiny()
    state = torch.get_rng_state()
    assert torch.equal(logits_of(model), logits_of(model))
    assert torch.equal(torch.get_rng_state(), state)
