"""Running one stage on scvi-tools' trainer."""

from __future__ import annotations

import inspect
import logging
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.train import LoudEarlyStopping, Trainer

from ._checkpoint import StageCheckpoint, check_seen_by_all, read_finished
from ._distributed import keep_buffers_apart, process_count
from ._history import HistoryRecorder
from ._interruption import (
    AgreedStop,
    Interruption,
    StoppedByUserError,
    failing_when_terminated,
    stop_on_interrupt,
)
from ._progress import StageProgress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.strategies import Strategy

    from ._plans import StagePlan

N_VALIDATIONS = 50
N_CHECKPOINTS = 20
OWN_OPTIONS = {  # which the stage decides, or which would do nothing
    "self", "kwargs", "trainer_kwargs", "plan", "data", "use_distributed_sampler", "gradient_clip_val", "simple_progress_bar",
    "early_stopping_monitor", "early_stopping_mode", "early_stopping_warmup_epochs",
}  # fmt: skip
FIRST_WITH_BF16 = 8  # compute capability; older GPUs emulate bfloat16, slowly


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind besides weights."""

    history: dict[str, pd.DataFrame]
    was_interrupted: bool
    trainer: Trainer
    device: torch.device | None = None
    """Where this process trained; None if the stage was finished before."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the user can do nothing about.

    That are Lightning's lines on devices and its advertisements, libraries' warnings of each other's old names, and what Lightning and
    scvi-tools cannot know: that batches go on in an epoch's middle, and that all processes log the same.
    """
    lightning = logging.getLogger("lightning.pytorch")
    before = lightning.level
    if before == logging.INFO:  # Lightning's own default; another level is the user's choice
        lightning.setLevel(logging.WARNING)
    try:
        with _without_needless_warnings():
            yield
    finally:
        lightning.setLevel(before)


@contextmanager
def _without_needless_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|scvi)\b")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")  # no cells to validate on
        warnings.filterwarnings("ignore", message=".*available but not used")
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")
        warnings.filterwarnings("ignore", message="early_stopping was automatically disabled due to the use of DDP")
        yield


@_quiet()
def run_stage(
    plan: StagePlan,
    data: pl.LightningDataModule,
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
    checkpoint_minutes: float = 10.0,
    callbacks: list[Callback] | None = None,
    enable_progress_bar: bool = True,
    logger: Any = False,
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
        Number of passes over the training cells.
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
        Where ``<stage>.ckpt`` is written some 20 times, and resumed from if it is there.
    checkpoint_minutes
        Longest time between two checkpoints: long epochs have some in the middle.
    callbacks
        Further Lightning callbacks.
    enable_progress_bar
        Whether to show a bar of the stage; another one may be among the callbacks.
    logger
        Passed to Lightning; default: none, since the history is recorded anyway.
    strategy
        Passed to Lightning. An object is copied: it serves one trainer only, and each stage has its own.
    **trainer_kwargs
        Passed to :class:`scvi.train.Trainer`.
    """
    recorder, interruption = HistoryRecorder(), Interruption()
    callbacks = [recorder, AgreedStop(interruption), *(callbacks or [])]
    checkpoint = None if checkpoint_dir is None else checkpoint_dir / f"{plan.name}.ckpt"
    if checkpoint is not None:
        every = max(max_epochs // N_CHECKPOINTS, 1)
        callbacks.append(StageCheckpoint(checkpoint, every, checkpoint_minutes))
    if early_stopping:  # scvi-tools' trainer would leave it out of distributed runs
        monitored = f"{plan.name}_loss_validation"
        stop = {"min_delta": early_stopping_min_delta, "patience": early_stopping_patience, "warmup_epochs": 0}
        callbacks.append(LoudEarlyStopping(monitor=monitored, **stop))
    if enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(StageProgress())
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=devices,
        precision=precision or _default_precision(accelerator),
        gradient_clip_val=plan.recipe.gradient_clip,
        check_val_every_n_epoch=check_val_every_n_epoch
        or (1 if early_stopping else max(max_epochs // N_VALIDATIONS, 1)),
        callbacks=callbacks,
        logger=logger,
        enable_progress_bar=enable_progress_bar,
        simple_progress_bar=False,  # which is scvi-tools'
        strategy=deepcopy(strategy),
        use_distributed_sampler=False,  # our loaders hand out whole batches, and share them among processes themselves
        **trainer_kwargs,
    )
    _check_alone_or_together(trainer)
    if checkpoint is not None:  # whoever finds a finished stage would not take part in it
        check_seen_by_all(checkpoint)
    if finished := read_finished(checkpoint, max_epochs):
        return _restore(plan, recorder, finished, trainer)
    keep_buffers_apart(trainer.strategy)
    plan.module.train()
    with stop_on_interrupt(interruption), failing_when_terminated():
        _fit(trainer, plan, data, _if_exists(checkpoint), interruption)
    plan.module.eval()
    return StageResult(recorder.as_frames(), interruption.requested, trainer, trainer.strategy.root_device)


def _fit(
    trainer: Trainer, plan: StagePlan, data: pl.LightningDataModule, checkpoint: Path | None, interruption: Interruption
) -> None:
    """Train to the end of the stage, or until the user stops it.

    Raises
    ------
    SIGTERMException
        If a process was told to terminate, be it in the last steps, after which nobody asked.
    """
    try:
        trainer.fit(plan, data, ckpt_path=checkpoint, weights_only=True)
    except StoppedByUserError:
        for part in (plan, data):
            part.teardown("fit")  # which Lightning leaves out after an exception
    else:
        interruption.agree()
        if interruption.terminated:
            raise SIGTERMException


def _check_alone_or_together(trainer: Trainer) -> None:
    """Raise if this process trained with others before, and would now wait for them in vain."""
    if process_count() > 1 and trainer.world_size != process_count():
        msg = (
            f"This process is one of {process_count()} that train together, but `devices`, `num_nodes` and `strategy` ask for "
            f"{trainer.world_size}: train in all of them with the same arguments, or save the model and train on in a process of its own."
        )
        raise RuntimeError(msg)


def _restore(plan: StagePlan, recorder: HistoryRecorder, checkpoint: dict[str, Any], trainer: Trainer) -> StageResult:
    """Take a finished stage's weights and history as they are."""
    plan.on_load_checkpoint(checkpoint)
    plan.load_state_dict(checkpoint["state_dict"])
    recorder.load_state_dict(checkpoint["callbacks"][recorder.state_key])
    plan.module.eval()
    return StageResult(recorder.as_frames(), was_interrupted=False, trainer=trainer)


def _if_exists(path: Path | None) -> Path | None:
    return path if path is not None and path.exists() else None


def trainer_options() -> list[str]:
    """Name the options of a stage's run, those of scvi-tools' and Lightning's trainers among them."""
    functions = (run_stage, Trainer.__init__, pl.Trainer.__init__)
    return sorted({name for function in functions for name in inspect.signature(function).parameters} - OWN_OPTIONS)


def _default_precision(accelerator: str) -> str:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    computes_bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= FIRST_WITH_BF16
    return "bf16-mixed" if computes_bf16 else "32-true"
