"""Latents of the cells: computed once and cached for the prior, and their statistics for ``generate``."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scgen_diffusion.data import evenly
from scgen_diffusion.module import FEW_CELLS
from scgen_diffusion.nn import classes_are_given

from ._cells import ROWS_AT_A_TIME, StageData, copy_to_device, memory_for_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scgen_diffusion.module import SCLDMModule

    from ._cells import EpochBatches, TrainingCells

N_TOTALS = 100_000  # drawn to describe the distribution of totals
MEMORY_LIMIT = 2 << 30  # bytes; more goes to a file
RELEASE_AFTER = 1024  # rows; the system maps up to 64 KiB around each row that is read
ENCODED_AT_A_TIME = 512
LATENTS_AT_A_TIME = 1 << 14
MOST_COMBINATIONS = 1000  # of conditions whose mean profiles the effects start from
RARE_SHARE = 0.01  # of all cells, below which a combination is rare; up to `FEW_CELLS` always are
MOST_CHECKED = 1000  # cells of a combination


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
        Type of each array; default: float32.
    memory_limit
        Largest size in bytes kept in memory.
    """

    def __init__(
        self,
        n_rows: int,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype] | None = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        dtypes = {name: (dtypes or {}).get(name, torch.float32) for name in shapes}
        sizes = {name: n_rows * int(np.prod(shape)) * dtypes[name].itemsize for name, shape in shapes.items()}
        self.n_bytes = sum(sizes.values())
        self._folder = tempfile.TemporaryDirectory() if self.n_bytes > memory_limit else None
        self._maps: list[mmap.mmap] = []
        self._rows_since_release = 0
        self.arrays: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if self._folder is None or sizes[name] == 0:
                self.arrays[name] = torch.empty((n_rows, *shape), dtype=dtypes[name])
            else:
                self._maps.append(_mapped_file(Path(self._folder.name) / name, sizes[name]))
                self.arrays[name] = torch.frombuffer(self._maps[-1], dtype=dtypes[name]).view(n_rows, *shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the arrays, even though loaders of a finished stage still refer to the cache."""
        self.arrays, self._maps = {}, []
        if self._folder is not None:
            self._folder.cleanup()

    def fill(self, batches: Iterable[Mapping[str, Tensor]]) -> LatentCache:
        """Write consecutive batches of all rows; raise ValueError if some are missing."""
        start = 0
        for batch in batches:
            stop = start + len(next(iter(batch.values())))
            for name, rows in batch.items():
                self.arrays[name][start:stop] = rows
            self._release_after(stop - start)
            start = stop
        if start < len(self):
            msg = f"The loader of all {len(self)} cells gave only {start} of them."
            raise ValueError(msg)
        return self

    def parts(self, rows: np.ndarray, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield rows, ``size`` at a time; no more of a file is in memory."""
        for start in range(0, len(rows), size):
            yield self[rows[start : start + size]]

    def _release_after(self, n_rows: int) -> None:
        """Release mapped memory after every so many rows; the content stays in the file."""
        self._rows_since_release += n_rows
        if self._rows_since_release >= RELEASE_AFTER and hasattr(mmap, "MADV_DONTNEED"):
            self._rows_since_release = 0
            for file in self._maps:
                file.madvise(mmap.MADV_DONTNEED)

    def to(self, device: torch.device) -> LatentCache:
        """Move to a GPU if there is room, so that no step waits for a copy."""
        if self.n_bytes < memory_for_cells(device):
            self.arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return self

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        chosen = torch.as_tensor(rows)
        self._release_after(chosen.numel())
        chosen = copy_to_device(chosen, next(iter(self.arrays.values())).device)  # once for all arrays
        return {name: array[chosen] for name, array in self.arrays.items()}


def _mapped_file(path: Path, n_bytes: int) -> mmap.mmap:
    """Map a new file into memory; raise if the disk is too small, because a later write would kill the process."""
    with path.open("w+b") as file:
        file.truncate(n_bytes)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            except OSError as error:
                msg = (
                    f"No room for {n_bytes / 2**30:.1f} GiB of latents in {path.parent}: {error.strerror}. Choose "
                    "another folder by the environment variable TMPDIR."
                )
                raise OSError(error.errno, msg) from error
        return mmap.mmap(file.fileno(), n_bytes)


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

    def _loader(self, indices: np.ndarray, batches: EpochBatches) -> DataLoader:
        return DataLoader(_Rows(self.cache, indices), sampler=batches, batch_size=None)


class _Rows(Dataset):
    """Some rows of a cache."""

    def __init__(self, cache: LatentCache, indices: np.ndarray) -> None:
        self.cache, self.indices = cache, np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.cache[self.indices[rows]]


# --- before and after the steps of training ---------------------------------------------------------------------------


def start_autoencoder(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Initialise an autoencoder at the mean expression of ``indices``, and its effects at those of conditions.

    Raises
    ------
    ValueError
        If none of these cells has a modality.
    """
    target, pooled, n_cells, n_read = torch.zeros(1).double(), torch.zeros(1).double(), 0, 0
    combinations = _combinations(module, cells, indices)
    if combinations is not None:
        codes, which, sizes = combinations
        counts = torch.zeros(len(codes), len(cells.var), dtype=torch.double)
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        x = batch[REGISTRY_KEYS.X_KEY]
        target, pooled = target + module.target(x).sum(0), pooled + module.pooled_profile(x).sum(0)
        n_cells = n_cells + module.measured(x).sum(0)
        if combinations is not None:
            counts.index_add_(0, torch.from_numpy(which[n_read : n_read + len(x)]), x.double())
            n_read += len(x)
    if len(missing := cells.var.index[(n_cells == 0).cpu().numpy()]):
        msg = (
            f"No training cell has the modality of {missing[0]!r}, so the model cannot learn it. Train on more cells "
            "(`train_size`), or leave the modality out."
        )
        raise ValueError(msg)
    module.start_from_means(*((total / n_cells).float().to(module.device) for total in (target, pooled)))
    if combinations is not None:
        condition = module.condition_tensor(codes)
        module.start_effects(condition, counts.to(module.device), torch.from_numpy(sizes).to(module.device))


def _combinations(
    module: SCLDMModule, cells: TrainingCells, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the distinct classes and sets of the cells ``indices``, which of them each cell has, and how many have it.

    None without condition effects, or if there are more than ``MOST_COMBINATIONS``.
    """
    if module.condition_effects is None:
        return None
    discrete = module.condition_effects.without_numbers(module.condition_tensor(cells.codes[indices]))
    codes, which, sizes = np.unique(discrete.cpu().numpy(), axis=0, return_inverse=True, return_counts=True)
    return (codes, which.ravel(), sizes) if len(codes) <= MOST_COMBINATIONS else None


def correct_effects(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Correct the condition effects of a trained autoencoder on genes that rare combinations of conditions have.

    Other combinations have learned them, and cells without a label are no combination.
    """
    combinations = _combinations(module, cells, indices)
    if combinations is None:
        return
    codes, which, sizes = combinations
    condition = module.condition_tensor(codes)
    given = classes_are_given(condition, module.conditions).cpu().numpy()
    rare = np.flatnonzero(given & ((sizes <= FEW_CELLS) | (sizes <= RARE_SHARE * len(indices))))
    of_each = np.split(np.argsort(which, kind="stable"), np.cumsum(sizes)[:-1])
    checked = [evenly(of_each[number], MOST_CHECKED) for number in rare]
    parts = np.cumsum([len(rows) for rows in checked]) // ENCODED_AT_A_TIME

    def cells_of_rare() -> Iterator[tuple[np.ndarray, Sequence[Tensor]]]:
        for part in np.unique(parts):
            rows = [checked[i] for i in np.flatnonzero(parts == part)]
            chosen = indices[np.concatenate(rows)]
            batch = next(iter(cells.loader(chosen, len(chosen))))
            x = batch[REGISTRY_KEYS.X_KEY].to(module.device)
            yield rare[parts == part], x.split([len(own) for own in rows])

    module.correct_effects(condition, cells_of_rare(), torch.from_numpy(sizes).to(module.device))


def counts_per_gene(cells: TrainingCells, indices: np.ndarray) -> float:
    """Estimate how many counts a gene has in the cells ``indices``, on average, from a sample of them."""
    rows = evenly(indices, ROWS_AT_A_TIME)
    sums = sum(batch[REGISTRY_KEYS.X_KEY].double().sum(0) for batch in cells.loader(rows, ROWS_AT_A_TIME))
    return float(sums.mean()) * len(indices) / len(rows)


@torch.inference_mode()
def cache_latents(module: SCLDMModule, cells: TrainingCells, memory_limit: int = MEMORY_LIMIT) -> LatentCache:
    """Encode all cells once; in a distributed run, each process encodes all."""
    module.eval()
    condition, shape = module.null_condition, module.latent_shape
    shapes = {"mean": shape, "std": shape, "condition": condition.shape, "log_total": module.library_size.shape}
    cache = LatentCache(cells.n_cells, shapes, {"condition": condition.dtype}, memory_limit=memory_limit)

    def latents() -> Iterator[dict[str, Tensor]]:
        for batch in cells.loader(None, ENCODED_AT_A_TIME):
            x = batch[REGISTRY_KEYS.X_KEY].to(module.device)
            posterior = module.inference(x)["posterior"]
            condition = module.condition_of(batch)
            yield {
                "mean": posterior.mean,
                "std": posterior.std,
                "condition": condition,
                "log_total": module.log_totals(x),
            }

    return cache.fill(latents())


def standardise_latents(module: SCLDMModule, cache: LatentCache, rows: np.ndarray) -> None:
    """Set the module's mean and standard deviation of latents, as drawn from the posteriors of some cells."""
    mean = sum(part["mean"].double().sum(0) for part in cache.parts(rows, LATENTS_AT_A_TIME)) / len(rows)
    squares = (
        (part["mean"] - mean).square() + part["std"].double().square() for part in cache.parts(rows, LATENTS_AT_A_TIME)
    )
    variance = sum(part.sum(0) for part in squares) / len(rows)
    module.standardise_latents(mean.float(), variance.sqrt().float())


@torch.no_grad()
def describe_predicted_totals(module: SCLDMModule, cache: LatentCache, rows: np.ndarray) -> None:
    """Store in the module the distribution of totals that its library-size head draws for some cells.

    In small data it draws several for each cell: with few draws, many later ones would lie outside their range.
    """
    generator, n_draws = torch.Generator().manual_seed(0), max(N_TOTALS // len(rows), 1)

    def drawn() -> Iterator[Tensor]:
        for part in cache.parts(rows, max(LATENTS_AT_A_TIME // n_draws, 1)):
            mean, std, log_totals = (
                part[name].to(module.device).repeat_interleave(n_draws, 0) for name in ("mean", "std", "log_total")
            )
            z = mean + std * torch.randn(mean.shape, generator=generator).to(module.device)
            mean, std = (values.cpu() for values in module.predict_log_totals(z, log_totals))
            totals = mean + std * torch.randn(mean.shape, generator=generator)
            yield totals.masked_fill(log_totals.cpu().isnan(), torch.nan)  # cells may lack a modality

    condition = cache.arrays["condition"].cpu()[rows].repeat_interleave(n_draws, 0)
    module.library_size.fit_predicted(gather(drawn(), n_draws * len(rows)), condition)


def gather(parts: Iterable[Tensor], n_cells: int) -> Tensor:
    """Copy consecutive parts of a tensor ``(cells, ...)`` to one that is allocated first.

    A list of small parts, made between large batches, would fragment memory: 3 KB per cell.
    """
    whole, start = torch.zeros(0), 0
    for part in parts:
        if start == 0:
            whole = part.new_empty((n_cells, *part.shape[1:]))
        whole[start : start + len(part)] = part
        start += len(part)
    return whole
