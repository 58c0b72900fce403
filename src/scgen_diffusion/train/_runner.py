"""Running a stage on Lightning's trainer: checkpoints and resumption, Ctrl-C and SIGTERM, the progress bar."""

from __future__ import annotations

import inspect
import logging
import pickle
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.train import LoudEarlyStopping
from tqdm.auto import tqdm

from scgen_diffusion._files import sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    import pandas as pd
    from lightning.pytorch.strategies import Strategy

    from ._cells import StageData
    from ._plans import StagePlan

logger = logging.getLogger(__name__)

N_VALIDATIONS = 50
N_CHECKPOINTS = 20
EXIT_CODE_OF_SIGTERM = 143
FIRST_WITH_BF16 = 8  # compute capability; older GPUs emulate bfloat16, slowly
OWN_OPTIONS = {  # which the stage decides
    "self", "trainer_kwargs", "plan", "data", "use_distributed_sampler", "gradient_clip_val", "enable_checkpointing",
}  # fmt: skip
NEEDLESS_WARNINGS = (
    ".*does not have many workers",
    ".*has `shuffle=True`",
    ".*have no `val_dataloader`",
    ".*available but not used",
    "Total length of .* across ranks is zero",  # no cells to validate on
)


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind besides weights."""

    history: dict[str, pd.DataFrame]
    was_interrupted: bool
    trainer: pl.Trainer
    device: torch.device | None = None
    """Where this process trained; None if the stage was finished before."""


def run_stage(
    plan: StagePlan,
    data: StageData,
    *,
    max_epochs: int,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    precision: str | None = None,
    early_stopping: bool = False,
    early_stopping_patience: int = 20,
    early_stopping_min_delta: float = 0.0,
    check_val_every_n_epoch: int | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_minutes: float = 5.0,
    callbacks: list[Callback] | None = None,
    enable_progress_bar: bool = True,
    strategy: str | Strategy = "auto",
    **trainer_kwargs: Any,
) -> StageResult:
    """Train one stage.

    Parameters
    ----------
    plan
        What to train, and how.
    data
        Loaders of training and validation cells.
    max_epochs
        Number of passes over the training cells. Of many cells, a pass is cut into several of Lightning's epochs.
    accelerator, devices
        Passed to Lightning.
    precision
        Passed to Lightning; default: bfloat16 autocast on a CUDA GPU that computes in it, float32 elsewhere.
    early_stopping
        Whether to stop when the validation loss has not fallen for ``early_stopping_patience`` validations.
    early_stopping_min_delta
        By how much it has to fall to count as fallen.
    check_val_every_n_epoch
        Default: so that a run validates about 50 times, or every epoch with early stopping.
    checkpoint_dir
        Where ``<stage>.ckpt`` is written at ends of epochs, and resumed from if it is there.
    checkpoint_minutes
        Time after which a checkpoint is written at the next end of an epoch. Shorter runs have some 20.
    callbacks
        Further Lightning callbacks.
    enable_progress_bar
        Whether to show a bar of the stage; another one may be among the callbacks.
    strategy
        Passed to Lightning. An object is copied: it serves one trainer only, and each stage has its own.
    **trainer_kwargs
        Passed to :class:`lightning.pytorch.Trainer`.
    """
    n_epochs = max_epochs * data.epochs_per_pass
    interruption = Interruption()
    callbacks = [interruption, *(callbacks or [])]
    path = None if checkpoint_dir is None else checkpoint_dir / f"{plan.name}.ckpt"
    if early_stopping:
        rule = {"patience": early_stopping_patience, "min_delta": early_stopping_min_delta, "warmup_epochs": 0}
        callbacks.append(LoudEarlyStopping(monitor=f"{plan.name}_loss_validation", **rule))
    if path is not None:
        callbacks.append(StageCheckpoint(path, max(n_epochs // N_CHECKPOINTS, 1), checkpoint_minutes))
    if enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(StageProgress())
    defaults = {"benchmark": True, "num_sanity_val_steps": 0, "enable_model_summary": False, "logger": False}
    every = 1 if early_stopping else max(n_epochs // N_VALIDATIONS, 1)
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=n_epochs,
            accelerator=accelerator,
            devices=devices,
            precision=precision or _default_precision(accelerator),
            gradient_clip_val=plan.recipe.gradient_clip,
            check_val_every_n_epoch=check_val_every_n_epoch or every,
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=enable_progress_bar,
            strategy=deepcopy(strategy),
            use_distributed_sampler=False,  # our loaders hand out whole batches, and share them among processes themselves
            **{**defaults, **trainer_kwargs},
        )
        checkpoint = None if path is None or not path.exists() else read_checkpoint(path)
        if checkpoint is not None and checkpoint.get("n_epochs_done", 0) > n_epochs:
            msg = (
                f"The checkpoint {path} has {checkpoint['n_epochs_done']} epochs behind it, more than the {n_epochs} that are asked for; "
                "remove it to start anew."
            )
            raise ValueError(msg)
        if checkpoint is not None and checkpoint.get("is_finished") and checkpoint.get("max_epochs") == n_epochs:
            plan.on_load_checkpoint(checkpoint)
            plan.load_state_dict(checkpoint["state_dict"])
            plan.module.eval()
            return StageResult(plan.history, was_interrupted=False, trainer=trainer)
        if checkpoint is not None:
            logger.info("%s: going on after epoch %d.", plan.name, checkpoint["n_epochs_done"])
        plan.module.train()
        try:
            with interruption.listening(trainer):
                trainer.fit(plan, data, ckpt_path=None if checkpoint is None else path, weights_only=True)
        except StoppedByUserError:
            pass
        except SIGTERMException as end:  # which a shell would take for a success
            raise SystemExit(EXIT_CODE_OF_SIGTERM) from end
        finally:  # Lightning leaves this out after an exception
            plan.teardown("fit")
            data.teardown("fit")
        if trainer.received_sigterm:  # in the last step, after which some versions do not ask
            raise SystemExit(EXIT_CODE_OF_SIGTERM)
    plan.module.eval()
    return StageResult(plan.history, interruption.requested, trainer, trainer.strategy.root_device)


def trainer_options() -> list[str]:
    """Name the options of a stage's run, those of Lightning's trainer among them."""
    functions = (run_stage, pl.Trainer.__init__)
    return sorted({name for function in functions for name in inspect.signature(function).parameters} - OWN_OPTIONS)


def _default_precision(accelerator: str) -> str:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    computes_bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= FIRST_WITH_BF16
    return "bf16-mixed" if computes_bf16 else "32-true"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the user can do nothing about: Lightning's lines on devices, its advertisements, libraries' warnings of old names."""
    lightning = logging.getLogger("lightning.pytorch")
    before = lightning.level
    if before == logging.INFO:  # Lightning's own default; another level is the user's choice
        lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|scvi)\b")
            for message in NEEDLESS_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        lightning.setLevel(before)


