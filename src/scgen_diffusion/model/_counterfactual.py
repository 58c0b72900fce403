"""Counterfactuals: what given cells would have been under another condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from tqdm.auto import tqdm

from scgen_diffusion.data import (
    OPEN,
    ValueSummary,
    build_anndata,
    check_conditions,
    check_expression,
    check_same_genes,
    checked_rows,
    encode_obs,
    is_single,
    known_names,
    resolve_seed,
)
from scgen_diffusion.diffusion import Generators, Guidance
from scgen_diffusion.generation import (
    GuidanceOptions,
    SamplingOptions,
    check_finite,
    checked_batch_size,
    identity_of,
    name_of,
    rows_of,
    stack,
)
from scgen_diffusion.module import total_counts

from ._cells import CellsMixin
from ._generation import GenerationMixin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Inversion, Sampler
    from scgen_diffusion.generation import Rows
    from scgen_diffusion.module import InputValues


SUFFIX = "_of_control"


@dataclass(frozen=True)
class CounterfactualOptions:
    """How given cells are carried over, checked and resolved.

    Parameters
    ----------
    sampling
        The sampler, its steps and guidance on the way to the new condition.
    inversion
        The way to noise and back; None for a trained transport, which goes to the new condition directly.
    given
        Numbers of the condition keys that the model is told of.
    strength
        How much of it is gone, from 0 (none) to 1 (all).
    sample
        Whether cells are drawn; or else expected values are returned.
    library_size
        Name of a distribution, one total per cell, or None for the cells' own.
    method
        Name of the way, where a model has several.
    residuals
        Whether drawn cells keep what the model does not explain of them (``"own"``), or draw it anew.
    """

    sampling: SamplingOptions
    inversion: Inversion | None
    given: Sequence[int]
    strength: float
    sample: bool
    library_size: Any
    method: str
    residuals: str


@dataclass(frozen=True)
class ControlCells:
    """Given cells, and what they shall become.

    Parameters
    ----------
    source
        Where they are.
    rows
        Their row numbers there, ``(cells,)``.
    own, codes
        Codes of their own conditions, and of those asked for, ``(cells, columns)``.
    """

    source: AnnData
    rows: np.ndarray
    own: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class ControlBlock:
    """Given cells that the network sees together; the last block is filled up with repeated ones.

    Parameters
    ----------
    x
        Registered expression, ``(block, genes)``.
    own, new
        Conditions as the module takes them, ``(block, columns)``.
    positions
        Number of each cell in the request.
    n_wanted
        How many cells, the first of the block, were asked for.
    generators
        Random numbers of the cells.
    """

    x: Tensor
    own: Tensor
    new: Tensor
    positions: np.ndarray
    n_wanted: int
    generators: Generators


class CounterfactualMixin(CellsMixin, GenerationMixin):
    """``predict_perturbation`` for models that turn noise into cells, and cells into noise."""

    def _method_for(self, cells: ControlCells, method: str | None) -> str:
        """Return the way to carry cells over, and raise unless the model has learned what it needs."""
        self._check_ready_to_generate()
        return "inversion"

    def _predict_perturbation(
        self,
        adata: AnnData | None,
        condition: ConditionRequest,
        *,
        indices: Sequence[int] | np.ndarray | None,
        given_keys: Sequence[str] | None,
        strength: float,
        guidance: GuidanceOptions,
        sampler: str | Sampler | None,
        n_steps: int | None,
        library_size: Any,
        sample: bool,
        batch_size: int | None,
        seed: int | None,
        show_progress: bool,
        output: InputValues,
        method: str | None = None,
        residuals: str = "new",
    ) -> AnnData:
        engine = self._engine
        sampling = engine.sampling(sampler, n_steps, guidance, output)
        cells = self._control_cells(adata, indices, condition)
        method = self._method_for(cells, method)
        inversion = None if method == "transport" else self.module.inversion_by(sampling.sampler)
        if method == "transport" and (guidance != GuidanceOptions() or given_keys is not None):
            msg = "The transport knows neither guidance nor `given_keys`; leave them out, or choose method='inversion'."
            raise ValueError(msg)
        outside = engine.warn_of_what_lies_outside(np.concatenate([cells.codes, cells.own]))
        totals = None if library_size is None else engine.totals(library_size, len(cells.rows), output)
        given = self._checked_given_keys(given_keys, [] if condition is None else list(condition))
        options = CounterfactualOptions(
            sampling, inversion, given, _checked_strength(strength), sample, totals, method, residuals
        )
        seed = resolve_seed(seed)
        chunk = engine.round_to_blocks(checked_batch_size(batch_size))
        parts = []
        with tqdm(total=len(cells.rows), desc="Predicting", unit="cell", disable=not show_progress) as progress:
            carry_over = partial(self._carry_over, options)
            for rows in engine.in_parallel(carry_over, self._control_blocks(cells, seed, chunk), chunk):
                parts.append(rows)
                progress.update(rows.shape[0])
        x = stack(parts)
        self._check_result(ValueSummary.of(x), output)
        provenance = engine.provenance(condition, sampling, library_size, seed)
        provenance |= _describe_counterfactual(condition, library_size, options)
        provenance |= {"given_keys": [self.conditions.keys[key] for key in given], "outside_training": outside}
        obs = self._counterfactual_obs(cells, [] if condition is None else list(condition))
        obs.index = self._counterfactual_names(cells, condition, options, provenance, seed)
        return build_anndata(x, obs, self.var_, provenance, is_log1p=output == "log1p")

    def _carry_over(self, options: CounterfactualOptions, block: ControlBlock) -> Rows:
        sparse = options.sample and self.module.has_zeros(options.sampling.output)
        values = self.module.predict_cells(
            block.x,
            partial(self._moved, block, options),
            partial(self._counterfactual_totals, block, options),
            block.generators,
            output=options.sampling.output,
            sample=options.sample,
            residuals=options.residuals,
            n_wanted=block.n_wanted,
        )
        rows = rows_of(values, sparse=sparse)
        check_finite(rows)
        return rows

    def _control_cells(
        self, adata: AnnData | None, indices: Sequence[int] | np.ndarray | None, condition: ConditionRequest
    ) -> ControlCells:
        """Check cells and what they shall become."""
        self._check_given(adata, "adata_control")
        if adata is not None:
            setup = self.registry_["setup_args"]
            check_same_genes(adata.var_names, self.var_.index)
            check_expression(adata, setup["layer"], setup["values"])
        own = self._own_codes((self.adata if adata is None else adata).obs)
        source = self._validated(adata)
        rows = checked_rows(indices, source.n_obs)
        _check_one_per_cell(condition, source.obs_names[rows])
        asked = self.conditions.encode(condition, len(rows))
        return ControlCells(source, rows, own[rows], np.where(asked == OPEN, own[rows], asked))

    def _own_codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the codes of cells' own conditions, ``(cells, columns)``, all of which the model must have learned."""
        conditions = self.conditions
        check_conditions(obs, conditions.keys)
        codes = encode_obs(obs, conditions.by_key)
        for key in conditions.by_key:
            columns = conditions.columns(key.name)
            key.check_learned(codes[:, columns], conditions.combinations[:, columns])
        return codes

    def _checked_given_keys(self, given_keys: Sequence[str] | None, asked: list[str]) -> list[int]:
        """Return the numbers of the keys that the model is told of, which it must have learned without the others."""
        keys, strategy = self.conditions.keys, self.module.strategy
        if isinstance(given_keys, str) or not isinstance(given_keys, Iterable | None):
            msg = f"`given_keys` must be a list of names, but found {given_keys!r}."
            raise ValueError(msg)
        given = keys if given_keys is None else list(given_keys)
        for key in given:
            if key not in keys:
                msg = f"`given_keys` has the unknown key {key!r}. {known_names(key, keys)}"
                raise ValueError(msg)
        if untold := [key for key in asked if key not in given]:
            msg = f"`condition` asks for {untold[0]!r}, of which the model is not told; add it to `given_keys`."
            raise ValueError(msg)
        numbers = [number for number, key in enumerate(keys) if key in given]
        if len(numbers) < len(keys) and not strategy.has_shown(numbers, len(keys)):
            msg = (
                f"`given_keys` is {given}, but the model, trained with "
                f"`condition_strategy={strategy.name!r}`, which shows {strategy.shows}, has not learned these without the others."
            )
            raise ValueError(msg)
        return numbers

    def _counterfactual_obs(self, cells: ControlCells, asked: list[str]) -> pd.DataFrame:
        """Return the cells' table with new values of the keys that were asked for, and their own values beside them."""
        obs = cells.source.obs.iloc[cells.rows]
        new = self.conditions.to_obs(cells.codes, obs.index)
        own = {f"{key}{SUFFIX}": obs[key] for key in asked}
        return obs.assign(**own, **{key: new[key] for key in asked})

    def _counterfactual_names(
        self,
        cells: ControlCells,
        condition: ConditionRequest,
        options: CounterfactualOptions,
        provenance: Mapping[str, Any],
        seed: int,
    ) -> pd.Index:
        """Name cells by what was asked, and by the given cells that they were."""
        asked = self.conditions.request(condition, len(cells.rows))
        told = {name: provenance[name] for name in ("task", "method", "strength", "residuals", "given_keys")}
        identity = identity_of(self.module, self.conditions, asked, options.sampling, options.library_size, provenance)
        name = name_of(identity | told, options.sampling.guidance, seed, None if asked.is_uniform else len(cells.rows))
        return pd.Index([f"{name}-{cell}" for cell in cells.source.obs_names[cells.rows]])

    def _control_blocks(self, cells: ControlCells, seed: int, chunk: int) -> Iterator[ControlBlock]:
        """Yield cells in whole blocks, read ``chunk`` of them, a multiple of a block, at a time."""
        start, size = 0, self._engine.block_size
        for tensors, read in self._read(cells.source, cells.rows, chunk):
            x = tensors[REGISTRY_KEYS.X_KEY]
            for first in range(0, len(read), size):
                picked = np.minimum(np.arange(first, first + size), len(read) - 1)
                positions = start + picked
                yield ControlBlock(
                    x[picked],
                    self.module.condition_tensor(cells.own[positions]),
                    self.module.condition_tensor(cells.codes[positions]),
                    positions,
                    min(len(read) - first, size),
                    Generators(seed, cells.rows[positions].tolist(), self.device),
                )
            start += len(read)

    def _moved(self, block: ControlBlock, options: CounterfactualOptions, states: Tensor) -> Tensor:
        """Carry states, as the module's denoiser knows them, from the cells' own conditions to the new ones."""
        guidance, n_steps = options.sampling.guidance, options.sampling.n_steps
        if options.inversion is None:  # the trained one, which moves those that become perturbed
            moved = self.module.transport.move(
                states, block.new, sampler=options.sampling.sampler, n_steps=n_steps, strength=options.strength
            )
            return torch.where((block.own == block.new).all(1)[:, None, None], states, moved)
        own, new = (self.module.condition_columns.keep(c, options.given) for c in (block.own, block.new))
        return options.inversion(
            self.module.denoiser(own, Guidance(guidance.plain)),
            self.module.denoiser(new, guidance),
            states,
            strength=options.strength,
            n_steps=n_steps,
            generators=block.generators,
        )

    def _counterfactual_totals(self, block: ControlBlock, options: CounterfactualOptions, features: Tensor) -> Tensor:
        """Return total counts ``(block,)``: the cells' own unless others were asked for."""
        if options.library_size is None:
            return total_counts(block.x)[:, 0]
        sizes = options.library_size
        chosen = sizes[block.positions] if isinstance(sizes, np.ndarray) else sizes
        return self.module.draw_totals(chosen, block.new, features, block.generators)


