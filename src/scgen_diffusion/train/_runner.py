"""Run a stage on Lightning's trainer: checkpoints and resumption, Ctrl-C and SIGTERM, the progress bar."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from tqdm.auto import tqdm

from scgen_diffusion._arguments import check_count, is_number, known_names
from scgen_diffusion._compat import dump_checkpoint, handle_sigterm_by, parse_device_args, refusing_as_value_error
from scgen_diffusion._files import explain_failed_read, read_torch, write_atomically

from ._plans import ADVICE_ON_DIVERGENCE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from lightning.pytorch.strategies import Strategy

    from ._plans import StagePlan
    from ._recipes import Recipe
    from ._stage_data import StageData

logger = logging.getLogger(__name__)
PACKAGE = __name__.partition(".")[0]

N_VALIDATIONS = 100
N_CHECKPOINTS = 20
SECONDS_PER_LINE = 60.0  # in a log file
EXIT_CODE_OF_SIGTERM = 143
FIRST_WITH_BF16 = 8  # compute capability; older GPUs emulate bfloat16, slowly
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # weights have single precision
#: Arguments of Lightning's trainer that are set here. Its limit of time would count a stage as finished.
OF_STAGES = {"gradient_clip_val", "enable_checkpointing", "use_distributed_sampler", "overfit_batches", "max_time"}
NEEDLESS_WARNINGS = "available but not used|Total length of .* across ranks is zero"  # no cells to validate on


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOptions:
    """How stages are run, whichever they are.

    Parameters
    ----------
    accelerator, devices, strategy
        Passed to Lightning. A strategy object is copied, because each stage has its own trainer.
    precision
        Passed to Lightning. Default: bfloat16 autocast for large networks (:attr:`Recipe.bfloat16`) on CUDA GPUs that
        support it, otherwise float32.
    early_stopping
        Whether plateaus of the validation loss end stages that otherwise have a fixed length.
    check_val_every_n_epoch
        Epochs between validations. Default: about 100 validations.
    checkpoint_dir
        Folder in which ``<stage>.ckpt`` is written after epochs, and resumed from if it exists.
    checkpoint_minutes
        A checkpoint is written at the end of an epoch if the last one is this many minutes old. Besides, a stage
        writes about 20, at equal numbers of epochs.
    callbacks
        More Lightning callbacks.
    enable_progress_bar
        Whether to show a progress bar, unless the callbacks contain one.
    compile
        Whether to compile the networks.
    of_trainer
        Other arguments of :class:`lightning.pytorch.Trainer`.
    """

    accelerator: str = "auto"
    devices: int | list[int] | str = "auto"
    strategy: str | Strategy = "auto"
    precision: str | None = None
    early_stopping: bool = False
    check_val_every_n_epoch: int | None = None
    checkpoint_dir: Path | None = None
    checkpoint_minutes: float = 5.0
    callbacks: Sequence[Callback] = ()
    enable_progress_bar: bool = True
    compile: bool = False
    of_trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint_dir: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """Sort the arguments of ``train``."""
        own = {each.name for each in fields(cls)}
        of_trainer = {name: options.pop(name) for name in [*options] if name not in own}
        known = sorted((set(inspect.signature(pl.Trainer).parameters) - OF_STAGES) | own)
        if unknown := [name for name in of_trainer if name not in known]:
            msg = f"`train` has no argument {unknown[0]!r}. {known_names(unknown[0], known)}"
            raise TypeError(msg)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir).expanduser()
        callbacks = options.pop("callbacks", None) or ()
        return cls(**options, callbacks=callbacks, checkpoint_dir=folder, of_trainer=of_trainer)

    def __post_init__(self) -> None:
        """Check what Lightning does not check, or would fail with later."""
        if self.check_val_every_n_epoch is not None:
            check_count("check_val_every_n_epoch", self.check_val_every_n_epoch)
        if not (is_number(self.checkpoint_minutes) and self.checkpoint_minutes >= 0):
            msg = f"`checkpoint_minutes` must be a number of at least 0, but found {self.checkpoint_minutes!r}."
            raise ValueError(msg)
        is_list = isinstance(self.callbacks, list | tuple)
        if not (is_list and all(isinstance(callback, Callback) for callback in self.callbacks)):
            msg = f"`callbacks` must be a list of Lightning's callbacks, but found {self.callbacks!r}."
            raise TypeError(msg)

    def is_first_process(self) -> bool:
        """Return whether this is the first of several processes; raise ValueError for what Lightning refuses."""
        with refusing_as_value_error(), quiet():
            trainer = self.build_trainer(enable_checkpointing=False, enable_progress_bar=False)
        if trainer.precision not in PRECISIONS:
            msg = f"`precision` must be one of {PRECISIONS}, but found {trainer.precision!r}."
            raise ValueError(msg)
        return trainer.is_global_zero

    def build_trainer(self, **more: Any) -> pl.Trainer:
        """Build Lightning's trainer. With one device of one machine, it does not look for a cluster."""
        accelerator, devices, _ = parse_device_args(self.accelerator, self.devices)
        options = {
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "logger": False,
            "benchmark": not self.of_trainer.get("deterministic"),
            "enable_progress_bar": self.enable_progress_bar,
            "precision": self.precision or "32-true",
            **self.of_trainer,
            **more,
        }
        given = options.pop("plugins", None) or []
        plugins = [*given] if isinstance(given, list | tuple) else [given]
        n_devices = len(devices) if isinstance(devices, list) else devices
        is_alone = n_devices == options.get("num_nodes", 1) == 1
        if is_alone and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins.append(OneProcess())
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=deepcopy(self.strategy),
            plugins=plugins,
            use_distributed_sampler=False,  # our loaders yield whole batches and distribute them themselves
            **options,
        )


