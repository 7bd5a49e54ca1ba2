"""Python prints and drops an exception that a finalizer raises, so the program goes on."""

import os
import sys


class _Finalizer:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)


def signal_in_a_finalizer(number, monkeypatch):
    """Send a signal to this process during a finalizer, and assert that its exception was dropped."""
    dropped = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda event: dropped.append(event.exc_type))
        _Finalizer(number)
    assert dropped == [KeyboardInterrupt]
