"""Deferred signals: no interruption while files are between two states."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold SIGINT (Ctrl-C) and SIGTERM back until the `with` block ends, and deliver the first one then.

    The block has to be short. In other threads than the main one this does nothing: they receive no signals.
    """
    received: list[int] = []

    def record(number: int, _: FrameType | None) -> None:
        received.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in handlers.items():
            if handler is not None:  # None: installed outside Python, so it could not be restored from here
                signal.signal(number, record)
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
