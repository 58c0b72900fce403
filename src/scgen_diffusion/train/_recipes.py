"""Training options of each stage, and learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from scgen_diffusion._arguments import check_options

if TYPE_CHECKING:
    from collections.abc import Sequence

Schedule = Literal["cosine", "warm_up_hold_decay", "constant"]
REFERENCE_CELLS = 2000  # for which `reference_steps` are given
PRIOR_CELLS = 10_000  # the regularisation of gene loadings counts as much as these
ENOUGH_FEATURES = 1200  # fewer say less about a cell
USUAL_PATIENCE = 10  # of about 100 validations
RATE_AFTER_PLATEAU = 0.3  # relative to the rate before
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
        Share of the steps in which the learning rate rises linearly.
    reference_steps
        Most optimiser steps for a data set of 2,000 cells; other sets take :math:`\sqrt[3]{n / 2000}` times as many.
    smallest_epoch
        Smallest number of steps in an epoch; small data sets are repeated to fill it. 0: an epoch is a pass.
    n_epochs
        Most epochs for every data set, instead of steps by size.
    patience
        Number of validations without a new lowest validation loss after which the learning rate falls to 0.3 of what it
        was; the third time, training ends. None: never, also by default with ``max_epochs``.
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
    smallest_epoch: int = 0
    n_epochs: int | None = None
    patience: int | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Check the options, and turn numbers of numpy, which checkpoints do not take, into plain ones."""
        check_options(self, from_zero=("smallest_epoch",), most=dict.fromkeys(SHARES, 1), except_for=("betas",))
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))

    def max_epochs(self, n_cells: int) -> int:
        """Return the most epochs for ``n_cells`` training cells."""
        if self.n_epochs is not None:
            return self.n_epochs
        steps = self.reference_steps * (n_cells / REFERENCE_CELLS) ** (1 / 3)
        return max(1, round(steps / self.steps_per_epoch(n_cells)))

    def steps_per_epoch(self, n_cells: int) -> int:
        """Return the number of steps of an epoch of ``n_cells`` training cells."""
        return max(math.ceil(n_cells / self.batch_size), self.smallest_epoch)

    def rate_factor(self, step: int, n_steps: int) -> float:
        """Return the factor of the learning rate at a step: a linear rise from 0.01, then the schedule."""
        n_warm_up = max(round(self.warm_up * n_steps), 1)
        if step < n_warm_up:
            return 0.01 + 0.99 * step / n_warm_up
        progress = min(step / max(n_steps, 1), 1.0)
        if self.schedule == "cosine":  # half a period, down to 1 %
            return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        if self.schedule == "warm_up_hold_decay":  # square-root decay over the last tenth, down to 10 %
            return 0.1 + 0.9 * (1 - math.sqrt(max(progress - 0.9, 0) / 0.1))
        return 1.0


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """Training of the autoencoder. Its other options are those of :class:`Recipe`.

    Parameters
    ----------
    kl_weight
        Weight of the latent's KL divergence in the loss.
    kl_warm_up
        Share of the steps in which ``kl_weight`` rises from zero.
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
    reference_steps: int = 2400
    patience: int | None = USUAL_PATIENCE
    kl_weight: float = 0.6
    kl_warm_up: float = 0.083
    min_kept_fraction: float = 0.125
    loading_weight_decay: float = 3.75
    effect_weight_decay: float = 0.3
    dispersion_learning_rate_factor: float = 10.0
    drop_probability: float = 0.1

    def for_cells(self, n_cells: int, n_features: Sequence[int]) -> AutoencoderRecipe:
        r"""Return the recipe for ``n_cells`` training cells whose modalities have ``n_features`` features.

        Weight decay of the gene loadings and thinning weigh as :func:`prior_share` says. The KL weight is multiplied by
        :math:`\sqrt{d / 1200}` for :math:`d < 1200` features, the mean over modalities: few features explain little of
        a cell, and with the whole weight the latent would forget what they share.
        """
        share = prior_share(n_cells)
        explained = sum(math.sqrt(min(n / ENOUGH_FEATURES, 1)) for n in n_features) / len(n_features)
        return replace(
            self,
            loading_weight_decay=two_digits(share * self.loading_weight_decay),
            min_kept_fraction=two_digits(1 - share * (1 - self.min_kept_fraction)),
            kl_weight=two_digits(explained * self.kl_weight),
        )


@dataclass(frozen=True)
class PriorRecipe(Recipe):
    """Training of the prior, which gets better beyond its lowest validation loss, and so takes all steps.

    Its other options are those of :class:`Recipe`.

    Parameters
    ----------
    drop_probability
        Probability of dropping a cell's conditions, which classifier-free guidance needs.
    """

    learning_rate: float = 2e-3
    batch_size: int = 256
    reference_steps: int = 4000
    smallest_epoch: int = 10
    drop_probability: float = 0.1

    def for_numbers(self) -> PriorRecipe:
        """Return the recipe for conditions that are all single numbers: a third of the steps.

        With more, cells at the numbers of training cells are hardly better, and those in between get worse.
        """
        return replace(self, reference_steps=self.reference_steps // 3)


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
        """Return the recipe for ``n_cells`` training cells; see :func:`prior_share`."""
        return replace(self, loading_weight_decay=two_digits(prior_share(n_cells) * self.loading_weight_decay))


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
    reference_steps: int = 400
    smallest_epoch: int = 10
    n_paired: int = 32


RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "autoencoder": AutoencoderRecipe(),
        "prior": PriorRecipe(),
        "perturbation_flow": PerturbationFlowRecipe(),
    },
    "published": {
        "autoencoder": AutoencoderRecipe(
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            gradient_clip=10.0,
            schedule="warm_up_hold_decay",
            warm_up=0.1,
            reference_steps=6000,
            patience=None,
            min_kept_fraction=1.0,
            loading_weight_decay=0.0,
            dispersion_learning_rate_factor=1.0,
            bfloat16=True,
        ),
        "prior": PriorRecipe(
            learning_rate=5e-4,
            betas=(0.9, 0.999),
            batch_size=128,
            warm_up=0.1,
            reference_steps=12_000,
            drop_probability=0.8,
            bfloat16=True,
        ),
        "perturbation_flow": PerturbationFlowRecipe(),
    },
}
"""Of SCLDM and MULTISCLDM, by size and stage."""

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

PROFILE_RECIPE = DiffusionRecipe(learning_rate=1e-3, loading_weight_decay=0.1, patience=USUAL_PATIENCE)
DIFFUSION_RECIPES: dict[str, dict[str, DiffusionRecipe]] = {
    "SCRDIT": {"default": PROFILE_RECIPE, "published": PUBLISHED_SCRDIT_RECIPE},
    "WBDIT": {"default": PROFILE_RECIPE, "published": replace(PUBLISHED_SCRDIT_RECIPE, learning_rate=1e-4)},
    "SCMDM": {"default": DiffusionRecipe()},
}
"""By model and size."""


def prior_share(n_cells: int) -> float:
    r"""Return :math:`m / (m + n)`, the share of its strength that regularisation of gene loadings has with n cells.

    A prior that is worth :math:`m` = 10,000 cells keeps few cells from being learned by heart. Of many, it only keeps
    weak gene programmes from being learned; there its weight is proportional to :math:`1 / n`, so loadings remember the
    same number of passes through the cells.
    """
    return PRIOR_CELLS / (PRIOR_CELLS + n_cells)


def two_digits(value: float) -> float:
    """Round an option that the data chose to two significant digits, as it is shown to users."""
    return float(f"{value:.2g}")
