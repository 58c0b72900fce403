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
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ProgressBar, Timer
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from scvi.train import SaveCheckpoint
from tqdm.auto import tqdm

from scgen_diffusion._arguments import check_count, is_number
from scgen_diffusion._compat import dump_checkpoint, handle_sigterm_by, parse_device_args, refusing_as_value_error
from scgen_diffusion._files import explain_failed_read, explain_failed_write, read_torch, write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from contextlib import ExitStack
    from pathlib import Path
    from types import FrameType

    from lightning.pytorch.strategies import Strategy

    from ._cells import StageData
    from ._plans import StagePlan
    from ._recipes import Recipe

logger = logging.getLogger(__name__)
PACKAGE = __name__.partition(".")[0]

N_VALIDATIONS = 50
N_CHECKPOINTS = 20
SECONDS_PER_LINE = 30.0  # minimum between lines in a log file
LINES_PER_STAGE = 100  # maximum in a log file
EXIT_CODE_OF_SIGTERM = 143
FIRST_WITH_BF16 = 8  # compute capability; older GPUs emulate bfloat16, slowly
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
OWN_OPTIONS = {  # the stage sets them
    "self", "trainer_kwargs", "plan", "data", "use_distributed_sampler", "gradient_clip_val", "enable_checkpointing",
    "deadline", "rest", "dependent", "overfit_batches",
}  # fmt: skip
NEEDLESS_WARNINGS = (
    ".*does not have many workers",
    ".*has `shuffle=True`",
    ".*have no `val_dataloader`",
    ".*available but not used",
    "Total length of .* across ranks is zero",  # no cells to validate on
)

COUNTS = {"early_stopping_patience": 0, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1}  # least
NUMBERS = ("early_stopping_min_delta", "checkpoint_minutes")


@dataclass(frozen=True)
class StageResult:
    """Result of a stage besides the weights."""

    plan: StagePlan
    trainer: pl.Trainer
    device: torch.device | None = None
    """Device of this process; None if the stage was finished before."""
    stopped_by: str = ""
    """What stopped it between two steps; "" if nothing did."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained with besides its options."""


