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
from scvi import REGISTRY_KEYS

from scgen_diffusion._arguments import known_names, warn_user
from scgen_diffusion.data import (
    OF_CONTROL,
    OPEN,
    PROVENANCE_KEY,
    CellFiles,
    GivenCells,
    ValueSummary,
    check_distinct_columns,
    check_order,
    check_same_registry,
    check_writable,
    digest_of,
    drop_unused_categories,
    have_labels,
    keys_to_check,
    resolve_seed,
    stack_rows,
)
from scgen_diffusion.diffusion import Guidance, check_sampler
from scgen_diffusion.generation import (
    DIGEST,
    Counterfactual,
    LackingChanges,
    MeanChange,
    PerturbedGroups,
    ProfileSums,
    add_sums,
    check_batch_size,
    identity_of,
    name_of,
    verdict_table,
)

from ._end_of_training import record_of_short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData
    from torch import Tensor
    from tqdm import tqdm

    from scgen_diffusion.data import ConditionRequest, Conditions, RequestedCodes, Rows
    from scgen_diffusion.diffusion import GuidanceScale, Sampler
    from scgen_diffusion.generation import SamplingOptions, Verdict

    from ._base import DiffusionModel

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
    numbers
        The requested numbers as given, ``(cells,)`` of each key.
    categories
        Columns of text with gaps, or of pandas' type of text, as categories of all cells of ``source``: anndata does
        not write them otherwise.
    """

    source: GivenCells | CellFiles
    rows: np.ndarray
    own: np.ndarray
    codes: np.ndarray
    numbers: Mapping[str, np.ndarray]
    categories: Mapping[str, pd.Series]

    def part(self, rows: range) -> ControlCells:
        """Return some consecutive cells."""
        cut = slice(rows.start, rows.stop)
        numbers = {name: values[cut] for name, values in self.numbers.items()}
        return replace(self, rows=self.rows[cut], own=self.own[cut], codes=self.codes[cut], numbers=numbers)

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
    model
        The model that predicts.
    cells
        The given cells.
    request
        The request for the engine.
    keys
        Keys of ``condition``.
    groups
        Groups of cells that the transport perturbs; None for none.
    identity, provenance
        As those of :class:`~scgen_diffusion.generation.CellRequest`.
    is_uniform
        Whether the same conditions were requested for all cells.
    verdicts
        How far the effect on each group can be trusted, once it is judged.
    """

    task: ClassVar[str] = "Predicting"
    model: DiffusionModel
    cells: ControlCells
    request: Counterfactual
    keys: Sequence[str]
    groups: PerturbedGroups | None
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    is_uniform: bool
    verdicts: Sequence[Verdict] = ()

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        adata_control: AnnData | CellFiles | None,
        condition: ConditionRequest,
        *,
        method: str | None,
        residuals: str | None,
        guidance_scale: GuidanceScale | Guidance,
        sampler: str | Sampler | None,
        n_steps: int | None,
        counts: bool | None,
        library_size: Any,
        seed: int | None,
    ) -> Prediction:
        """Check and resolve the arguments of ``predict_perturbation``."""
        engine, output, guidance = model._engine, model._output(counts), Guidance.of(guidance_scale)
        sampler = model._counterfactual_sampler(sampler)
        condition = model.conditions.as_table(condition)
        sampling = engine.sampling(sampler, n_steps, guidance, output)
        cells, requested = control_cells(model, adata_control, condition)
        check_order({"`library_size`": library_size}, lambda: cells.names, CELL_NAMES)
        _check_options(model, {"method": method, "residuals": residuals})
        residuals = residuals or model._counterfactual_options["residuals"][0]
        chosen_method = model._counterfactual_method(cells, method)
        _check_learned(model, cells.own, chosen_method)
        is_same = (cells.own == cells.codes).all(1)
        come_back = residuals == "own" and library_size is None and not model.modalities
        if is_same.any() and (condition is not None or come_back):
            warn_user(
                f"{is_same.sum():,} of {len(is_same):,} cells have the requested conditions already, so nothing is "
                "predicted: they come back as they are, or as their reconstruction. Leave them out."
            )
        inversion = None if chosen_method == "transport" else model.module.inversion_by(sampling.sampler)
        if inversion is None:  # inversions take any number of steps, on any path
            check_sampler(sampling.sampler, model.module.path, sampling.n_steps)
        _check_guidance_and_totals(model, sampling, library_size, chosen_method)
        keys = list(model.conditions.named(condition))
        groups = None
        if chosen_method == "transport":
            found = PerturbedGroups(model.module, model.conditions, cells.own, cells.codes)
            groups = found if len(found.codes) else None
        request = Counterfactual(
            np.arange(len(cells.rows)),
            cells.own,
            cells.codes,
            sampling,
            inversion=inversion,
            residuals=residuals,
            library_size=None if library_size is None else engine.totals(library_size, len(cells.rows), output),
            seed=resolve_seed(seed),
            group=None if groups is None else groups.group,
        )
        both = np.concatenate([cells.codes, cells.own])
        draws_totals = isinstance(request.library_size, str)
        unjudged = None if groups is None else both[np.tile(is_same, 2)]  # a verdict looks at the control cells too
        outside = engine.warn_outside_training(both, draws_totals=draws_totals, unjudged=unjudged)
        if output == "counts" and request.library_size is not None:
            outside += engine.warn_of_large_totals(request.library_size)
        provenance = engine.provenance(condition, sampling, library_size, request.seed)
        record = describe_counterfactual(request, chosen_method, condition)
        provenance |= record | {"outside_training": outside}
        identity = identity_of(model.module, model.conditions, requested, sampling, request.library_size, provenance)
        identity |= {name: record[name] for name in ("task", "method", "residuals")}
        return cls(model, cells, request, keys, groups, identity, provenance, requested.is_uniform)

    def with_seed(self, seed: int) -> Prediction:
        """Return the same request with another seed."""
        request = replace(self.request, seed=seed)
        return replace(self, request=request, provenance={**self.provenance, "seed": seed})

    def judged(self) -> Prediction:
        """Return the request with a verdict on each effect that the transport predicts.

        Warns
        -----
        UserWarning
            Unless all are supported.
        """
        stages = sorted(self.model._stages_to_generate) if self.groups is None else ("autoencoder", "transport")
        provenance = {**self.provenance, **record_of_short(self.model, stages)}
        if self.groups is None:
            return replace(self, provenance=provenance)

        def read(positions: np.ndarray) -> Tensor:
            batches = self.model._read(self.cells.source, self.cells.rows[positions], len(positions))
            return torch.cat([tensors[REGISTRY_KEYS.X_KEY] for tensors, _ in batches])

        groups, verdicts = self.groups, self.groups.verdicts(read)
        table = verdict_table(self.model.conditions, groups.codes, groups.n_cells, verdicts)
        request = replace(self.request, lacking=LackingChanges.of_verdicts(groups.codes, verdicts))
        return replace(self, request=request, verdicts=verdicts, provenance={**provenance, "verdict": table})

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
            obs = cells.obs(self.model.conditions)
            obs = obs.set_axis(obs.index.astype(object).rename(None))  # the file has other names of cells
            check_writable(obs, to_zarr=suffix == ".zarr")
            columns = (pd.util.hash_pandas_object(column, index=False).to_numpy() for _, column in obs.items())
            of_obs = digest_of(list(obs), *columns)
        of_cells = digest_of(cells.source.digest, cells.rows, cells.own, of_obs)
        return {**self.identity, "control cells": DIGEST + of_cells}

    def make_part(self, rows: range, batch_size: int | None, progress: tqdm) -> AnnData:
        """Predict a part of a stream; its ``uns`` has the sums of its profiles."""
        x, sums = self.predict(rows, batch_size, progress)
        part = self.assemble(rows, x, self.model._assemble_part)
        part.uns["sums"] = {"numbers": sums.numbers, "values": sums.values}
        return part

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of the file: that of any part, with the mean changes of all."""
        uns, total = {}, add_sums(())
        for uns in parts:
            total = add_sums([total, ProfileSums(**uns.pop("sums"))])
        uns[PROVENANCE_KEY] |= self.mean_change(total)
        return uns

    def predict(self, rows: range, batch_size: int | None, progress: tqdm) -> tuple[Rows, ProfileSums]:
        """Predict some of the cells, from a block's first on; return their values and the sums of their profiles."""
        engine, cells = self.model._engine, self.cells.part(rows)
        chunk, parts = engine.round_to_blocks(check_batch_size(batch_size)), []
        batches = (tensors[REGISTRY_KEYS.X_KEY] for tensors, _ in self.model._read(cells.source, cells.rows, chunk))

        def sums() -> Iterator[ProfileSums]:
            for x, of_block in engine.predictions(self.request.part(rows.start, rows.stop), batches, batch_size):
                parts.append(x)
                progress.update(x.shape[0])
                if of_block is not None:
                    yield of_block

        total = add_sums(sums())
        return stack_rows(parts), total

    def mean_change(self, sums: ProfileSums) -> dict[str, pd.DataFrame]:
        """Return the mean changes and the verdict with their strength, entries of ``uns``; none without sums."""
        if self.groups is None or not len(sums.numbers):
            return {}
        genes = self.model.var_.index
        changes = self.groups.changes(sums.values, self.verdicts)
        columns = {name: np.concatenate([getattr(one, name) for one in changes]) for name in MeanChange._fields}
        number = np.repeat(np.arange(len(changes)), len(genes))
        gene, names = pd.factorize(genes.astype(str))
        table = {
            "combination": pd.Categorical.from_codes(number, self.groups.names),
            "gene": pd.Categorical.from_codes(np.tile(gene, len(changes)), names),
            **columns,
        }
        verdict = self.provenance["verdict"].copy()
        end = verdict.columns.get_loc("n_cells")
        given = [key for key in verdict.columns[1:end] if key not in table]
        table |= {key: verdict[key].array.take(number) for key in given}
        verdict.insert(end + 1, "strength", self.groups.strengths(sums.values))
        return {"verdict": verdict, "mean_change": drop_unused_categories(pd.DataFrame(table))}

    def assemble(self, rows: range, x: Rows, assemble: Callable[..., Any], **effects: pd.DataFrame) -> Any:
        """Build some of the predicted cells by ``assemble``; ``effects`` are further entries of ``uns``."""
        cells, output = self.cells.part(rows), self.request.sampling.output
        self.model._warn_of_odd_values(ValueSummary.of(x), output)
        obs, obsm = counterfactual_conditions(self.model.conditions, cells, self.keys, self._names(rows, cells))
        return assemble(x, obs, {**self.provenance, **effects}, is_log1p=output == "log1p", obsm=obsm)

    def _names(self, rows: range, cells: ControlCells) -> pd.Index:
        """Name the predictions of some of the cells by the request, and by place and name of the cells.

        A cell in another place draws other random numbers, so its prediction has another name.
        """
        n_cells = None if self.is_uniform else self.n_cells
        name = name_of(self.identity, self.request.seed, n_cells)
        return pd.Index([f"{name}-{row}-{cell}" for row, cell in zip(rows, cells.names, strict=True)])


