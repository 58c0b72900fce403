"""The first Ctrl-C asks for an orderly stop, the second one aborts."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from scgen_diffusion.train._interruption import AgreedStop, Interruption, StoppedByUserError, stop_on_interrupt


@pytest.fixture(autouse=True)
def python_listens_to_ctrl_c():
    """A process that a shell has put into the background ignores it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_stops_before_the_next_step_and_the_second_one_aborts():
    interruption = Interruption()
    callback = AgreedStop(interruption)
    with stop_on_interrupt(interruption):
        callback.on_train_batch_start(None, None, None, 0)
        press_ctrl_c()
        assert interruption.requested
        with pytest.raises(StoppedByUserError):
            callback.on_train_batch_start(None, None, None, 1)
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_the_handler_that_was_there_comes_back():
    before = signal.getsignal(signal.SIGINT)

    def fail():
        with stop_on_interrupt(Interruption()):
            assert signal.getsignal(signal.SIGINT) is not before
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        fail()

    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interruption_nothing_is_requested():
    interruption = Interruption()
    with stop_on_interrupt(interruption):
        pass

    assert not interruption.requested


def test_in_another_thread_nothing_changes():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        interruption = Interruption()
        with stop_on_interrupt(interruption):
            seen.append((signal.getsignal(signal.SIGINT), interruption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [(before, False)]
