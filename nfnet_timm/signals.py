"""Signals that stop the command: SIGINT (Ctrl-C), SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["exit_status", "interrupted_by_signals", "signals_held"]

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt with the signal's number as argument for SIGTERM and SIGHUP, as for Ctrl-C.

    Only the first SIGTERM or SIGHUP raises it. `timeout` and terminals send the signal twice, and the second one must
    not interrupt the cleanup. A signal that is already ignored, as under `nohup`, stays ignored.
    """
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in _NUMBERS if (handler := signal.getsignal(number)) in usual}
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        for each in before:
            if each != signal.SIGINT:
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception:  # torch and NumPy turn a KeyboardInterrupt in their code into errors of other types
        if received:
            raise KeyboardInterrupt(received[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a program that a signal has stopped: 128 + the signal's number."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay signals until the block ends."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    held: list[int] = []
    before = {number: handler for number in _NUMBERS if callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(held):
            signal.raise_signal(number)
