"""Requests of ``generate`` and of sampling paths: judging them, and making their cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from scgen_diffusion.data import ValueSummary, stack_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anndata import AnnData
    from tqdm import tqdm

    from scgen_diffusion.generation import CellGenerator, CellRequest
    from scgen_diffusion.nn import InputValues

FRAME_COLUMNS = ("cell", "frame", "time", "noise_level")  # columns of a sampling path's `obs`


class Assembly(NamedTuple):
    """How a model turns values into cells: what ``generate`` returns, a part of a stream, and a look at the values."""

    whole: Callable[..., Any]
    part: Callable[..., AnnData]
    check: Callable[[ValueSummary, InputValues], None]


@dataclass(frozen=True)
class Generation:
    """A checked request of ``generate``.

    Parameters
    ----------
    engine, request
        The engine that generates, and its request.
    assembly
        Builds cells.
    """

    task: ClassVar[str] = "Generating"
    engine: CellGenerator
    request: CellRequest
    assembly: Assembly

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.request.n_cells

    def identify(self, _suffix: str) -> Mapping[str, Any]:
        """Return the identity; any file can have these cells."""
        return self.identity

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the cells depend on, but for their number and the seed."""
        return self.request.identity

    def as_begun(self, seed: int, identity: Mapping[str, Any]) -> Generation:
        """Return the same request with the seed and the identity of the process that began it."""
        provenance = {**self.request.provenance, "seed": seed}
        return replace(self, request=replace(self.request, seed=seed, identity=identity, provenance=provenance))

    def judged(self) -> Generation:
        """Record how far combinations that training never saw can be trusted.

        Warns
        -----
        UserWarning
            Unless all are supported.
        """
        judged = self.engine.supports(self.request)
        if judged is None:
            return self
        columns, lacking = judged
        provenance = {**self.request.provenance, "support": pd.DataFrame(columns)}
        return replace(self, request=replace(self.request, provenance=provenance, lacking=lacking))

    def make(self, batch_size: int | None, progress: tqdm) -> Any:
        """Make all cells."""
        return self._make(range(self.n_cells), batch_size, progress, self.assembly.whole)

    def make_part(self, rows: range, batch_size: int | None, progress: tqdm) -> AnnData:
        """Make a part of a stream, whose first row begins a block."""
        return self._make(rows, batch_size, progress, self.assembly.part)

    def _make(self, rows: range, batch_size: int | None, progress: tqdm, assemble: Callable[..., Any]) -> Any:
        request, conditions, output, parts = self.request, self.engine.conditions, self.request.sampling.output, []
        for x, codes in self.engine.cells(request, rows, batch_size):
            parts.append((x, codes))
            progress.update(len(codes))
        x, codes = stack_rows([x for x, _ in parts]), np.concatenate([codes for _, codes in parts])
        self.assembly.check(ValueSummary.of(x), output)
        obs = conditions.to_obs(codes, pd.Index(request.names(rows.start, rows.stop)))
        obsm = conditions.to_obsm(codes, obs.index)
        return assemble(x, obs, request.provenance, is_log1p=output == "log1p", obsm=obsm)

    def merge(self, parts: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
        """Return the ``uns`` of the file: that of any part."""
        return next(parts)
