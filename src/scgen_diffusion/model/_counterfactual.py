"""Counterfactuals: checking a request, predicting its cells, and the ``obs``, names and ``uns`` of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pandas.api.types import infer_dtype

from scgen_diffusion.data import (
    OF_CONTROL,
    OPEN,
    PROVENANCE_KEY,
    CellFiles,
    GivenCells,
    ValueSummary,
    check_order,
    check_writable,
    digest_of,
    drop_unused_categories,
    have_labels,
    keys_to_check,
    stack_rows,
)
from scgen_diffusion.generation import (
    DIGEST,
    Counterfactual,
    LackingChanges,
    MeanChange,
    PerturbedGroups,
    check_batch_size,
    name_of,
    support_columns,
)
from scgen_diffusion.perturbation import ProfileSums, add_sums, strengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from torch import Tensor
    from tqdm import tqdm

    from scgen_diffusion.data import ConditionRequest, Conditions, RequestedCodes, Rows
    from scgen_diffusion.generation import CellGenerator, Support

    from ._generation import Assembly

CELL_NAMES = "adata_control.obs_names"


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

    source: GivenCells | CellFiles
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
        return self.source.names(self.rows)

    def obs(self, conditions: Conditions) -> pd.DataFrame:
        """Return their ``obs``; of cells in files only the conditions."""
        if isinstance(self.source, CellFiles):
            return conditions.to_obs(self.own, self.names)
        obs = self.source.cells.obs.iloc[self.rows].copy()
        for name, column in self.categories.items():
            obs[name] = column.iloc[self.rows]
        return obs


@dataclass(frozen=True)
class Prediction:
    """A checked request of ``predict_perturbation``.

    Parameters
    ----------
    engine, request
        The engine that predicts, and its request.
    cells
        The given cells.
    read
        ``read(rows, batch_size)`` yields the expression of rows of the source.
    assembly
        Builds cells.
    genes
        Names of the genes.
    keys
        Keys of ``condition``.
    groups
        Groups of cells that the perturbation flow perturbs; None for none.
    identity, provenance
        As those of :class:`~scgen_diffusion.generation.CellRequest`.
    is_uniform
        Whether the same conditions were requested for all cells.
    supports
        How far the effect on each group can be trusted, once it is judged.
    """

    task: ClassVar[str] = "Predicting"
    engine: CellGenerator
    request: Counterfactual
    cells: ControlCells
    read: Callable[[np.ndarray, int], Iterator[Tensor]]
    assembly: Assembly
    genes: pd.Index
    keys: Sequence[str]
    groups: PerturbedGroups | None
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    is_uniform: bool
    supports: Sequence[Support] = ()

    def as_begun(self, seed: int, identity: Mapping[str, Any]) -> Prediction:
        """Return the same request with the seed and the identity of the process that began it."""
        request = replace(self.request, seed=seed)
        return replace(self, request=request, identity=identity, provenance={**self.provenance, "seed": seed})

    def judged(self) -> Prediction:
        """Return the request with a support on each effect that the perturbation flow predicts.

        Warns
        -----
        UserWarning
            Unless all are supported.
        """
        if self.groups is None:
            return self

        def read(positions: np.ndarray) -> Tensor:
            return torch.cat([*self.read(self.cells.rows[positions], len(positions))])

        groups, supports = self.groups, self.groups.supports(read)
        table = pd.DataFrame(support_columns(self.engine.conditions, groups.codes, groups.n_cells, supports))
        request = replace(self.request, lacking=LackingChanges.of_supports(groups.codes, supports))
        return replace(self, request=request, supports=supports, provenance={**self.provenance, "support": table})

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cells.rows)

    def identify(self, suffix: str) -> Mapping[str, Any]:
        """Return what the cells depend on, the given cells included, but for their number and the seed.

        Raises
        ------
        ValueError
            For columns of ``obs`` that a file of the predictions, with this ``suffix``, cannot have.
        """
        cells, of_obs = self.cells, ""
        if isinstance(cells.source, GivenCells):  # of files, only the conditions are written
            obs = cells.obs(self.engine.conditions)
            obs = obs.set_axis(obs.index.astype(object).rename(None))  # the file has other names of cells
            check_writable(obs, to_zarr=suffix == ".zarr")
            columns = (pd.util.hash_pandas_object(column, index=False).to_numpy() for _, column in obs.items())
            of_obs = digest_of(list(obs), *columns)
        of_cells = digest_of(cells.source.digest, cells.rows, cells.own, of_obs)
        return {**self.identity, "control cells": DIGEST + of_cells}

    def make(self, batch_size: int | None, progress: tqdm) -> Any:
        """Predict all cells."""
        rows = range(self.n_cells)
        x, sums = self._predict(rows, batch_size, progress)
        return self._assemble(rows, x, self.assembly.whole, **self.mean_change(sums))

    def make_part(self, rows: range, batch_size: int | None, progress: tqdm) -> AnnData:
        """Predict a part of a stream, whose first row begins a block; its ``uns`` has the sums of its profiles."""
        x, sums = self._predict(rows, batch_size, progress)
        part = self._assemble(rows, x, self.assembly.part)
        part.uns["sums"] = {"numbers": sums.numbers, "values": sums.values}
        return part

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of the file: that of any part, with the mean changes of all."""
        uns, total = {}, add_sums(())
        for uns in parts:
            total = add_sums([total, ProfileSums(**uns.pop("sums"))])
        uns[PROVENANCE_KEY] |= self.mean_change(total)
        return uns

    def _predict(self, rows: range, batch_size: int | None, progress: tqdm) -> tuple[Rows, ProfileSums]:
        """Return the values of some of the cells, and the sums of their profiles."""
        engine, parts = self.engine, []
        batches = self.read(self.cells.part(rows).rows, engine.round_to_blocks(check_batch_size(batch_size)))

        def sums() -> Iterator[ProfileSums]:
            for x, of_block in engine.predictions(self.request.part(rows.start, rows.stop), batches, batch_size):
                parts.append(x)
                progress.update(x.shape[0])
                if of_block is not None:
                    yield of_block

        total = add_sums(sums())
        return stack_rows(parts), total

    def mean_change(self, sums: ProfileSums) -> dict[str, pd.DataFrame]:
        """Return the mean changes and the support with their strength, entries of ``uns``; none without sums."""
        if self.groups is None or not len(sums.numbers):
            return {}
        genes = self.genes
        changes = self.groups.changes(sums.values, self.supports)
        columns = {name: np.concatenate([getattr(one, name) for one in changes]) for name in MeanChange._fields}
        number = np.repeat(np.arange(len(changes)), len(genes))
        gene, names = pd.factorize(genes.astype(str))
        table = {
            "combination": pd.Categorical.from_codes(number, self.groups.names),
            "gene": pd.Categorical.from_codes(np.tile(gene, len(changes)), names),
            **columns,
        }
        support = self.provenance["support"].copy()
        end = support.columns.get_loc("n_cells")
        given = [key for key in support.columns[1:end] if key not in table]
        table |= {key: support[key].array.take(number) for key in given}
        support.insert(end + 1, "strength", strengths(sums.values))
        return {"support": support, "mean_change": drop_unused_categories(pd.DataFrame(table))}

    def _assemble(self, rows: range, x: Rows, assemble: Callable[..., Any], **effects: pd.DataFrame) -> Any:
        """Build some of the predicted cells by ``assemble``; ``effects`` are further entries of ``uns``."""
        cells, output = self.cells.part(rows), self.request.sampling.output
        self.assembly.check(ValueSummary.of(x), output)
        obs, obsm = counterfactual_conditions(self.engine.conditions, cells, self.keys, self._names(rows, cells))
        return assemble(x, obs, {**self.provenance, **effects}, is_log1p=output == "log1p", obsm=obsm)

    def _names(self, rows: range, cells: ControlCells) -> pd.Index:
        """Name the predictions of some of the cells by the request, and by place and name of the cells.

        A cell in another place draws other random numbers, so its prediction has another name.
        """
        n_cells = None if self.is_uniform else self.n_cells
        name = name_of(self.identity, self.request.seed, n_cells)
        return pd.Index([f"{name}-{row}-{cell}" for row, cell in zip(rows, cells.names, strict=True)])


