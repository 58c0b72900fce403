"""Reading given cells through a model."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings

from scgen_diffusion.data import (
    CellFiles,
    check_layer,
    check_not_empty,
    check_same_registry,
    check_values,
    checked_rows,
)
from scgen_diffusion.generation import checked_batch_size

from ._advice import AdviceMixin
from ._registration import RegistrationMixin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.train import TrainingCells


class CellsMixin(AdviceMixin, RegistrationMixin):
    """Batches of the model's own cells or of others with the same genes."""

    @abstractmethod
    def _check_can_read_cells(self) -> None:
        """Raise unless the model is trained as far as reading cells needs it."""

    def _batches(
        self, adata: AnnData | CellFiles | None, indices: Sequence[int] | np.ndarray | None, batch_size: int | None
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        """Yield what is registered of the cells, on the model's device, and their row numbers."""
        self._check_can_read_cells()
        batch_size = checked_batch_size(settings.batch_size if batch_size is None else batch_size)
        if (files := self._files(adata)) is not None:
            yield from self._read_files(files, checked_rows(indices, files.n_cells), batch_size)
            return
        source = self._validated(adata)
        yield from self._read(source, checked_rows(indices, source.n_obs), batch_size)

    def _files(self, adata: AnnData | CellFiles | None) -> TrainingCells | None:
        """Return cells that are read from files: given ones, or the model's own; None for cells of an AnnData."""
        if adata is None:
            return self._file_cells
        if not isinstance(adata, CellFiles):
            return None
        check_same_registry(adata.registry, self.registry_)
        return adata

    def _read_files(
        self, files: TrainingCells, rows: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        self.module.eval()
        start = 0
        for tensors in files.loader(rows, batch_size):
            stop = start + len(tensors[REGISTRY_KEYS.X_KEY])
            yield {name: tensor.to(self.device) for name, tensor in tensors.items()}, rows[start:stop]
            start = stop

    def _read(
        self, source: AnnData, rows: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        """Yield what is registered of some rows of cells that are known to fit, and their numbers."""
        self.module.eval()
        own = torch.Generator()  # or the loader would draw a number from the global one
        loader = self._make_data_loader(adata=source, indices=rows, batch_size=batch_size, generator=own)
        start = 0
        for tensors in loader:
            batch = rows[start : start + len(tensors[REGISTRY_KEYS.X_KEY])]
            ordered = {name: self._in_order(tensor, batch, source) for name, tensor in tensors.items()}
            self._check_values(ordered[REGISTRY_KEYS.X_KEY], batch, source)
            yield {name: tensor.to(self.device) for name, tensor in ordered.items()}, batch
            start += len(batch)

    def _in_order(self, tensor: Tensor, batch: np.ndarray, source: AnnData) -> Tensor:
        """Undo that scvi-tools sorts the rows of a batch to read a file."""
        return tensor[np.argsort(np.argsort(batch, kind="stable"), kind="stable")] if source.isbacked else tensor

    def _check_values(self, x: Tensor, rows: np.ndarray, source: AnnData) -> None:
        """Raise unless cells ``(cells, genes)`` hold what the model learned from; ``X`` may have changed since it was registered."""
        setup = self.registry_["setup_args"]
        if "layer" not in setup:  # of MuData a copy is read, which was made when it was checked
            return
        where = check_layer(source, setup["layer"])
        advice = f"The model was set up with counts there; give cells that have them in {where}."
        check_not_empty(check_values(x.numpy(), where, setup["values"], advice), source.obs_names[rows], where)

    def _check_given(self, adata: AnnData | None, argument: str) -> None:
        """Raise if there are no cells in memory to read."""
        if adata is not None:
            return
        if self._file_cells is not None:
            msg = f"The model's cells are in files; read those that you want: `{argument}=cells.read(indices)`."
            raise ValueError(msg)
        if self.adata is None:
            msg = f"The model was loaded without cells; give `{argument}`."
            raise ValueError(msg)

    def _validated(self, adata: AnnData | None) -> AnnData:
        self._check_given(adata, "adata")
        cells = self.adata if adata is None else adata
        self._check_same_features(cells)
        check_layer(cells, self.registry_["setup_args"].get("layer"))
        return self._validate_anndata(adata)
