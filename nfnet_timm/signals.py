"""Signals that stop the command: SIGINT (Ctrl-C), SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["exit_status", "interrupted_by_signals", "signals_held", "stop_if_interrupted"]

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt with the signal's number as argument for SIGTERM and SIGHUP, as for Ctrl-C.

    Only the first SIGTERM or SIGHUP raises it. `timeout` and terminals send the signal twice, and the second one must
    not interrupt the cleanup. A signal that is already ignored, as under `nohup`, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in _NUMBERS if signal.getsignal(number) in usual}

    def interrupt(number: int, _: object) -> None:
        _received.append(number)
        for each in before:
            if each != signal.SIGINT:
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    _received.clear()
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception:  # torch and NumPy turn a KeyboardInterrupt in their code into errors of other types
        stop_if_interrupted()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a program that a signal has stopped: 128 + the signal's number."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt again if there was a signal. Call this before each step that cannot be undone.

    The first exception may be lost: Python prints and drops an exception in a finalizer (``__del__``).
    """
    if _received:
        raise KeyboardInterrupt(_received[0])


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay signals until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(held):
            signal.raise_signal(number)
