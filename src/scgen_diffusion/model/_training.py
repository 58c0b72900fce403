"""What ``train`` is asked for, checked and resolved."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from scvi import settings

from scgen_diffusion._arguments import check_count, known_names
from scgen_diffusion.train import (
    Recipe,
    StageResult,
)

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
Run: TypeAlias = Callable[..., StageResult]
"""Runs a stage: ``run(plan, data, *made_with)``; a checkpoint is resumed if it was ``made_with`` the same."""


def digest_of(*parts: object) -> str:
    """Tell these parts from others: dataclasses, plain values and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


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
    size = check_count("batch_size", changes.get("batch_size", recipe.batch_size))
    return replace(recipe, **{**changes, "batch_size": min(size, max(n_cells, recipe.batch_size))})


def stage_seed() -> int:
    """Take scvi-tools' seed, or else a random one."""
    return settings.seed if settings.seed is not None else int(torch.randint(2**31, (1,)))


def split_cells(
    n_cells: int, train_size: float | None, validation_size: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split cells into those to train on, to validate on and to leave out, always in the same way for the same seed."""
    for name, size in {"train_size": train_size, "validation_size": validation_size}.items():
        if size is not None and not (isinstance(size, Real) and 0 <= size <= 1):
            msg = f"`{name}` must be a number from 0 to 1, a share of the cells, but found {size!r}."
            raise ValueError(msg)
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
    return np.sort(order[:n_train]), np.sort(order[n_train:end]), np.sort(order[end:])