class OneProcess(LightningEnvironment):
    """Environment of a process that trains alone, whatever variables a job array or a container has set."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning's loggers would take it from the variables

    def local_rank(self) -> int:
        """Return 0."""
        return 0

    def node_rank(self) -> int:
        """Return 0."""
        return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's device lines and advertisements, and deprecation warnings of libraries."""
    lightning = logging.getLogger("lightning.pytorch")
    before = lightning.level
    if before == logging.INFO:  # Lightning's default; any other level is the user's choice
        lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|scvi)\b")
            warnings.filterwarnings("ignore", message=f".*({NEEDLESS_WARNINGS})")
            warnings.filterwarnings("ignore", category=PossibleUserWarning)  # of few workers and the like
            yield
    finally:
        lightning.setLevel(before)


# --- a stage ----------------------------------------------------------------------------------------------------------


def run_stage(
    plan: StagePlan,
    data: StageData,
    options: RunOptions,
    *,
    max_epochs: int,
    interruption: Interruption,
    progress: TrainingProgress,
) -> pl.Trainer:
    """Train a stage, from its checkpoint if there is one; return its trainer.

    Parameters
    ----------
    plan
        The stage to train.
    data
        Loaders of training and validation cells.
    options
        How to run it.
    max_epochs
        Largest number of passes over the training cells. A pass over many cells is cut into several epochs of
        Lightning.
    interruption
        Ends training between two steps. It listens until it is closed.
    progress
        The bar of all stages, unless the callbacks contain one.
    """
    recipe, folder = plan.recipe, options.checkpoint_dir
    path = None if folder is None else folder / f"{plan.name}.ckpt"
    n_epochs = max_epochs * data.epochs_per_pass
    if recipe.patience is not None and not plan.loss_judges_cells:
        msg = f"`early_stopping` and `patience` do not go with the {plan.name}: its loss may rise as cells get better."
        raise ValueError(msg)
    callbacks = [interruption, *options.callbacks]
    if path is not None:
        callbacks.append(StageCheckpoint(path, max(n_epochs // N_CHECKPOINTS, 1), options.checkpoint_minutes))
    if options.enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(progress)
    with quiet():
        trainer = options.build_trainer(
            max_epochs=n_epochs,
            precision=options.precision or _default_precision(recipe, options.accelerator),
            gradient_clip_val=recipe.gradient_clip,
            check_val_every_n_epoch=options.check_val_every_n_epoch or max(n_epochs // N_VALIDATIONS, 1),
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        )
        checkpoint = read_checkpoint(path) if path is not None and path.exists() else None
        if checkpoint is not None and checkpoint.get("is_finished") and checkpoint.get("max_epochs") == n_epochs:
            plan.trainer = trainer
            plan.on_load_checkpoint(checkpoint)
            plan.load_state_dict(checkpoint["state_dict"])
            plan.module.eval()
            if options.enable_progress_bar:
                show(f"The {plan.name} was finished before: its weights are from {path}.")
            return trainer
        plan.module.train()
        plan.is_compiled = options.compile
        try:
            trainer.fit(plan, data, ckpt_path=None if checkpoint is None else path, weights_only=True)
        except StoppedError:
            plan.was_stopped = True
        finally:  # Lightning cleans up only if there was no error
            plan.teardown("fit")
            data.teardown("fit")
    if interruption.is_terminated:  # after the last step
        raise SystemExit(EXIT_CODE_OF_SIGTERM)
    if not plan.is_finite:  # the same in all processes
        msg = f"The {plan.name} has weights that are NaN or infinite; {ADVICE_ON_DIVERGENCE}"
        raise FloatingPointError(msg)
    plan.module.eval()
    return trainer


def _default_precision(recipe: Recipe, accelerator: str) -> str:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    computes_bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= FIRST_WITH_BF16
    return "bf16-mixed" if recipe.bfloat16 and computes_bf16 else "32-true"


# --- checkpoints ------------------------------------------------------------------------------------------------------


class StageCheckpoint(Checkpoint):
    """Writes one checkpoint after epochs, atomically, so that a kill never leaves half a file.

    Lightning writes to the system's temporary folder and copies from there. ``save_on_exception`` of its
    ``ModelCheckpoint`` keeps states that diverged, and states within an epoch, from which Lightning would repeat the
    epoch's first cells.

    Parameters
    ----------
    path
        Path of the checkpoint.
    every_n_epochs
        Epochs between checkpoints; the last epoch always has one.
    minutes
        Minutes after which a checkpoint is written after any epoch.
    """

    def __init__(self, path: Path, every_n_epochs: int, minutes: float) -> None:
        self.path, self.every_n_epochs, self.seconds = path, every_n_epochs, 60 * minutes
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the checkpoint if it is due."""
        n_done, is_late = trainer.current_epoch + 1, time.monotonic() - self._last >= self.seconds
        if n_done % self.every_n_epochs == 0 or n_done == trainer.max_epochs or trainer.strategy.broadcast(is_late):
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the last state of a finished stage."""
        pl_module.is_finished = True
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, plan: StagePlan) -> None:
        self._last = time.monotonic()
        if not plan.is_finite:  # the same in all processes
            logger.warning("%s is not written: weights are NaN or infinite.", self.path)
            return
        content = dump_checkpoint(trainer)  # in all processes
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # another training may have removed it at its end
            with write_atomically(self.path) as part, part.open("wb") as file:
                torch.save(content, file)
        trainer.strategy.barrier()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises
    ------
    ValueError
        If the file is damaged, or holds more than plain values.
    """
    with explain_failed_read(path, f"The checkpoint {path} is damaged, or is none of this package; remove it"):
        return read_torch(path)


# --- Ctrl-C and SIGTERM -----------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Training ends between two steps, because the user pressed Ctrl-C."""


class Interruption(Callback):
    """Ends training before the next step, in all processes together.

    After Ctrl-C the weights are kept, and so is a stage whose last step is done; a second Ctrl-C aborts at once. With
    several processes, Lightning handles Ctrl-C and ends the process at once. SIGTERM to any of them ends all with its
    exit code; Lightning's own handler would broadcast in the middle of a step, where the others expect gradients.
    """

    def __init__(self) -> None:
        self.is_pressed = self.is_terminated = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Listen to Ctrl-C no more."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def setup(self, trainer: pl.Trainer, pl_module: StagePlan, stage: str) -> None:
        """Listen to signals, which only Python's main thread receives."""
        handle_sigterm_by(trainer, self._note)
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)  # None: a handler that Python could not set again
            if self._previous is not None:
                signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.is_terminated = True
            return
        logger.warning("Interrupted: training stops after this step and keeps its weights. Press again to abort.")
        self.is_pressed = True
        signal.signal(signal.SIGINT, self._previous)

    def _end_if_terminated(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.is_terminated, all=False):
            raise SystemExit(EXIT_CODE_OF_SIGTERM)  # a shell would take 0 for success

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop after Ctrl-C by raising StoppedError; Lightning's ``should_stop`` would count the epoch as finished."""
        self._end_if_terminated(trainer)
        if self.is_pressed:
            raise StoppedError

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """End after SIGTERM, before the last checkpoint is written."""
        self._end_if_terminated(trainer)


def is_interrupted(trainer: pl.Trainer) -> bool:
    """Return whether Ctrl-C was pressed during training."""
    return any(isinstance(each, Interruption) and each.is_pressed for each in trainer.callbacks)


# --- progress ---------------------------------------------------------------------------------------------------------


def in_notebook() -> bool:
    """Return whether output goes to a notebook."""
    return type(sys.stderr).__module__.startswith("ipykernel")


def show(text: str) -> None:
    """Print a line next to the progress bars: in the cell of a notebook, otherwise on stderr.

    The command line, which handles the package's log itself, gets it as a record.
    """
    package = logging.getLogger(PACKAGE)
    if package.handlers and not package.propagate and package.isEnabledFor(logging.INFO):
        logger.info(text)
    else:
        tqdm.write(text, file=sys.stdout if in_notebook() else sys.stderr)


class TrainingProgress(ProgressBar):
    """One bar for all stages of a training; where no one watches, as in a log file, it is written once a minute.

    Parameters
    ----------
    n_epochs
        Epochs of each stage, in order.
    """

    def __init__(self, n_epochs: Mapping[str, int]) -> None:
        super().__init__()
        self.n_epochs, self._is_enabled, self._bar, self._n_before = n_epochs, True, None, 0.0

    def disable(self) -> None:
        """Show nothing. Lightning calls this in all processes but the first."""
        self._is_enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Count the epochs that are left, in this stage and in later ones, and say what is resumed."""
        if self._is_enabled and pl_module.n_epochs_done:
            show(f"Resuming the {pl_module.name} after {pl_module.describe_epoch(pl_module.n_epochs_done - 1)}.")
        is_watched = sys.stderr.isatty() or in_notebook()
        if self._bar is None:
            self._bar = tqdm(
                desc="Training",
                bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
                total=1,
                mininterval=0.1 if is_watched else SECONDS_PER_LINE,
                maxinterval=SECONDS_PER_LINE,
                disable=not self._is_enabled,
            )
        stages = [*self.n_epochs]
        of_stages = [self.n_epochs[name] for name in stages[stages.index(pl_module.name) :]]
        self._n_before = self._bar.n - pl_module.progress * of_stages[0]
        self._bar.total = self._n_before + sum(of_stages)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: StagePlan, *_: Any) -> None:
        """Count the step."""
        self._bar.update(self._n_before + pl_module.progress * self.n_epochs[pl_module.name] - self._bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Show the epoch and its loss."""
        state = f"{pl_module.name} {pl_module.describe_epoch(trainer.current_epoch)}"
        for subset, words in (("validation", "validation loss"), ("train", "training loss")):
            if (name := pl_module.key_loss(subset)) in trainer.callback_metrics:
                state += f", {words} {float(trainer.callback_metrics[name]):.4g}"
                break
        self._bar.set_postfix_str(state, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Close the bar after the last stage, and leave its last state."""
        if pl_module.name == [*self.n_epochs][-1]:
            self._close()

    def on_exception(self, *_: Any) -> None:
        """Close the bar where training stopped."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
