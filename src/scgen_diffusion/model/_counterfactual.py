"""Counterfactuals: the given cells of a request, and the ``obs``, names and ``uns`` of the predicted ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgen_diffusion._arguments import known_names
from scgen_diffusion.data import (
    OPEN,
    check_conditions,
    check_expression,
    check_rows,
    check_same_genes,
    encode_cells,
    names_and_arrays,
)
from scgen_diffusion.generation import MeanChange, describe_verdicts, identity_of, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest, Conditions
    from scgen_diffusion.diffusion import ConditionStrategy
    from scgen_diffusion.generation import Counterfactual, PerturbedGroups, Rows

    from ._base import DiffusionModel

SUFFIX = "_of_control"


@dataclass(frozen=True)
class ControlCells:
    """Given cells and their new conditions.

    Parameters
    ----------
    source
        AnnData with the cells.
    rows
        Their row numbers, ``(cells,)``.
    own, codes
        Codes of their own and of their new conditions, ``(cells, columns)``.
    """

    source: AnnData
    rows: np.ndarray
    own: np.ndarray
    codes: np.ndarray


def control_cells(
    model: DiffusionModel,
    adata: AnnData | None,
    indices: Sequence[int] | np.ndarray | None,
    condition: ConditionRequest,
) -> ControlCells:
    """Check given cells and encode their new conditions."""
    model._check_given(adata, "adata_control")
    if adata is not None:
        setup = model.registry_["setup_args"]
        check_same_genes(adata.var_names, model.var_.index)
        check_expression(adata, setup["layer"], setup["values"])
    own = own_codes(model.conditions, model.adata if adata is None else adata)
    source = model._validated(adata)
    rows = check_rows(indices, source.n_obs)
    _check_one_per_cell(model.conditions, condition, source.obs_names[rows])
    requested = model.conditions.encode(condition, len(rows))
    return ControlCells(source, rows, own[rows], np.where(requested == OPEN, own[rows], requested))


def own_codes(conditions: Conditions, cells: AnnData) -> np.ndarray:
    """Encode the cells' own conditions, ``(cells, columns)``; raise for values that the model has not learned."""
    check_conditions(cells, *names_and_arrays(conditions.by_key))
    codes = encode_cells(cells, conditions.by_key)
    for key in conditions.by_key:
        columns = conditions.columns(key.name)
        key.check_learned(codes[:, columns], conditions.combinations[:, columns])
    return codes


def _check_one_per_cell(conditions: Conditions, condition: ConditionRequest, names: pd.Index) -> None:
    """Raise unless a request gives one value for all cells, or one per cell in their order."""
    given: list[tuple[str, str, int]] = []
    if isinstance(condition, pd.DataFrame):
        given = [("The `condition` table", "rows", len(condition))]
    elif isinstance(condition, Mapping):
        lengths = conditions.lengths(conditions.named(condition))
        given = [(f"`condition[{key!r}]`", "values", length) for key, length in lengths.items()]
    for what, unit, found in given:
        if found != len(names):
            msg = f"{what} has {found} {unit} for {len(names)} cells; give one value for all cells, or one per cell."
            raise ValueError(msg)
    if isinstance(condition, pd.DataFrame):
        index = condition.index
        if not index.equals(names) and names.is_unique and set(index) == set(names):
            msg = "The rows of the `condition` table are the cells in another order; use table.loc[adata.obs_names]."
            raise ValueError(msg)


def check_given_keys(
    given_keys: Sequence[str] | None, requested: Sequence[str], keys: Sequence[str], strategy: ConditionStrategy
) -> list[int]:
    """Return the positions of the given keys; raise unless the model has learned them without the others."""
    if isinstance(given_keys, str) or not isinstance(given_keys, Iterable | None):
        msg = f"`given_keys` must be a list of names, but found {given_keys!r}."
        raise ValueError(msg)
    given = list(keys if given_keys is None else given_keys)
    for key in given:
        if key not in keys:
            msg = f"`given_keys` has the unknown key {key!r}. {known_names(key, keys)}"
            raise ValueError(msg)
    if missing := [key for key in requested if key not in given]:
        msg = f"`condition` has the key {missing[0]!r}, but `given_keys` does not; add it there."
        raise ValueError(msg)
    numbers = [number for number, key in enumerate(keys) if key in given]
    if len(numbers) < len(keys) and not strategy.has_shown(numbers, len(keys)):
        msg = (
            f"`given_keys` is {given}, but the model has not learned these keys without the others: "
            f"`condition_strategy={strategy.name!r}` shows {strategy.shows}."
        )
        raise ValueError(msg)
    return numbers


