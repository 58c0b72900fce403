"""What a call of ``train`` asks: which cells, and how each stage runs. All of it is checked before a stage starts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings
from tqdm.auto import tqdm

from scgen_diffusion._arguments import (
    check_count,
    is_number,
    known_names,
    list_first,
    warn_user,
)
from scgen_diffusion.data import FEWEST_TRAINING_CELLS, with_columns
from scgen_diffusion.train import USUAL_PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.data import ConditionKey
    from scgen_diffusion.train import Bar, Recipe, RunOptions, StagePlan

MAX_VALIDATION_CELLS = 2000
FURTHER_SEEDS = {"prior": 1, "perturbation_flow": 2}  # added to scvi-tools' seed
SECONDS_WITHOUT_BAR = 3  # of generation, and of what comes before and after the steps of a stage
TIMES_OF_CORES = Path("/proc/stat")  # of Linux
IDLE = slice(3, 5)  # states of a core there: idle, and waiting for a disk
SECONDS_OF_OTHERS = 0.1  # in which this process does nothing


@dataclass(frozen=True)
class StageRun:
    """How a stage runs.

    Parameters
    ----------
    stage
        Name of the stage.
    recipe
        Its training options.
    n_epochs, usual_epochs
        Most epochs, and those by default.
    seed
        Seed of its random numbers.
    options
        How it runs, as any stage.
    """

    stage: str
    recipe: Any
    n_epochs: int
    usual_epochs: int
    seed: int
    options: RunOptions

    @property
    def bar(self) -> Bar:
        """A progress bar for the slow loops before and after the steps of the stage."""
        is_hidden = not self.options.enable_progress_bar
        return partial(tqdm, leave=False, delay=SECONDS_WITHOUT_BAR, disable=is_hidden)


def plan_runs(
    recipes: Mapping[str, Recipe],
    options: RunOptions,
    max_epochs: int | Mapping[str, int] | None,
    batch_size: int | None,
    plan_kwargs: Mapping[str, Any] | None,
    n_cells: int,
    n_validation_cells: int,
) -> list[StageRun]:
    """Apply a user's choices to the default ``recipes`` of the stages, in order."""
    runs = []
    epochs = _by_stage("max_epochs", max_epochs, recipes)
    changes = _by_stage("plan_kwargs", plan_kwargs, recipes)
    if options.early_stopping and (not n_validation_cells or [*recipes] == ["perturbation_flow"]):
        msg = "`early_stopping` watches the validation loss, but there are no validation cells; the flow never has any."
        raise ValueError(msg)
    for stage, usual in recipes.items():
        change = dict(changes[stage] or {})
        if batch_size is not None and (stage != "perturbation_flow" or len(recipes) == 1):
            change = {"batch_size": batch_size, **change}
        if options.early_stopping or epochs[stage] is not None:
            change = {"patience": USUAL_PATIENCE if options.early_stopping else None, **change}
        recipe = replace(usual, **change)
        recipe = replace(recipe, batch_size=min(recipe.batch_size, max(n_cells, usual.batch_size)))
        usual_epochs = recipe.max_epochs(n_cells)
        n_epochs = usual_epochs if epochs[stage] is None else check_count("max_epochs", epochs[stage])
        seed = int(torch.randint(2**31, (1,)) if settings.seed is None else settings.seed)
        runs.append(StageRun(stage, recipe, n_epochs, usual_epochs, seed + FURTHER_SEEDS.get(stage, 0), options))
    with_bar = options.with_progress({run.stage: run.n_epochs for run in runs})
    return [replace(run, options=with_bar) for run in runs]


