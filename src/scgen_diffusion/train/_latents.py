"""Latents of the training cells: computed once, kept where the prior trains on them."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ._distributed import process_count
from ._stage_data import StageDataModule
from ._transfer import sent_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ._sharing import SharedBatches

MEMORY_LIMIT = 2 << 30  # bytes; more goes to a file
RELEASE_AFTER = 1024  # rows: the system maps up to 64 KiB around each that is read
DEVICE_SHARE = 0.25  # of a GPU's free memory


class LatentCache(Dataset):
    """Rows of several arrays, filled batch by batch and read by lists of row numbers.

    Small caches stay in memory and can move to the training device; larger ones live in a memory-mapped temporary file that
    goes with the cache.

    Parameters
    ----------
    n_rows
        Number of cells.
    shapes
        Shape of a row of each array.
    dtypes
        Type of each array; float32 where none is given.
    memory_limit
        Largest size in bytes that is kept in memory.
    folder
        Where another process keeps the arrays in files, to read them there; such a cache is not written.
    """

    def __init__(
        self,
        n_rows: int,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype] | None = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
        folder: str | None = None,
    ) -> None:
        dtypes = {name: (dtypes or {}).get(name, torch.float32) for name in shapes}
        self.n_bytes = sum(n_rows * int(np.prod(shape)) * dtypes[name].itemsize for name, shape in shapes.items())
        self.is_own = folder is None
        self._folder = tempfile.TemporaryDirectory() if self.is_own and self.n_bytes > memory_limit else None
        self.folder = self._folder.name if self._folder else folder
        self._maps: list[mmap.mmap] = []
        self._rows_since_release = 0
        self.arrays = {name: self._allocate(name, (n_rows, *shape), dtypes[name]) for name, shape in shapes.items()}

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.folder is None:
            return torch.empty(shape, dtype=dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        self._maps.append(_mapped_file(Path(self.folder) / name, n_bytes, is_new=self.is_own))
        return torch.frombuffer(self._maps[-1], dtype=dtype).view(shape)

    @property
    def is_memory_mapped(self) -> bool:
        """Whether the arrays live in a file."""
        return self.folder is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the arrays, which the loaders of a stage that is over still know."""
        self.arrays, self._maps = {}, []
        if self._folder is not None:
            self._folder.cleanup()

    def fill(self, batches: Iterator[Mapping[str, Tensor]]) -> LatentCache:
        """Write consecutive batches of rows."""
        start = 0
        for batch in batches:
            stop = start + len(next(iter(batch.values())))
            for name, rows in batch.items():
                self.arrays[name][start:stop] = rows
            self._release_after(stop - start)
            start = stop
        return self

    def parts(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield consecutive rows, so many at a time; of a file no more is in memory."""
        for start in range(0, len(self), size):
            yield self[slice(start, start + size)]
            self._release_after(size)

    def _release_after(self, n_rows: int) -> None:
        """Give memory back after so many further rows; the file keeps what is in it, and the system decides how much of that it keeps at hand."""
        self._rows_since_release += n_rows
        if self._rows_since_release >= RELEASE_AFTER and hasattr(mmap, "MADV_DONTNEED"):
            self._rows_since_release = 0
            for file in self._maps:
                file.madvise(mmap.MADV_DONTNEED)

    def to(self, device: torch.device) -> LatentCache:
        """Move to a GPU if there is room, for then no step waits for a copy."""
        if device.type == "cuda" and self.n_bytes < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return self

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return next(iter(self.arrays.values())).device

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor | slice) -> dict[str, Tensor]:
        if isinstance(rows, slice):  # which is a view, and not read yet
            return {name: array[rows] for name, array in self.arrays.items()}
        chosen = sent_to(torch.as_tensor(rows), self.device)  # once: every array would send numbers of the host's again
        self._release_after(len(rows))
        return {name: array[chosen] for name, array in self.arrays.items()}


def _mapped_file(path: Path, n_bytes: int, *, is_new: bool) -> mmap.mmap:
    """Map a file into memory; a new one on a disk that has room for it: without, a write to it would end the process."""
    if not is_new:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), n_bytes)
    with path.open("w+b") as file:
        file.truncate(n_bytes)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            except OSError as error:
                msg = f"No room for {n_bytes / 2**30:.1f} GiB of latents in {path.parent}: {error.strerror}. Name another folder by the environment variable TMPDIR."
                raise OSError(error.errno, msg) from error
        return mmap.mmap(file.fileno(), n_bytes)


class LatentDataModule(StageDataModule):
    """Loaders over a cache of latents.

    Parameters
    ----------
    cache
        Latents of all cells.
    train_indices, validation_indices
        Rows to train and to validate on.
    batch_size
        Cells per step, of each process.
    smallest_epoch
        Batches of an epoch at least; small sets are gone through more than once in it.
    """

    def __init__(
        self,
        cache: LatentCache,
        train_indices: np.ndarray,
        validation_indices: np.ndarray,
        batch_size: int,
        smallest_epoch: int = 1,
    ) -> None:
        super().__init__()
        self.cache = cache
        self.train_indices = train_indices
        self.validation_indices = validation_indices
        self.batch_size = batch_size
        self.smallest_epoch = smallest_epoch

    def setup(self, stage: str) -> None:
        """Move the cache to the training device."""
        self.cache.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> DataLoader:
        """Shuffle the training cells; each process reads its share."""
        n_cells = len(self.train_indices)
        n_draws = max(n_cells, self.smallest_epoch * self.batch_size * process_count())
        return self._loader(self.train_indices, self._shuffled(n_cells, self.batch_size, n_draws))

    def val_dataloader(self) -> DataLoader | list:
        """Read the validation cells in order, each process its share."""
        if not len(self.validation_indices):
            return []
        return self._loader(self.validation_indices, self._in_order(len(self.validation_indices), self.batch_size))

    def _loader(self, indices: np.ndarray, batches: SharedBatches) -> DataLoader:
        return DataLoader(_Rows(self.cache, indices), sampler=batches, batch_size=None)


class _Rows(Dataset):
    """Some rows of a cache."""

    def __init__(self, cache: LatentCache, indices: np.ndarray) -> None:
        self.cache, self.indices = cache, np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return self.cache[self.indices[np.asarray(rows)]]  # numpy takes a tensor of one number for a number