def run_stage(
    plan: StagePlan,
    data: StageData,
    *,
    max_epochs: int,
    rest: ExitStack,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    precision: str | None = None,
    early_stopping: bool = False,
    early_stopping_patience: int = 20,
    early_stopping_min_delta: float = 0.0,
    check_val_every_n_epoch: int | None = None,
    checkpoint_dir: Path | None = None,
    dependent: Collection[str] = (),
    checkpoint_minutes: float = 5.0,
    callbacks: list[Callback] | None = None,
    enable_progress_bar: bool = True,
    strategy: str | Strategy = "auto",
    deadline: float | None = None,
    **trainer_kwargs: Any,
) -> StageResult:
    """Train one stage.

    Parameters
    ----------
    plan
        The stage to train.
    data
        Loaders of training and validation cells.
    max_epochs
        Number of passes over the training cells in a round. A pass over many cells is cut into several epochs of
        Lightning.
    rest
        Closed when what follows the last step of the stage is done, which one Ctrl-C lets finish.
    accelerator, devices
        Passed to Lightning.
    precision
        Passed to Lightning. Default: bfloat16 autocast for large networks (:attr:`Recipe.bfloat16`) on CUDA GPUs that
        support it, otherwise float32.
    early_stopping
        Whether to stop if the validation loss no longer falls.
    early_stopping_patience
        Number of validations without a fall after which to stop.
    early_stopping_min_delta
        Smallest change that counts as a fall.
    check_val_every_n_epoch
        Epochs between validations. Default: about 50 validations per round; with early stopping, every epoch.
    checkpoint_dir
        Folder in which ``<stage>.ckpt`` is written after epochs, and resumed from if it exists.
    dependent
        Later stages, which need the result of this one.
    checkpoint_minutes
        A checkpoint is written at the end of an epoch if the last one is this many minutes old. Besides, each round
        writes about 20, at equal numbers of epochs.
    callbacks
        More Lightning callbacks.
    enable_progress_bar
        Whether to show a progress bar, unless the callbacks contain one.
    strategy
        Passed to Lightning. An object is copied, because each stage has its own trainer.
    deadline
        When to stop, on the clock of :func:`time.monotonic`.
    **trainer_kwargs
        Passed to :class:`lightning.pytorch.Trainer`.
    """
    per_round = max_epochs * data.epochs_per_pass
    n_epochs = per_round * plan.recipe.max_rounds
    path = None if checkpoint_dir is None else checkpoint_dir / f"{plan.name}.ckpt"
    _check_loss_judges_cells(plan, early_stopping=early_stopping)
    interruption = Interruption(deadline)
    callbacks = [interruption, *(callbacks or [])]
    if early_stopping:
        rule = {"patience": early_stopping_patience, "min_delta": early_stopping_min_delta}
        callbacks.append(EarlyStopping(monitor=plan.key_loss("validation"), **rule))
    if path is not None:
        callbacks.append(StageCheckpoint(path, max(per_round // N_CHECKPOINTS, 1), checkpoint_minutes, dependent))
    if enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(StageProgress())
    defaults = {"num_sanity_val_steps": 0, "enable_model_summary": False, "logger": False}
    defaults["benchmark"] = not trainer_kwargs.get("deterministic")
    # all validation cells, before the first epoch
    first = {"num_sanity_val_steps": -1} if plan.must_beat_former else {}
    usual = 1 if early_stopping else max(per_round // N_VALIDATIONS, 1)
    with _quiet():
        trainer = build_trainer(
            max_epochs=n_epochs,
            accelerator=accelerator,
            devices=devices,
            precision=precision or _default_precision(plan.recipe, accelerator),
            gradient_clip_val=plan.recipe.gradient_clip,
            check_val_every_n_epoch=_validation_interval(plan, per_round, check_val_every_n_epoch, usual),
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=enable_progress_bar,
            strategy=deepcopy(strategy),
            use_distributed_sampler=False,  # our loaders yield whole batches and distribute them themselves
            **{**defaults, **trainer_kwargs, **first},
        )
        checkpoint = None if path is None or not path.exists() else read_checkpoint(path)
        if checkpoint is not None and checkpoint.get("is_finished") and checkpoint.get("max_epochs") == n_epochs:
            plan.trainer = trainer
            plan.on_load_checkpoint(checkpoint)
            plan.load_state_dict(checkpoint["state_dict"])
            plan.module.eval()
            if enable_progress_bar and trainer.is_global_zero:
                show(f"The {plan.name} was finished before: its weights are from {path}.")
            return StageResult(plan, trainer)
        plan.module.train()
        rest.enter_context(interruption.listening(trainer))
        with _orderly_end(plan, data, trainer):
            trainer.fit(plan, data, ckpt_path=None if checkpoint is None else path, weights_only=True)
    if not plan.is_finite:  # the same in all processes
        msg = f"The {plan.name} has weights that are NaN or infinite; {plan.advice_on_divergence}"
        raise FloatingPointError(msg)
    plan.module.eval()
    return StageResult(plan, trainer, trainer.strategy.root_device, interruption.source)


def _check_loss_judges_cells(plan: StagePlan, *, early_stopping: bool) -> None:
    """Raise for an end of training that validation losses decide, unless they show how good the cells are."""
    rule = "early_stopping" if early_stopping else "max_rounds" if plan.recipe.max_rounds > 1 else None
    if rule and not plan.loss_judges_cells:
        msg = (
            f"`{rule}` watches the validation loss, but that of the {plan.name} may rise while the generated cells get "
            f"better. Leave `{rule}` out."
        )
        raise ValueError(msg)


def _validation_interval(plan: StagePlan, per_round: int, given: int | None, usual: int) -> int:
    """Return the epochs between validations: those given, or about the usual ones; a round ends with a validation."""
    every = usual if given is None else check_count("check_val_every_n_epoch", given)
    if plan.recipe.max_rounds == 1 or per_round % every == 0:
        return every
    if given:
        msg = (
            f"A round of the {plan.name} has {per_round} epochs, and its last one must be validated: "
            f"`check_val_every_n_epoch` must divide {per_round}, but found {given}."
        )
        raise ValueError(msg)
    return next(n for n in range(every, 0, -1) if per_round % n == 0)


@contextmanager
def _orderly_end(plan: StagePlan, data: StageData, trainer: pl.Trainer) -> Iterator[None]:
    """Keep the best weights if stopped, exit after SIGTERM, and clean up, which Lightning skips after an exception."""
    try:
        yield
    except StoppedError:
        plan.return_to_best_round()
    except SIGTERMException as end:  # a shell would take it for success
        raise SystemExit(EXIT_CODE_OF_SIGTERM) from end
    finally:
        plan.teardown("fit")
        data.teardown("fit")
    if trainer.received_sigterm:  # some versions do not check after the last step
        raise SystemExit(EXIT_CODE_OF_SIGTERM)


def check_trainer_options(
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    precision: str | None = None,
    strategy: str | Strategy = "auto",
    **options: Any,
) -> pl.Trainer:
    """Raise for options that Lightning or scvi-tools refuse, or fail with later; return a trainer that is not used.

    Before training, it knows whether this is the first of several processes (``is_global_zero``).
    """
    for name, least in COUNTS.items():
        if options.get(name) is not None:
            check_count(name, options[name], least)
    for name in NUMBERS:
        if not (is_number(value := options.get(name, 0)) and value >= 0):  # NaN is none
            msg = f"`{name}` must be a number of at least 0, but found {value!r}."
            raise ValueError(msg)
    callbacks = options.get("callbacks") or ()
    if not isinstance(callbacks, list | tuple) or any(not isinstance(callback, Callback) for callback in callbacks):
        msg = f"`callbacks` must be a list of Lightning's callbacks, but found {callbacks!r}."
        raise TypeError(msg)
    for kind, instead in {Timer: "max_time", SaveCheckpoint: "checkpoint_dir"}.items():
        if any(isinstance(callback, kind) for callback in callbacks):
            msg = f"`callbacks` has a {kind.__name__}, which does not work with stages. Give `{instead}` instead."
            raise ValueError(msg)
    own = inspect.signature(run_stage).parameters
    chosen = {"accelerator": accelerator, "devices": devices, "strategy": deepcopy(strategy)}
    chosen |= {name: value for name, value in options.items() if name not in own}
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with refusing_as_value_error(), _quiet():
        trainer = build_trainer(precision=precision or "32-true", **{**silent, **chosen})
    if trainer.precision not in PRECISIONS:
        msg = f"`precision` {precision!r} does not work: weights have single precision. Use one of {PRECISIONS}."
        raise ValueError(msg)
    return trainer


class OneProcess(LightningEnvironment):
    """Environment of a process that trains alone, whatever variables a job array or a container has set."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning's loggers would take it from the variables

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def build_trainer(
    accelerator: str, devices: Any, *, num_nodes: int = 1, plugins: Any = None, **options: Any
) -> pl.Trainer:
    """Build Lightning's trainer. With one device of one machine, it does not look for a cluster."""
    accelerator, devices, _ = parse_device_args(accelerator, devices)
    plugins = [*plugins] if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]
    is_alone = num_nodes == 1 and (devices == 1 or (isinstance(devices, list) and len(devices) == 1))
    if is_alone and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins.append(OneProcess())
    return pl.Trainer(accelerator=accelerator, devices=devices, num_nodes=num_nodes, plugins=plugins, **options)


def deadline_after(max_time: str | timedelta | dict[str, int] | None) -> float | None:
    """Return when a time as Lightning's trainer takes it will have passed, on the clock of :func:`time.monotonic`."""
    if max_time is None:
        return None
    msg = (
        "`max_time` must be text (days:hours:minutes:seconds) such as '00:01:30:00', a `timedelta`, or a dict such as "
        f"{{'minutes': 90}}, but found {max_time!r}."
    )
    if not isinstance(max_time, str | timedelta | dict):
        raise TypeError(msg)
    try:
        return time.monotonic() + Timer(max_time).time_remaining()
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(msg) from error


def trainer_options() -> list[str]:
    """List the options of a stage's run, including those of Lightning's trainer."""
    functions = (run_stage, pl.Trainer.__init__)
    return sorted({name for function in functions for name in inspect.signature(function).parameters} - OWN_OPTIONS)


def _default_precision(recipe: Recipe, accelerator: str) -> str:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    computes_bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= FIRST_WITH_BF16
    return "bf16-mixed" if recipe.bfloat16 and computes_bf16 else "32-true"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's device lines and advertisements, and deprecation warnings of libraries."""
    lightning = logging.getLogger("lightning.pytorch")
    before = lightning.level
    if before == logging.INFO:  # Lightning's default; any other level is the user's choice
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
    dependent
        Later stages, whose checkpoints this one's training would make worthless.
    """

    def __init__(self, path: Path, every_n_epochs: int, minutes: float, dependent: Collection[str] = ()) -> None:
        self.path, self.every_n_epochs, self.seconds = path, every_n_epochs, 60 * minutes
        self.later = [path.with_name(f"{stage}{path.suffix}") for stage in sorted(dependent)]
        self._last = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Raise, after this stage's own checkpoint was accepted, if later stages have checkpoints."""
        if found := [path.name for path in self.later if path.exists()]:
            msg = (
                f"{self.path.parent} has {' and '.join(found)}, which need the {pl_module.name} as it is, but this "
                "call would train it on. To resume, make the former call again. To train it on, remove "
                f"{' and '.join(found)}, or use another `checkpoint_dir` (on the command line, `--restart` removes all "
                "checkpoints)."
            )
            raise ValueError(msg)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the checkpoint if it is due."""
        n_done = trainer.current_epoch + 1
        is_due = time.monotonic() - self._last >= self.seconds
        if n_done % self.every_n_epochs == 0 or n_done == trainer.max_epochs or trainer.strategy.broadcast(is_due):
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
        options = {
            "kept": "The former checkpoint is kept. " if self.path.exists() else "",
            "again": " and make the same call again to resume",
        }
        content = dump_checkpoint(trainer)  # in all processes
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # another training may have removed it at its end
            failing = explain_failed_write(f"Writing the checkpoint {self.path.name}", self.path.parent, **options)
            with write_atomically(self.path) as part, failing, part.open("wb") as file:
                torch.save(content, file)
        trainer.strategy.barrier()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises
    ------
    ValueError
        If the file is damaged, or holds more than plain values.
    """
    verdict = (
        f"The checkpoint {path} is damaged, or is none of this package; remove it to start again (on the command line: "
        "`--restart`)"
    )
    with explain_failed_read(path, verdict):
        return read_torch(path)


# --- Ctrl-C and the time limit ----------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Training ends between two steps, because the user pressed Ctrl-C or the time is up."""


class Interruption(Callback):
    """Ends training before the next step on Ctrl-C and keeps the weights; a second Ctrl-C aborts at once.

    With several processes, Lightning handles Ctrl-C and ends the process at once. SIGTERM to one of them ends all
    before the same step, and then the process calls the user's own handler. Lightning's handler would broadcast in the
    middle of a step, where the other processes expect gradients or losses, and all would hang.

    Training ends in the same way, in all processes together, once ``deadline`` has passed. Lightning's own limit of
    time would count the stage as finished, and also count the time before a resumption.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.source = ""
        """What ended training, as the subject of a sentence; "" for nothing."""
        self.is_terminated = False
        """Whether this process, one of several, got SIGTERM."""

    @contextmanager
    def listening(self, trainer: pl.Trainer) -> Iterator[None]:
        """Listen for Ctrl-C, or in one of several processes for SIGTERM; only Python's main thread receives them."""
        is_alone = trainer.world_size == 1
        number = signal.SIGINT if is_alone else signal.SIGTERM
        previous = signal.getsignal(number)  # None: a handler that Python could not set again
        if threading.current_thread() is not threading.main_thread() or previous is None:
            yield
            return

        def stop(signal_number: int, frame: FrameType | None) -> None:
            logger.warning(
                "Interrupted: training stops after this step and keeps its weights, or those of the best round. Press "
                "again to abort."
            )
            self.source = "You"
            signal.signal(signal.SIGINT, previous)

        if not is_alone:
            handle_sigterm_by(trainer, self._note_sigterm)
        signal.signal(number, stop if is_alone else self._note_sigterm)
        try:
            yield
        finally:
            signal.signal(number, previous)
            if self.is_terminated and callable(previous):  # it may exit, for which the others would wait in a step
                previous(number, None)
        if self.is_terminated:  # after the last step
            raise SystemExit(EXIT_CODE_OF_SIGTERM)

    def _note_sigterm(self, signal_number: int, frame: FrameType | None) -> None:
        self.is_terminated = True

    def _end_if_terminated(self, trainer: pl.Trainer) -> None:
        """Raise SIGTERMException in all processes if one of them got SIGTERM."""
        if trainer.strategy.reduce_boolean_decision(self.is_terminated, all=False):
            raise SIGTERMException

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop if it is time; Lightning's ``should_stop`` would count the epoch as finished.

        Raises
        ------
        StoppedError
            If Ctrl-C was pressed, or the time is up.
        """
        self._end_if_terminated(trainer)
        if self.deadline is not None and trainer.strategy.broadcast(time.monotonic() >= self.deadline):
            self.source = "`max_time`"
        if self.source:
            raise StoppedError

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Undo a round that something else has ended, before the last checkpoint is written."""
        self._end_if_terminated(trainer)
        pl_module.return_to_best_round()


def is_interrupted(trainer: pl.Trainer) -> bool:
    """Return whether Ctrl-C or the time limit ended training, or Ctrl-C came after the last step."""
    return any(isinstance(callback, Interruption) and callback.source for callback in trainer.callbacks)


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


class StageProgress(ProgressBar):
    """Shows one bar per round of a stage in a terminal or a notebook, and writes lines to a log file.

    A log line needs at least 30 seconds and a hundredth of the round since the last one; the end always has one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._bar: Any = None

    def disable(self) -> None:
        """Show nothing. Lightning calls this in all processes but the first."""
        self._is_enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Say what is resumed."""
        if self._is_enabled and pl_module.n_epochs_done:
            show(f"Resuming the {pl_module.name} after {pl_module.describe_epoch(pl_module.n_epochs_done - 1)}.")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Start the bar of a round, after the steps of a checkpoint."""
        round_number, epoch = divmod(trainer.current_epoch, pl_module.n_epochs)
        if self._bar is not None:
            if epoch:
                return
            self._close(pl_module)
        n_rounds = pl_module.recipe.max_rounds
        which = f", round {round_number + 1} of at most {n_rounds}" if n_rounds > 1 else ""
        self._title = f"{pl_module.name.capitalize()} ({pl_module.purpose}){which}"
        self._is_live = sys.stderr.isatty() or in_notebook()
        self._step = trainer.global_step - round_number * pl_module.n_steps
        self._bar = tqdm(
            desc=self._title,
            total=pl_module.n_steps,
            initial=self._step,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
            disable=not (self._is_enabled and self._is_live),
        )
        self._started = self._last = time.monotonic()
        self._first_step = self._last_step = self._step
        self._state = ""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: StagePlan, *_: Any) -> None:
        """Count the step."""
        step = trainer.global_step - pl_module.round * pl_module.n_steps
        self._bar.update(step - self._step)
        self._step, now = step, time.monotonic()
        is_due = now - self._last >= SECONDS_PER_LINE and step - self._last_step >= pl_module.n_steps / LINES_PER_STAGE
        if is_due:
            left = (now - self._started) / (step - self._first_step) * (pl_module.n_steps - step)
            self._write_line(pl_module, f"{tqdm.format_interval(left)} left")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Show the epoch and its loss."""
        self._state = f"epoch {trainer.current_epoch % pl_module.n_epochs + 1} of {pl_module.n_epochs}"
        for subset, words in (("validation", "validation loss"), ("train", "training loss")):
            if (name := pl_module.key_loss(subset)) in trainer.callback_metrics:
                self._state += f", {words} {float(trainer.callback_metrics[name]):.4g}"
                break
        self._bar.set_postfix_str(self._state, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Close the bar and leave its last state."""
        if self._bar is not None:
            self._close(pl_module)

    def on_exception(self, *_: Any) -> None:
        """Close the bar where training stopped."""
        if self._bar is not None:
            self._bar.close()

    def _close(self, plan: StagePlan) -> None:
        self._bar.close()
        self._write_line(plan, f"took {tqdm.format_interval(time.monotonic() - self._started)}")

    def _write_line(self, plan: StagePlan, duration: str) -> None:
        """Write a line to a log file."""
        self._last, self._last_step = time.monotonic(), self._step
        if self._is_enabled and not self._is_live:
            show(", ".join(filter(None, [f"{self._title}: {plan.progress:.0%}", self._state, duration])))
