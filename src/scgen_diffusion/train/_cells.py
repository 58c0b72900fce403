"""Cells to train on, wherever they lie; the order in which they come; a stage's loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch.utils.data import DataLoader, Dataset, Sampler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from torch import Tensor

LONGEST_EPOCH = (
    1000  # steps of one process; larger sets are cut into several epochs, since a run resumes at the end of one
)
ROWS_AT_A_TIME = 1024
DEVICE_SHARE = 0.25  # of a GPU's free memory, for cells
BYTES_PER_COUNT = 8  # number of the gene, and value


class TrainingCells(Protocol):
    """What training asks of cells: those of an AnnData or MuData, of files, or of a class of one's own."""

    @property
    def registry(self) -> Mapping[str, Any]:
        """What a model is built from, as scvi-tools keeps it."""

    @property
    def var(self) -> pd.DataFrame:
        """The genes' columns."""

    @property
    def n_cells(self) -> int:
        """How many cells there are."""

    @property
    def codes(self) -> np.ndarray:
        """Their conditions, ``(cells, columns)``."""

    @property
    def digest(self) -> str:
        """Tell these cells from others; checkpoints are resumed on the same cells only."""

    def check(self) -> None:
        """Raise if the cells are not what they were when they were registered."""

    def loader(
        self, indices: np.ndarray | None, batch_size: int, *, batches: EpochBatches | None = None
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return batches of expression and conditions, by the names of the registry; it can be gone through again and again.

        Parameters
        ----------
        indices
            Which cells; None for all.
        batch_size
            Cells per batch.
        batches
            Which of ``indices`` are in each batch, as positions among them; default: all in order. What cannot read in any order fast takes from
            it the seed, the pass over the cells, the batch to begin with and their number. The loader has it as its ``sampler``.
        """


class EpochBatches(Sampler[np.ndarray]):
    """Batches of row numbers, whose order follows from the seed and the epoch alone; several processes share them as torch's DistributedSampler does.

    A pass over many cells is cut into epochs of equal length; the few batches that are left over wait for another pass.

    Parameters
    ----------
    n_rows
        Number of cells.
    batch_size
        Cells of a batch, of each process.
    seed
        Seed of the order; None for the given order.
    smallest_epoch
        Batches of an epoch at least: small sets are gone through more than once in it.
    rank, n_processes
        Which process this is, of how many.

    Attributes
    ----------
    epoch
        Number of the pass over the cells.
    first_batch
        Batch of the pass with which the epoch begins.

    Examples
    --------
    >>> from scgen_diffusion.train import EpochBatches
    >>> [[batch.tolist() for batch in EpochBatches(5, 2, rank=rank, n_processes=2)] for rank in (0, 1)]
    [[[0, 2], [4]], [[1, 3], [0]]]
    """

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        *,
        seed: int | None = None,
        smallest_epoch: int = 0,
        rank: int = 0,
        n_processes: int = 1,
    ) -> None:
        self.n_rows, self.batch_size, self.seed = n_rows, batch_size, seed
        self.rank, self.n_processes = rank, n_processes
        self.n_draws = max(-(-n_rows // n_processes), smallest_epoch * batch_size if seed is not None else 0)
        self.epochs_per_pass = 1 if seed is None else epochs_per_pass(n_rows, batch_size)
        self.epoch = self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch, part = divmod(epoch, self.epochs_per_pass)
        self.first_batch = part * len(self)

    def __len__(self) -> int:
        return -(-self.n_draws // self.batch_size) // self.epochs_per_pass

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = self.order()[self.rank :: self.n_processes]
        for number in range(self.first_batch, self.first_batch + len(self)):
            yield rows[number * self.batch_size : (number + 1) * self.batch_size]

    def order(self) -> np.ndarray:
        """Return the rows of a pass of all processes, each again only when all were drawn."""
        n_draws = self.n_draws * self.n_processes
        if self.seed is None:
            return np.resize(np.arange(self.n_rows), n_draws)
        rng = np.random.default_rng([self.seed, self.epoch])
        rounds = -(-n_draws // self.n_rows)
        return np.concatenate([rng.permutation(self.n_rows) for _ in range(rounds)])[:n_draws]


def epochs_per_pass(n_rows: int, batch_size: int) -> int:
    """Return into how many epochs a pass over so many cells is cut, however many processes share them."""
    return max(-(-n_rows // (batch_size * LONGEST_EPOCH)), 1)


class StageData(pl.LightningDataModule):
    """Loaders of a stage: training cells in an order that follows from the stage's seed, validation cells in their own.

    Parameters
    ----------
    train_indices, validation_indices
        Rows to train and to validate on.
    batch_size
        Cells per step, of each process.
    smallest_epoch
        Steps of an epoch at least.
    """

    def __init__(
        self, train_indices: np.ndarray, validation_indices: np.ndarray, batch_size: int, smallest_epoch: int = 0
    ) -> None:
        super().__init__()
        self.train_indices, self.validation_indices = train_indices, validation_indices
        self.batch_size, self.smallest_epoch = batch_size, smallest_epoch

    @property
    def epochs_per_pass(self) -> int:
        """Into how many epochs a pass over the training cells is cut."""
        return epochs_per_pass(len(self.train_indices), self.batch_size)

    def train_batches(self) -> EpochBatches:
        """Return this process's batches of training cells, from the epoch on that a checkpoint left off at."""
        plan = self.trainer.lightning_module
        batches = EpochBatches(
            len(self.train_indices),
            self.batch_size,
            seed=plan.seed,
            smallest_epoch=self.smallest_epoch,
            rank=self.trainer.global_rank,
            n_processes=self.trainer.world_size,
        )
        batches.set_epoch(plan.n_epochs_done)
        return batches

    def validation_batches(self) -> EpochBatches:
        """Return this process's batches of validation cells."""
        process = {"rank": self.trainer.global_rank, "n_processes": self.trainer.world_size}
        return EpochBatches(len(self.validation_indices), self.batch_size, **process)


class CellData(StageData):
    """Loaders of a stage that trains on cells; further parameters as of :class:`StageData`.

    Parameters
    ----------
    cells
        All cells of the model.
    """

    def __init__(self, cells: TrainingCells, *args: Any) -> None:
        super().__init__(*args)
        self.cells = cells
        self._resident: ResidentCells | None = None

    def setup(self, stage: str) -> None:
        """Keep the training cells in the device's memory, if it is not the host's and they take a small part of it."""
        device = self.trainer.strategy.root_device
        if limit := room_for_cells(device):
            batches = self.cells.loader(self.train_indices, ROWS_AT_A_TIME)
            self._resident = ResidentCells.of(batches, device, n_cells=len(self.train_indices), limit=limit)

    def teardown(self, stage: str) -> None:
        """Free the device's memory, also where the trainer, which the model keeps, still knows its loaders."""
        if self._resident is not None:
            self._resident.free()
            self._resident = None

    def train_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Shuffle the training cells."""
        if self._resident is not None:
            return DataLoader(self._resident, sampler=self.train_batches(), batch_size=None)
        return self.cells.loader(self.train_indices, self.batch_size, batches=self.train_batches())

    def val_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Read the validation cells in order; no loader if there are none."""
        if not len(self.validation_indices):
            return []
        return self.cells.loader(self.validation_indices, self.batch_size, batches=self.validation_batches())


class ResidentCells(Dataset):
    """Rows of sparse expression, and of whatever else belongs to a cell, in a device's memory, made dense batch by batch there.

    A batch costs its non-zero values alone, and neither copies from the host nor makes it wait: how many values a row has is known there.

    Parameters
    ----------
    lengths
        Number of non-zero values of each cell, ``(cells,)``, in the host's memory.
    genes, values
        Their genes and themselves, cell by cell.
    n_genes
        Size of the panel.
    others
        What else a batch holds, one row per cell.
    """

    def __init__(
        self, lengths: Tensor, genes: Tensor, values: Tensor, n_genes: int, others: Mapping[str, Tensor]
    ) -> None:
        self.n_genes = n_genes
        self.lengths, self.genes, self.values, self.others = lengths, genes, values, dict(others)
        self.starts = (lengths.cumsum(0) - lengths).to(values.device)

    @classmethod
    def of(
        cls, batches: Iterable[Mapping[str, Tensor]], device: torch.device, *, n_cells: int, limit: float
    ) -> ResidentCells | None:
        """Read all batches once and keep them on ``device``; None as soon as they seem to need more than ``limit`` bytes there."""
        lengths, genes, values, others, n_bytes, n_read = [], [], [], [], 0, 0
        for batch in batches:
            x = batch[REGISTRY_KEYS.X_KEY]
            rows, columns = x.nonzero(as_tuple=True)
            n_bytes, n_read = n_bytes + BYTES_PER_COUNT * len(rows), n_read + len(x)
            if n_bytes > limit or n_bytes / n_read * n_cells > 2 * limit:
                return None
            lengths.append(torch.bincount(rows, minlength=len(x)))
            genes.append(columns.int().to(device))
            values.append(x[rows, columns].to(device))
            others.append({name: rest.to(device) for name, rest in batch.items() if name != REGISTRY_KEYS.X_KEY})
        joined = {name: torch.cat([part[name] for part in others]) for name in others[0]}
        return cls(torch.cat(lengths), torch.cat(genes), torch.cat(values), x.shape[1], joined)

    def free(self) -> None:
        """Let go of the cells; there is no reading them any more."""
        self.genes, self.values, self.others = self.genes[:0].clone(), self.values[:0].clone(), {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        chosen = torch.as_tensor(rows)
        lengths = self.lengths[chosen]
        n_values, device = int(lengths.sum()), self.values.device  # of the host's: nobody waits
        chosen, lengths = sent_to(torch.stack([chosen, lengths]), device)
        cells = torch.repeat_interleave(lengths, output_size=n_values)
        first = lengths.cumsum(0) - lengths
        places = torch.arange(n_values, device=device) + (self.starts[chosen] - first)[cells]
        x = torch.zeros(len(chosen), self.n_genes, dtype=self.values.dtype, device=device)
        x[cells, self.genes[places].long()] = self.values[places]
        return {REGISTRY_KEYS.X_KEY: x, **{name: rest[chosen] for name, rest in self.others.items()}}


def room_for_cells(device: torch.device) -> float:
    """Return how many bytes of a device's memory cells may take: none on a CPU, where they are already."""
    return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0.0


def sent_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host's on a device; to a GPU by way of pinned memory, for from other memory the host waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
