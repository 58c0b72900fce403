"""Steps of ``train``: its arguments, its warnings, and the run of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from scvi import settings

from scgen_diffusion._arguments import check_count, known_names, list_first, suggests_arguments, warn_user
from scgen_diffusion._compat import parse_device_args
from scgen_diffusion._files import explain_failed_write
from scgen_diffusion.data import FEWEST_TRAINING_CELLS, digest_of, have_labels, mark_occurring, to_plain, with_columns
from scgen_diffusion.train import Recipe, StageResult, run_stage, trainer_options

from ._end_of_training import how_cut_short
from ._query import has_values_to_learn

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from scgen_diffusion.data import ConditionKey
    from scgen_diffusion.train import StageData, StagePlan

    from ._base import DiffusionModel

MAX_VALIDATION_CELLS = 2000
SHORTEST = 0.1  # share of the default number of epochs below which there is a warning
FURTHER_SEEDS = {"prior": 1, "transport": 2}  # added to scvi-tools' seed
NO_END = {"max_steps": -1, "min_steps": None, "min_epochs": None, "fast_dev_run": False}  # of Lightning's trainer
NAMES_IN_PLAN = {
    "lr": "learning_rate",
    "gradient_clip_val": "gradient_clip",
    **dict.fromkeys(("n_epochs_kl_warmup", "n_steps_kl_warmup"), "kl_warm_up"),
}
"""Names of scvi-tools and Lightning for options of ``plan_kwargs``."""


def _in_plan(option: str) -> str:
    given = f"{{{option!r}: ...}}"
    if option not in [field.name for field in fields(Recipe)]:
        given = f"{{'<stage>': {given}}}"
    return f"It is an option of the training plan: `plan_kwargs={given}`."


OTHER_NAMES = {
    **{field.name: _in_plan(field.name) for recipe in Recipe.__subclasses__() for field in fields(recipe)},
    **{name: _in_plan(option) for name, option in NAMES_IN_PLAN.items()},
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs"), "max_epochs"),
    "use_gpu": "accelerator",
    "enable_checkpointing": "checkpoint_dir",
    "overfit_batches": "Stages draw their own batches; to see few of them, use `limit_train_batches`.",
    **dict.fromkeys(
        ("early_stopping_monitor", "early_stopping_mode"), "`early_stopping` watches each stage's validation loss."
    ),
    **dict.fromkeys(("simple_progress_bar", "load_sparse_tensor"), "Leave it out; this package has no counterpart."),
    **dict.fromkeys(
        ("datasplitter_kwargs", "external_indexing", "shuffle_set_split"),
        "The split is random, by `scvi.settings.seed`; to hold out cells, leave them out of `adata`.",
    ),
}
"""Names of other packages for the arguments of ``train``, and options that belong in ``plan_kwargs``."""
P = ParamSpec("P")
R = TypeVar("R")
RecipeT = TypeVar("RecipeT", bound=Recipe)
Run: TypeAlias = partial[StageResult]
"""Runs a stage: ``run(plan, data, *depends_on)``; it resumes a checkpoint with the same ``depends_on``."""


def suggests_training_arguments(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method that trains reject arguments that neither it nor Lightning's trainer has, and say what to use."""
    return suggests_arguments(method, OTHER_NAMES, trainer_options())


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
    changes = dict(changes or {})
    if batch_size is not None:
        changes.setdefault("batch_size", batch_size)
    if one_round:
        changes.setdefault("max_rounds", 1)
    known = [field.name for field in fields(recipe)]
    for name, value in changes.items():
        if name not in known:
            other, advice = NAMES_IN_PLAN.get(name), known_names(name, known)
            if other in known or name == "compile":
                advice = f"Did you mean {other!r}?" if other else "Give `compile` to `train`."
            msg = f"`plan_kwargs`: the {stage} has no option {name!r}. {advice}"
            raise TypeError(msg)
        is_optional = getattr(Recipe, name, ...) is None  # in general; a stage may have a number by default
        if isinstance(getattr(recipe, name), Real) and not (isinstance(value, Real) or (is_optional and value is None)):
            msg = f"`plan_kwargs`: {name!r} must be a number, but found {value!r}."
            raise TypeError(msg)
    size = check_count("batch_size", changes.get("batch_size", recipe.batch_size))
    return replace(recipe, **{**changes, "batch_size": min(size, max(n_cells, recipe.batch_size))})


