"""What a system is whose speed is measured: steps on one batch of made-up cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from measuring import Measurement, measure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scgen_diffusion.train import StagePlan

#: Two conditions, as in the published dentate-gyrus and perturbation sets.
N_CLASSES = {"cell_type": 20, "condition": 10}


@dataclass(frozen=True)
class Setting:
    """Sizes, and how to compute.

    Parameters
    ----------
    n_genes, n_expressed
        Size of the panel, and expressed genes per cell.
    batch_size
        Cells per step.
    device, precision, compile
        How to compute.
    n_cells
        Size of a whole data set, for the stages that have one.
    n_steps
        Steps of the package's samplers; None for their defaults.
    architecture
        What differs from the default architecture of the package's models.
    """

    n_genes: int
    n_expressed: int
    batch_size: int = 128
    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    n_cells: int = 4096
    n_steps: int | None = None
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cells:
    """A batch of made-up cells on the device."""

    counts: Tensor  # (cells, genes)
    genes: Tensor  # (cells, expressed), 1-based
    expressed_counts: Tensor  # (cells, expressed)
    condition: Tensor  # (cells, keys)

    @classmethod
    def draw(cls, setting: Setting, seed: int = 0) -> Cells:
        """Draw cells of which each expresses ``n_expressed`` random genes."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(setting.batch_size, setting.n_genes, generator=generator).argsort(dim=1)
        genes = order[:, : setting.n_expressed].sort(dim=1).values
        expressed = 1 + torch.poisson(torch.full(genes.shape, 1.5), generator=generator)
        counts = torch.zeros(setting.batch_size, setting.n_genes).scatter_(1, genes, expressed)
        classes = [torch.randint(n, (setting.batch_size,), generator=generator) for n in N_CLASSES.values()]
        tensors = (counts, genes + 1, expressed, torch.stack(classes, dim=1))
        return cls(*(tensor.to(setting.device) for tensor in tensors))


class System:
    """Steps on one batch: a method without arguments for each of the ``stages``.

    Attributes
    ----------
    stages
        Names of the steps.
    yardstick
        Name of the published system that it is set beside.
    counted
        Stages whose arithmetic is counted, to set the time beside the limit.
    """

    stages: tuple[str, ...]
    yardstick: str
    counted: tuple[str, ...] = ()

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def n_cells(self, stage: str) -> int:
        """Return how many cells one call of a stage handles."""
        return self.setting.batch_size

    def prepare(self, stage: str) -> None:
        """Do what must be done before a stage is measured: nothing, unless a system says otherwise."""

    def measure(self, stage: str, seconds: float) -> Measurement:
        """Measure a stage for about so many seconds."""
        self.prepare(stage)
        return measure(getattr(self, stage), self.n_cells(stage), device=self.setting.device, seconds=seconds)

    def precision(self, stage: str) -> str:
        """Return what a stage computes in."""
        return "float32"

    def share(self, stage: str) -> float:
        """Return the share of a stage's work that one call of it does; the rest is extrapolated."""
        return 1.0

    def describe(self, stage: str) -> str:
        """Say how the stage was computed."""
        raise NotImplementedError

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What is learned."""
        raise NotImplementedError

    @property
    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(p.numel() for network in self.networks for p in network.parameters() if p.requires_grad)

    def _autocast(self) -> torch.autocast:
        is_bf16 = self.setting.precision == "bf16"
        return torch.autocast(torch.device(self.setting.device).type, torch.bfloat16, enabled=is_bf16)


class StandInTrainer:
    """What a stage's plan asks of Lightning's trainer, half-way through a training."""

    precision = "32-true"
    estimated_stepping_batches = 10_000
    global_step = estimated_stepping_batches // 2
    world_size, global_rank = 1, 0


class PlannedSteps:
    """Optimiser steps as training takes them, by the plan's own optimiser, clipping and averages, without Lightning around them."""

    def __init__(self, plan: StagePlan, setting: Setting) -> None:
        self.plan = plan.to(setting.device)
        plan.trainer = StandInTrainer()
        self.optimizer = plan.configure_optimizers()["optimizer"]
        is_bf16 = setting.precision == "bf16"
        self.autocast = torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=is_bf16)

    def take(self, batch: dict[str, Tensor]) -> None:
        """Take one step."""
        with self.autocast:
            loss = self.plan.compute_losses(batch, self.plan.generator, training=True)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.plan.configure_gradient_clipping(self.optimizer, self.plan.recipe.gradient_clip, "norm")
        self.optimizer.step()
        self.plan.on_train_batch_end(loss, batch, 0)


def optimise(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, gradient_clip: float = 10.0) -> None:
    """Take one optimiser step; a clip of 0 is none."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if gradient_clip:
        torch.nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)
    optimizer.step()
