"""Training options of each stage, and learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scgen_diffusion._arguments import check_options, is_number

Schedule = Literal["cosine", "warm_up_hold_decay", "constant"]
MANY_GENES = 2000  # fewer may have a recipe of their own
FADES_FROM = 10_000  # more need less regularisation
PRIOR_CELLS = 10_000
FEW_COUNTS = 600  # of a gene in all training cells; with fewer, the usual recipe overfits least
LEAST_KL_WEIGHT = 0.1
MOST_STEPS = 4  # of the autoencoder, times those for a whole panel
RATE_OF_NEXT_ROUND = 0.5  # relative to the round before
SHARE_FOR_NUMBERS = 1 / 3  # of the prior's steps
SHARES = ("warm_up", "kl_warm_up", "min_kept_fraction", "drop_probability")  # options from 0 to 1


@dataclass(frozen=True)
class Recipe:
    r"""Optimiser, schedule and length of a training stage.

    Parameters
    ----------
    learning_rate, betas, weight_decay
        Options of AdamW.
    gradient_clip
        Largest norm of the gradient; 0 for no limit.
    schedule
        ``"cosine"`` (down to 1 %), ``"warm_up_hold_decay"`` (square-root decay over the last tenth) or ``"constant"``.
    batch_size
        Cells per step of all processes together.
    warm_up
        Share of a round's steps in which the learning rate rises linearly.
    reference_steps
        Optimiser steps of a round for a data set of ``reference_cells`` cells. Other data sets take
        :math:`\sqrt{n / n_{ref}}` times as many.
    reference_cells
        See ``reference_steps``.
    smallest_share
        Smallest data sets take at least this share of ``reference_steps``.
    most_cells
        Larger data sets take as many steps as one of this many cells; default: no limit.
    smallest_epoch
        Smallest number of steps in an epoch; small data sets are repeated to fill it. 0: an epoch is a pass.
    n_epochs
        Number of epochs of a round for every data set, instead of steps by size.
    max_rounds
        Largest number of rounds, each as long as the options above say. A round goes through the schedule of the
        learning rate, at half of the rate of the round before. Training ends when a round has not lowered the
        validation loss by 0.05 %, and keeps the weights of the best round, or those from before if the stage was
        trained already and no round is better. By default, there is one round if
        ``max_epochs`` or another rule for the end is given, and without validation cells.
    bfloat16
        Whether GPUs that support it compute in bfloat16, unless ``precision`` says otherwise. It pays for large
        networks. With small ones a GPU waits for the host, and casting takes time too.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    gradient_clip: float = 10.0
    schedule: Schedule = "cosine"
    batch_size: int = 128
    warm_up: float = 0.05
    reference_steps: int = 1500
    reference_cells: int = 2000
    smallest_share: float = 0.5
    most_cells: int | None = None
    smallest_epoch: int = 0
    n_epochs: int | None = None
    max_rounds: int = 1
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Check the options, and turn numbers of numpy, which checkpoints do not take, into plain ones."""
        check_options(self, from_zero=("smallest_epoch",), most=dict.fromkeys(SHARES, 1), except_for=("betas",))
        betas = np.ravel(self.betas).tolist()
        if len(betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
            msg = f"`betas` must be two numbers from 0 to below 1, but found {self.betas!r}."
            raise ValueError(msg)
        object.__setattr__(self, "betas", tuple(map(float, betas)))

    def max_epochs(self, n_cells: int) -> int:
        """Return the number of epochs of a round for ``n_cells`` training cells."""
        if self.n_epochs is not None:
            return self.n_epochs
        n_counted = min(n_cells, self.most_cells or n_cells)
        steps = self.reference_steps * max(math.sqrt(n_counted / self.reference_cells), self.smallest_share)
        return max(1, round(steps / self.steps_per_epoch(n_cells)))

    def steps_per_epoch(self, n_cells: int) -> int:
        """Return the number of steps of an epoch of ``n_cells`` training cells."""
        return max(math.ceil(n_cells / self.batch_size), self.smallest_epoch)


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """Training of the autoencoder. Its other options are those of :class:`Recipe`.

    Parameters
    ----------
    kl_weight
        Weight of the latent's KL divergence in the loss.
    kl_warm_up
        Share of the first round's steps in which ``kl_weight`` rises from zero.
    min_kept_fraction
        The encoder sees each cell thinned to a random share of its counts between this and 1; the decoder reconstructs
        the whole cell. 1 switches thinning off.
    dispersion_learning_rate_factor
        Learning rate of the dispersions, relative to the other parameters.
    loading_weight_decay
        Weight decay of the gene loadings in factor pooling and factor decoder, which are most of the parameters.
    effect_weight_decay
        Weight decay of the condition effects of genes.
    drop_probability
        Probability of dropping a cell's conditions when the condition effects learn.
    """

    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    gradient_clip: float = 100.0
    reference_steps: int = 600
    smallest_share: float = 0.33
    max_rounds: int = 3
    kl_weight: float = 0.6
    kl_warm_up: float = 0.33
    min_kept_fraction: float = 0.3
    loading_weight_decay: float = 3.0
    effect_weight_decay: float = 0.3
    dispersion_learning_rate_factor: float = 10.0
    drop_probability: float = 0.1

    def for_many_cells(self, n_cells: int) -> AutoencoderRecipe:
        """Return the recipe for many training cells, which are not learned by heart.

        Weight decay of the gene loadings and thinning fade, see :func:`fading`.
        """
        share = fading(n_cells)
        return replace(
            self,
            loading_weight_decay=two_digits(share * self.loading_weight_decay),
            min_kept_fraction=two_digits(1 - share * (1 - self.min_kept_fraction)),
        )

    def for_panel(self, n_genes: int, counts_per_gene: float) -> AutoencoderRecipe:
        """Return the recipe for cells with few genes.

        Few genes explain little of a cell, so the same KL divergence weighs more, and the latent forgets labels and
        what genes share. If these genes have many counts, the autoencoder hardly overfits with a small weight, and can
        take more steps, which are also cheap. The fewer the genes, the smaller the weight and the more steps, as far as
        the counts allow. With the most steps, there is one round: cells of later ones are no better, though the
        validation loss still falls.

        Parameters
        ----------
        n_genes
            Number of genes.
        counts_per_gene
            Their mean number of counts, summed over the training cells.
        """
        share = min(max(n_genes / MANY_GENES, (FEW_COUNTS / max(counts_per_gene, FEW_COUNTS)) ** 2), 1)
        kl_weight = max(share * self.kl_weight, LEAST_KL_WEIGHT)
        steps = round(self.reference_steps * min(1 / share, MOST_STEPS))
        max_rounds = self.max_rounds if share > 1 / MOST_STEPS else 1
        return replace(self, kl_weight=two_digits(kl_weight), reference_steps=steps, max_rounds=max_rounds)


@dataclass(frozen=True)
class PriorRecipe(Recipe):
    """Training of the prior. Its other options are those of :class:`Recipe`.

    Parameters
    ----------
    drop_probability
        Probability of dropping a cell's conditions, which classifier-free guidance needs.
    """

    learning_rate: float = 2e-3
    batch_size: int = 256
    reference_steps: int = 4000
    most_cells: int | None = 50_000
    smallest_epoch: int = 10
    drop_probability: float = 0.1

    def for_numbers(self) -> PriorRecipe:
        """Return the recipe for conditions that are all single numbers: a third of the steps.

        With more, cells at the numbers of the training cells are hardly better, and those in between get worse.
        """
        return replace(self, reference_steps=round(SHARE_FOR_NUMBERS * self.reference_steps))


@dataclass(frozen=True)
class DiffusionRecipe(Recipe):
    """Training of a model over all genes, by default of SCMDM. Its other options are those of :class:`Recipe`.

    Parameters
    ----------
    loading_weight_decay
        Weight decay of the matrices with which global tokens, or the residual network, read and write genes. They are
        most of the parameters.
    drop_probability
        Probability of dropping a cell's conditions, which classifier-free guidance needs.
    dispersion_learning_rate_factor
        Learning rate of the genes' dispersions, relative to ``learning_rate``. Only models of masked molecules have
        any.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    reference_steps: int = 2500
    loading_weight_decay: float = 1.0
    drop_probability: float = 0.1
    dispersion_learning_rate_factor: float = 5.0

    def for_cells(self, n_cells: int) -> DiffusionRecipe:
        """Return the recipe for a number of training cells: the decay of loadings is a prior worth 10,000 of them."""
        weight = PRIOR_CELLS / (PRIOR_CELLS + n_cells)
        return replace(self, loading_weight_decay=two_digits(weight * self.loading_weight_decay))