def other_ends(options: Mapping[str, Any]) -> list[str]:
    """List the options of Lightning's trainer that set an end of training, or leave validation out."""
    found = [name for name, none in NO_END.items() if options.get(name, none) != none]
    if options.get("limit_val_batches") == 0:
        found.append("limit_val_batches")
    if any(isinstance(callback, EarlyStopping) for callback in options.get("callbacks") or ()):
        found.append("callbacks")
    return found


def check_watched(options: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Raise ValueError if a callback watches a loss that only one of several stages has, so that another would fail."""
    for callback in options.get("callbacks") or ():
        watched = getattr(callback, "monitor", None)
        if len(stages) > 1 and watched not in (None, "epoch", "step") and getattr(callback, "strict", True):
            msg = (
                f"`callbacks` has a {type(callback).__name__} that watches {watched!r}, but the stages {list(stages)} "
                "have losses of their own. Pass `early_stopping=True` to stop all stages, or train each by itself: "
                f"model.train_{stages[0]}(callbacks=...)."
            )
            raise ValueError(msg)


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


#: Options that follow from the number of cells or genes, as `train` names them.
ADAPTED = {
    "kl_weight": "a KL weight of",
    "loading_weight_decay": "a weight decay of loadings of",
    "keep_at_least": "thinning to at least",
}


def describe_adapted_options(job: StageJob, adapted: Recipe, usual: Recipe) -> dict[str, str]:
    """Name the options of a stage that follow from the data, and what is usual; not those that the user chose."""
    choices = {}
    for name, described in ADAPTED.items():
        value, of_data, of_others = (getattr(recipe, name, None) for recipe in (job.recipe, adapted, usual))
        if value == of_data != of_others:
            choices[name] = f"{described} {value:g} in place of {of_others:g}"
    return choices


def describe_choices(subject: str, choices: Mapping[str, str]) -> str:
    """Tell the user what the data chose; "" if nothing."""
    if not choices:
        return ""
    *others, last = choices.values()
    listed = f"{', '.join(others)}, and {last}" if others else last
    return f"The {subject}: {listed} (`model.recipes_`). You need not do anything."


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
    # fine-tuning goes on from the reference, unless it has classes to learn; the transport starts from nothing
    known = stages if model.reference_ is not None else model.trained_stages_
    begun = set() if has_values_to_learn(model) else {*known} - {"transport"}
    jobs = []
    for stage, usual in recipes.items():
        is_validated = stage != "transport" and len(model.validation_indices_) > 0
        size = None if stage == "transport" and len(stages) > 1 else batch_size
        one_round = bool(ends) or epochs[stage] is not None or not is_validated
        recipe = change_recipe(usual, stage, size, changes[stage], n_cells, one_round=one_round)
        _check_rounds(stage, recipe, ends, is_validated=is_validated)
        default = recipe.max_epochs(n_cells)
        n_epochs = default if epochs[stage] is None else check_count("max_epochs", epochs[stage])
        former = model.cut_short_.get(stage, "")
        jobs.append(StageJob(stage, recipe, n_epochs, default, is_validated, stage not in begun, former))
    if "early_stopping" in ends and not any(job.is_validated for job in jobs):
        msg = (
            "`early_stopping` watches the validation loss, but there are no validation cells. Set `train_size` below "
            "1, or leave `early_stopping` out. The transport cannot be stopped early."
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


def _check_rounds(stage: str, recipe: Recipe, ends: Sequence[str], *, is_validated: bool) -> None:
    """Raise for several rounds if they do not fit the other choices."""
    if recipe.max_rounds > 1 and ends:
        msg = (
            f"`{ends[0]}` and rounds are two rules for the end of the {stage}. Leave out `{ends[0]}`, or `max_rounds` "
            "of `plan_kwargs`."
        )
        raise ValueError(msg)
    if recipe.max_rounds > 1 and not is_validated:
        msg = f"`max_rounds` compares validation losses, but the {stage} has no validation cells."
        raise ValueError(msg)


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
        if few and not getattr(key, "has_vectors", False):
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
        if (gone := np.flatnonzero(was & ~stays)).size and not getattr(key, "has_vectors", False):
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


def make_checkpoint_folder(checkpoint_dir: str | os.PathLike[str]) -> Path:
    """Make the folder of the checkpoints before anything is trained."""
    folder = Path(checkpoint_dir).expanduser()
    try:
        with explain_failed_write("Making `checkpoint_dir`", folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        found = next((place for place in (folder, *folder.parents) if place.is_file()), folder)
        msg = f"`checkpoint_dir` must be a folder, but {found} is a file."
        raise NotADirectoryError(msg) from error
    return folder


def stage_seed(stage: str) -> int:
    """Return the seed of a stage's random numbers, by scvi-tools' seed or else a random one; stages share none."""
    return int(torch.randint(2**31, (1,)) if settings.seed is None else settings.seed) + FURTHER_SEEDS.get(stage, 0)


def seed_of_user(plan: StagePlan) -> int | None:
    """Return scvi-tools' seed if a trained stage has used it; None for a random one, or one of another session."""
    return None if settings.seed is None or plan.seed != stage_seed(plan.name) else int(settings.seed)


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


@contextmanager
def restored_unless(model: DiffusionModel, is_kept: Callable[[], object]) -> Iterator[None]:
    """Return the model to what it was, with its cells, if the body raises an error and its work is not to be kept."""
    attributes = {**model.__dict__, "module": deepcopy(model.module)}
    try:
        yield
    except BaseException:
        if not is_kept():
            model.__dict__.clear()
            model.__dict__.update(attributes)
        raise


def run_plan(
    model: DiffusionModel,
    plan: StagePlan,
    data: StageData,
    *depends_on: object,
    checkpoint_dir: Path | None,
    must_beat_former: bool,
    is_quiet: bool,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    **options: Any,
) -> StageResult:
    """Run a stage. It resumes a checkpoint of the same cells, the same split and the same ``depends_on``."""
    plan.trained_rows = model._trained_rows(plan.name)
    plan.must_beat_former = must_beat_former and plan.recipe.max_rounds > 1
    if checkpoint_dir is not None:
        split = model.train_indices_, model.validation_indices_  # total counts come from both
        plan.fingerprint = digest_of(model._fingerprint, *split, *depends_on)
        history, name = model.history_ or {}, f"{plan.name}_loss_train"
        if name in history:
            plan.losses_before = [history[name][name].dropna().to_dict()]
    accelerator, devices, device = parse_device_args(accelerator, devices)
    result = run_stage(plan, data, checkpoint_dir=checkpoint_dir, accelerator=accelerator, devices=devices, **options)
    model.to_device(result.device or device)  # like scvi-tools' models, it stays where it was trained
    model.trainer = result.trainer
    model.history_ = {**(model.history_ or {}), **result.plan.history}
    return result


def record_end(model: DiffusionModel, job: StageJob, result: StageResult) -> None:
    """Record the training options of a stage that has ended, its seed, and whether it was cut short."""
    options = {**asdict(job.recipe), **result.arguments, "seed": seed_of_user(result.plan)}
    model.recipes_ = {**model.recipes_, job.name: to_plain(options)}
    ends = {**model.cut_short_, job.name: how_cut_short(job, result)}
    model.cut_short_ = {stage: how for stage, how in ends.items() if how}