def control_cells(
    model: DiffusionModel,
    adata: AnnData | MuData | CellFiles | None,
    condition: ConditionRequest,
) -> tuple[ControlCells, RequestedCodes]:
    """Check given cells, and return them with their new conditions, and what was requested of these."""
    conditions, files = model.conditions, model._file_cells if adata is None else adata
    source: GivenCells | CellFiles
    if isinstance(files, CellFiles):
        check_same_registry(files.registry, model.registry_)
        source, rows = files, np.flatnonzero((files.codes != OPEN).all(1))  # of files opened with `indices`, these
        own = files.codes[rows]
    else:
        given = model._given(adata, "adata_control")
        check_distinct_columns(given.obs.columns, "adata_control.obs")
        rows = np.arange(given.n_obs)
        in_memory = model._to_read(given, rows, with_labels=True)
        source, own = in_memory, in_memory.codes[rows]
        if adata is not None:
            model._check_all_values(in_memory, rows)
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
    codes, numbers = requested.all(), requested.numbers_of(np.arange(len(rows)))
    texts: dict[str, pd.Series] = _unwritable_texts(source.cells.obs) if isinstance(source, GivenCells) else {}
    return ControlCells(source, rows, own, np.where(codes == OPEN, own, codes), numbers, texts), requested


def _unwritable_texts(obs: pd.DataFrame) -> dict[str, pd.Series]:
    """Return columns of text that anndata writes only as categories, as categories."""
    texts = obs.select_dtypes([object, "string"])
    return {
        name: text.astype("category")
        for name, text in texts.items()
        if infer_dtype(text) == "string" and (text.dtype != object or text.isna().any())
    }


