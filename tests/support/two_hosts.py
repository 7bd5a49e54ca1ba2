"""Simulates two hosts on this machine, by two network namespaces with a virtual cable, and starts torchrun on both."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

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


def torchrun(host, *command, restarts=0):
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
    return subprocess.Popen(
        [*launcher, *map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