@dataclass(frozen=True)
class PerturbationFlowRecipe(Recipe):
    """Training of the flow from control to perturbed cells. Its other options are those of :class:`Recipe`.

    Parameters
    ----------
    n_paired
        Number of control and of perturbed cells of one group that optimal transport pairs. A step takes
        ``batch_size / n_paired`` groups, at least one; ``batch_size`` counts pairs.
    """

    learning_rate: float = 2e-3
    batch_size: int = 512
    reference_steps: int = 300
    smallest_epoch: int = 10
    n_paired: int = 32


@dataclass(frozen=True)
class TrainingRecipe:
    """All stages of SCLDM.

    Parameters
    ----------
    autoencoder, prior, perturbation_flow
        Options of each stage.
    """

    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    prior: PriorRecipe = PriorRecipe()
    perturbation_flow: PerturbationFlowRecipe = PerturbationFlowRecipe()


RECIPES: dict[str, TrainingRecipe] = {
    "default": TrainingRecipe(),
    "published": TrainingRecipe(
        AutoencoderRecipe(
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            gradient_clip=10.0,
            schedule="warm_up_hold_decay",
            warm_up=0.1,
            reference_steps=6000,
            max_rounds=1,
            min_kept_fraction=1.0,
            loading_weight_decay=0.0,
            dispersion_learning_rate_factor=1.0,
            bfloat16=True,
        ),
        PriorRecipe(
            learning_rate=5e-4,
            betas=(0.9, 0.999),
            batch_size=128,
            warm_up=0.1,
            reference_steps=12_000,
            most_cells=None,
            drop_probability=0.8,
            bfloat16=True,
        ),
    ),
}

