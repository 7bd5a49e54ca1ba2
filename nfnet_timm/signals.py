"""Signals that stop the command: SIGINT (Ctrl-C), SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interrupted_by_signals", "signals_held", "stop_if_interrupted"]

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, all with the signal's number as argument.

    Only the first SIGTERM or SIGHUP raises: `timeout` and terminals send it twice, and the second must not disturb the
    cleanup. A signal that is already ignored, as under `nohup`, stays ignored.
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


def stop_if_interrupted() -> None:
    """Raise the KeyboardInterrupt of an earlier signal again.

    Python prints and drops an exception that a finalizer (``__del__``) raises, so the run may have gone on. Call this
    before each step that cannot be undone.
    """
    if _received:
        raise KeyboardInterrupt(_received[0])


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back signals that raise exceptions until the block ends."""
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
