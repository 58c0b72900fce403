"""Counts under another mean: what the mean does not explain of a cell is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ._count_draws import draw_binomial


def carry_over_counts(parameters: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draw what a cell's counts would have been under other means, given what they are.

    A negative binomial count is a Poisson count of rate :math:`\mu\,\epsilon`, with :math:`\epsilon` from a Gamma distribution of mean 1. Given
    the count :math:`x`, :math:`\epsilon` has the shape :math:`\theta + x` and the rate :math:`\theta + \mu`. It is kept: where the mean falls, each
    molecule stays with probability :math:`\mu' / \mu`; where it rises, :math:`\operatorname{Poisson}((\mu' - \mu)\,\epsilon)` are added. So the result
    follows the negative binomial of mean :math:`\mu'` if ``x`` followed that of mean :math:`\mu`, keeps what the latent does not know of
    the cell, and is the cell itself where the mean stays.

    Parameters
    ----------
    parameters
        Counts, their means, their new means and inverse dispersions, ``(4, genes)``.
    generator
        Source of the randomness.

    References
    ----------
    Pearl (2009), *Causality*, section 7.1: counterfactuals by abduction, action and prediction.
    """
    counts, mean, new_mean, theta = parameters
    kept = draw_binomial(counts, (new_mean / mean).clamp(max=1), generator)
    shape, rate = (
        (theta + counts).double(),
        (theta + mean).double(),
    )  # Gamma draws of small shapes underflow in single precision
    excess = torch._standard_gamma(shape, generator=generator) / rate * (new_mean - mean).clamp(min=0)
    return kept + torch.poisson(excess, generator=generator).to(counts.dtype)