def _by_stage(argument: str, given: Any, stages: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an argument's value for each stage: one value for all, or one per stage from a mapping."""
    if argument == "plan_kwargs" and not (given is None or isinstance(given, Mapping)):
        msg = f"`plan_kwargs` must be a mapping from options to values, but found {given!r}."
        raise TypeError(msg)
    is_by_stage = isinstance(given, Mapping) and (
        argument == "max_epochs" or any(name in stages or isinstance(value, Mapping) for name, value in given.items())
    )
    if not is_by_stage:
        return dict.fromkeys(stages, given)
    for name in given:
        if name not in stages:
            msg = f"`{argument}` names {name!r}, which this call does not train. {known_names(name, [*stages])}"
            raise ValueError(msg)
    return {stage: given.get(stage) for stage in stages}


@cache
def warn_of_busy_cores() -> None:
    """Warn, once, if other processes leave no core free: several threads then wait for each other, again and again."""
    n_threads = torch.get_num_threads()
    if n_threads == 1 or torch.cuda.is_available() or not TIMES_OF_CORES.exists():
        return
    before = _read_times()
    time.sleep(SECONDS_OF_OTHERS)
    spent = _read_times() - before
    if (os.cpu_count() or 1) * spent[IDLE].sum() < spent.sum():
        warn_user(
            f"Other processes use all cores; training with {n_threads} threads may then take ten times as long. "
            "Call `torch.set_num_threads(1)` first."
        )


def _read_times() -> np.ndarray:
    """Read the times that all cores have spent in each state since the start of the machine."""
    return np.array(TIMES_OF_CORES.read_text().split()[1:9], dtype=float)


def warn_of_rare_labels(keys: Sequence[ConditionKey], codes: np.ndarray, train_rows: np.ndarray) -> None:
    """Warn about labels in codes ``(cells, columns)`` with too few training cells, unless they have known embeddings.

    Cells generated for such labels have weaker markers than real ones (tutorial "Do synthetic cells help to classify a
    rare type?"). Pseudobulk analyses also leave out groups with fewer than ten cells.
    """

    def count(own: np.ndarray, n_labels: int) -> np.ndarray:
        return np.bincount(own[(own >= 0) & (own < n_labels)].astype(int), minlength=n_labels)

    rare = []
    for key, columns in with_columns(keys):
        if key.needs_training_cells:
            of_all, training = (count(own[:, columns], key.n_values) for own in (codes, codes[train_rows]))
            few = np.flatnonzero((of_all > 0) & (training < FEWEST_TRAINING_CELLS)).tolist()
            rare += [f"{key.name} {key.labels[i]!r} ({training[i]})" for i in few]
    if rare:
        warn_user(
            f"Too few training cells (under {FEWEST_TRAINING_CELLS}) of {list_first(rare)}: cells generated for these "
            "labels may look like others. Add cells, merge the labels, or do not rely on them."
        )


def split_cells(
    n_cells: int, train_size: float | None, validation_size: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split cells into training, validation and test cells; the same seed gives the same split."""
    for name, size in {"train_size": train_size, "validation_size": validation_size}.items():
        if size is not None and not (is_number(size) and 0 <= size <= 1):
            msg = f"`{name}` must be a number from 0 to 1, a share of the cells, but found {size!r}."
            raise ValueError(msg)
    if train_size is None:
        default = max(0.9, 1 - MAX_VALIDATION_CELLS / n_cells)
        train_size = default if validation_size is None else 1 - validation_size
    share = 1 - train_size if validation_size is None else validation_size
    if train_size == 0 or train_size + share > 1 + 1e-9:
        msg = f"`train_size` {train_size} must be above 0, and with `validation_size` {share} at most 1."
        raise ValueError(msg)
    order = np.random.default_rng(settings.seed or 0).permutation(n_cells)
    n_train = max(round(train_size * n_cells), 1)
    end = n_train + round(share * n_cells) if train_size + share < 1 - 1e-9 else n_cells  # rounding leaves no cell over
    return np.sort(order[:n_train]), np.sort(order[n_train:end]), np.sort(order[end:])


def describe_training(runs: Sequence[StageRun], plans: Sequence[StagePlan], seconds: float) -> str:
    """Return one line: how long training took, and the epochs and the last validation loss of each stage."""
    stages = []
    for run, plan in zip(runs, plans, strict=False):  # training may have been stopped
        losses = plan.history.get(plan.key_loss("validation"))
        loss = "" if losses is None else f", validation loss {losses.iloc[-1, 0]:.4g}"
        usual = f" (by default {run.usual_epochs})" if run.n_epochs < run.usual_epochs else ""
        stages.append(f"{plan.name}: epochs {plan.n_epochs_done}{usual}{loss}")
    return f"Training took {seconds / 60:.1f} minutes ({'; '.join(stages)})."
