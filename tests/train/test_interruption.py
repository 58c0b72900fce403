"""The first Ctrl-C asks for an orderly stop, the second one aborts."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from scgen_diffusion.train._interruption import Interruption, stop_on_interrupt


@pytest.fixture(autouse=True)
def python_listens_to_ctrl_c():
    """A process that a shell has put into the background ignores it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_stops_the_trainer_and_the_second_one_aborts():
    trainer = SimpleNamespace(should_stop=False)

    interruption = Interruption()
    with stop_on_interrupt(trainer, interruption):
        press_ctrl_c()
        assert trainer.should_stop
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_the_handler_that_was_there_comes_back():
    before = signal.getsignal(signal.SIGINT)

    def fail():
        with stop_on_interrupt(SimpleNamespace(should_stop=False), Interruption()):
            assert signal.getsignal(signal.SIGINT) is not before
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        fail()

    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interruption_nothing_is_requested():
    trainer = SimpleNamespace(should_stop=False)

    interruption = Interruption()
    with stop_on_interrupt(trainer, interruption):
        pass

    assert not interruption.requested
    assert not trainer.should_stop


def test_in_another_thread_nothing_changes():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        interruption = Interruption()
        with stop_on_interrupt(SimpleNamespace(should_stop=False), interruption):
            seen.append((signal.getsignal(signal.SIGINT), interruption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [(before, False)]
