"""Counterfactuals: the given cells of a request, and the ``obs``, names and ``uns`` of the predicted ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from scgen_diffusion._arguments import is_number, known_names, list_first
from scgen_diffusion.data import (
    OPEN,
    CellFiles,
    check_conditions,
    check_rows,
    check_same_registry,
    encode_cells,
    names_and_arrays,
)
from scgen_diffusion.generation import MeanChange, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scgen_diffusion.data import ConditionRequest, Conditions
    from scgen_diffusion.diffusion import ConditionStrategy
    from scgen_diffusion.generation import Counterfactual, PerturbedGroups, ProfileSums, Verdict

    from ._base import DiffusionModel

SUFFIX = "_of_control"
N_NAMED = 5  # rows in an error message


@dataclass(frozen=True)
class ControlCells:
    """Given cells and their new conditions.

    Parameters
    ----------
    source
        The cells, in memory or in files.
    rows
        Their row numbers, ``(cells,)``.
    own, codes
        Codes of their own and of their new conditions, ``(cells, columns)``.
    categories
        Columns of text with gaps, or of pandas' type of text, as categories of all cells of ``source``: anndata does
        not write them otherwise.
    """

    source: AnnData | MuData | CellFiles
    rows: np.ndarray
    own: np.ndarray
    codes: np.ndarray

    categories: Mapping[str, pd.Series]

    def part(self, rows: range) -> ControlCells:
        """Return some consecutive cells."""
        cut = slice(rows.start, rows.stop)
        return replace(self, rows=self.rows[cut], own=self.own[cut], codes=self.codes[cut])

    @property
    def names(self) -> pd.Index:
        """Their names."""
        return self.source.names(self.rows) if isinstance(self.source, CellFiles) else self.source.obs_names[self.rows]

    def obs(self, conditions: Conditions) -> pd.DataFrame:
        """Return their ``obs``; of cells in files only the conditions."""
        if isinstance(self.source, CellFiles):
            return conditions.to_obs(self.own, self.names)
        return self.source.obs.iloc[self.rows].assign(
            **{name: c.iloc[self.rows] for name, c in self.categories.items()}
        )


@dataclass(frozen=True)
class Prediction:
    """A checked request of ``predict_perturbation``.

    Parameters
    ----------
    cells
        The given cells.
    request
        The request for the engine.
    requested
        Keys of ``condition``.
    groups
        Groups of cells that the transport perturbs; None for none.
    identity, provenance
        As those of :class:`~scgen_diffusion.generation.CellRequest`.
    is_uniform
        Whether the same conditions were requested for all cells.
    """

    cells: ControlCells
    request: Counterfactual
    requested: Sequence[str]
    groups: PerturbedGroups | None
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    is_uniform: bool

    def with_seed(self, seed: int) -> Prediction:
        """Return the same request with another seed."""
        request = replace(self.request, seed=seed)
        return replace(self, request=request, provenance={**self.provenance, "seed": seed})

    def names(self, cells: ControlCells) -> pd.Index:
        """Name the predictions of some of the cells by the request, and by row and name of the cells.

        A cell that is given in another row draws other random numbers, so its prediction has another name.
        """
        n_cells = None if self.is_uniform else len(self.cells.rows)
        name = name_of(self.identity, self.request.sampling.guidance, self.request.seed, n_cells)
        return pd.Index([f"{name}-{row}-{cell}" for row, cell in zip(cells.rows, cells.names, strict=True)])


def control_cells(
    model: DiffusionModel,
    adata: AnnData | MuData | CellFiles | None,
    indices: Sequence[int] | np.ndarray | None,
    condition: ConditionRequest,
) -> ControlCells:
    """Check given cells and encode their new conditions."""
    conditions, files = model.conditions, model._file_cells if adata is None else adata
    if isinstance(files, CellFiles):
        check_same_registry(files.registry, model.registry_)
        source, rows = files, check_rows(indices, files.n_cells)
        own = files.codes[rows]
        check_learned(conditions, own)
    else:
        model._check_given(adata, "adata_control")
        if adata is not None:
            model._check_same_features(adata)
        given: Any = model.adata if adata is None else adata
        rows = check_rows(indices, given.n_obs)
        try:
            if adata is not None:
                model._check_expression(adata)
            own = own_codes(conditions, given)[rows]
        except ValueError as error:
            if indices is None:
                raise
            msg = f"{error} Cells outside of `indices` count, too; to leave them out, give `adata[indices].copy()`."
            raise ValueError(msg) from error
        source = model._validated(adata)
    if len(repeated := rows[pd.Index(rows).duplicated()]):
        listed = list_first(np.unique(repeated).tolist(), N_NAMED)
        msg = f"`indices` has rows more than once ({listed}); their predictions would share names. Give each row once."
        raise ValueError(msg)
    cells = ControlCells(source, rows, own, own, {} if isinstance(source, CellFiles) else _unwritable_texts(source.obs))
    if isinstance(condition, Mapping | pd.DataFrame):
        _check_one_per_cell(conditions, condition, cells.names)
    requested = conditions.encode(condition, len(rows))
    return replace(cells, codes=np.where(requested == OPEN, own, requested))


def _unwritable_texts(obs: pd.DataFrame) -> dict[str, pd.Series]:
    """Return columns of text that anndata writes only as categories, as categories."""
    texts = obs.select_dtypes([object, "string"])
    return {
        name: text.astype("category")
        for name, text in texts.items()
        if infer_dtype(text) == "string" and (text.dtype != object or text.isna().any())
    }


def own_codes(conditions: Conditions, cells: AnnData) -> np.ndarray:
    """Encode the cells' own conditions, ``(cells, columns)``; raise for values that the model has not learned."""
    check_conditions(cells, *names_and_arrays(conditions.by_key))
    codes = encode_cells(cells, conditions.by_key)
    check_learned(conditions, codes)
    return codes