def _check_one_per_cell(condition: ConditionRequest, names: pd.Index) -> None:
    """Raise unless a request gives one value for all cells, or one for each, in their order."""
    if isinstance(condition, pd.DataFrame):
        _check_length("The `condition` table", "rows", len(condition), len(names))
        _check_order(condition.index, names)
    elif isinstance(condition, Mapping):
        lists = {key: values for key, values in condition.items() if not is_single(values)}
        for key, values in lists.items():
            _check_length(f"`condition[{key!r}]`", "values", len(values), len(names))


def _check_order(found: pd.Index, names: pd.Index) -> None:
    if not found.equals(names) and names.is_unique and set(found) == set(names):
        msg = "The rows of the `condition` table are the cells in another order; use table.loc[adata.obs_names]."
        raise ValueError(msg)


def _check_length(what: str, unit: str, found: int, n_cells: int) -> None:
    if found != n_cells:
        msg = f"{what} has {found} {unit} for {n_cells} cells; give one for all cells, or one for each."
        raise ValueError(msg)


def _checked_strength(strength: Any) -> float:
    if not isinstance(strength, int | float | np.number) or isinstance(strength, bool) or not 0 < strength <= 1:
        msg = f"`strength` must be a number above 0 and at most 1, but found {strength!r}."
        raise ValueError(msg)
    return float(strength)


def _describe_counterfactual(
    condition: ConditionRequest, library_size: Any, options: CounterfactualOptions
) -> dict[str, Any]:
    told: dict[str, Any] = {"task": "predict_perturbation", "method": options.method, "strength": options.strength}
    told["residuals"] = options.residuals if options.sample else "none: expected values"
    if condition is None:
        told["condition"] = "that of each control cell"
    if library_size is None and options.sampling.output == "counts":
        told["library_size"] = "that of each control cell"
    return told