def control_cells(
    conditions: Conditions, source: GivenCells | CellFiles, rows: np.ndarray, condition: ConditionRequest
) -> tuple[ControlCells, RequestedCodes]:
    """Return given cells with their new conditions, checked, and what was requested of these."""
    own = source.codes[rows]
    if n_unlabeled := int((~have_labels(conditions.by_key, own)).sum()):
        *_, may_lack = keys_to_check(conditions.by_key)
        msg = (
            f"{n_unlabeled} of {len(rows)} cells lack a label in {may_lack}, so it is not known under which conditions "
            "they were measured. Label them, or leave them out."
        )
        raise ValueError(msg)
    if isinstance(condition, Mapping | pd.DataFrame):
        _check_one_per_cell(conditions, condition, len(rows), lambda: source.names(rows))
    requested = conditions.request(condition, len(rows))
    codes = requested.all()
    texts: dict[str, pd.Series] = _unwritable_texts(source.cells.obs) if isinstance(source, GivenCells) else {}
    return ControlCells(source, rows, own, np.where(codes == OPEN, own, codes), texts), requested


def _unwritable_texts(obs: pd.DataFrame) -> dict[str, pd.Series]:
    """Return columns of text that anndata writes only as categories, as categories."""
    texts = obs.select_dtypes([object, "string"])
    return {
        name: text.astype("category")
        for name, text in texts.items()
        if infer_dtype(text) == "string" and (text.dtype != object or text.isna().any())
    }


