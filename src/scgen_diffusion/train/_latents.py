"""Latents of the cells: computed once, and cached for the prior and the perturbation flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ._stage_data import StageData, copy_to_device, memory_for_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from scgen_diffusion.module import SCLDMModule

    from ._stage_data import EpochBatches, TrainingCells

ENCODED_AT_A_TIME = 512


class LatentCache(Dataset):
    """Latents of all cells and what belongs to them, written batch by batch and read by arrays of row numbers.

    Parameters
    ----------
    n_rows
        Number of cells.
    batches
        Consecutive batches of all of them.

    Attributes
    ----------
    arrays
        Tensors by name, with a row per cell. They are gone after the stage that trained on them, as its trainer still
        refers to the cache.
    """

    def __init__(self, n_rows: int, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self.arrays: dict[str, Tensor] = {}
        start = 0
        for batch in batches:
            for name, rows in batch.items():
                if start == 0:
                    self.arrays[name] = torch.empty((n_rows, *rows.shape[1:]), dtype=rows.dtype)
                self.arrays[name][start : start + len(rows)] = rows
            start += len(rows)

    def to(self, device: torch.device) -> LatentCache:
        """Move to a GPU if there is room, so that no step waits for a copy."""
        if sum(array.nbytes for array in self.arrays.values()) < memory_for_cells(device):
            self.arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return self

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        chosen = torch.as_tensor(rows)
        chosen = copy_to_device(chosen, next(iter(self.arrays.values())).device)  # once for all arrays
        return {name: array[chosen] for name, array in self.arrays.items()}


class LatentData(StageData):
    """Loaders over a cache of latents; other parameters as in :class:`StageData`.

    Parameters
    ----------
    cache
        Latents of all cells.
    """

    def __init__(self, cache: LatentCache, *args: Any) -> None:
        super().__init__(*args)
        self.cache = cache

    def setup(self, stage: str) -> None:
        """Move the cache to the training device."""
        self.cache.to(self.trainer.strategy.root_device)

    def teardown(self, stage: str) -> None:
        """Free the memory."""
        self.cache.arrays = {}

    def _loader(self, indices: np.ndarray, batches: EpochBatches) -> DataLoader:
        return DataLoader(Subset(self.cache, indices), sampler=batches, batch_size=None)


@torch.inference_mode()
def cache_latents(module: SCLDMModule, cells: TrainingCells) -> LatentCache:
    """Encode all cells once; in a distributed run, each process encodes all."""
    module.eval()

    def latents() -> Iterator[dict[str, Tensor]]:
        for batch in cells.loader(None, ENCODED_AT_A_TIME):
            x = batch[REGISTRY_KEYS.X_KEY].to(module.device)
            posterior = module.inference(x)["posterior"]
            yield {
                "mean": posterior.mean,
                "std": posterior.std,
                "condition": module.condition_of(batch),
                "log_total": module.log_totals(x),
            }

    return LatentCache(cells.n_cells, latents())
