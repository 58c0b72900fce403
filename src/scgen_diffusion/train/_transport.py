"""Training of the transport: which cells are paired, and the Lightning plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from scgen_diffusion.diffusion import draw_normal, optimal_pairs

from ._distributed import process_count, process_rank
from ._recipes import Recipe
from ._sharing import EpochPosition, Share, epoch_generator
from ._stage_data import StageDataModule
from ._stage_plan import TRANSPORT, StagePlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from scgen_diffusion.module import SCLDMModule

    from ._latents import LatentCache


@dataclass(frozen=True)
class TransportRecipe(Recipe):
    """Training of the transport from control cells to perturbed ones.

    Parameters
    ----------
    n_paired
        Cells of each kind, of one group, that optimal transport pairs with each other. A step takes ``batch_size / n_paired`` groups.
    """

    learning_rate: float = 2e-3
    batch_size: int = 512
    reference_steps: int = 300
    smallest_epoch: int = 10
    n_paired: int = 32


@dataclass(frozen=True)
class Group:
    """Cells that differ by the perturbation alone, as far as their conditions tell: row numbers of both kinds."""

    control: Tensor
    perturbed: Tensor

    @classmethod
    def of(cls, control: np.ndarray, perturbed: np.ndarray) -> Group:
        """Take row numbers."""
        return cls(torch.as_tensor(control), torch.as_tensor(perturbed))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` rows of each kind, ``(2, n)``, each again only when all were drawn."""
        return torch.stack([_draw_rows(rows, n, generator) for rows in (self.control, self.perturbed)])


class PairedLatentDataModule(StageDataModule):
    """Loader of control cells beside perturbed cells of the same group, not paired yet.

    Groups are drawn with the square root of their number of cells: a group of a hundred cells tells more of the effect than one of ten,
    but not ten times as much.

    Parameters
    ----------
    cache
        Latents of all cells.
    groups
        Rows of control and perturbed cells.
    recipe
        Cells per step, and how many of them are of one group.
    n_steps
        Steps of an epoch.
    """

    def __init__(self, cache: LatentCache, groups: Sequence[Group], recipe: TransportRecipe, n_steps: int) -> None:
        super().__init__()
        self.cache, self.groups, self.recipe, self.n_steps = cache, groups, recipe, n_steps

    def setup(self, stage: str) -> None:
        """Move the cache to the training device."""
        self.cache.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> DataLoader:
        """Draw groups, and cells of them; each process has its share of the groups."""
        batches = self._following_stage(GroupBatches(self.groups, self.recipe, self.n_steps, seed=self.seed))
        return DataLoader(_Rows(self.cache), sampler=batches, batch_size=None)

    def val_dataloader(self) -> list:
        """Validate on nothing: groups are few, and none can be spared."""
        return []


class TransportPlan(StagePlan):
    """Train the velocity between control and perturbed cells.

    Parameters
    ----------
    module
        The model's module.
    recipe
        Optimiser, schedule, length and pairing.
    seed
        Seed of latents and times.
    """

    name = "transport"
    module: SCLDMModule
    recipe: TransportRecipe

    def owns(self, name: str) -> bool:
        """Restore the transport alone."""
        return name.startswith(TRANSPORT)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the transport alone."""
        return [{"params": list(self.module.transport.parameters())}]

    def compute_losses(
        self, batch: Mapping[str, Tensor], generator: torch.Generator, *, training: bool
    ) -> dict[str, Tensor]:
        """Draw latents from their posteriors, pair them group by group, and compare velocities."""
        mean = batch["mean"]
        noise = draw_normal((mean.shape[1], 2, *mean.shape[2:]), generator, mean.device).transpose(0, 1)
        start, end = self.module.standardise(mean + batch["std"] * noise).unbind()
        groups = zip(start.split(self.recipe.n_paired), end.split(self.recipe.n_paired), strict=True)
        end = torch.cat([ends[optimal_pairs(starts, ends)] for starts, ends in groups])
        condition = batch["condition"][1]  # the same within a group
        return {"loss": self.module.transport.loss(start, end, condition, generator).mean()}


class GroupBatches(EpochPosition, Sampler[Tensor]):
    """Batches of row numbers ``(2, pairs)``: groups drawn at random, and control and perturbed cells of each.

    Every process draws the groups of all, and takes its own.

    Parameters
    ----------
    groups
        Rows of control and perturbed cells.
    recipe
        Pairs of a batch per process, and how many of them are of one group.
    n_steps
        Batches of an epoch.
    seed
        Seed of the draws.
    """

    def __init__(self, groups: Sequence[Group], recipe: TransportRecipe, n_steps: int, *, seed: int) -> None:
        self.groups, self.n_paired, self.n_steps, self.seed = groups, recipe.n_paired, n_steps, seed
        self.n_groups = max(recipe.batch_size // recipe.n_paired, 1) * process_count()
        self.weights = torch.tensor([len(g.control) + len(g.perturbed) for g in groups]).double().sqrt()

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[Tensor]:
        generator = epoch_generator(self.seed, self.epoch)
        for number in range(self.n_steps):
            drawn = self._draw(generator)
            if number >= self.first_batch:
                yield drawn[:, self.share(number).rows]

    def share(self, number: int) -> Share:
        """Return this process's share of the pairs of a batch: whole groups."""
        groups = Share.of(self.n_groups, process_rank(), process_count())
        first, stop, n_pairs = (self.n_paired * n for n in (groups.first, groups.stop, groups.n_rows))
        return Share(first, stop, n_pairs, groups.n_processes)

    def _draw(self, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, self.n_groups, replacement=True, generator=generator).tolist()
        return torch.cat([self.groups[number].draw(self.n_paired, generator) for number in chosen], dim=1)


class _Rows(Dataset):
    """Rows of a cache."""

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return self.cache[rows]


def _draw_rows(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    repeats = -(-n // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(repeats)])[:n]