# --- checkpoints -------------------------------------------------------------------------------------------------------


class StageCheckpoint(Checkpoint):
    """Write one checkpoint over and over at ends of epochs, beside its goal first, so that a kill never leaves half a file.

    Lightning's ``ModelCheckpoint`` writes to the system's temporary folder and copies from there; its
    ``save_on_exception`` keeps states that diverged, and states in the middle of an epoch, from which Lightning would
    go through the epoch's first cells again.

    Parameters
    ----------
    path
        The checkpoint.
    every_n_epochs
        How often it is written; the end of training is written too.
    minutes
        Time after which it is written whatever the number of the epoch.
    """

    def __init__(self, path: Path, every_n_epochs: int, minutes: float) -> None:
        self.path, self.every_n_epochs, self.seconds = path, every_n_epochs, 60 * minutes
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the checkpoint if it is due."""
        n_done = trainer.current_epoch + 1
        is_due = time.monotonic() - self._last >= self.seconds
        if n_done % self.every_n_epochs == 0 or n_done == trainer.max_epochs or trainer.strategy.broadcast(is_due):
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the last state of a stage that ended by itself."""
        pl_module.is_finished = True
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, plan: StagePlan) -> None:
        self._last = time.monotonic()
        if not plan.is_finite:  # in all processes, whose weights are the same
            logger.warning("%s is not written: weights are NaN or infinite.", self.path)
            return
        part = self.path.with_name(f"{self.path.name}.part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            sync(part)
            part.replace(self.path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises
    ------
    ValueError
        If the file is damaged, or holds more than plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError) as error:
        msg = f"The checkpoint {path} is damaged or holds more than plain values; remove it to start anew. ({error})"
        raise ValueError(msg) from error


# --- Ctrl-C ------------------------------------------------------------------------------------------------------------


class StoppedByUserError(Exception):
    """The user pressed Ctrl-C, and training ends between two steps."""


class Interruption(Callback):
    """Ctrl-C ends training before the next step and keeps the weights; a second one interrupts at once.

    Lightning's own answer to Ctrl-C ends the process wherever it is. So it stays in runs of several processes, which
    would have to agree on a step.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self, trainer: pl.Trainer) -> Iterator[None]:
        """Take note of Ctrl-C. Signals reach Python's main thread only."""
        if trainer.world_size > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)

        def stop(signal_number: int, frame: FrameType | None) -> None:
            logger.warning("Interrupted: training stops after this step and keeps its weights. Press again to abort.")
            self.requested = True
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_train_batch_start(self, *_: Any) -> None:
        """Stop if the user said so; Lightning's ``should_stop`` would take the epoch for a whole one.

        Raises
        ------
        StoppedByUserError
            If Ctrl-C was pressed.
        """
        if self.requested:
            raise StoppedByUserError


# --- the progress bar --------------------------------------------------------------------------------------------------


class StageProgress(ProgressBar):
    """One bar for the stage, which says in words what it does: the epoch, its losses and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._bar: Any = None

    def disable(self) -> None:
        """Show nothing, as Lightning has it in all processes but the first."""
        self._is_enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Begin the bar, where a checkpoint left off."""
        self._bar = tqdm(
            desc=f"Training the {pl_module.name}",
            total=pl_module.n_steps,
            initial=trainer.global_step,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
            mininterval=0.1 if sys.stderr.isatty() else 30.0,  # seconds; few lines where a log is written
            disable=not self._is_enabled,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the step."""
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Say the epoch and its losses."""
        losses = [
            f", {word} {float(trainer.callback_metrics[name]):.4g}"
            for subset, word in (("train", "loss"), ("validation", "validation loss"))
            if (name := f"{pl_module.name}_loss_{subset}") in trainer.callback_metrics
        ]
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._bar.set_description_str(f"Training the {pl_module.name}: {epoch}{''.join(losses)}", refresh=False)

    def on_train_end(self, *_: Any) -> None:
        """Leave the last state where it is."""
        self._bar.close()

    def on_exception(self, *_: Any) -> None:
        """Leave the bar where training stopped."""
        if self._bar is not None:
            self._bar.close()
