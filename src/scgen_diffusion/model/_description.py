"""What ``print(model)`` shows: five lines."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

from scgen_diffusion._arguments import list_first
from scgen_diffusion.data import CategoricalKey, have_labels, with_columns

from ._training_pairs import TrainingPairs

if TYPE_CHECKING:
    from scgen_diffusion.data import ConditionKey

    from ._base import DiffusionModel


def describe(model: DiffusionModel) -> str:
    """Describe a model in five lines: cells, genes, conditions, trained stages, and the next step."""
    keys = zip(model.conditions.by_key, _new_labels(model), _n_unlabeled(model), strict=True)
    controls = model.control_values_
    conditions = [_condition(key, controls.get(key.name), new, n_unlabeled) for key, new, n_unlabeled in keys]
    lines = {
        "features" if model.modalities else "genes": _genes(model),
        "conditions": list_first(conditions) or "none",
        "trained": _trained(model),
        "next": next_step(model),
    }
    return "\n".join([f"{type(model).__name__} {_cells(model)}", *(f"  {n + ':':<12}{v}" for n, v in lines.items())])


def is_untrained_query(model: DiffusionModel) -> bool:
    """Return whether a model starts from a reference, and was not trained since."""
    return model.reference_ is not None and not model.history_


def _trained(model: DiffusionModel) -> str:
    has_control = bool(model.control_values_)
    missing = [s for s in model._stages if s not in model.trained_stages_ and (s != "perturbation_flow" or has_control)]
    how = model.cut_short_
    trained = ", ".join(f"{name} ({how[name]})" if name in how else name for name in model.trained_stages_)
    if is_untrained_query(model):
        return f"{trained} (by the reference; not fine-tuned yet)"
    if not trained:
        return f"nothing yet (stages: {', '.join(missing)})"
    return f"{trained} (not yet: {', '.join(missing)})" if missing else trained


def _cells(model: DiffusionModel) -> str:
    if model.trained_stages_ and not model.recipes_ and not model._has_cells:
        return "with published weights"
    if not model._has_cells:
        verb = "trained on" if model.trained_stages_ and not is_untrained_query(model) else "of"
        return f"{verb} {model.summary_stats.n_cells:,} cells (cells not in memory)"
    where = " (in files)" if model._file_cells is not None else ""
    return f"of {model._cells.n_cells:,} cells{where}"


def _genes(model: DiffusionModel) -> str:
    arguments = model.registry_["setup_args"]
    if model.modalities:
        return ", ".join(f"{name} ({len(m.features):,}, {m.likelihood})" for name, m in model.modalities.items())
    layer = "X" if arguments["layer"] is None else f"layers[{arguments['layer']!r}]"
    return f"{model.summary_stats.n_vars:,} ({model._input_values} in {layer})"


def _condition(key: ConditionKey, control: Any, new: list[str], n_unlabeled: int) -> str:
    control = "" if control is None else f"; control: {control!r}"
    unlabeled = f"; {n_unlabeled:,} cells without a label" if n_unlabeled else ""
    added = f"; new: {list_first(new)}" if new else ""
    return f"{key.name} ({key.summary}{control}{added}{unlabeled})"


def _new_labels(model: DiffusionModel) -> list[list[str]]:
    """Return, per key, the classes or members that a query has and its reference lacked."""
    if model.reference_ is None or not model._has_cells:
        return [[] for _ in model.conditions.by_key]
    found = zip(model.conditions.by_key, model._new_values, strict=True)
    return [[repr(label) for label in compress(key.labels, are_new)] for key, are_new in found]


def _n_unlabeled(model: DiffusionModel) -> list[int]:
    """Count, per key, the model's cells without a label."""
    keys = model.conditions.by_key
    if not any(key.may_be_missing for key in keys):  # then the columns of the cells, which may be gone, do not matter
        return [0] * len(keys)
    codes = model._registered_codes
    return [int((~have_labels([key], codes[:, columns])).sum()) for key, columns in with_columns(keys)]


def _predict(model: DiffusionModel) -> str:
    changed = ", ".join(f"{key!r}: ..." for key in model.control_values_)
    return f"model.predict_perturbation(control_cells, {{{changed}}})"


def _next_training(model: DiffusionModel, is_query: bool) -> str:
    control = model.control_values_
    predict = _predict(model)
    if "autoencoder" not in model.trained_stages_ or is_query:
        can_predict = bool(control) and "perturbation_flow" in model.trained_stages_
        return f"{predict}, or model.train() to generate" if can_predict else "model.train()"
    if not control:
        return "model.train_prior()"
    if "perturbation_flow" in model.trained_stages_:
        return f"{predict}, or model.train_prior() to generate"
    if not model._has_cells or model.train_indices_ is None:
        return "model.train_prior()"
    if not TrainingPairs(model.conditions, model._cells, model.train_indices_, control).groups:
        return "model.train_prior()"
    return "model.train_perturbation_flow() to predict perturbations, or model.train_prior() to generate"


def next_step(model: DiffusionModel) -> str:
    """Return what to call next."""
    is_query = is_untrained_query(model)
    stopped = [stage for stage in model.trained_stages_ if stage in model.cut_short_]
    train = ""
    if stopped and not is_query:
        train = "model.train()" if stopped[0] == model._stages[0] else f"model.train_{stopped[0]}()"
    if not train and (is_query or not model.is_trained_):
        train = _next_training(model, is_query)
    if train:
        return train if model._has_cells else f"set model.adata to cells, then {train}"
    condition = ""
    match model.conditions.by_key[:1]:
        case [CategoricalKey() as key] if len(model.combinations_):
            condition = f", condition={{{key.name!r}: {key.values[int(model.combinations_[0, 0])]!r}}}"
    predict = f", {_predict(model)}" if "perturbation_flow" in model.trained_stages_ else ""
    return f"model.generate(1_000{condition}){predict} and model.save('my_model')"
