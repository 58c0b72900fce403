"""Counts under another mean that keep the residuals of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._count_draws import draw_binomial, draw_negative_binomial

if TYPE_CHECKING:
    from torch import Tensor


def counterfactual_counts(uniform: Tensor, counts: Tensor, mean: Tensor, new_mean: Tensor, theta: Tensor) -> Tensor:
    r"""Draw the counts that cells would have under other means, given their counts.

    A negative binomial count is a Poisson count of rate :math:`\mu\,\epsilon`, where :math:`\epsilon` has a Gamma
    distribution of mean 1. Given the count :math:`x`, :math:`\epsilon` has shape :math:`\theta + x` and rate
    :math:`\theta + \mu`. It is kept. If the mean falls, each molecule stays with probability :math:`\mu' / \mu`. If it
    rises, :math:`\operatorname{Poisson}((\mu' - \mu)\,\epsilon)` molecules are added, a negative binomial count of
    inverse dispersion :math:`\theta + x`. If ``x`` follows the negative binomial of mean :math:`\mu`, the result
    follows that of mean :math:`\mu'`. If the mean does not change, neither does the count. A count that the negative
    binomial does not explain gets a rate without limit: give 0 with a mean of 0 for it, and the new count is drawn
    afresh.

    Parameters
    ----------
    uniform
        Numbers in ``[0, 1)`` in double precision, of the same shape as the others.
    counts, mean, new_mean, theta
        Counts, their means, their new means, and inverse dispersions, all finite.

    References
    ----------
    Pearl (2009), *Causality*, section 7.1: counterfactuals by abduction, action and prediction.
    """
    share = torch.where(new_mean < mean, new_mean / mean, 1)  # means may both be zero
    kept = draw_binomial(uniform, counts.double(), share.double()).to(counts.dtype)
    excess = (new_mean - mean).clamp(min=0) * (theta + counts) / (theta + mean)
    return kept + draw_negative_binomial(uniform, excess, theta + counts)
