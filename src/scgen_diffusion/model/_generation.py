"""Jobs: checked requests whose cells are made at once, or part by part for a file. Here, those of ``generate``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from scgen_diffusion.data import digest_of, drop_unused_categories, stack_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anndata import AnnData

    from scgen_diffusion.generation import CellGenerator, CellRequest

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
    is_uniform
        Whether the same conditions were requested for all cells.
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
    is_uniform: bool
    build: Callable[..., Any]
    batch_size: int | None

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    def name(self) -> str:
        """Beginning of the names of the cells: the model, and a digest of all that they depend on.

        Cells of like conditions do not depend on their number.
        """
        n_cells = None if self.is_uniform else self.n_cells
        return f"{self.engine.name}-{digest_of(sorted(self.identity.items()), self.request.seed, n_cells)[:N_DIGITS]}"

    def identify(self, suffix: str) -> dict[str, Any]:
        """Return the identity of a file of these cells, whose name has this ``suffix``."""
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
        with tqdm(total=self.n_cells, desc=self.task, unit="cell", disable=not show_progress) as progress:
            x, obs, uns, obsm = self.cells(range(self.n_cells), progress)
        return self.build(x, drop_unused_categories(obs), uns, obsm)

    def make_part(self, rows: range, progress: tqdm) -> AnnData:
        """Make a part for a file, whose first row begins a block, with all categories."""
        x, obs, uns, obsm = self.cells(rows, progress, as_part=True)
        return self.build(x, obs, uns, obsm)

    @abstractmethod
    def cells(
        self, rows: range, progress: tqdm, *, as_part: bool = False
    ) -> tuple[Any, pd.DataFrame, dict[str, Any], dict[str, Any]]:
        """Make some cells: values, ``obs``, provenance and ``obsm``."""

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of the file, from those of the parts: that of any part."""
        return next(parts)


@dataclass
class Generation(Job):
    """A checked request of ``generate``."""

    task = "Generating"
    request: CellRequest

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.request.n_cells

    def judge(self) -> None:
        """Judge combinations that training never saw, which the perturbation flow makes."""
        if (judged := self.engine.supports(self.request)) is not None:
            columns, self.request.lacking = judged
            self.provenance["support"] = pd.DataFrame(columns)

    def cells(
        self, rows: range, progress: tqdm, *, as_part: bool = False
    ) -> tuple[Any, pd.DataFrame, dict[str, Any], dict[str, Any]]:
        """Make some cells."""
        parts = []
        for x, codes in self.engine.cells(self.request, rows, self.batch_size):
            parts.append((x, codes))
            progress.update(len(codes))
        x, codes = stack_rows([x for x, _ in parts]), np.concatenate([codes for _, codes in parts])
        names = pd.Index([f"{self.name}-{number}" for number in rows])
        conditions = self.engine.conditions
        return x, conditions.to_obs(codes, names), self.provenance, conditions.to_obsm(codes)
