"""Latents of the cells: computed once, and cached for the prior and the perturbation flow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from scgen_diffusion._files import explain_failed_write

from ._stage_data import StageData, copy_to_device, memory_for_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scgen_diffusion.module import SCLDMModule

    from ._stage_data import EpochBatches, TrainingCells

ENCODED_AT_A_TIME = 512
BATCHES_TOGETHER = 8  # of validation latents, on a GPU


class LatentCache(Dataset):
    """Rows of several arrays, filled batch by batch and read by arrays of row numbers.

    Small caches stay in memory and can move to the training device. Larger ones use a memory-mapped temporary file,
    which is deleted with the cache.

    Parameters
    ----------
    n_rows
        Number of cells.
    shapes
        Shape of a row of each array.
    dtypes
        Types of arrays that are not float32.
    memory_limit
        Largest size in bytes kept in memory.
    """

    def __init__(
        self,
        n_rows: int,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        *,
        memory_limit: float,
    ) -> None:
        dtypes = {name: dtypes.get(name, torch.float32) for name in shapes}
        sizes = {name: n_rows * int(np.prod(shape)) * dtypes[name].itemsize for name, shape in shapes.items()}
        self.n_bytes = sum(sizes.values())
        self._folder = tempfile.TemporaryDirectory() if self.n_bytes > memory_limit else None
        self.arrays: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if self._folder is None or sizes[name] == 0:
                self.arrays[name] = torch.empty((n_rows, *shape), dtype=dtypes[name])
                continue
            file = Path(self._folder.name) / name
            make_file(file, sizes[name])
            n_values = sizes[name] // dtypes[name].itemsize
            mapped = torch.from_file(str(file), shared=True, size=n_values, dtype=dtypes[name])
            self.arrays[name] = mapped.view(n_rows, *shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the arrays, even though loaders of a finished stage still refer to the cache."""
        self.arrays = {}
        if self._folder is not None:
            self._folder.cleanup()

    def fill(self, batches: Iterable[Mapping[str, Tensor]]) -> LatentCache:
        """Write consecutive batches of all rows; raise ValueError if some are missing."""
        start = 0
        for batch in batches:
            stop = start + len(next(iter(batch.values())))
            for name, rows in batch.items():
                self.arrays[name][start:stop] = rows
            start = stop
        if start < len(self):
            msg = f"The loader of all {len(self)} cells gave only {start} of them."
            raise ValueError(msg)
        return self

    def parts(self, rows: np.ndarray, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield rows, ``size`` at a time; no more of a file is in memory."""
        for start in range(0, len(rows), size):
            yield self[rows[start : start + size]]

    def to(self, device: torch.device) -> LatentCache:
        """Move to a GPU if there is room, so that no step waits for a copy."""
        if self.n_bytes < memory_for_cells(device):
            self.arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return self

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        chosen = torch.as_tensor(rows)
        chosen = copy_to_device(chosen, next(iter(self.arrays.values())).device)  # once for all arrays
        return {name: array[chosen] for name, array in self.arrays.items()}


def make_file(path: Path, n_bytes: int) -> None:
    """Make a file; raise if the disk is too small, because a later write would kill the process."""
    with explain_failed_write("Caching latents (environment variable TMPDIR)", path.parent):
        with path.open("wb") as file:
            file.truncate(n_bytes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)


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

    def validation_batches(self) -> EpochBatches:
        """Return this process's batches of validation cells, larger on a GPU, which would wait for Python."""
        batches = super().validation_batches()
        if self.trainer.strategy.root_device.type == "cuda":
            batches.batch_size *= BATCHES_TOGETHER
        return batches

    def _loader(self, indices: np.ndarray, batches: EpochBatches) -> DataLoader:
        return DataLoader(Subset(self.cache, indices), sampler=batches, batch_size=None)


@torch.inference_mode()
def cache_latents(module: SCLDMModule, cells: TrainingCells, memory_limit: float) -> LatentCache:
    """Encode all cells once; in a distributed run, each process encodes all."""
    module.eval()
    condition, shape = module.null_condition, module.latent_shape
    shapes = {"mean": shape, "std": shape, "condition": condition.shape, "log_total": module.library_size.shape}
    cache = LatentCache(cells.n_cells, shapes, {"condition": condition.dtype}, memory_limit=memory_limit)

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

    return cache.fill(latents())
