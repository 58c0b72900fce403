"""``train`` of every model: what is asked for is checked first, then the stages are trained in turn."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from scvi import settings

from scgen_diffusion._compat import parse_device_args
from scgen_diffusion.data import check_argument_names, is_whole_number, known_names
from scgen_diffusion.train import (
    CellDataModule,
    Recipe,
    StagePlan,
    StageResult,
    TrainedRows,
    run_stage,
    trainer_options,
)

from ._description import describe
from ._registration import RegistrationMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    import lightning.pytorch as pl
    import pandas as pd
    from torch import Tensor

    from scgen_diffusion.train import TrainingCells

logger = logging.getLogger(__name__)

MAX_VALIDATION_CELLS = 2000
LEARNING_RATE = "learning_rate"
OTHER_NAMES = {
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs"), "max_epochs"),
    **{
        name: f"It is an option of the training plan: `plan_kwargs={{{option!r}: ...}}`."
        for name, option in {"lr": LEARNING_RATE, **{field.name: field.name for field in fields(Recipe)}}.items()
        if name not in ("batch_size", "n_epochs")
    },
}
"""What other packages call the arguments of ``train``, and the options that it takes elsewhere."""
RecipeT = TypeVar("RecipeT", bound=Recipe)
RunStage: TypeAlias = Callable[..., StageResult]


class TrainingMixin(RegistrationMixin):
    """``train``, the cells to train on, and the runner of a stage.

    ``trained_stages_`` says what is trained, in the order of ``_stages``; ``is_trained_`` whether that is enough to generate.
    """

    architecture: Any
    var_: pd.DataFrame
    _stages: ClassVar[tuple[str, ...]]
    """Stages of the training, in their order."""
    _stages_to_generate: ClassVar[frozenset[str]]
    trained_stages_: list[str]
    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    trainer: pl.Trainer

    def train(
        self,
        max_epochs: int | Mapping[str, int] | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool = False,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: TrainingCells | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        compile: bool = False,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model, stage by stage.

        SCLDM has the stages ``"autoencoder"``, ``"prior"`` and, if ``setup_anndata`` was told what is unperturbed and there are
        such cells, ``"transport"``. SCRDIT and WBDIT have one, ``"diffusion"``. Afterwards ``trained_stages_`` names those that
        are trained, ``history`` holds the losses of each epoch, and ``trainer`` is that of the last stage.

        Ctrl-C stops after the current step and keeps the weights; a second one aborts.

        Parameters
        ----------
        max_epochs
            Epochs of every stage, or a mapping from stages to epochs: ``{"prior": 500}``. Default: from the number of cells,
            see the user guide.
        accelerator, devices
            Where to train; passed to Lightning.
        train_size
            Share of cells to train on. Default: what ``validation_size`` leaves, or else nine tenths, or all but 2 000 cells.
        validation_size
            Share of cells to validate on. Default: all that are not trained on.
        batch_size
            Cells per step; at most as many as there are, or as the default of the stage. It does not hold for the transport,
            which draws pairs of cells. Default: 512 for the prior, 128 for the others.
        early_stopping
            Whether to stop a stage when its validation loss falls no more; the transport has none.
        plan_kwargs
            Options of the training of every stage, such as ``{"learning_rate": 1e-3}``, or a mapping from stages to options:
            ``{"prior": {"learning_rate": 1e-3}}``. See :class:`~scgen_diffusion.train.AutoencoderRecipe`,
            :class:`~scgen_diffusion.train.PriorRecipe`, :class:`~scgen_diffusion.train.TransportRecipe` and
            :class:`~scgen_diffusion.train.DiffusionRecipe`.
        datamodule
            Cells in files, :class:`~scgen_diffusion.data.CellFiles`, in place of those that the model was built with. They are the model's
            cells from then on, also for later calls without this argument, until ``model.adata`` is set. Default: the cells that the model has.
        checkpoint_dir
            Folder for checkpoints of the stages. After an interruption the same call, also in a new process, resumes from the
            last one.
        compile
            Whether to compile the networks with ``torch.compile``.
        **trainer_kwargs
            Passed to Lightning's trainer: ``precision``, ``strategy``, ``callbacks``, ``enable_progress_bar`` ...

        Raises
        ------
        TypeError
            For an unknown argument or option.
        ValueError
            For values that are not allowed, cells that were changed after ``setup_anndata``, and checkpoints of other cells.
        """
        self._train(
            "train",
            None,
            {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping, **trainer_kwargs},
            max_epochs=max_epochs,
            train_size=train_size,
            validation_size=validation_size,
            batch_size=batch_size,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            checkpoint_dir=checkpoint_dir,
            compile=compile,
        )

    def _train(
        self,
        method: str,
        stages: Sequence[str] | None,
        trainer_kwargs: Mapping[str, Any],
        *,
        max_epochs: int | Mapping[str, int] | None,
        batch_size: int | None,
        plan_kwargs: Mapping[str, Any] | None,
        datamodule: TrainingCells | None,
        checkpoint_dir: str | os.PathLike[str] | None,
        train_size: float | None = None,
        validation_size: float | None = None,
        keep_split: bool = False,
        **of_stage: Any,
    ) -> None:
        """Check all that is asked for, and train the stages (None: those that are due) until the user stops one."""
        trainer_kwargs = dict(trainer_kwargs)
        known = {*inspect.signature(getattr(self, method)).parameters, *trainer_options()} - {"trainer_kwargs"}
        check_argument_names(method, trainer_kwargs, sorted(known), OTHER_NAMES)
        early_stopping = trainer_kwargs.pop("early_stopping", False)
        self._take_cells(datamodule)
        self._cells.check()
        self._count_combinations(self._registered_codes)
        if not (keep_split and self._split_fits):
            self._split(train_size, validation_size)
        n_cells = len(self.train_indices_)
        stages = self._due_stages if stages is None else stages
        epochs = self._by_stage("max_epochs", max_epochs, stages)
        changes = self._by_stage("plan_kwargs", plan_kwargs, stages)
        recipes, lengths = {}, {}
        for stage in stages:
            size = None if stage == "transport" and len(stages) > 1 else batch_size
            recipes[stage] = changed_recipe(self._recipe(stage), stage, size, changes[stage], n_cells)
            lengths[stage] = checked_epochs(epochs[stage]) or recipes[stage].max_epochs(n_cells)
        validated = [stage for stage in stages if stage != "transport" and len(self.validation_indices_)]
        if early_stopping and not validated:
            msg = (
                "`early_stopping` watches the loss of validation cells, but there are none. Set `train_size` below 1, or leave "
                "`early_stopping` out; the transport cannot be stopped early."
            )
            raise ValueError(msg)
        for stage in stages:
            options = {**trainer_kwargs, "early_stopping": early_stopping and stage in validated}
            run = partial(self._run, max_epochs=lengths[stage], checkpoint_dir=checkpoint_dir, trainer_kwargs=options)
            if self._train_stage(stage, recipes[stage], run, **of_stage).was_interrupted:
                return

    @property
    def _due_stages(self) -> list[str]:
        """Stages that ``train`` trains."""
        return list(self._stages)

    def _recipe(self, stage: str) -> Recipe:
        """Return the default recipe of a stage."""
        raise NotImplementedError

    def _train_stage(self, stage: str, recipe: Any, run: RunStage, **of_stage: Any) -> StageResult:
        """Train a stage: ``run(plan, data, *made_with)``, and what comes before and after it."""
        raise NotImplementedError

    def _by_stage(self, argument: str, given: Any, stages: Sequence[str]) -> dict[str, Any]:
        """Return what an argument says for each stage: the same for all, or, of a mapping from stages, what each is given."""
        names_stages = isinstance(given, Mapping) and (
            argument == "max_epochs" or any(name in self._stages or isinstance(given[name], Mapping) for name in given)
        )
        if not names_stages:
            return dict.fromkeys(stages, given)
        for name in given:
            if name not in self._stages:
                msg = f"`{argument}` names the unknown stage {name!r}. {known_names(name, self._stages)}"
                raise ValueError(msg)
            if name not in stages:
                msg = f"`{argument}` names the stage {name!r}, which is not trained. {self._why_left_out(name)}"
                raise ValueError(msg)
        return {stage: given.get(stage) for stage in stages}

    def _why_left_out(self, stage: str) -> str:
        return f"`train_{stage}` trains it."

    def _note_trained(self, *stages: str) -> None:
        """Take note of which stages are trained, and whether the model can generate with them."""
        self.trained_stages_ = [stage for stage in self._stages if stage in stages]
        self.is_trained_ = self._stages_to_generate <= set(stages)

    def __repr__(self) -> str:
        return describe(self)

    @property
    def summary_string(self) -> str:
        """What ``print(model)`` shows."""
        return describe(self)

    @property
    def _recipe_name(self) -> str:
        return "published" if self.init_params_["non_kwargs"]["size"] == "published" else "default"

    def _trained_rows(self) -> TrainedRows | None:
        """Return what is trained; None for everything."""
        return None

    @property
    def _keeps_scale(self) -> bool:
        """Whether the scale on which the network works was decided before, on other cells."""
        return False

    def _run(
        self,
        plan: StagePlan,
        data: pl.LightningDataModule,
        *made_with: object,
        max_epochs: int,
        checkpoint_dir: str | os.PathLike[str] | None,
        trainer_kwargs: Mapping[str, Any],
    ) -> StageResult:
        """Train a stage; checkpoints are resumed if the cells, the split and whatever it is ``made_with`` are the same."""
        logger.info("Training the %s for %d epochs.", plan.name, max_epochs)
        plan.only = self._trained_rows()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            plan.fingerprint = digest_of(self._fingerprint, self.train_indices_, *made_with)
        options = dict(trainer_kwargs)
        chosen = {name: options.pop(name, "auto") for name in ("accelerator", "devices")}
        accelerator, devices, device = parse_device_args(**chosen, return_device="torch")
        where = {"accelerator": accelerator, "devices": devices}
        result = run_stage(plan, data, max_epochs=max_epochs, checkpoint_dir=folder, **where, **options)
        self.to_device(result.device or device)  # as scvi-tools' models stay where they were trained
        self.trainer = result.trainer
        self.history_ = {**(self.history_ or {}), **result.history}
        return result

    def _data_module(self, batch_size: int) -> CellDataModule:
        return CellDataModule(self._cells, self.train_indices_, self.validation_indices_, batch_size)

    @property
    def _split_fits(self) -> bool:
        """Whether there is a split, and of as many cells as the model has."""
        parts = (self.train_indices_, self.validation_indices_, self.test_indices_)
        return all(part is not None for part in parts) and sum(map(len, parts)) == self._cells.n_cells

    def _split(self, train_size: float | None = None, validation_size: float | None = None) -> None:
        """Split the cells, always in the same way for the same seed; all stages use the split."""
        for name, size in {"train_size": train_size, "validation_size": validation_size}.items():
            if size is not None and not (isinstance(size, Real) and 0 <= size <= 1):
                msg = f"`{name}` must be a number from 0 to 1, a share of the cells, but found {size!r}."
                raise ValueError(msg)
        n_cells = self._cells.n_cells
        if train_size is None:
            default = max(0.9, 1 - MAX_VALIDATION_CELLS / n_cells)
            train_size = default if validation_size is None else 1 - validation_size
        if train_size == 0:
            msg = "There must be cells to train on, but `train_size` is 0, or `validation_size` 1."
            raise ValueError(msg)
        if train_size + (validation_size or 0) > 1 + 1e-9:
            msg = f"`train_size` and `validation_size` must add up to at most 1, but {train_size} and {validation_size} were given."
            raise ValueError(msg)
        order = np.random.default_rng(settings.seed or 0).permutation(n_cells)
        n_train = max(round(train_size * n_cells), 1)
        end = n_cells if validation_size is None else min(n_train + round(validation_size * n_cells), n_cells)
        self.train_indices_, self.validation_indices_ = np.sort(order[:n_train]), np.sort(order[n_train:end])
        self.test_indices_ = np.sort(order[end:])

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells, with their values and conditions, from others."""
        cells, arguments = self._cells, self.registry_["setup_args"]
        tables = arguments["condition_embeddings"]
        vectors = [part for name in sorted(tables) for part in (list(tables[name].index), tables[name].to_numpy())]
        layer = arguments["layers"] if "layers" in arguments else arguments["layer"]
        what = (self.architecture, self._condition_keys, self._input_values, layer, list(self.var_.index))
        return digest_of(*what, cells.digest, np.asarray(cells.codes, dtype=float), *vectors)


def digest_of(*parts: object) -> str:
    """Tell these parts from others: dataclasses, plain values and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def gathered(parts: Iterable[Tensor], n_cells: int) -> Tensor:
    """Put consecutive parts of a tensor ``(cells, ...)`` into one that is there from the start.

    A list of small parts, each made between large batches, keeps the memory of these from being used again: 3 KB per cell.
    """
    whole, start = torch.zeros(0), 0
    for part in parts:
        if start == 0:
            whole = part.new_empty((n_cells, *part.shape[1:]))
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def checked_epochs(max_epochs: int | None) -> int | None:
    """Raise unless a number of epochs is one, or left open."""
    if max_epochs is not None and not (is_whole_number(max_epochs) and max_epochs >= 1):
        msg = f"`max_epochs` must be a whole number of at least 1, but found {max_epochs!r}."
        raise ValueError(msg)
    return max_epochs