def check_learned(conditions: Conditions, codes: np.ndarray) -> None:
    """Raise for values in the cells' conditions ``(cells, columns)`` that the model has not learned."""
    for key in conditions.by_key:
        columns = conditions.columns(key.name)
        key.check_learned(codes[:, columns], conditions.combinations[:, columns])


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
        check_order("the `condition` table", condition, names)
    elif isinstance(condition, Mapping):
        for key, values in condition.items():
            check_order(f"`condition[{key!r}]`", values, names)


def check_order(what: str, given: Any, names: pd.Index) -> None:
    """Raise if a table or column of pandas has the cells' names in another order."""
    if not isinstance(given, pd.Series | pd.DataFrame) or given.index.equals(names):
        return
    if names.is_unique and set(given.index) == set(names):
        msg = f"The rows of {what} are the cells in another order; use .loc[adata.obs_names]."
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
    if not is_number(strength) or not 0 < strength <= 1:
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


def describe_changes(
    groups: PerturbedGroups, verdicts: Sequence[Verdict], sums: ProfileSums, genes: pd.Index
) -> pd.DataFrame:
    """Return the table of mean changes for ``uns``, from the sums of all groups."""
    changes = groups.changes(sums.values, verdicts)
    columns = {name: np.concatenate([getattr(one, name) for one in changes]) for name in MeanChange._fields}
    number = np.repeat(np.arange(len(changes)), len(genes))
    gene, names = pd.factorize(genes.astype(str))
    return pd.DataFrame(
        {
            "combination": pd.Categorical.from_codes(number, groups.names),
            "gene": pd.Categorical.from_codes(np.tile(gene, len(changes)), names),
            **columns,
        }
    )


def counterfactual_conditions(
    conditions: Conditions, cells: ControlCells, requested: Sequence[str], names: pd.Index
) -> tuple[pd.DataFrame, dict[str, np.ndarray | pd.DataFrame]]:
    """Return the cells' ``obs`` and arrays with the new values of the requested keys, and the old ones beside them."""
    obs = cells.obs(conditions).set_axis(names)
    new, arrays, old = (
        conditions.to_obs(cells.codes, names),
        *(conditions.to_obsm(codes, names) for codes in (cells.codes, cells.own)),
    )
    columns = [key for key in requested if key in new]
    obs = obs.assign(**{f"{key}{SUFFIX}": obs[key] for key in columns}, **{key: new[key] for key in columns})
    return obs, arrays | {f"{key}{SUFFIX}": old[key] for key in requested if key in old}
