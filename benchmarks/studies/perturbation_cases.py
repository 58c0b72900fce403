"""The cases of the perturbation study: one cell type's perturbed cells are left out, and are to be predicted from its control cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import scipy.sparse as sp

from benchmarks.quality.splits import log_normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL_TYPE = "cell_type"
CONDITION = "condition"
CONTROL = "control"
PERTURBED = "stimulated"

N_GENES = 2_000
#: Fewer perturbed cells are too few to be judged.
MIN_CELLS = 50


@dataclass(frozen=True)
class Case:
    """What is known and what is asked; integer counts in ``layers["counts"]``.

    Attributes
    ----------
    cell_type
        Type whose perturbed cells are left out.
    train
        All other cells, the control cells of the type among them.
    real
        The cells left out.
    """

    cell_type: str
    train: ad.AnnData
    real: ad.AnnData

    @property
    def control(self) -> ad.AnnData:
        """The control cells of the type, from which its perturbed cells are predicted."""
        return self.train[self.rows(self.cell_type, CONTROL)].copy()

    @property
    def other_types(self) -> list[str]:
        """Types with control and perturbed cells, at least two of each, to learn the effect from."""
        types = self.train.obs[CELL_TYPE].unique()
        return [name for name in types if min(len(self.rows(name, value)) for value in (CONTROL, PERTURBED)) >= 2]

    def rows(self, cell_type: str, condition: str) -> NDArray[np.intp]:
        """Return the training cells of a type under a condition, by position."""
        obs = self.train.obs
        return np.flatnonzero((obs[CELL_TYPE] == cell_type) & (obs[CONDITION] == condition))


def judged_types(adata: ad.AnnData) -> list[str]:
    """Return the cell types with enough perturbed cells, in alphabetical order."""
    n_cells = adata.obs.loc[adata.obs[CONDITION] == PERTURBED, CELL_TYPE].value_counts()
    return sorted(n_cells.index[n_cells >= MIN_CELLS])


def leave_out(adata: ad.AnnData, cell_type: str, *, n_genes: int = N_GENES) -> Case:
    """Leave the perturbed cells of a type out, and keep the genes that vary most among the others."""
    is_out = ((adata.obs[CELL_TYPE] == cell_type) & (adata.obs[CONDITION] == PERTURBED)).to_numpy()
    variance = log_normalise(adata.layers["counts"][~is_out]).var(axis=0)
    adata = adata[:, np.sort(np.argsort(-variance)[:n_genes])]
    return Case(cell_type, _minimal(adata[~is_out]), _minimal(adata[is_out]))


def _minimal(adata: ad.AnnData) -> ad.AnnData:
    counts = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    obs = adata.obs[[CELL_TYPE, CONDITION]].astype(str).astype("category")
    return ad.AnnData(counts, obs=obs, var=adata.var[[]].copy(), layers={"counts": counts.copy()})
