"""What identifies a file, a directory and a model."""

import hashlib
import shutil
import subprocess

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
def test_a_directory_is_identified_by_what_sha256sum_says_of_its_files(folder):
    listing = subprocess.run(["sha256sum", "b/two", "one"], cwd=folder, capture_output=True, check=True).stdout
    assert identify(folder) == {
        "source": "a",
        "source_bytes": "3",
        "source_sha256": hashlib.sha256(listing).hexdigest(),
    }


def test_logits_are_of_one_image_and_leave_random_numbers_alone(tiny):
    model = tiny()
    state = torch.get_rng_state()
    assert torch.equal(logits_of(model), logits_of(model))
    assert torch.equal(torch.get_rng_state(), state)
