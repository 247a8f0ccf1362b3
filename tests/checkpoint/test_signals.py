"""Signals are held back while files are between two states."""

import signal
import threading

import pytest

from eggs_ptp.checkpoint.signals import deferred_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_delivered_once_the_block_ends(number):
    calls = []
    before = signal.signal(number, lambda *_: calls.append("handler"))
    try:
        with deferred_signals():
            signal.raise_signal(number)
            signal.raise_signal(number)
            calls.append("block")
        assert calls == ["block", "handler"]
        signal.raise_signal(number)
        assert calls == ["block", "handler", "handler"]
    finally:
        signal.signal(number, before)


def test_a_signal_is_delivered_after_an_error_in_the_block():
    def fail():
        with deferred_signals():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("inside")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            fail()
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_do_not_change_handlers():
    handlers = []

    def work():
        with deferred_signals():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
