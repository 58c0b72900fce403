"""Cells of an AnnData or MuData that was registered, as training takes them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from anndata.abc import CSRDataset
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import AnnDataLoader
from torch.utils.data import DataLoader

from ._anndata_file import FileMatrix, Rows, dense
from ._checks import check_not_empty, check_same_genes, check_values, row_sums
from ._condition_setup import CONDITIONS, check_conditions, encode_obs, keys_of_state
from ._mudata import JOINED
from ._windows import WindowLoader, suitable_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi.data import AnnDataManager
    from torch import Tensor

    from ._windows import Batches

NAMES_AT_A_TIME = 65_536
N_RUNS, LENGTH_OF_RUN = 32, 8  # of cells whose values tell cells from others; neighbours are read together


class RegisteredCells:
    """Cells of an AnnData or MuData, through the manager that registered them.

    Parameters
    ----------
    manager
        Of scvi-tools.
    """

    def __init__(self, manager: AnnDataManager) -> None:
        self.manager = manager
        self.by_key = keys_of_state(manager.registry["field_registries"][CONDITIONS]["state_registry"])

    @property
    def registry(self) -> Mapping[str, Any]:
        """What a model is built from."""
        return self.manager.registry

    @property
    def var(self) -> pd.DataFrame:
        """The genes' columns."""
        return self.manager.adata.var

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return self.manager.adata.n_obs

    @property
    def codes(self) -> np.ndarray:
        """Their conditions as they were registered, ``(cells, columns)``."""
        if not self.by_key:
            return np.zeros((self.n_cells, 0))
        return np.asarray(self.manager.get_from_registry(CONDITIONS), dtype=float)

    @property
    def digest(self) -> str:
        """Tell these cells from others, by their names and values."""
        names = self.manager.adata.obs_names
        parts = (names[i : i + NAMES_AT_A_TIME] for i in range(0, len(names), NAMES_AT_A_TIME))
        return digest_of_cells(parts, [row_sums(self._matrix)], self._read(sampled_rows(self.n_cells)))

    def check(self) -> None:
        """Raise if the cells are not what they were; register them once more if they were set up for another model since.

        All values in memory are looked at; of a file, which ``setup_anndata`` read to its end, those of some hundred cells.

        Raises
        ------
        KeyError
            If a column of ``obs`` is gone.
        ValueError
            If genes, values or columns of ``obs`` were changed.
        """
        self._check_values()
        obs = self.manager.adata.obs
        check_conditions(obs, [key.name for key in self.by_key])
        codes = encode_obs(obs, self.by_key)
        self.manager.validate()
        if not np.array_equal(self.codes, codes):
            msg = (
                "The conditions that were registered are not those of adata.obs any more. Set the AnnData up again and build the model "
                "anew, or give every model a copy."
            )
            raise ValueError(msg)

    def _check_values(self) -> None:
        arguments, adata = self.registry["setup_args"], self.manager.adata
        is_joined = "modalities" in arguments
        layer = None if is_joined else arguments["layer"]
        where = f"mdata.obsm[{JOINED!r}]" if is_joined else "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        state = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        try:
            if not is_joined:
                check_same_genes(adata.var_names, pd.Index([str(name) for name in state["column_names"]]))
            is_in_file = self._backing_file() is not None
            values = self._read(sampled_rows(self.n_cells)) if is_in_file else self._matrix
            totals = check_values(values, where, arguments.get("values", "counts"))
            if not is_in_file:
                check_not_empty(totals, adata.obs_names, where)
        except ValueError as error:
            msg = (
                f"The cells are not what they were when they were set up: {error} If they were normalised, scaled or filtered "
                "in place since, keep the values to train on in a layer, `adata.layers['counts'] = adata.X.copy()`, before "
                "that; then set up again with `layer='counts'`, and build the model anew."
            )
            raise ValueError(msg) from error

    @property
    def _matrix(self) -> Any:
        return self.manager.get_from_registry(REGISTRY_KEYS.X_KEY)

    def _read(self, rows: np.ndarray) -> Rows:
        """Read cells, whose numbers ascend."""
        matrix = self._backing_file()
        return self._matrix[rows] if matrix is None else matrix.read(rows)

    def loader(
        self, indices: np.ndarray | None, batch_size: int, *, batches: Batches | None = None
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return batches of what is registered: those of ``batches``, or ``indices`` in order; from a file by windows."""
        if (matrix := self._backing_file()) is not None:
            chosen = np.arange(self.n_cells) if indices is None else np.asarray(indices)
            block_size = suitable_block(matrix.rows_per_chunk)
            return WindowLoader(matrix, self.codes, chosen, batch_size, batches, block_size=block_size)
        if batches is None:
            return AnnDataLoader(self.manager, indices=indices, batch_size=batch_size)
        # scvi-tools' loader shuffles and shares in ways of its own
        return DataLoader(
            self.manager.create_torch_dataset(indices=indices),
            sampler=batches,
            batch_size=None,
            num_workers=settings.dl_num_workers,
            persistent_workers=settings.dl_persistent_workers,
        )

    def _backing_file(self) -> FileMatrix | None:
        """Return the matrix if it is left in a file, by rows."""
        matrix = self._matrix
        if isinstance(matrix, h5py.Dataset):
            return FileMatrix(matrix)
        return FileMatrix(matrix.group) if isinstance(matrix, CSRDataset) else None


def sampled_rows(n_cells: int) -> np.ndarray:
    """Choose some hundred cells, spread evenly over all; return their row numbers, which ascend."""
    starts = np.linspace(0, max(n_cells - LENGTH_OF_RUN, 0), N_RUNS).astype(int)
    rows = np.unique(starts[:, None] + np.arange(LENGTH_OF_RUN))
    return rows[rows < n_cells]


def digest_of_cells(names: Iterable[Sequence[str]], totals: Iterable[np.ndarray], sampled: Rows) -> str:
    """Tell cells from others; it does not depend on how they are parted or stored.

    Parameters
    ----------
    names
        Names of all cells, in consecutive parts.
    totals
        Sums of their values, in double precision and in consecutive parts.
    sampled
        Values of the cells that :func:`sampled_rows` chose.
    """
    digest = hashlib.sha256()
    for part in names:
        digest.update("".join(f"{name}\n" for name in part).encode())
    for sums in totals:
        digest.update(sums.tobytes())
    digest.update(np.ascontiguousarray(dense(sampled)).tobytes())
    return digest.hexdigest()
