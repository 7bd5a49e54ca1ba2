"""Training on two hosts, which share only a network, gives the weights of one process."""

import distributed_worker
import pytest
import torch
from two_hosts import hosts, torchrun


@pytest.mark.slow
def test_two_hosts_train_to_the_weights_of_one_process_with_fsdp2(tmp_path):
    """tests/compat/test_host_failure.py trains on two hosts with DDP."""
    with hosts():
        runs = [torchrun(host, distributed_worker.__file__, tmp_path, "fsdp2") for host in (0, 1)]
        outputs = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    expected = distributed_worker.train_alone()
    for name, p in torch.load(tmp_path / "fsdp2.pt", weights_only=False)["parameters"].items():
        torch.testing.assert_close(p.view_as(expected[name]), expected[name], rtol=1e-5, atol=1e-5, msg=name)