def changed_recipe(
    recipe: RecipeT, stage: str, batch_size: int | None, changes: Mapping[str, Any] | None, n_cells: int
) -> RecipeT:
    """Apply a user's changes to the recipe of a stage with ``n_cells`` training cells."""
    if not (changes is None or isinstance(changes, Mapping)):
        msg = f"`plan_kwargs` must be a mapping from options to values, but found {changes!r}."
        raise TypeError(msg)
    changes = ({} if batch_size is None else {"batch_size": batch_size}) | dict(changes or {})
    known = [field.name for field in fields(recipe)]
    for name, value in changes.items():
        if name not in known:
            advice = f"Did you mean {LEARNING_RATE!r}?" if name == "lr" else known_names(name, known)
            msg = f"`plan_kwargs`: the {stage} has no option {name!r}. {advice}"
            raise TypeError(msg)
        if isinstance(getattr(recipe, name), Real) and not isinstance(value, Real):
            msg = f"`plan_kwargs`: {name!r} must be a number, but found {value!r}."
            raise TypeError(msg)
    size = changes.get("batch_size", recipe.batch_size)
    if not (is_whole_number(size) and size >= 1):
        msg = f"`batch_size` must be a whole number of at least 1, but found {size!r}."
        raise ValueError(msg)
    return replace(recipe, **{**changes, "batch_size": min(size, max(n_cells, recipe.batch_size))})


def stage_seed() -> int:
    """Take scvi-tools' seed, or else a random one."""
    return settings.seed if settings.seed is not None else int(torch.randint(2**31, (1,)))
