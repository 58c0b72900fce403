"""Jobs: checked requests whose cells are made at once, or part by part for a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from pandas.api.types import infer_dtype
from tqdm.auto import tqdm

from scgen_diffusion.data import (
    OF_CONTROL,
    PROVENANCE_KEY,
    digest_of,
    drop_unused_categories,
    have_labels,
    part_of,
    stack_rows,
)
from scgen_diffusion.generation import (
    Corrections,
    PredictionRequest,
    check_batch_size,
    support_columns,
)
from scgen_diffusion.perturbation import ProfileSums, add_sums

from ._training import SECONDS_WITHOUT_BAR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from scgen_diffusion.data import CellFiles, ConditionRequest, Conditions, GivenCells, RequestedCodes
    from scgen_diffusion.generation import CellGenerator, CellRequest, Support

N_DIGITS = 10  # of names; among ten thousand requests, two share a name with probability 1 in 20,000


@dataclass
class Job(ABC):
    """A checked request for cells.

    Parameters
    ----------
    engine, request
        The engine that makes the cells, and what it needs to know.
    identity
        What the cells depend on, but for their number and the seed; see :meth:`CellGenerator.identity`.
    provenance
        Record of the request in ``uns``.
    requested
        Codes of the requested conditions, open for keys left out.
    build
        Builds an AnnData or MuData from values, ``obs``, provenance and ``obsm``.
    batch_size
        Number of cells made at a time.
    """

    task: ClassVar[str]
    engine: CellGenerator
    request: Any
    identity: dict[str, Any]
    provenance: dict[str, Any]
    requested: RequestedCodes
    build: Callable[..., Any]
    batch_size: int | None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.requested)

    @property
    def name(self) -> str:
        """Beginning of the names of the cells: the model, and a digest of all that they depend on.

        Cells of like conditions do not depend on their number.
        """
        n_cells = None if self.requested.is_uniform else self.n_cells
        return f"{self.engine.name}-{digest_of(sorted(self.identity.items()), self.request.seed, n_cells)[:N_DIGITS]}"

    def identify(self) -> dict[str, Any]:
        """Return the identity of a file of these cells."""
        return self.identity

    def resume(self, seed: int, identity: dict[str, Any]) -> None:
        """Take seed and identity of the process that began the job."""
        self.request.seed = self.provenance["seed"] = seed
        self.identity = identity

    @abstractmethod
    def judge(self) -> None:
        """Record how far effects of perturbations can be trusted, and warn unless all are supported."""

    def make(self, *, show_progress: bool) -> Any:
        """Judge, and make all cells."""
        self.judge()
        with self.bar(self.n_cells, show_progress=show_progress) as progress:
            x, obs, provenance, obsm = self.cells(range(self.n_cells), progress)
        provenance = self.merge(iter([{PROVENANCE_KEY: provenance}]))[PROVENANCE_KEY]
        return self.build(x, drop_unused_categories(obs), provenance, obsm)

    def bar(self, total: int, *, show_progress: bool, n_done: int = 0) -> tqdm:
        """Return a progress bar, which appears after some seconds."""
        options = {"desc": self.task, "unit": "cell", "delay": SECONDS_WITHOUT_BAR, "disable": not show_progress}
        return tqdm(total=total, initial=n_done, **options)

    @abstractmethod
    def cells(self, rows: range, progress: tqdm) -> tuple[Any, pd.DataFrame, dict[str, Any], dict[str, Any]]:
        """Make the cells of some rows, of which the first begins a block: values, ``obs``, provenance and ``obsm``."""

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of all cells from those of parts: that of any part."""
        return next(parts)


@dataclass
class Generation(Job):
    """A checked request of ``generate``."""

    task = "Generating"
    request: CellRequest

    def judge(self) -> None:
        """Judge combinations that training never saw, which the perturbation flow makes."""
        if (judged := self.engine.supports(self.request)) is not None:
            columns, self.request.corrections = judged
            self.provenance["support"] = pd.DataFrame(columns)

    def cells(self, rows: range, progress: tqdm) -> tuple[Any, pd.DataFrame, dict[str, Any], dict[str, Any]]:
        """Make some cells."""
        parts = []
        for x, codes in self.engine.cells(self.request, rows, self.batch_size):
            parts.append((x, codes))
            progress.update(len(codes))
        x, codes = stack_rows([x for x, _ in parts]), np.concatenate([codes for _, codes in parts])
        name, conditions = self.name, self.engine.conditions
        names = pd.Index([f"{name}-{number}" for number in rows])
        return x, conditions.to_obs(codes, names), self.provenance, conditions.to_obsm(codes)


