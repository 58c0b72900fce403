"""How many counts the cells of a request get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scvi.model.base import BaseModelClass
from torch import Tensor

from scgen_diffusion.data import known_names
from scgen_diffusion.module import LIBRARY_SIZE_KINDS, LibrarySizeKind

if TYPE_CHECKING:
    from scgen_diffusion.diffusion import Generators

LARGEST_TOTAL = 10**9  # no cell has as many; far beyond, sums are infinite in single precision


class LibrarySizeMixin(BaseModelClass):
    """Total counts of generated cells: drawn from a distribution, or given by the user."""

    architecture: Any
    library_head_is_trained_: bool

    def _checked_totals(self, library_size: Any, n_cells: int) -> LibrarySizeKind | np.ndarray:
        """Resolve a user's library size: the name of a distribution, or one total per cell."""
        if library_size is None or isinstance(library_size, str):
            return self._checked_library_kind(library_size or self.architecture.library_size)
        try:
            totals = np.asarray(library_size, dtype=float)
        except (TypeError, ValueError):
            totals = None
        if totals is None or isinstance(library_size, bool):
            msg = f"`library_size` must be one number, one per cell, or the name of a distribution, but found {library_size!r}."
            raise TypeError(msg)
        if totals.ndim > 1 or (totals.ndim == 1 and len(totals) != n_cells):
            msg = f"`library_size` must be one number or one per cell ({n_cells}), but found shape {totals.shape}."
            raise ValueError(msg)
        is_allowed = (totals >= 1) & (totals <= LARGEST_TOTAL)
        if not is_allowed.all():
            msg = f"`library_size` must be at least 1 and at most {LARGEST_TOTAL}, but found {totals[~is_allowed][0]}."
            raise ValueError(msg)
        return np.broadcast_to(totals.astype(np.float32), n_cells)

    def _checked_library_kind(self, kind: str) -> LibrarySizeKind:
        if kind not in LIBRARY_SIZE_KINDS:
            msg = f"`library_size` {kind!r} is not known. {known_names(kind, LIBRARY_SIZE_KINDS)}"
            raise ValueError(msg)
        if not self.module.library_size.is_fitted:
            msg = "The model has no library-size statistics; give `library_size` as one number or one per cell."
            raise ValueError(msg)
        if kind == "latent" and not self.library_head_is_trained_:
            msg = "`library_size='latent'` needs a model that was trained here; published weights have no such head."
            raise ValueError(msg)
        return cast("LibrarySizeKind", kind)

    def _draw_totals(
        self, library_size: LibrarySizeKind | np.ndarray, condition: Tensor, z: Tensor, generators: Generators
    ) -> Tensor:
        """Draw the totals of cells under conditions ``(n, columns)`` and latents or profiles ``(n, ...)``."""
        uniform = generators.uniform(*self.module.library_size.shape)
        if isinstance(library_size, np.ndarray):
            return torch.tensor(library_size, device=z.device)
        return self.module.library_size.draw(library_size, condition, z, uniform)
