r"""Draw counts from uniform numbers: each count depends only on its own number and its distribution.

Cells therefore do not depend on the cells drawn with them, as they would if rejected proposals of one count shifted the
random numbers of the next. A whole block is drawn at once. Draws are exact up to rounding in double precision.

- Small means: inversion. The cumulative distribution is searched from zero, mostly in at most one step.
- Large or widely dispersed means, whose search would be long: a Poisson count with a Gamma-distributed rate, both by
  rejection. Further random numbers derive from the one number (:class:`Stream`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_SEARCH = 16.0
"""Largest mean, and largest ratio of mean to inverse dispersion, for which inversion is used."""
SMALLEST_PROBABILITY = 1e-20  # below it the rest of a cumulative distribution is rounding error
LARGEST_THETA = 1e12  # above it a negative binomial equals a Poisson distribution to 12 digits
ROUNDING = 1 + 1e-5  # far above the error of a probability in single precision
PART_SIZE = 1 << 19  # counts drawn at a time on a CPU
N_STEPS = 4  # search steps before finished numbers are removed


def draw_negative_binomial(uniform: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    r"""Turn uniform numbers into counts of mean ``mu`` and variance :math:`\mu + \mu^2 / \theta`, all of one shape.

    Parameters
    ----------
    uniform
        Numbers in ``[0, 1)``, in double precision: single precision has no probabilities below 6e-8.
    mu, theta
        Mean and inverse dispersion.

    Raises
    ------
    FloatingPointError
        If any parameter is not finite: the model has diverged.

    Examples
    --------
    >>> import torch
    >>> uniform = torch.tensor([0.999, 0.5, 0.1]).double()
    >>> draw_negative_binomial(uniform, 2 * torch.ones(3), torch.ones(3))
    tensor([0., 4., 1.])
    """
    check_finite(mu=mu, theta=theta)
    theta = theta.clamp(max=LARGEST_THETA)
    is_large = (mu > LONGEST_SEARCH) | (mu / theta > LONGEST_SEARCH)
    counts = _in_parts(_search_negative_binomial, uniform, mu, theta, is_large)
    return _fill(counts, is_large, _mix_poisson, uniform, mu, theta)


def draw_binomial(uniform: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """Turn uniform numbers in double precision into binomial counts of ``n`` and ``p``, all finite and of one shape."""
    rarer = torch.minimum(p, 1 - p)
    is_large = n * rarer > LONGEST_SEARCH
    counts = _fill(torch.zeros_like(n), ~is_large & (n * rarer > 0), _invert_binomial, uniform, n, rarer)
    counts = _fill(counts, is_large, _reject_binomial, uniform, n, rarer)
    return torch.where(p > 0.5, n - counts, counts)


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


def keep_molecules(counts: Tensor, probability: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Keep each molecule of counts ``(cells, genes)`` with a probability, one per cell ``(cells, 1)`` or per count.

    Invalid counts give NaN, as torch never returns on them.
    """
    are_counts = counts.isfinite() & (counts >= 0)
    drawn = torch.binomial(torch.where(are_counts, counts, 0), probability.expand_as(counts), generator=generator)
    return torch.where(are_counts, drawn, torch.nan)


def check_finite(**parameters: Tensor) -> None:
    """Raise FloatingPointError unless all parameters are finite, as comparisons with NaN would give zeros."""
    for name, values in parameters.items():
        if not torch.stack(values.aminmax()).isfinite().all():
            msg = f"`{name}` of counts is not finite: the model has diverged. Train again with a lower learning rate."
            raise FloatingPointError(msg)


