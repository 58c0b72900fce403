"""Cells of an AnnData or MuData: registered ones, for training, and given ones, to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS, settings
from torch.utils.data import BatchSampler, DataLoader, Subset

from scgen_diffusion._compat import was_set_up_last

from ._checks import check_layer, check_not_empty, check_values
from ._condition_setup import (
    CONDITIONS,
    complete_columns,
    encode_conditions,
    registered_genes,
    registered_keys,
)
from ._gene_names import check_same_genes
from ._matrices import VALUES, FileMatrix, JoinedMatrix, Rows, dense, is_in_file, read_rows, row_sums
from ._mudata import JOINED
from ._plain import digest_of
from ._windows import WindowLoader, batch_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData
    from scvi.data import AnnDataManager
    from torch import Tensor
    from torch.utils.data import Sampler

N_RUNS, LENGTH_OF_RUN = 32, 8  # runs of neighbouring cells whose values enter the digest


@dataclass(frozen=True, eq=False)
class GivenCells:
    """Cells of an AnnData, which may be backed by its file, or of MuData, to be read in any order.

    Attributes
    ----------
    cells
        The AnnData or MuData.
    matrix
        The values that the model reads, ``(cells, genes)``.
    codes
        Condition codes, ``(cells, columns)``.
    where
        Name of the matrix in errors of its values; empty if they are known to be right.
    """

    cells: AnnData | MuData
    matrix: Any
    codes: np.ndarray
    where: str = ""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.cells.n_obs

    @property
    def digest(self) -> str:
        """Digest of the cells' names and values."""
        totals = row_sums(self.matrix, VALUES)
        return digest_of_cells(self.obs_names, totals, self.read(sampled_rows(self.n_cells)))

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.cells.obs_names

    def read(self, rows: np.ndarray) -> Rows:
        """Read the values of cells, in the order of the row numbers."""
        return read_rows(self.matrix, rows)

    def __getitem__(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return a batch of cells in memory."""
        return batch_of(self.matrix[rows], self.codes[rows])

    def loader(
        self, indices: np.ndarray | None, batch_size: int, *, batches: Sampler | None = None
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return a loader of the cells, in the order of ``batches`` or ``indices``; it reads files by windows."""
        rows = np.arange(self.n_cells) if indices is None else np.asarray(indices)
        if is_in_file(self.matrix):
            return WindowLoader(JoinedMatrix([FileMatrix(self.matrix, VALUES)]), self.codes, rows, batch_size, batches)
        order = BatchSampler(range(len(rows)), batch_size, drop_last=False) if batches is None else batches
        workers = {"num_workers": settings.dl_num_workers, "persistent_workers": settings.dl_persistent_workers}
        own = torch.Generator() if batches is None else None  # reading leaves torch's random state alone
        cells = GivenCells(self.cells, self.matrix, self.codes)  # looked up once, not for every batch
        return DataLoader(Subset(cells, rows), sampler=order, batch_size=None, generator=own, **workers)


class RegisteredCells(GivenCells):
    """Cells of a registered AnnData or MuData.

    Parameters
    ----------
    manager
        The manager of scvi-tools that registered them.
    """

    def __init__(self, manager: AnnDataManager) -> None:
        self.manager = manager
        self.by_key = registered_keys(manager.registry)

    @property
    def cells(self) -> AnnData | MuData:
        """The registered AnnData or MuData."""
        return self.manager.adata

    @property
    def matrix(self) -> Any:
        """The registered values, ``(cells, genes)``."""
        return self.manager.get_from_registry(REGISTRY_KEYS.X_KEY)

    @property
    def var(self) -> pd.DataFrame:
        """A row for each registered gene, or feature of all modalities."""
        return pd.DataFrame(index=registered_genes(self.manager.registry))

    @property
    def codes(self) -> np.ndarray:
        """The registered condition codes, ``(cells, columns)``."""
        if not self.by_key or not was_set_up_last(self.manager):
            return encode_conditions(self.cells, self.by_key)
        return np.asarray(self.manager.get_from_registry(CONDITIONS), dtype=float)

    def check(self) -> None:
        """Raise if the cells changed; register them again if they were set up for another model in the meantime.

        Of the values, which ``setup_anndata`` checked, a sample of cells is.

        Raises
        ------
        KeyError
            If a column of ``obs`` or an array of ``obsm`` is missing.
        ValueError
            If genes, values or conditions changed.
        """
        self._check_values()
        cells = self.cells
        codes = encode_conditions(cells, self.by_key)
        self.manager.validate()
        if not np.array_equal(self.codes, codes):
            msg = "The conditions of the cells have changed since they were set up. Set them up again for a new model."
            raise ValueError(msg)

    def match_labels(self, names: Sequence[str]) -> pd.DataFrame:
        """Return columns of ``obs``, such as the donor, with a label for every cell."""
        return complete_columns(self.cells, names)

    def _check_values(self) -> None:
        arguments, cells, rows = self.manager.registry["setup_args"], self.cells, sampled_rows(self.n_cells)
        is_joined = "modalities" in arguments
        where = f"mdata.obsm[{JOINED!r}]" if is_joined else check_layer(cells, arguments["layer"])
        try:
            if not is_joined:
                check_same_genes(cells.var_names, registered_genes(self.manager.registry))
            totals = check_values(self.read(rows), where, arguments.get("values", "counts"))
            check_not_empty(totals, cells.obs_names[rows], where)
        except ValueError as error:
            msg = f"The cells have changed since they were set up: {error} Set up with a layer that keeps the counts."
            raise ValueError(msg) from error


def sampled_rows(n_cells: int) -> np.ndarray:
    """Choose about 250 cells, spread evenly over all; return their row numbers, ascending."""
    starts = np.linspace(0, max(n_cells - LENGTH_OF_RUN, 0), N_RUNS).astype(int)
    rows = np.unique(starts[:, None] + np.arange(LENGTH_OF_RUN))
    return rows[rows < n_cells]


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of the rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


def digest_of_cells(names: pd.Index, totals: np.ndarray, sampled: Rows) -> str:
    """Return a digest of cells that does not depend on how they are split or stored.

    Parameters
    ----------
    names
        Names of all cells.
    totals
        Row sums in double precision.
    sampled
        Values of the cells that :func:`sampled_rows` chooses.
    """
    return digest_of("\n".join(map(str, names)), totals, dense(sampled))
