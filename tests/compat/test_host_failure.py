"""A host is cut off in the middle of an epoch, comes back, and training ends as if nothing had happened."""

import time

import pytest
import torch
from test_fine_tune import OPTIONS, PROGRAM, digits  # noqa: F401  # a fixture
from two_hosts import hosts, kill, torchrun

pytest.importorskip("accelerate")


def fine_tune(host, data, out, restarts=0):
    options = [*OPTIONS, "--batch-size", 4, "--epochs", 3]
    return torchrun(host, PROGRAM, data, *options, "--output", out, "--resume", restarts=restarts)


def wait_for(condition, seconds=180):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.mark.library("torch")
@pytest.mark.slow
def test_a_host_that_dies_in_an_epoch_comes_back_to_the_same_weights(digits, tmp_path):  # noqa: F811
    """torchrun on two hosts: one dies in an epoch, and fine_tune.py ends in the weights of an undisturbed run."""
    with hosts():
        runs = [fine_tune(host, digits, tmp_path / "undisturbed") for host in (0, 1)]
        outputs = [run.communicate(timeout=300)[0] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)

        first = fine_tune(0, digits, tmp_path / "killed", restarts=2)
        second = fine_tune(1, digits, tmp_path / "killed", restarts=2)
        wait_for((tmp_path / "killed" / "last.pth.tar").exists)  # after the first epoch
        time.sleep(0.5)  # in the second
        kill(1)
        second.communicate()
        time.sleep(6)  # as long as host 0 takes to miss it: three beats of the heart, here of a second
        again = fine_tune(1, digits, tmp_path / "killed", restarts=2)
        output = first.communicate(timeout=300)[0]
        again.communicate(timeout=300)
        assert first.returncode == again.returncode == 0, output
    assert output.count("epoch 1 of 3: loss") == 1  # the first epoch was not run again
    undisturbed, killed = (
        torch.load(tmp_path / name / "last.pth.tar", weights_only=False) for name in ("undisturbed", "killed")
    )
    assert undisturbed["epoch"] == killed["epoch"] == 2
    for part in ("state_dict", "state_dict_ema"):
        for name, p in undisturbed[part].items():
            torch.testing.assert_close(p, killed[part][name], rtol=1e-5, atol=1e-6, msg=name)
