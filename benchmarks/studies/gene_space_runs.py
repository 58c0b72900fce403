"""Training and drawing in the gene-space study."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import lightning.pytorch as pl
import numpy as np
import scvi
import torch

from benchmarks.quality.splits import to_dense
from benchmarks.speed.meters import clock
from benchmarks.studies.gene_space_experiments import LARGE_TYPE, Training
from scgen_diffusion.diffusion import DIFFUSION_SAMPLERS, DDIMSampler
from scgen_diffusion.model import SCRDIT
from scgen_diffusion.train import DIFFUSION_RECIPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    import pandas as pd
    from numpy.typing import NDArray

    from benchmarks.quality.splits import Split
    from benchmarks.studies.gene_space_experiments import Drawing

BATCH_SIZE = 128
TRAIN_SIZE = 0.9
N_CALIBRATION_STEPS = 8
QUIET = {"enable_progress_bar": False}


def seconds() -> float:
    """Read the clock of the device where models are trained."""
    return clock(device())


def device() -> str:
    """Return where models are trained."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class StepClock(pl.Callback):
    """Notes when every step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends.append(seconds())

    @property
    def seconds_per_step(self) -> float:
        """Median time from one step to the next: validation and start do not count."""
        return median(np.diff(self.ends)) if len(self.ends) > 1 else float("nan")


class Trained(Protocol):
    """What cells are drawn from."""

    costs: dict[str, float]

    def sample(self, conditions: pd.DataFrame, labels: NDArray, drawing: Drawing, seed: int) -> NDArray:
        """Draw counts ``(cells, genes)``, one cell per row of ``conditions``."""


@dataclass(frozen=True)
class OneModel:
    """One model, conditional or not."""

    model: SCRDIT
    costs: dict[str, float]

    def sample(self, conditions: pd.DataFrame, labels: NDArray, drawing: Drawing, seed: int) -> NDArray:
        """Draw counts ``(cells, genes)``, one cell per row of ``conditions``."""
        request = {"condition": conditions} if self.model.conditions.keys else {"n_cells": len(conditions)}
        way = {"sampler": sampler_of(drawing), "n_steps": drawing.n_steps}
        return to_dense(self.model.generate(**request, **way, counts=True, seed=seed).X)


@dataclass(frozen=True)
class ModelPerType:
    """One unconditional model per label."""

    models: dict[str, OneModel]

    @property
    def costs(self) -> dict[str, float]:
        """Costs of all models together; the time per step is the mean over all steps."""
        parts = [model.costs for model in self.models.values()]
        total = {name: sum(part[name] for part in parts) for name in ("train_seconds", "steps", "n_parameters")}
        weighted = sum(part["seconds_per_step"] * part["steps"] for part in parts)
        return total | {"seconds_per_step": weighted / total["steps"]}

    def sample(self, conditions: pd.DataFrame, labels: NDArray, drawing: Drawing, seed: int) -> NDArray:
        """Draw counts ``(cells, genes)``, one cell per label."""
        drawn: list[tuple[NDArray, NDArray]] = []
        for number, (label, model) in enumerate(self.models.items()):
            rows = np.flatnonzero(labels == label)
            counts = model.sample(conditions.iloc[rows], labels[rows], drawing, seed + 1000 * number)
            drawn.append((rows, counts))
        together = np.empty((len(labels), drawn[0][1].shape[1]), dtype=drawn[0][1].dtype)
        for rows, counts in drawn:
            together[rows] = counts
        return together


class Trainer:
    """Trains on one split; the baseline is kept, because several experiments draw from it."""

    def __init__(self, split_of: dict[int, Split], baseline: Training, seed: int) -> None:
        self.split_of, self.baseline, self.seed = split_of, baseline, seed
        self._kept: Trained | None = None

    def train(self, training: Training) -> Trained:
        """Return a trained model, or the models of all large types."""
        if training != self.baseline:
            return self._train(training)
        if self._kept is None:
            self._kept = self._train(training)
        return self._kept

    def _train(self, training: Training) -> Trained:
        split = self.split_of[training.n_genes]
        if training.shared is not None:
            return train_per_type(split, training, self.seed)
        architecture = resolve(training.architecture, split.train.var_names, self.seed)
        steps = training.steps or steps_within(training.minutes, split.train, split.condition_keys, architecture)
        return train_one(split.train, split.condition_keys, architecture, steps, self.seed)


def train_one(
    cells: ad.AnnData, condition_keys: Sequence[str], architecture: dict[str, Any], steps: int, seed: int
) -> OneModel:
    """Train one model for about so many steps: whole epochs."""
    model, clock = build(cells, condition_keys, architecture, seed), StepClock()
    started = seconds()
    model.train(
        epochs_for(steps, cells.n_obs), callbacks=[clock], batch_size=BATCH_SIZE, train_size=TRAIN_SIZE, **QUIET
    )
    costs = {
        "train_seconds": seconds() - started,
        "seconds_per_step": clock.seconds_per_step,
        "steps": float(len(clock.ends)),
        "n_parameters": float(sum(p.numel() for p in model.module.network.parameters())),
    }
    return OneModel(model, costs)


def train_per_type(split: Split, training: Training, seed: int) -> ModelPerType:
    """Train one model per large type; the steps in all are those of one model for all types."""
    architecture = resolve(training.architecture, split.train.var_names, seed)
    shares = shared_steps(split.train_labels, training)
    labels = split.train_labels
    models = {label: train_one(split.train[labels == label], (), architecture, n, seed) for label, n in shares.items()}
    return ModelPerType(models)


def shared_steps(labels: NDArray, training: Training) -> dict[str, int]:
    """Share the steps out among the large types."""
    sizes = {label: int((labels == label).sum()) for label in large_types(labels)}
    if training.shared == "equally":
        return {label: max(round(training.steps / len(sizes)), 1) for label in sizes}
    return {label: max(round(training.steps * n / sum(sizes.values())), 1) for label, n in sizes.items()}


def large_types(labels: NDArray) -> list[str]:
    """Return the labels that have enough training cells for a model of their own."""
    names, sizes = np.unique(labels, return_counts=True)
    return names[sizes >= LARGE_TYPE].tolist()


def steps_within(minutes: float, cells: ad.AnnData, condition_keys: Sequence[str], architecture: dict[str, Any]) -> int:
    """Return how many steps take so many minutes, from the time of a few."""
    model, clock = build(cells, condition_keys, architecture, seed=0), StepClock()
    model.train(
        N_CALIBRATION_STEPS,  # epochs, of which each has at least one step
        callbacks=[clock],
        max_steps=N_CALIBRATION_STEPS,
        batch_size=BATCH_SIZE,
        train_size=TRAIN_SIZE,
        **QUIET,
    )
    return max(round(60 * minutes / clock.seconds_per_step), 1)


def build(cells: ad.AnnData, condition_keys: Sequence[str], architecture: dict[str, Any], seed: int) -> SCRDIT:
    """Return an untrained model of a copy of the cells."""
    scvi.settings.seed = seed
    adata = cells.copy()
    SCRDIT.setup_anndata(adata, layer="counts", condition_keys=list(condition_keys))
    return SCRDIT(adata, **architecture)


def epochs_for(steps: int, n_cells: int) -> int:
    """Return the number of epochs that comes nearest to so many steps."""
    recipe = DIFFUSION_RECIPES["SCRDIT"]["default"]
    return max(round(steps / recipe.steps_per_epoch(round(TRAIN_SIZE * n_cells))), 1)


def resolve(architecture: dict[str, Any], genes: Sequence[str], seed: int) -> dict[str, Any]:
    """Put a random list of genes in place of the gene order ``"random"``."""
    if architecture.get("gene_order") != "random":
        return architecture
    return architecture | {"gene_order": np.random.default_rng(seed).permutation(genes).tolist()}


def sampler_of(drawing: Drawing) -> Any:
    """Return the sampler, or its name, or None for the default."""
    if drawing.eta is None:
        return drawing.sampler
    if not isinstance(DIFFUSION_SAMPLERS[drawing.sampler], DDIMSampler):
        msg = f"`eta` belongs to the sampler 'ddim', but found {drawing.sampler!r}."
        raise ValueError(msg)
    return DDIMSampler(eta=drawing.eta)
