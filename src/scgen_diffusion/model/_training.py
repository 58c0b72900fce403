"""What training a model takes, whatever its stages are: cells, their split, a recipe, a run."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from scvi import settings

from scgen_diffusion._compat import parse_device_args
from scgen_diffusion.data import is_whole_number, known_names
from scgen_diffusion.train import CellDataModule, Recipe, StagePlan, StageResult, TrainedRows, run_stage

from ._registration import RegistrationMixin

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    import lightning.pytorch as pl
    import pandas as pd
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_VALIDATION_CELLS = 2000
RecipeT = TypeVar("RecipeT", bound=Recipe)


class TrainingMixin(RegistrationMixin):
    """Cells to train on, and the runner of a stage."""

    architecture: Any
    var_: pd.DataFrame
    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None

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
        max_epochs: int,
        checkpoint_dir: str | os.PathLike[str] | None,
        trainer_kwargs: dict[str, Any],
    ) -> StageResult:
        logger.info("Training the %s for %d epochs.", plan.name, max_epochs)
        plan.only = self._trained_rows()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        chosen = {name: trainer_kwargs.pop(name, "auto") for name in ("accelerator", "devices")}
        accelerator, devices, device = parse_device_args(**chosen, return_device="torch")
        where = {"accelerator": accelerator, "devices": devices}
        result = run_stage(plan, data, max_epochs=max_epochs, checkpoint_dir=folder, **where, **trainer_kwargs)
        self.to_device(result.device or device)  # as scvi-tools' models stay where they were trained
        self.history_ = {**(self.history_ or {}), **result.history}
        return result

    def _data_module(self, train_size: float | None, batch_size: int) -> CellDataModule:
        self._split(train_size)
        return CellDataModule(self._cells, self.train_indices_, self.validation_indices_, batch_size)

    @property
    def _split_fits(self) -> bool:
        """Whether there is a split, and of as many cells as the model has."""
        if self.train_indices_ is None or self.validation_indices_ is None:
            return False
        return len(self.train_indices_) + len(self.validation_indices_) == self._cells.n_cells

    def _split(self, train_size: float | None) -> None:
        """Split the cells, always in the same way for the same seed; both stages use the split."""
        n_cells = self._cells.n_cells
        train_size = max(0.9, 1 - MAX_VALIDATION_CELLS / n_cells) if train_size is None else train_size
        if not 0 < train_size <= 1:
            msg = f"`train_size` must be above 0 and at most 1, but found {train_size}."
            raise ValueError(msg)
        order = np.random.default_rng(settings.seed or 0).permutation(n_cells)
        n_train = max(round(train_size * n_cells), 1)
        self.train_indices_, self.validation_indices_ = np.sort(order[:n_train]), np.sort(order[n_train:])
        self.test_indices_ = order[:0]

    @property
    def _fingerprint(self) -> str:
        """Tell this model and its cells from others."""
        genes, cells = list(self.var_.index), self._cells.digest
        tables = self.registry_["setup_args"]["condition_embeddings"]
        vectors = [part for name in sorted(tables) for part in (list(tables[name].index), tables[name].to_numpy())]
        return digest_of(self.architecture, self._condition_keys, self._input_values, genes, cells, *vectors)

    @property
    def _split_fingerprint(self) -> str:
        """Tell this model, its cells, and those of them that are trained on, from others."""
        return digest_of(self._fingerprint, self.train_indices_)

    def _require_cells(self) -> None:
        self._cells.check()


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


def changed_recipe(recipe: RecipeT, batch_size: int | None, changes: Mapping[str, Any] | None) -> RecipeT:
    """Apply a user's changes to a recipe."""
    changes = dict(changes or {}) | ({} if batch_size is None else {"batch_size": batch_size})
    known = [field.name for field in fields(recipe)]
    for name in changes:
        if name not in known:
            msg = f"The recipe has no option {name!r}. {known_names(name, known)}"
            raise TypeError(msg)
    return replace(recipe, **changes)


def stage_seed() -> int:
    """Take scvi-tools' seed, or else a random one."""
    return settings.seed if settings.seed is not None else int(torch.randint(2**31, (1,)))
