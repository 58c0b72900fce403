"""Cells of an AnnData or MuData that was registered, as training takes them."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from anndata.abc import CSRDataset
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import AnnDataLoader
from torch.utils.data import DataLoader

from ._checks import check_conditions
from ._condition_field import encode_obs, keys_of_state
from ._file_matrix import FileMatrix
from ._windows import ToTensors, WindowLoader, read_windows, suitable_block, window_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from scvi.data import AnnDataManager
    from torch import Tensor

    from ._windows import Batches

NAMES_AT_A_TIME = 65_536


class RegisteredCells:
    """Cells of an AnnData or MuData, through the manager that registered them.

    Parameters
    ----------
    manager
        Of scvi-tools.
    conditions_key
        Name of the conditions in its registry.
    """

    def __init__(self, manager: AnnDataManager, conditions_key: str) -> None:
        self.manager = manager
        self.conditions_key = conditions_key
        self.by_key = keys_of_state(manager.registry["field_registries"][conditions_key]["state_registry"])

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
        return np.asarray(self.manager.get_from_registry(self.conditions_key), dtype=float)

    @property
    def digest(self) -> str:
        """Tell these cells from others, by their names."""
        names = self.manager.adata.obs_names
        return digest_of_names(names[i : i + NAMES_AT_A_TIME] for i in range(0, len(names), NAMES_AT_A_TIME))

    def check(self) -> None:
        """Register the cells once more if they were set up for another model since, or raise if their conditions are not what they were.

        Raises
        ------
        KeyError
            If a column of ``obs`` is gone.
        ValueError
            If it has other values.
        """
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

    def loader(
        self, indices: np.ndarray | None, batch_size: int, *, batches: Batches | None = None
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return batches of what is registered: those of ``batches``, or ``indices`` in order; from a file by windows."""
        if (matrix := self._backing_file()) is not None:
            to_tensors = ToTensors(REGISTRY_KEYS.X_KEY, self.conditions_key, self.codes)
            chosen = np.arange(self.n_cells) if indices is None else np.asarray(indices)
            plan = window_plan(chosen, batch_size, batches, block_size=suitable_block(matrix.rows_per_chunk))
            return WindowLoader(plan, partial(read_windows, matrix), to_tensors, batches)
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
        matrix = self.manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        if isinstance(matrix, h5py.Dataset):
            return FileMatrix(matrix)
        return FileMatrix(matrix.group) if isinstance(matrix, CSRDataset) else None


def digest_of_names(parts: Iterable[Sequence[str]]) -> str:
    """Tell cells of these names, in consecutive parts, from others; it does not depend on how they are parted."""
    digest = hashlib.sha256()
    for names in parts:
        digest.update("".join(f"{name}\n" for name in names).encode())
    return digest.hexdigest()
