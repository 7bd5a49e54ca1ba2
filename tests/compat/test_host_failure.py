"""A host is cut off in the middle of an epoch, comes back, and training ends as if nothing had happened.

The two hosts are network namespaces on this machine, with a virtual cable.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from test_fine_tune import OPTIONS, PROGRAM, digits  # noqa: F401  # a fixture

pytest.importorskip("accelerate")

NAMES = [f"t{os.getpid()}-{host}" for host in (0, 1)]  # at most 15 letters, as they also name interfaces


def ip(*words, check=True):
    return subprocess.run(["ip", *map(str, words)], check=check, capture_output=True, text=True)


@contextmanager
def hosts():
    """Create the hosts 10.77.0.1 and 10.77.0.2, and remove them at the end."""
    try:
        try:
            for name in NAMES:
                ip("netns", "add", name)
            first, second = NAMES
            ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
            for host, name in enumerate(NAMES):
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "address", "add", f"10.77.0.{host + 1}/24", "dev", name)
                ip("-n", name, "link", "set", name, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"two hosts need root and iproute2's network namespaces: {error}")
        yield
    finally:
        for host, name in enumerate(NAMES):
            kill(host)
            ip("netns", "delete", name, check=False)


def kill(host):
    """End all processes of a host, like a power cut."""
    pids = ip("netns", "pids", NAMES[host], check=False).stdout.split()
    subprocess.run(["kill", "-KILL", *pids], check=False, capture_output=True)


def fine_tune(host, data, out, restarts=0):
    """Start torchrun on a host; the rendezvous is on host 0."""
    launcher = [
        *("ip", "netns", "exec", NAMES[host], sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes=2", "--nproc-per-node=1", f"--max-restarts={restarts}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29500", "--rdzv-id=test"),
        f"--rdzv-conf=is_host={int(host == 0)},keep_alive_interval=1,join_timeout=120",
        f"--local-addr=10.77.0.{host + 1}",
    ]
    # Without the second variable, a restarted host waits for an address that host 0 publishes only in the first round
    # (torch 2.14).
    env = {**os.environ, "GLOO_SOCKET_IFNAME": NAMES[host], "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [PROGRAM, data, *OPTIONS, "--batch-size", 4, "--epochs", 3, "--output", out, "--resume"]
    return subprocess.Popen(
        [*launcher, *map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


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
