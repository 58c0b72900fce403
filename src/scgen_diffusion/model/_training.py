"""Steps of ``train``: its arguments, its warnings, and the run of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from scvi import settings
from tqdm.auto import tqdm

from scgen_diffusion._arguments import check_count, known_names, list_first, suggests_arguments, warn_user
from scgen_diffusion.data import FEWEST_TRAINING_CELLS, digest_of, have_labels, mark_occurring, to_plain, with_columns
from scgen_diffusion.train import Recipe, RunOptions, run_stage

from ._end_of_training import how_cut_short
from ._query import has_values_to_learn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.data import ConditionKey
    from scgen_diffusion.train import Bar, Interruption, StageData, StagePlan

    from ._base import DiffusionModel

MAX_VALIDATION_CELLS = 2000
SHORTEST = 0.1  # share of the default number of epochs below which there is a warning
SECONDS_WITHOUT_BAR = 3  # of what comes before and after the steps of a stage
FURTHER_SEEDS = {"prior": 1, "perturbation_flow": 2}  # added to scvi-tools' seed
NO_END = {"max_steps": -1, "min_steps": None, "min_epochs": None, "fast_dev_run": False}  # of Lightning's trainer
P = ParamSpec("P")
R = TypeVar("R")
RecipeT = TypeVar("RecipeT", bound=Recipe)


def suggests_training_arguments(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method that trains reject arguments that neither it nor Lightning's trainer has."""
    return suggests_arguments(method, RunOptions.names())


def change_recipe(
    recipe: RecipeT,
    stage: str,
    batch_size: int | None,
    changes: Mapping[str, Any] | None,
    n_cells: int,
    *,
    one_round: bool,
) -> RecipeT:
    """Apply a user's changes to the recipe of a stage with ``n_cells`` training cells, and one round if they may."""
    if not (changes is None or isinstance(changes, Mapping)):
        msg = f"`plan_kwargs` must be a mapping from options to values, but found {changes!r}."
        raise TypeError(msg)
    defaults = {} if batch_size is None else {"batch_size": batch_size}
    changes = defaults | ({"max_rounds": 1} if one_round else {}) | dict(changes or {})
    known = [field.name for field in fields(recipe)]
    for name, value in changes.items():
        if name not in known:
            msg = f"`plan_kwargs`: the {stage} has no option {name!r}. {known_names(name, known)}"
            raise TypeError(msg)
        is_optional = getattr(Recipe, name, ...) is None  # in general; a stage may have a number by default
        if isinstance(getattr(recipe, name), Real) and not (isinstance(value, Real) or (is_optional and value is None)):
            msg = f"`plan_kwargs`: {name!r} must be a number, but found {value!r}."
            raise TypeError(msg)
    size = check_count("batch_size", changes.get("batch_size", recipe.batch_size))
    return replace(recipe, **{**changes, "batch_size": min(size, max(n_cells, recipe.batch_size))})


def other_ends(options: RunOptions) -> list[str]:
    """List the options that set an end of training, or leave validation out."""
    found = ["early_stopping"] if options.early_stopping else []
    found += [name for name, none in NO_END.items() if options.of_trainer.get(name, none) != none]
    if options.of_trainer.get("limit_val_batches") == 0:
        found.append("limit_val_batches")
    if any(isinstance(callback, EarlyStopping) for callback in options.callbacks):
        found.append("callbacks")
    return found


@dataclass(frozen=True)
class StageJob:
    """A stage to train.

    Parameters
    ----------
    name
        Name of the stage.
    recipe
        Its training options.
    n_epochs
        Epochs of a round.
    default_epochs
        What ``n_epochs`` is by default.
    is_validated
        Whether there are cells to validate on.
    is_new
        Whether the stage starts from nothing, instead of from what it has learned before.
    was_cut_short
        How its former training was cut short; "" if it was not.
    """

    name: str
    recipe: Recipe
    n_epochs: int
    default_epochs: int
    is_validated: bool
    is_new: bool
    was_cut_short: str = ""

    @property
    def is_short(self) -> bool:
        """Whether the stage is far shorter than its default."""
        return self.are_few(self.n_epochs)

    def are_few(self, n_epochs: float) -> bool:
        """Whether so many epochs are far fewer than the default."""
        return n_epochs < SHORTEST * self.default_epochs


