"""Loaders over cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi.dataloaders import DataSplitter

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class CellSplitter(DataSplitter):
    """scvi-tools' splitter, for which a split without validation cells is fine too."""

    def val_dataloader(self) -> DataLoader | list:
        """Read the validation cells in order; no loader if there are none."""
        return super().val_dataloader() or []