def check_learned(module: Any, conditions: Conditions, codes: np.ndarray, method: str) -> None:
    """Raise for values in the cells' own conditions ``(cells, columns)`` that the model has not learned but needs.

    The perturbation flow sees only the keys that perturb, so it takes control cells of new types or donors.
    """
    perturbing = module.perturbation_flow.perturbing_keys if method == "perturbation_flow" else repeat(True)
    for key, columns in compress(conditions.parts, perturbing):
        key.check_learned(codes[:, columns], conditions.combinations[:, columns])


def _check_one_per_cell(
    conditions: Conditions, condition: Mapping[str, Any] | pd.DataFrame, n_cells: int, names: Callable[[], pd.Index]
) -> None:
    """Raise unless a request gives one value for all cells, or one per cell in their order."""
    if isinstance(condition, pd.DataFrame):
        given, ordered = [("The `condition` table", "rows", len(condition))], {"the `condition` table": condition}
    else:
        lengths = conditions.lengths(conditions.named(condition))
        given = [(f"`condition[{key!r}]`", "values", length) for key, length in lengths.items()]
        ordered = {f"`condition[{key!r}]`": values for key, values in condition.items()}
    for what, unit, found in given:
        if found != n_cells:
            msg = (
                f"{what} has {found} {unit} for {n_cells} cells; give one value for all cells, or one per "
                "cell. A set of members is one value, such as 'A+B'; predict other perturbations in other calls."
            )
            raise ValueError(msg)
    check_order(ordered, names, CELL_NAMES)


def counterfactual_conditions(
    conditions: Conditions, cells: ControlCells, keys: Sequence[str], names: pd.Index
) -> tuple[pd.DataFrame, dict[str, np.ndarray | pd.DataFrame]]:
    """Return the cells' ``obs`` and arrays with the new values of some keys, and the old ones beside them."""
    obs = cells.obs(conditions).set_axis(names)
    new = conditions.to_obs(cells.codes, names)
    arrays, old = (conditions.to_obsm(codes, names) for codes in (cells.codes, cells.own))
    columns = [key for key in keys if key in new]
    obs = obs.assign(**{f"{key}{OF_CONTROL}": obs[key] for key in columns}, **{key: new[key] for key in columns})
    return obs, arrays | {f"{key}{OF_CONTROL}": old[key] for key in keys if key in old}