def check_strength(strength: Any) -> float:
    """Raise unless the strength is a number above 0 and at most 1."""
    if not isinstance(strength, int | float | np.number) or isinstance(strength, bool) or not 0 < strength <= 1:
        msg = f"`strength` must be a number above 0 and at most 1, but found {strength!r}."
        raise ValueError(msg)
    return float(strength)


def describe_counterfactual(
    request: Counterfactual, method: str, condition: ConditionRequest, keys: Sequence[str]
) -> dict[str, Any]:
    """Return the entries of ``uns`` that only counterfactuals have."""
    record: dict[str, Any] = {"task": "predict_perturbation", "method": method, "strength": request.strength}
    record["residuals"] = request.residuals if request.sample else "none: expected values"
    if condition is None:
        record["condition"] = "that of each control cell"
    if request.library_size is None and request.sampling.output == "counts":
        record["library_size"] = "that of each control cell"
    return record | {"given_keys": [keys[key] for key in request.given]}


def describe_effects(groups: PerturbedGroups, predicted: Rows, genes: pd.Index) -> dict[str, pd.DataFrame]:
    """Return the tables of ``uns`` that say how far a prediction can be trusted; warn where it cannot."""
    if not len(groups.codes):
        return {}
    verdicts = groups.verdicts()
    tables = {"verdict": pd.DataFrame(describe_verdicts(groups.names, verdicts))}
    changes = groups.changes(predicted, verdicts)
    if changes:
        columns = {name: np.concatenate([getattr(one, name) for one in changes]) for name in MeanChange._fields}
        number = np.repeat(np.arange(len(changes)), len(genes))
        tables["mean_change"] = pd.DataFrame(
            {
                "combination": pd.Categorical.from_codes(number, groups.names),
                "gene": np.tile(genes.to_numpy(dtype=str), len(changes)),
                **columns,
            }
        )
    return tables


def counterfactual_conditions(
    conditions: Conditions, cells: ControlCells, requested: Sequence[str], names: pd.Index
) -> tuple[pd.DataFrame, dict[str, np.ndarray | pd.DataFrame]]:
    """Return the cells' ``obs`` and arrays with the new values of the requested keys, and the old ones beside them."""
    obs = cells.source.obs.iloc[cells.rows].set_axis(names)
    new, arrays, old = (
        conditions.to_obs(cells.codes, names),
        *(conditions.to_obsm(codes, names) for codes in (cells.codes, cells.own)),
    )
    columns = [key for key in requested if key in new]
    obs = obs.assign(**{f"{key}{SUFFIX}": obs[key] for key in columns}, **{key: new[key] for key in columns})
    return obs, arrays | {f"{key}{SUFFIX}": old[key] for key in requested if key in old}


def counterfactual_names(
    model: DiffusionModel,
    cells: ControlCells,
    condition: ConditionRequest,
    request: Counterfactual,
    provenance: Mapping[str, Any],
) -> pd.Index:
    """Name cells by the request and by the given cells."""
    n_cells, sampling = len(cells.rows), request.sampling
    requested = model.conditions.request(condition, n_cells)
    record = {name: provenance[name] for name in ("task", "method", "strength", "residuals", "given_keys")}
    identity = identity_of(model.module, model.conditions, requested, sampling, request.library_size, provenance)
    name = name_of(identity | record, sampling.guidance, request.seed, None if requested.is_uniform else n_cells)
    return pd.Index([f"{name}-{cell}" for cell in cells.source.obs_names[cells.rows]])
