"""Generating cells: what every model of the package has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from scgen_diffusion.data import ValueSummary, resolve_seed
from scgen_diffusion.generation import CellGenerator, LibrarySizes, checked_batch_size, stack

from ._diagnostics import check_summary_finite
from ._registration import RegistrationMixin

if TYPE_CHECKING:
    from anndata import AnnData

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.generation import CellRequest
    from scgen_diffusion.module import InputValues


class GenerationMixin(RegistrationMixin):
    """``generate`` for models whose cells come out of noise, block by block."""

    architecture: Any
    library_head_is_trained_: bool
    default_sampler: str = "midpoint"

    @property
    def _default_output(self) -> InputValues:
        """What the cells of ``generate`` hold unless something else is asked for."""
        return "log1p"

    @abstractmethod
    def _check_ready_to_generate(self) -> None:
        """Raise unless the model can generate."""

    def _check_result(self, values: ValueSummary, output: InputValues) -> None:
        """Raise, or warn, if generated cells cannot be right."""
        check_summary_finite(values)

    @property
    def _library_sizes(self) -> LibrarySizes:
        is_fitted = self.module.library_size.is_fitted
        return LibrarySizes(self.architecture.library_size, is_fitted, self.library_head_is_trained_)

    @property
    def _engine(self) -> CellGenerator:
        """What turns requests into cells; it sees no AnnData."""
        name = type(self).__name__
        return CellGenerator(self.module, self.conditions, self._library_sizes, name, self.default_sampler)

    def _request(
        self, n_cells: int | None, condition: ConditionRequest, *, seed: int | None, **options: Any
    ) -> CellRequest:
        """Check what a user asks for, and resolve it; ``options`` are those of :meth:`CellGenerator.request`."""
        self._check_ready_to_generate()
        return self._engine.request(n_cells, condition, seed=resolve_seed(seed), **options)

    def _generate(
        self,
        n_cells: int | None,
        condition: ConditionRequest,
        *,
        batch_size: int | None,
        show_progress: bool,
        **options: Any,
    ) -> AnnData:
        """Make the cells of a request and put them together."""
        request = self._request(n_cells, condition, **options)
        parts = []
        with tqdm(total=request.n_cells, desc="Generating", unit="cell", disable=not show_progress) as progress:
            for cells in self._engine.cells(request, batch_size=checked_batch_size(batch_size)):
                parts.append(cells)
                progress.update(len(cells.codes))
        x, codes = stack([part.x for part in parts]), np.concatenate([part.codes for part in parts])
        self._check_result(ValueSummary.of(x), request.output)
        obs = self.conditions.to_obs(codes, request.names(0, request.n_cells))
        return self._assemble(x, obs, request.provenance, is_log1p=request.output == "log1p")