def plan_jobs(
    model: DiffusionModel,
    recipes: Mapping[str, Recipe],
    max_epochs: int | Mapping[str, int] | None,
    batch_size: int | None,
    plan_kwargs: Mapping[str, Any] | None,
    ends: Sequence[str],
) -> list[StageJob]:
    """Apply a user's choices to the default recipes of the stages, in order; warn of few cells and epochs.

    A length, another rule for the end (see :func:`other_ends`), or no validation mean one round, unless the user asks
    for several.
    """
    n_cells, stages = len(model.train_indices_), list(recipes)
    epochs = _by_stage(model, "max_epochs", max_epochs, stages)
    changes = _by_stage(model, "plan_kwargs", plan_kwargs, stages)
    # fine-tuning goes on from the reference, unless it has classes to learn; the perturbation flow starts from nothing
    known = stages if model.reference_ is not None else model.trained_stages_
    begun = set() if has_values_to_learn(model) else {*known} - {"perturbation_flow"}
    jobs = []
    for stage, usual in recipes.items():
        is_validated = stage != "perturbation_flow" and len(model.validation_indices_) > 0
        size = None if stage == "perturbation_flow" and len(stages) > 1 else batch_size
        one_round = bool(ends) or epochs[stage] is not None or not is_validated
        recipe = change_recipe(usual, stage, size, changes[stage], n_cells, one_round=one_round)
        if recipe.max_rounds > 1 and (ends or not is_validated):
            other = f"`{ends[0]}`" if ends else "an empty validation set"
            msg = f"`max_rounds` of `plan_kwargs` lets validation losses end the {stage}; it does not go with {other}."
            raise ValueError(msg)
        default = recipe.max_epochs(n_cells)
        n_epochs = default if epochs[stage] is None else check_count("max_epochs", epochs[stage])
        former = model.cut_short_.get(stage, "")
        jobs.append(StageJob(stage, recipe, n_epochs, default, is_validated, stage not in begun, former))
    if "early_stopping" in ends and not any(job.is_validated for job in jobs):
        msg = (
            "`early_stopping` watches the validation loss, but there are no validation cells. Set `train_size` below "
            "1, or leave `early_stopping` out. The perturbation flow cannot be stopped early."
        )
        raise ValueError(msg)
    if model.reference_ is None and not model.trained_stages_:
        warn_of_rare_labels(model._condition_keys, model._registered_codes, model.train_indices_)
    warn_of_short_training([job for job in jobs if job.is_new], n_cells)
    return jobs


def _by_stage(model: DiffusionModel, argument: str, given: Any, stages: Sequence[str]) -> dict[str, Any]:
    """Return an argument's value for each stage: one value for all, or one per stage from a mapping."""
    names_stages = isinstance(given, Mapping) and (
        argument == "max_epochs" or any(name in model._stages or isinstance(given[name], Mapping) for name in given)
    )
    if not names_stages:
        return dict.fromkeys(stages, given)
    for name in given:
        if name not in model._stages:
            msg = f"`{argument}` names the unknown stage {name!r}. {known_names(name, model._stages)}"
            raise ValueError(msg)
        if name not in stages:
            msg = f"`{argument}` names the stage {name!r}, which is not trained. {model._why_not_trained(name)}"
            raise ValueError(msg)
    return {stage: given.get(stage) for stage in stages}


def check_labelled(model: DiffusionModel) -> None:
    """Raise unless a cell has all labels; fine-tuning also learns a key from cells that lack the label of another."""
    codes = model._registered_codes[model._seen_indices]
    if not (have_labels(model._condition_keys, codes).any() if model.reference_ is None else len(codes)):
        msg = (
            "No training or validation cell has all labels, so no condition could be learned: choose larger shares, or "
            "label more cells."
        )
        raise ValueError(msg)


def warn_of_rare_labels(keys: Sequence[ConditionKey], codes: np.ndarray, train_rows: np.ndarray) -> None:
    """Warn about labels in codes ``(cells, columns)`` with too few training cells, unless they have known embeddings.

    Cells generated for such labels have weaker markers than real ones (tutorial "Do synthetic cells help to classify a
    rare type?"). Pseudobulk analyses also leave out groups with fewer than ten cells.
    """
    rare = []
    for key, columns in with_columns(keys):
        all_cells, training = (_count_labels(c, key.n_values) for c in (codes[:, columns], codes[train_rows, columns]))
        are_few = (all_cells > 0) & (training < FEWEST_TRAINING_CELLS)
        few = [f"{key.labels[i]!r} ({training[i]})" for i in np.flatnonzero(are_few).tolist()]
        if few and key.needs_training_cells:
            rare.append(f"{key.name} {list_first(few)}")
    if rare:
        warn_user(
            f"Too few training cells (under {FEWEST_TRAINING_CELLS}) of {'; '.join(rare)}: cells generated for these "
            "labels may look like others. Add cells, merge the labels, or do not rely on them."
        )


