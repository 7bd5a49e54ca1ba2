"""Simulates two hosts on this machine with scripts/ci/two_hosts.sh, and starts torchrun on both."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "ci" / "two_hosts.sh"


def two_hosts(*args, check=True):
    return subprocess.run(["bash", SCRIPT, *args], env=environment(), check=check, capture_output=True, text=True)


def environment():
    # The name of a network interface has at most 15 letters. Without the second variable, a restarted host waits for an
    # address that host 0 publishes only in the first round (torch 2.14).
    return {**os.environ, "TWO_HOSTS": f"t{os.getpid()}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@contextmanager
def hosts():
    """Create two hosts, and remove them at the end."""
    made = two_hosts("up", check=False)
    try:
        if made.returncode:
            pytest.skip(f"two hosts need root and iproute2's network namespaces: {made.stderr.strip()[-200:]}")
        yield
    finally:
        two_hosts("down", check=False)


def torchrun(host, *command, restarts=0, cwd=None):
    """Start torchrun on a host; the rendezvous is on host 0."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29500", "--rdzv-id=test"]
    launcher += [
        f"--rdzv-conf=is_host={int(host == 0)},keep_alive_interval=1,join_timeout=120",
        f"--local-addr=10.77.0.{host + 1}",
    ]
    launcher += [f"--max-restarts={restarts}"]
    command = ["bash", str(SCRIPT), "on", str(host), *launcher, *map(str, command)]
    return subprocess.Popen(
        command, env=environment(), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
