"""Counts under another mean: what the mean does not explain of a cell is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._count_draws import draw_binomial, draw_negative_binomial

if TYPE_CHECKING:
    from torch import Tensor


def carry_over_counts(uniform: Tensor, counts: Tensor, mean: Tensor, new_mean: Tensor, theta: Tensor) -> Tensor:
    r"""Draw what cells' counts would have been under other means, given what they are.

    A negative binomial count is a Poisson count of rate :math:`\mu\,\epsilon`, with :math:`\epsilon` from a Gamma distribution of mean 1. Given
    the count :math:`x`, :math:`\epsilon` has the shape :math:`\theta + x` and the rate :math:`\theta + \mu`. It is kept: where the mean falls, each
    molecule stays with probability :math:`\mu' / \mu`; where it rises, :math:`\operatorname{Poisson}((\mu' - \mu)\,\epsilon)` are added, which is a
    negative binomial count of inverse dispersion :math:`\theta + x`. So the result follows the negative binomial of mean :math:`\mu'` if ``x``
    followed that of mean :math:`\mu`, keeps what the latent does not know of the cell, and is the cell itself where the mean stays.

    Parameters
    ----------
    uniform
        Numbers in ``[0, 1)`` in double precision, of the shape of all others.
    counts, mean, new_mean, theta
        Counts, their means, their new means, and inverse dispersions, all of them finite.

    References
    ----------
    Pearl (2009), *Causality*, section 7.1: counterfactuals by abduction, action and prediction.
    """
    kept = draw_binomial(uniform, counts.double(), (new_mean / mean).double().clamp(max=1)).to(counts.dtype)
    excess = (new_mean - mean).clamp(min=0) * (theta + counts) / (theta + mean)
    return kept + draw_negative_binomial(uniform, excess, theta + counts)
