"""Run a stage on Lightning's trainer: checkpoints and resumption, Ctrl-C, the progress bar."""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from tqdm.auto import tqdm

from scgen_diffusion._compat import dump_checkpoint, ending_by_signals, parse_device_args, refusing_as_value_error
from scgen_diffusion._files import explain_failed_read, read_torch, write_atomically

from ._stage_data import epochs_per_pass

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from lightning.pytorch.strategies import Strategy

    from ._plans import StagePlan
    from ._recipes import Recipe
    from ._stage_data import StageData

logger = logging.getLogger(__name__)
PACKAGE = __name__.partition(".")[0]

N_VALIDATIONS = 100
FIRST_WITH_BF16 = 8  # compute capability; older GPUs emulate bfloat16, slowly
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # weights have single precision
#: Arguments of Lightning's trainer that are set here. Its limit of time would count a stage as finished.
OF_STAGES = {
    *("gradient_clip_val", "gradient_clip_algorithm", "enable_checkpointing", "use_distributed_sampler"),
    *("overfit_batches", "max_time"),
}


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
        A checkpoint is written at the end of an epoch if the last one is this many minutes old.
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
    checkpoint_minutes: float = 1.0
    callbacks: Sequence[Callback] = ()
    enable_progress_bar: bool = True
    compile: bool = False
    of_trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint_dir: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """Sort the arguments of ``train``; raise TypeError for those that neither it nor Lightning's trainer has."""
        own = {each.name for each in fields(cls)}
        of_trainer = {name: options.pop(name) for name in [*options] if name not in own}
        inspect.signature(pl.Trainer).bind_partial(**dict.fromkeys(OF_STAGES), **of_trainer)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir).expanduser()
        return cls(**options, checkpoint_dir=folder, of_trainer=of_trainer)

    def with_progress(self, n_epochs: Mapping[str, int]) -> Self:
        """Add a bar for the epochs of all stages, unless there is one or none is wanted."""
        callbacks = [*(self.callbacks or ())]
        if not self.enable_progress_bar or any(isinstance(callback, ProgressBar) for callback in callbacks):
            return self
        return replace(self, callbacks=[*callbacks, TrainingProgress(n_epochs)])

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
        n_devices = len(devices) if isinstance(devices, list) else devices
        is_alone = n_devices == more.get("num_nodes", self.of_trainer.get("num_nodes", 1)) == 1
        options = {
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "logger": False,
            "benchmark": not self.of_trainer.get("deterministic"),
            "enable_progress_bar": self.enable_progress_bar,
            "precision": self.precision or "32-true",
            "plugins": [LightningEnvironment()] if is_alone else None,
            **self.of_trainer,
            **more,
        }
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=deepcopy(self.strategy),
            use_distributed_sampler=False,  # our loaders yield whole batches and distribute them themselves
            **options,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's device lines and advice, and warnings of libraries."""
    lightning = logging.getLogger("lightning.pytorch")
    before = lightning.level
    lightning.setLevel(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(lightning|torch|scvi)\b")
            yield
    finally:
        lightning.setLevel(before)


# --- a stage ----------------------------------------------------------------------------------------------------------


def run_stage(plan: StagePlan, data: StageData, options: RunOptions, *, max_epochs: int) -> pl.Trainer:
    """Train a stage, from its checkpoint if there is one; return its trainer.

    Ctrl-C ends it, and its weights stay as they are then; several processes end at once.

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
    """
    recipe, path = plan.recipe, None
    n_epochs = max_epochs * epochs_per_pass(len(data.train_indices), recipe.batch_size)
    if recipe.patience is not None and not plan.module.loss_judges_cells:
        msg = f"`early_stopping` and `patience` do not go with the {plan.name}: its loss may rise as cells get better."
        raise ValueError(msg)
    callbacks = [*(options.callbacks or ())]
    if options.checkpoint_dir is not None:
        path = options.checkpoint_dir / f"{plan.name}.ckpt"
        callbacks.append(StageCheckpoint(path, options.checkpoint_minutes))
    with quiet():
        trainer = options.build_trainer(
            max_epochs=n_epochs,
            precision=options.precision or _default_precision(recipe, options.accelerator),
            gradient_clip_val=recipe.gradient_clip,
            check_val_every_n_epoch=options.check_val_every_n_epoch or max(n_epochs // N_VALIDATIONS, 1),
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        )
        start = path if path is not None and path.exists() else None
        if start is not None:
            with explain_failed_read(f"The checkpoint {start} is damaged, or is none of this package; remove it"):
                n_done = read_torch(start)["n_epochs_done"]
            if options.enable_progress_bar:
                show(f"Resuming the {plan.name} after epoch {n_done} of {n_epochs}.")
        plan.module.train()
        plan.is_compiled = options.compile
        try:
            with ending_by_signals(trainer):
                trainer.fit(plan, data, ckpt_path=start, weights_only=True)
        except KeyboardInterrupt as stop:
            if trainer.world_size > 1 or stop.__cause__ is None:
                raise (stop.__cause__ or stop) from None  # as Lightning ends
            plan.was_stopped = True
        finally:  # Lightning cleans up only if there was no error
            plan.teardown("fit")
            data.teardown("fit")
    plan.module.eval()
    return trainer


def _default_precision(recipe: Recipe, accelerator: str) -> str:
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    computes_bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= FIRST_WITH_BF16
    return "bf16-mixed" if recipe.bfloat16 and computes_bf16 else "32-true"


class StageCheckpoint(Checkpoint):
    """Writes one checkpoint after epochs, atomically, so that a kill never leaves half a file.

    Lightning writes to the system's temporary folder and copies from there. ``save_on_exception`` of its
    ``ModelCheckpoint`` keeps states that diverged, and states within an epoch, from which Lightning would repeat the
    epoch's first cells.

    Parameters
    ----------
    path
        Path of the checkpoint.
    minutes
        Minutes after which a checkpoint is written after an epoch. The last epoch always has one.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.seconds, self._last = path, 60 * minutes, time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the checkpoint if it is due."""
        if trainer.strategy.broadcast(time.monotonic() - self._last >= self.seconds):
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the checkpoint."""
        self._last = time.monotonic()
        content = dump_checkpoint(trainer)  # in all processes
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # another training may have removed it at its end
            with write_atomically(self.path) as part, part.open("wb") as file:
                torch.save(content, file)
        trainer.strategy.barrier()


# --- progress ---------------------------------------------------------------------------------------------------------


def show(text: str) -> None:
    """Print a line next to the progress bars, or log it if the package has a handler, as the command line does."""
    package = logging.getLogger(PACKAGE)
    if package.handlers and not package.propagate:
        logger.info(text)
    else:
        tqdm.write(text)


class TrainingProgress(ProgressBar):
    """One bar for all stages of a training.

    Parameters
    ----------
    n_epochs
        Epochs of each stage, in order.
    """

    def __init__(self, n_epochs: Mapping[str, int]) -> None:
        super().__init__()
        self.n_epochs, self._n_before, self._bar = n_epochs, 0.0, tqdm(disable=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Count the epochs that are left, in this stage and in later ones."""
        if self._bar.disable:
            layout = "{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}"
            self._bar = tqdm(desc="Training", bar_format=layout, total=1)
        stages = [*self.n_epochs]
        left = [self.n_epochs[name] for name in stages[stages.index(pl_module.name) :]]
        self._n_before = self._bar.n - pl_module.progress * left[0]
        self._bar.total = self._n_before + sum(left)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: StagePlan, *_: Any) -> None:
        """Count the step."""
        self._bar.update(self._n_before + pl_module.progress * self.n_epochs[pl_module.name] - self._bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Show the epoch and its loss, in validation if there is any."""
        losses = trainer.callback_metrics
        loss = losses.get(pl_module.key_loss("validation"), losses.get(pl_module.key_loss("train"), torch.nan))
        state = f"{pl_module.name} epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, loss {float(loss):.4g}"
        self._bar.set_postfix_str(state, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Close the bar after the last stage, and leave its last state."""
        if pl_module.name == [*self.n_epochs][-1]:
            self._bar.close()

    def on_exception(self, *_: Any) -> None:
        """Close the bar where training stopped."""
        self._bar.close()
