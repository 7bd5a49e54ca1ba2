"""The examples on handwritten digits run, and print what they promise."""

import re

import pytest

from nfnet_timm.demo import ARGS, CLIP_FACTOR, load_images, train
from nfnet_timm.publish.folder import save_folder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", [[], ["--ghost"]])
@pytest.mark.filterwarnings("ignore")  # of Opacus and of what it imports
def test_private_learns_and_prints_the_privacy_that_was_spent(run_script, mode):
    pytest.importorskip("opacus", reason="scripts/ci/compat.sh has Opacus")
    status, out, error = run_script("examples/private.py", "--epochs", "3", *mode)
    assert status == 0, error
    assert float(re.search(r"epoch 3: ([\d.]+)%", out)[1]) > 25  # guessing gives 10
    assert re.search(r"spent: epsilon ([78]\.\d\d) at delta 3.4e-04, with a noise multiplier of \d\.\d\d", out)


def test_sam_learns_and_prints_an_accuracy_for_each_run(run_script):
    status, out, error = run_script("examples/sam.py", "--epochs", "12", "--images", "200")
    assert status == 0, error
    accuracies = re.findall(r"^(without SAM|SAM|SAM, ascent on a fifth) +test accuracy ([\d.]+)% after", out, re.M)
    assert [label for label, _ in accuracies] == ["without SAM", "SAM", "SAM, ascent on a fifth"]
    assert all(float(accuracy) > 25 for _, accuracy in accuracies)


def test_features_finds_neighbours(run_script, tmp_path):
    model, _ = train(load_images(), epochs=3, clip_factor=CLIP_FACTOR)  # as `nfnet-timm demo`
    save_folder(model, tmp_path / "model", ARGS)
    status, out, error = run_script("examples/features.py", "--model", f"local-dir:{tmp_path / 'model'}")
    assert status == 0, error
    assert float(re.search(r"neighbour of ([\d.]+)% of 300 digits is the same", out)[1]) > 90
