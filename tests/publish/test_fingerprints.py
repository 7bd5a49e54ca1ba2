"""The hash of a directory."""

import hashlib
import shutil
import subprocess

import pytest

from nfnet_timm.publish.fingerprints import identify


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="GNU coreutils has the tool whose list this is")
def test_hash_of_a_directory_is_that_of_the_output_of_sha256sum(tmp_path):
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "one").write_bytes(b"1")
    (folder / "b" / "two").write_bytes(b"22")
    listing = subprocess.run(["sha256sum", "b/two", "one"], cwd=folder, capture_output=True, check=True).stdout
    assert identify(folder) == {
        "source": "a",
        "source_bytes": "3",
        "source_sha256": hashlib.sha256(listing).hexdigest(),
    }