def _check_options(model: DiffusionModel, chosen: Mapping[str, Any]) -> None:
    """Raise for options that the model does not support."""
    for name, value in chosen.items():
        known = model._counterfactual_options[name]
        if value is not None and value not in known:
            msg = f"{type(model).__name__} does not support `{name}` {value!r}. {known_names(value, known)}"
            raise ValueError(msg)


def _check_learned(model: DiffusionModel, codes: np.ndarray, method: str) -> None:
    """Raise for values in the cells' own conditions ``(cells, columns)`` that the model has not learned but needs.

    The transport sees only the keys that perturb, so it takes control cells of new types or donors.
    """
    conditions = model.conditions
    perturbing = model.module.transport.perturbing_keys if method == "transport" else repeat(True)
    for key, columns in compress(conditions.parts, perturbing):
        key.check_learned(codes[:, columns], conditions.combinations[:, columns])


def _check_guidance_and_totals(
    model: DiffusionModel, sampling: SamplingOptions, library_size: Any, method: str
) -> None:
    """Raise for guidance of the transport, and for totals that the model cannot set, or needs."""
    is_guided = sampling.guidance != Guidance().resolve(model.module.strategy, model.conditions.keys)
    if method == "transport" and is_guided:
        msg = "The transport has no guidance; leave `guidance_scale` out, or choose method='inversion'."
        raise ValueError(msg)
    if library_size is not None and model.module.keeps_totals:
        msg = "A model with `path='masking'` keeps the totals of the given cells; leave `library_size` out."
        raise ValueError(msg)
    if library_size is None and sampling.output == "counts" and model._input_values == "log1p":
        msg = "Log-normalised values do not tell library sizes; give `library_size`, one number or one per cell."
        raise ValueError(msg)


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


