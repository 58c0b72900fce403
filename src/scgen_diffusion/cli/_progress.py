"""What Lightning calls while training: lines on progress where there is no terminal to draw bars on, and an ear for signals."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from ._signals import Signals
    from ._terminal import Terminal

INTERVAL = 30.0  # seconds between two lines


class Lines(Callback):
    """Say from time to time how far a stage is, how low its loss, and how long it will take.

    Parameters
    ----------
    terminal
        Where to say it.
    interval
        Seconds between two lines.
    """

    def __init__(self, terminal: Terminal, interval: float = INTERVAL) -> None:
        self.terminal, self.interval = terminal, interval
        self.started = self.told = 0.0
        self.first_epoch = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = self.told = time.monotonic()
        self.first_epoch = trainer.current_epoch
        if self.first_epoch and trainer.is_global_zero:
            self.terminal.say(f"{_name(trainer)}: going on after epoch {self.first_epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say a line if it is time for one, and after the last epoch."""
        now, done = time.monotonic(), trainer.current_epoch + 1
        if trainer.is_global_zero and (now - self.told >= self.interval or done == trainer.max_epochs):
            self.told = now
            self.terminal.say(self._line(trainer, done, now - self.started))

    def _line(self, trainer: pl.Trainer, done: int, seconds: float) -> str:
        name = _name(trainer)
        losses = [
            f"{label} {float(trainer.callback_metrics[key]):.4g}"
            for label, key in (("loss", f"{name}_loss_train"), ("validation", f"{name}_loss_validation"))
            if key in trainer.callback_metrics
        ]
        left = seconds / (done - self.first_epoch) * (trainer.max_epochs - done)
        times = [f"{seconds:.0f} s", *([f"{left:.0f} s left"] if done < trainer.max_epochs else [])]
        return ", ".join([f"{name}: epoch {done}/{trainer.max_epochs}", *losses, *times])


def _name(trainer: pl.Trainer) -> str:
    return getattr(trainer.lightning_module, "name", "training")


class Ear(Callback):
    """Take note of the signals that stop a stage, before the handlers of its runner do so in order."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stand before the handlers; but replace Lightning's own of SIGTERM, which would end the stage without a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            return
        stop, end = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        is_lightnings = type(end).__module__.startswith("lightning")
        signal.signal(signal.SIGINT, self.signals.noting(stop))
        signal.signal(
            signal.SIGTERM, self.signals.terminate if is_lightnings else self.signals.noting(end, terminated=True)
        )


def callbacks(terminal: Terminal) -> list[Callback]:
    """Return what Lightning shall call."""
    return [Ear(terminal.signals), *([] if terminal.has_bars else [Lines(terminal)])]
