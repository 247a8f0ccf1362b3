"""Interruptions wait while files are between two states."""

import signal
import threading

import pytest

from eggs_ptp.checkpoint.interruption import deferred


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_comes_once_the_block_is_over(number, monkeypatch):
    done = []
    before = signal.signal(number, lambda *_: done.append("handled"))
    try:
        with deferred():
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("block")
        assert done == ["block", "handled"]
        signal.raise_signal(number)
        assert done == ["block", "handled", "handled"]
    finally:
        signal.signal(number, before)


def test_it_comes_after_an_error_of_the_block_too():
    def fail():
        with deferred():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("inside")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            fail()
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_do_not_touch_handlers():
    seen = []

    def work():
        with deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