PUBLISHED_SCRDIT_RECIPE = DiffusionRecipe(
    learning_rate=3e-4,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    loading_weight_decay=0.01,
    gradient_clip=0.0,
    schedule="constant",
    batch_size=16,
    n_epochs=1600,
    bfloat16=True,
)

PROFILE_RECIPE = DiffusionRecipe(learning_rate=1e-3, reference_steps=800, loading_weight_decay=3.0)
DIFFUSION_RECIPES: dict[str, dict[str, DiffusionRecipe]] = {
    "SCRDIT": {"default": PROFILE_RECIPE, "published": PUBLISHED_SCRDIT_RECIPE},
    "WBDIT": {"default": PROFILE_RECIPE, "published": replace(PUBLISHED_SCRDIT_RECIPE, learning_rate=1e-4)},
    "SCMDM": {"default": DiffusionRecipe()},
}
"""By model and size."""


def fading(n_cells: int) -> float:
    """Return the share of its strength that regularisation of gene loadings keeps with ``n_cells`` training cells.

    It keeps few cells from being learned by heart. Of many, it only keeps weak gene programmes from being learned.
    Beyond 10,000 cells it falls in proportion, so loadings remember the same number of passes through the cells.
    """
    return FADES_FROM / max(n_cells, FADES_FROM)


def two_digits(value: float) -> float:
    """Round an option that the data chose to two significant digits, as it is shown to users."""
    return float(f"{value:.2g}")


def learning_rate_factor(step: int, schedule: Schedule, *, n_steps: int, warm_up: float, max_rounds: int = 1) -> float:
    """Return the factor of the learning rate at a step: a linear rise from 0.01, then the schedule.

    It starts again every ``n_steps`` steps, at half of the rate, until there were ``max_rounds`` rounds.
    """
    n_warm_up = max(round(warm_up * n_steps), 1)
    number = min(step // max(n_steps, 1), max_rounds - 1)
    step, scale = step - number * n_steps, RATE_OF_NEXT_ROUND**number
    if step < n_warm_up:
        return scale * (0.01 + 0.99 * step / n_warm_up)
    progress = min(step / max(n_steps, 1), 1.0)
    if schedule == "cosine":  # half a period, down to 1 %
        return scale * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
    if schedule == "warm_up_hold_decay":  # square-root decay over the last tenth, down to 10 %
        return scale * (0.1 + 0.9 * (1 - math.sqrt(max(progress - 0.9, 0) / 0.1)))
    return scale
