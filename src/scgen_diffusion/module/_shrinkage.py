"""Adaptive shrinkage of effects that are known up to noise."""

from __future__ import annotations

import torch
from torch import Tensor

SPREADS = (0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # possible variances of an effect, in natural logarithms
TELLING = 1.0  # sampling variance of an effect that tells something about the mixture
SMALLEST = 1e-9


def even_shares(effects: Tensor) -> Tensor:
    """Return equal shares of all variances for effects ``(...)``, ``(variances, ...)``, to start from."""
    return effects.new_full((len(SPREADS), *[1] * effects.ndim), 1 / len(SPREADS))


def shrink(effects: Tensor, errors: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return expected effects and new shares, in one round of expectation maximisation.

    Most effects are small, and some are large: they come from a mixture of normal distributions around zero.

    Parameters
    ----------
    effects
        Measured effects, of any shape.
    errors
        Their sampling variances, of the same shape.
    shares
        Shares of the mixture's variances so far, see :func:`even_shares`.

    References
    ----------
    Stephens (2017), *False discovery rates: a new deal*, Biostatistics.
    """
    spreads = torch.tensor(SPREADS, dtype=effects.dtype, device=effects.device).view_as(shares)
    variance = spreads + errors
    posterior = (shares.log() - (effects.square() / variance + variance.log()) / 2).softmax(0)
    if (tells := errors < TELLING).any():
        shares = posterior[:, tells].mean(1).view_as(shares).clamp(min=SMALLEST)
    return (posterior * spreads / variance).sum(0) * effects, shares