def describe_counterfactual(request: Counterfactual, method: str, condition: ConditionRequest) -> dict[str, Any]:
    """Return the entries of ``uns`` that only counterfactuals have."""
    record: dict[str, Any] = {"task": "predict_perturbation", "method": method, "residuals": request.residuals}
    if condition is None:
        record["condition"] = "that of each control cell"
    if request.library_size is None and request.sampling.output == "counts":
        record["library_size"] = "that of each control cell"
    return record


def counterfactual_conditions(
    conditions: Conditions, cells: ControlCells, keys: Sequence[str], names: pd.Index
) -> tuple[pd.DataFrame, dict[str, np.ndarray | pd.DataFrame]]:
    """Return the cells' ``obs`` and arrays with the new values of some keys, and the old ones beside them."""
    obs = cells.obs(conditions).set_axis(names)
    new = conditions.to_obs(cells.codes, names, cells.numbers)
    arrays, old = (conditions.to_obsm(codes, names) for codes in (cells.codes, cells.own))
    columns = [key for key in keys if key in new]
    obs = obs.assign(**{f"{key}{OF_CONTROL}": obs[key] for key in columns}, **{key: new[key] for key in columns})
    return obs, arrays | {f"{key}{OF_CONTROL}": old[key] for key in keys if key in old}