@dataclass
class Prediction(Job):
    """A checked request of ``predict_perturbation``.

    Parameters
    ----------
    source
        The given cells, in memory or in files.
    keys
        Names of the requested keys.
    obs
        Their ``obs``; None for cells in files, of which only the conditions are known.
    read
        ``read(rows, batch_size)`` yields the expression of rows of the source.
    genes
        Names of the genes.
    supports
        How far the effect on each group can be trusted, once it is judged.
    """

    task = "Predicting"
    request: PredictionRequest
    source: GivenCells | CellFiles
    keys: Sequence[str]
    obs: pd.DataFrame | None
    read: Callable[[np.ndarray, int], Iterator[Tensor]]
    genes: pd.Index
    supports: Sequence[Support] = ()

    def identify(self) -> dict[str, Any]:
        """Return what the cells depend on, the given cells included. Raise for ``obs`` that anndata cannot write."""
        of_obs = ""
        if self.obs is not None:
            obs = self.obs.set_axis(self.obs.index.astype(object).rename(None))  # the file has other names of cells
            part_of(AnnData(obs=obs))
            of_obs = digest_of(list(obs), pd.util.hash_pandas_object(obs, index=False).to_numpy())
        return {**self.identity, "adata_control": digest_of(self.source.digest, self.request.own, of_obs)}

    def judge(self) -> None:
        """Judge each effect that the perturbation flow predicts."""
        groups = self.request.groups
        if groups is None:
            return
        self.supports = groups.supports(lambda rows: torch.cat([*self.read(rows, len(rows))]))
        self.request.corrections = Corrections.of_supports(groups.codes, self.supports)
        columns = support_columns(self.engine.conditions, groups.codes, groups.n_cells, self.supports)
        self.provenance["support"] = pd.DataFrame(columns)

    def cells(self, rows: range, progress: tqdm) -> tuple[Any, pd.DataFrame, dict[str, Any], dict[str, Any]]:
        """Predict some cells; their provenance has the sums of their profiles."""
        engine, parts, sums = self.engine, [], add_sums(())
        batches = self.read(np.array(rows), engine.round_to_blocks(check_batch_size(self.batch_size)))
        for x, of_block in engine.predictions(self.request, batches, rows.start, self.batch_size):
            parts.append(x)
            progress.update(x.shape[0])
            if of_block is not None:
                sums = add_sums([sums, of_block])
        obs, obsm = self._conditions(rows)
        return stack_rows(parts), obs, self.provenance | {"sums": sums._asdict()}, obsm

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of any part, with the mean changes of all instead of sums."""
        uns, total = {}, add_sums(())
        for uns in parts:
            total = add_sums([total, ProfileSums(**uns[PROVENANCE_KEY].pop("sums"))])
        uns[PROVENANCE_KEY] |= self.mean_change(total)
        return uns

    def _conditions(self, rows: range) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return ``obs`` and arrays of some cells: new values of the requested keys, and the old ones beside them.

        A cell in another place draws other random numbers, so its name has the place.
        """
        name, conditions, cut = self.name, self.engine.conditions, slice(rows.start, rows.stop)
        own, codes = self.request.own[cut], self.request.codes[cut]
        names = pd.Index([f"{name}-{row}-{cell}" for row, cell in zip(rows, self.source.obs_names[cut], strict=True)])
        obs = conditions.to_obs(own, names) if self.obs is None else self.obs.iloc[cut].set_axis(names)
        new = conditions.to_obs(codes, names)
        arrays, old = (conditions.to_obsm(some) for some in (codes, own))
        columns = [key for key in self.keys if key in new]
        obs = obs.assign(**{f"{key}{OF_CONTROL}": obs[key] for key in columns}, **{key: new[key] for key in columns})
        return obs, arrays | {f"{key}{OF_CONTROL}": old[key] for key in self.keys if key in old}

    def mean_change(self, sums: ProfileSums) -> dict[str, pd.DataFrame]:
        """Return the mean changes, an entry of ``uns``; none if no group is perturbed."""
        groups = self.request.groups
        if groups is None:
            return {}
        support = self.provenance["support"]
        number = np.repeat(np.arange(len(support)), len(self.genes))
        gene, names = pd.factorize(self.genes.astype(str))
        table = {
            "combination": pd.Categorical.from_codes(number, support["combination"]),
            "gene": pd.Categorical.from_codes(np.tile(gene, len(support)), names),
            **groups.changes(sums.values, self.supports),
        }
        keys = [key for key in support.columns[1 : support.columns.get_loc("n_cells")] if key not in table]
        table |= {key: support[key].array.take(number) for key in keys}
        return {"mean_change": drop_unused_categories(pd.DataFrame(table))}


def request_of_cells(conditions: Conditions, own: np.ndarray, condition: ConditionRequest) -> RequestedCodes:
    """Check the condition that is asked of cells with codes of their ``own (cells, columns)``."""
    if n_unlabeled := int((~have_labels(conditions.by_key, own)).sum()):
        may_lack = [key.name for key in conditions.by_key if key.may_be_missing]
        msg = (
            f"{n_unlabeled} of {len(own)} cells lack a label in {may_lack}, so it is not known under which conditions "
            "they were measured. Label them, or leave them out."
        )
        raise ValueError(msg)
    requested = conditions.request(condition, len(own))
    if any(1 < len(values) < len(own) for _, values in requested.given):
        msg = f"`condition` must have one value for all cells, or one for each of {len(own)} cells, in each key."
        raise ValueError(msg)
    return requested


def writable(obs: pd.DataFrame) -> pd.DataFrame:
    """Return ``obs`` with columns of text as categories, as anndata writes them."""
    text = [name for name, column in obs.select_dtypes([object, "string"]).items() if infer_dtype(column) == "string"]
    return obs.astype(dict.fromkeys(text, "category"))


def check_learned(module: Any, conditions: Conditions, codes: np.ndarray, method: str) -> None:
    """Raise for values in the cells' own conditions ``(cells, columns)`` that the model has not learned but needs.

    The perturbation flow sees only the keys that perturb, so it takes control cells of new types or donors.
    """
    perturbing = module.perturbation_flow.perturbing_keys if method == "perturbation_flow" else repeat(True)
    for key, columns in compress(conditions.parts, perturbing):
        key.check_learned(codes[:, columns], conditions.combinations[:, columns])