def _in_parts(draw: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Draw some rows at a time on a CPU, so that intermediate results stay in its cache."""
    if parameters[0].device.type != "cpu":
        return draw(*parameters)
    n_rows = max(PART_SIZE // max(parameters[0][:1].numel(), 1), 1)
    return torch.cat([draw(*part) for part in zip(*(values.split(n_rows) for values in parameters), strict=True)])


def _fill(counts: Tensor, mask: Tensor, draw: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Draw the counts where a mask is True, with parameters in double precision."""
    chosen = flat_indices(mask)
    if len(chosen):
        rows = (values.reshape(-1).index_select(0, chosen).double() for values in parameters)
        counts.view(-1).index_copy_(0, chosen, draw(*rows).to(counts.dtype))
    return counts


def flat_indices(mask: Tensor) -> Tensor:
    """Return the flat indices where a mask is True; on a CPU by NumPy, which is faster."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero().view(-1)


# --- inversion --------------------------------------------------------------------------------------------------------


def _search_negative_binomial(uniform: Tensor, mu: Tensor, theta: Tensor, is_large: Tensor) -> Tensor:
    above_zero = (mu / theta).log1p_().mul_(theta).neg_().expm1_().mul_(-ROUNDING).masked_fill_(is_large, 0)
    counts = torch.zeros_like(mu, dtype=torch.float32)
    return _fill(counts, uniform < above_zero, _invert_negative_binomial, uniform, mu, theta)


def _invert_negative_binomial(uniform: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    success = mu / (mu + theta)
    return _search(uniform, -theta * torch.log1p(mu / theta), success, success * (theta - 1))


def _invert_poisson(uniform: Tensor, mean: Tensor) -> Tensor:
    return _search(uniform, -mean, torch.zeros_like(mean), mean)


def _invert_binomial(uniform: Tensor, n: Tensor, p: Tensor) -> Tensor:
    odds = p / (1 - p)
    return _search(uniform, n * torch.log1p(-p), -odds, (n + 1) * odds)


def _search(uniform: Tensor, log_zero: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""Invert distributions with :math:`p_k = (a + b / k)\,p_{k-1}`, given :math:`\log p_0`.

    Numbers of :math:`1 - p_0` or more give zero, those below :math:`p_1` one, those below :math:`p_1 + p_2` two, and so
    on.
    """
    counts = torch.zeros_like(uniform)
    active = flat_indices(uniform < -torch.expm1(log_zero))
    rest, p, a, b = (values.index_select(0, active) for values in (uniform, log_zero.exp_().mul_(a + b), a, b))
    k = 1
    while len(active):
        reached = torch.zeros_like(rest)
        for _ in range(N_STEPS):
            reached += rest >= 0
            rest -= p
            k += 1
            p *= torch.add(a, b, alpha=1 / k)
        counts.index_add_(0, active, reached)
        kept = flat_indices((rest >= 0) & (p > SMALLEST_PROBABILITY))
        active, rest, p, a, b = (values.index_select(0, kept) for values in (active, rest, p, a, b))
    return counts


# --- rejection --------------------------------------------------------------------------------------------------------


class Stream:
    """Streams of uniform numbers, one stream from each given number, by the hash of SplitMix64.

    Parameters
    ----------
    uniform
        Numbers in ``[0, 1)`` in double precision, ``(n,)``.
    """

    def __init__(self, uniform: Tensor) -> None:
        self._keys = _mix((uniform * 2.0**53).long())
        self._n_drawn = 0

    def draw(self, chosen: Tensor | None = None) -> Tensor:
        """Return the next number in ``(0, 1)`` of every stream, or of some."""
        self._n_drawn += 1
        keys = self._keys if chosen is None else self._keys[chosen]
        bits = _shift_right(_mix(keys + _signed(self._n_drawn * 0x9E3779B97F4A7C15)), 11)
        return (bits.double() + 0.5) * 2.0**-53

    def draw_normal(self, chosen: Tensor | None = None) -> Tensor:
        """Return standard normal numbers by the Box-Muller transform."""
        return (-2 * self.draw(chosen).log()).sqrt() * (2 * math.pi * self.draw(chosen)).cos()


def _mix_poisson(uniform: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Draw Poisson counts with Gamma-distributed rates; rates are logarithms, since small ones underflow.

    Each rejection has its own streams: how much it draws depends on the slowest count of the block, and later draws
    from the same streams would too.
    """
    stream = Stream(uniform)
    is_small = theta < 1  # a Gamma variable of shape theta + 1, times a power of a uniform number
    log_gamma = _reject_gamma(stream.draw(), torch.where(is_small, theta + 1, theta)).log()
    log_gamma = log_gamma + torch.where(is_small, stream.draw().log() / theta, 0)
    rate, uniform = (log_gamma + mu.log() - theta.log()).exp(), stream.draw()
    is_large = rate > LONGEST_SEARCH
    counts = _fill(torch.zeros_like(rate), ~is_large, _invert_poisson, uniform, rate)
    return _fill(counts, is_large, _reject_poisson, uniform, rate)


def _reject_gamma(uniform: Tensor, shape: Tensor) -> Tensor:
    """Draw Gamma variables of ``shape`` 1 or more, by the rejection of Marsaglia and Tsang (2000)."""
    stream, d = Stream(uniform), shape - 1 / 3
    c = (9 * d).rsqrt()

    def propose(chosen: Tensor) -> tuple[Tensor, Tensor]:
        x, log_u = stream.draw_normal(chosen), stream.draw(chosen).log()
        v = (1 + c[chosen] * x) ** 3
        accepted = (v > 0) & (log_u < x**2 / 2 + d[chosen] * (1 - v + v.clamp(min=1e-300).log()))
        return d[chosen] * v, accepted

    return _repeat(propose, shape)


def _reject_poisson(uniform: Tensor, rate: Tensor) -> Tensor:
    """Draw Poisson counts of ``rate`` 10 or more, by the algorithm PTRS."""
    b, log_rate = 0.931 + 2.53 * rate.sqrt(), rate.log()

    def log_ratio(k: Tensor, chosen: Tensor) -> Tensor:
        return k * log_rate[chosen] - rate[chosen] - (k + 1).lgamma()

    alpha = 1.1239 + 1.1328 / (b - 3.4)
    return _reject_transformed(uniform, -0.059 + 0.02483 * b, b, rate + 0.43, alpha, log_ratio)


def _reject_binomial(uniform: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """Draw binomial counts of mean ``n p`` 10 or more, ``p`` at most 1/2, by the algorithm BTRS."""
    spread = (n * p * (1 - p)).sqrt()
    b = 1.15 + 2.53 * spread
    mode, log_odds = ((n + 1) * p).floor(), (p / (1 - p)).log()
    log_top = (mode + 1).lgamma() + (n - mode + 1).lgamma()

    def log_ratio(k: Tensor, chosen: Tensor) -> Tensor:
        rest = n[chosen] - k
        log_combinations = log_top[chosen] - (k + 1).lgamma() - (rest.clamp(min=0) + 1).lgamma()
        return torch.where(rest >= 0, log_combinations + (k - mode[chosen]) * log_odds[chosen], -torch.inf)

    a, alpha = -0.0873 + 0.0248 * b + 0.01 * p, (2.83 + 5.1 / b) * spread
    return _reject_transformed(uniform, a, b, n * p + 0.5, alpha, log_ratio)


def _reject_transformed(
    uniform: Tensor, a: Tensor, b: Tensor, centre: Tensor, alpha: Tensor, log_ratio: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Draw counts whose log probabilities, up to a constant, are ``log_ratio(counts, indices)``.

    Hörmann (1993), *The transformed rejection method for generating Poisson random variables*.
    """
    stream = Stream(uniform)

    def propose(chosen: Tensor) -> tuple[Tensor, Tensor]:
        a_, b_ = a[chosen], b[chosen]
        u, v = stream.draw(chosen) - 0.5, stream.draw(chosen)
        tail = 0.5 - u.abs()
        k = ((2 * a_ / tail + b_) * u + centre[chosen]).floor()
        accepted = (v * alpha[chosen] / (a_ / tail**2 + b_)).log() <= log_ratio(k.clamp(min=0), chosen)
        return k, accepted & (k >= 0)

    return _repeat(propose, centre)


def _repeat(propose: Callable[[Tensor], tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Propose values until each is accepted."""
    values = torch.zeros_like(like)
    chosen = torch.arange(len(like), device=like.device)
    while len(chosen):
        proposed, accepted = propose(chosen)
        values[chosen] = proposed
        chosen = chosen[flat_indices(~accepted)]
    return values


def _mix(x: Tensor) -> Tensor:
    """Mix 64 bits (the finaliser of SplitMix64); products wrap around on purpose."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Shift right as unsigned numbers."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _signed(x: int) -> int:
    """Convert an unsigned 64-bit number to torch's signed one."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