def warn_of_lost_labels(keys: Sequence[ConditionKey], before: np.ndarray, after: np.ndarray) -> None:
    """Warn about labels in codes ``(n, columns)`` that the model could generate before, and cannot after training."""
    lost = []
    for key, was, stays in zip(keys, mark_occurring(keys, before), mark_occurring(keys, after), strict=True):
        if (gone := np.flatnonzero(was & ~stays)).size and key.needs_training_cells:
            lost.append(f"{key.name} {list_first([repr(key.labels[i]) for i in gone.tolist()])}")
    if lost:
        warn_user(
            f"No training or validation cell has {'; '.join(lost)}: the model will not generate these labels any more. "
            "To keep them, learn the new cells by `load_query_data`, or train on all cells together."
        )


def _count_labels(codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Count each label in some columns of codes, ``(labels,)``; other codes mean "none"."""
    return np.bincount(codes[(codes >= 0) & (codes < n_labels)].astype(int), minlength=n_labels)


def warn_of_short_training(jobs: Sequence[StageJob], n_cells: int) -> None:
    """Warn about stages that are far shorter than their default."""
    if short := [f"{job.n_epochs} of the {job.name} (default {job.default_epochs})" for job in jobs if job.is_short]:
        warn_user(
            f"Too few epochs for {n_cells:,} training cells: {' and '.join(short)}. Leave `max_epochs` out unless this "
            "is a test."
        )


def stage_seed(stage: str) -> int:
    """Return the seed of a stage's random numbers, by scvi-tools' seed or else a random one; stages share none."""
    return int(torch.randint(2**31, (1,)) if settings.seed is None else settings.seed) + FURTHER_SEEDS.get(stage, 0)


def split_cells(
    n_cells: int, train_size: float | None, validation_size: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split cells into training, validation and test cells; the same seed gives the same split."""
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
        msg = (
            f"`train_size` and `validation_size` must add up to at most 1, but found {train_size} and "
            f"{validation_size}."
        )
        raise ValueError(msg)
    order = np.random.default_rng(settings.seed or 0).permutation(n_cells)
    n_train = max(round(train_size * n_cells), 1)
    share = 1 - train_size if validation_size is None else validation_size
    end = n_train + round(share * n_cells) if train_size + share < 1 - 1e-9 else n_cells  # rounding leaves no cell over
    return np.sort(order[:n_train]), np.sort(order[n_train:end]), np.sort(order[end:])


# --- running a stage --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageRun:
    """A stage that a call of ``train`` runs, and how."""

    model: DiffusionModel
    job: StageJob
    options: RunOptions
    interruption: Interruption
    is_quiet: bool

    @property
    def bar(self) -> Bar:
        """A progress bar for the slow loops before and after the steps of the stage."""
        return partial(tqdm, leave=False, delay=SECONDS_WITHOUT_BAR, disable=True if self.is_quiet else None)

    def fit(
        self, plan: StagePlan, data: StageData, *depends_on: object, arguments: Mapping[str, Any] | None = None
    ) -> StagePlan:
        """Train the stage, and record in the model how.

        Parameters
        ----------
        plan, data
            The stage.
        *depends_on
            What its result depends on besides model and cells; a checkpoint is resumed only if it is the same.
        arguments
            What to record besides the recipe.
        """
        model, job = self.model, self.job
        plan.trained_rows = model._trained_rows(plan.name)
        plan.must_beat_former = not job.is_new and not job.was_cut_short and job.recipe.max_rounds > 1
        history, loss = model.history_ or {}, f"{plan.name}_loss_train"
        if self.options.checkpoint_dir is not None:
            split = model.train_indices_, model.validation_indices_  # total counts come from both
            plan.fingerprint = digest_of(model._fingerprint, *split, *depends_on)
            if loss in history:
                plan.losses_before = [history[loss][loss].dropna().to_dict()]
        options = replace(self.options, early_stopping=self.options.early_stopping and job.is_validated)
        trainer = run_stage(plan, data, options, max_epochs=job.n_epochs, interruption=self.interruption)
        model.to_device(trainer.strategy.root_device)  # like scvi-tools' models, it stays where it was trained
        model.trainer = trainer
        model.history_ = {**history, **plan.history}
        is_of_user = settings.seed is not None and plan.seed == stage_seed(plan.name)  # not drawn, nor of a checkpoint
        recorded = {**asdict(job.recipe), **(arguments or {}), "seed": int(settings.seed) if is_of_user else None}
        model.recipes_ = {**model.recipes_, job.name: to_plain(recorded)}
        ends = {**model.cut_short_, job.name: how_cut_short(job, plan, is_stopped=self.interruption.is_stopped)}
        model.cut_short_ = {stage: how for stage, how in ends.items() if how}
        return plan
