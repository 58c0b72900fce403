"""Loaders over cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi.dataloaders import DataSplitter

from ._distributed import is_distributed

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class CellSplitter(DataSplitter):
    """scvi-tools' splitter, for which a split without validation cells is fine too, and several processes share the cells."""

    def train_dataloader(self) -> DataLoader:
        """Shuffle the training cells; in a distributed run each process reads its share."""
        self._share_among_processes()
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader | list:
        """Read the validation cells in order; no loader if there are none."""
        self._share_among_processes()
        return super().val_dataloader() or []

    def _share_among_processes(self) -> None:
        self.data_loader_kwargs["distributed_sampler"] = is_distributed()
