"""Training cells from any source and their latents, their order, and the loaders of a stage."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from scgen_diffusion.data import CellFiles, RegisteredCells
    from scgen_diffusion.module import SCLDMModule

LONGEST_EPOCH = 1000  # steps; a longer pass is cut into epochs, because runs resume between epochs
ROWS_AT_A_TIME = 1024
ENCODED_AT_A_TIME = 512
DEVICE_SHARE = 0.25  # of a GPU's free memory, for cells
BYTES_PER_VALUE = 4  # of a cell's expression


TrainingCells: TypeAlias = "RegisteredCells | CellFiles"
"""Cells to train on, in memory or in files."""


class EpochBatches(Sampler[np.ndarray]):
    """Batches of row numbers in an order that depends only on the seed and the epoch.

    Several processes share the rows like torch's DistributedSampler, and take as many steps as one would. A pass over
    many cells is cut into epochs of equal length; the few remaining batches are left to another pass.

    Parameters
    ----------
    n_rows
        Number of cells.
    batch_size
        Cells per step of all processes together.
    seed
        Seed of the order; None for the given order.
    smallest_epoch
        Smallest number of batches in an epoch; small data are repeated to fill it.
    rank, n_processes
        Index of this process, and number of processes.

    Attributes
    ----------
    batch_size
        Cells per batch of this process, its share rounded up.
    pass_number
        Number of the pass over the cells, from 0.
    first_batch
        First batch of the epoch in its pass.

    Examples
    --------
    >>> from scgen_diffusion.train import EpochBatches
    >>> shares = [EpochBatches(5, 4, rank=rank, n_processes=2) for rank in (0, 1)]
    >>> [[batch.tolist() for batch in share] for share in shares]
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
        self.n_rows, self.batch_size, self.seed = n_rows, -(-batch_size // n_processes), seed
        self.rank, self.n_processes = rank, n_processes
        self.n_draws = max(-(-n_rows // n_processes), smallest_epoch * self.batch_size if seed is not None else 0)
        self.epochs_per_pass = 1 if seed is None else epochs_per_pass(n_rows, batch_size)
        self.pass_number = self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.pass_number, part = divmod(epoch, self.epochs_per_pass)
        self.first_batch = part * len(self)

    def __len__(self) -> int:
        return -(-self.n_draws // self.batch_size) // self.epochs_per_pass

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = self.order()[self.rank :: self.n_processes]
        for number in range(self.first_batch, self.first_batch + len(self)):
            yield rows[number * self.batch_size : (number + 1) * self.batch_size]

    def order(self) -> np.ndarray:
        """Return the rows of a pass for all processes; rows repeat only after all were drawn."""
        n_draws = self.n_draws * self.n_processes
        if self.seed is None:
            return np.resize(np.arange(self.n_rows), n_draws)
        rng = np.random.default_rng([self.seed, self.pass_number])
        rounds = -(-n_draws // self.n_rows)
        return np.concatenate([rng.permutation(self.n_rows) for _ in range(rounds)])[:n_draws]


def epochs_per_pass(n_rows: int, batch_size: int) -> int:
    """Return the number of epochs in a pass over so many cells, whatever the number of processes."""
    return max(-(-n_rows // (batch_size * LONGEST_EPOCH)), 1)


class StageData(pl.LightningDataModule):
    """Loaders of a stage: shuffled training cells, and validation cells in order.

    Parameters
    ----------
    source
        All cells of the model, or their latents.
    train_indices, validation_indices
        Rows to train and to validate on.
    """

    def __init__(self, source: Any, train_indices: np.ndarray, validation_indices: np.ndarray) -> None:
        super().__init__()
        self.source, self.train_indices, self.validation_indices = source, train_indices, validation_indices

    def train_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Return the loader of shuffled training cells."""
        return self._loader(self.train_indices, self.train_batches())

    def val_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Return the loader of validation cells in order, if there are any."""
        rows, batch_size = self.validation_indices, self.trainer.lightning_module.recipe.batch_size
        return self._loader(rows, EpochBatches(len(rows), batch_size, **self.process)) if len(rows) else []

    @abstractmethod
    def _loader(self, indices: np.ndarray, batches: EpochBatches) -> Iterable[Mapping[str, Tensor]]:
        """Return the loader of some rows; ``batches`` are positions among them."""

    def train_batches(self) -> EpochBatches:
        """Return this process's batches of training cells, from the first epoch that is not done yet."""
        plan = self.trainer.lightning_module
        options = {"seed": plan.seed, "smallest_epoch": plan.recipe.smallest_epoch, **self.process}
        batches = EpochBatches(len(self.train_indices), plan.recipe.batch_size, **options)
        batches.set_epoch(plan.n_epochs_done)
        return batches

    @property
    def process(self) -> dict[str, int]:
        """Index of this process, and number of processes."""
        return {"rank": self.trainer.global_rank, "n_processes": self.trainer.world_size}


class CellData(StageData):
    """Loaders of a stage that trains on cells; parameters as in :class:`StageData`."""

    source: TrainingCells
    _on_gpu: TensorTable | None = None

    def setup(self, stage: str) -> None:
        """Copy the training cells to a GPU if they fit into a small part of its memory."""
        device, rows = self.trainer.strategy.root_device, self.train_indices
        if len(rows) * len(self.source.var) * BYTES_PER_VALUE < memory_for_cells(device):
            self._on_gpu = TensorTable(len(rows), self.source.loader(rows, ROWS_AT_A_TIME), device)

    def teardown(self, stage: str) -> None:
        """Free the GPU memory, even though the model's trainer still refers to the loaders."""
        if self._on_gpu is not None:
            self._on_gpu.arrays = {}
        self._on_gpu = None

    def train_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Return the loader of shuffled training cells."""
        if self._on_gpu is not None:
            return DataLoader(self._on_gpu, sampler=self.train_batches(), batch_size=None)
        return super().train_dataloader()

    def _loader(self, indices: np.ndarray, batches: EpochBatches) -> Iterable[Mapping[str, Tensor]]:
        return self.source.loader(indices, batches.batch_size, batches=batches)


class TensorTable(Dataset):
    """Tensors with a row per cell, written batch by batch and read by arrays of row numbers.

    Parameters
    ----------
    n_rows
        Number of cells.
    batches
        Consecutive batches of all of them.
    device
        Where the tensors are.

    Attributes
    ----------
    arrays
        Tensors by name. They are gone after the stage that trained on them, as its trainer still refers to the table.
    """

    def __init__(
        self, n_rows: int, batches: Iterable[Mapping[str, Tensor]], device: torch.device | str = "cpu"
    ) -> None:
        self.arrays: dict[str, Tensor] = {}
        start = 0
        for batch in batches:
            for name, rows in batch.items():
                if start == 0:
                    self.arrays[name] = torch.empty((n_rows, *rows.shape[1:]), dtype=rows.dtype, device=device)
                self.arrays[name][start : start + len(rows)] = rows
            start += len(rows)

    def to(self, device: torch.device) -> None:
        """Move to a GPU if there is room, so that no step waits for a copy."""
        if sum(array.nbytes for array in self.arrays.values()) < memory_for_cells(device):
            self.arrays = {name: array.to(device) for name, array in self.arrays.items()}

    def __getitem__(self, rows: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        chosen, device = torch.as_tensor(rows), next(iter(self.arrays.values())).device
        if device.type == "cuda":  # by pinned memory, so that the host does not wait for the copy
            chosen = chosen.pin_memory().to(device, non_blocking=True)
        return {name: array[chosen] for name, array in self.arrays.items()}


class LatentData(StageData):
    """Loaders over latents; parameters as in :class:`StageData`."""

    source: TensorTable

    def setup(self, stage: str) -> None:
        """Move the latents to the training device."""
        self.source.to(self.trainer.strategy.root_device)

    def teardown(self, stage: str) -> None:
        """Free the memory."""
        self.source.arrays = {}

    def _loader(self, indices: np.ndarray, batches: EpochBatches) -> DataLoader:
        return DataLoader(Subset(self.source, indices), sampler=batches, batch_size=None)


@torch.inference_mode()
def latents_of(module: SCLDMModule, cells: TrainingCells) -> TensorTable:
    """Encode all cells once; in a distributed run, each process encodes all."""
    module.eval()

    def batches() -> Iterator[dict[str, Tensor]]:
        for batch in cells.loader(None, ENCODED_AT_A_TIME):
            x = batch[REGISTRY_KEYS.X_KEY].to(module.device)
            posterior = module.inference(x)["posterior"]
            yield {
                "mean": posterior.mean,
                "std": posterior.std,
                "condition": module.condition_of(batch),
                "log_total": module.log_totals(x),
            }

    return TensorTable(cells.n_cells, batches())


def read_expression(module: SCLDMModule, cells: TrainingCells, rows: np.ndarray) -> Tensor:
    """Return the expression of a few cells on the module's device, ``(cells, genes)``."""
    return next(iter(cells.loader(rows, len(rows))))[REGISTRY_KEYS.X_KEY].to(module.device)


def memory_for_cells(device: torch.device) -> float:
    """Return how many bytes of GPU memory cells may use; 0 on a CPU."""
    return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0.0
