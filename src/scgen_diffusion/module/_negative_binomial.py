"""The log-likelihood of negative binomial counts with an explicit gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

if TYPE_CHECKING:
    from collections.abc import Callable


N_TABULATED = 16  # most counts are smaller; their log-Gammas are short sums
LARGE_THETA = 1e3  # above it a short series is more accurate than lgamma and digamma


def negative_binomial_log_likelihood(
    counts: Tensor, log_mean: Tensor, log_theta: Tensor, outliers: nn.Module | None = None
) -> Tensor:
    r"""Compute the log-likelihood of counts, summed over genes.

    .. math:: \log\Gamma(x + \theta) - \log\Gamma(\theta) - \log x! + x (\log\mu - \log\theta) - (x + \theta)
        \log(1 + \mu / \theta)

    With outliers, :math:`\log[(1 - \pi) \operatorname{NB}(x) + \pi \operatorname{Outlier}(x)]`. Zeros are cheap; on a
    CPU the other terms are computed for non-zero counts only. On a GPU and in compiled code they are computed for all
    counts, since finding the number of non-zero counts would stall a GPU. The forward pass computes the gradient too,
    so only its two tensors ``(cells, genes)`` are kept.

    Parameters
    ----------
    counts
        ``(cells, genes)``.
    log_mean
        Logarithm of the mean, ``(cells, genes)``.
    log_theta
        Logarithm of the inverse dispersion, ``(genes,)`` or ``(cells, genes)``.
    outliers
        The second component; default: none.

    Returns
    -------
    Tensor
        ``(cells,)``.
    """
    entries = Entries.of_matrix(counts)
    if outliers is None:
        return _LogLikelihood.apply(entries, log_mean, log_theta, None, None)
    log_odds = outliers.log_odds_at(log_mean)
    by_outlier = entries.of(log_odds) + entries.of_counts(outliers.log_probability)
    value = _LogLikelihood.apply(entries, log_mean, log_theta, by_outlier, outliers.responsibility_weight)
    return value - softplus(log_odds).sum(1)


def negative_binomial_log_probability(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Return the log probability of each count, of the shape that the arguments broadcast to."""
    theta, log_excess = log_theta.exp(), softplus(log_mean - log_theta)
    log_success = log_mean - log_theta - log_excess
    rise = (counts + theta).lgamma() - theta.lgamma()
    return rise - (counts + 1).lgamma() + counts * log_success - theta * log_excess


class Entries(NamedTuple):
    """Entries of a count matrix: a list of those that are not zero, or all.

    Attributes
    ----------
    counts
        ``(cells, genes)``.
    x
        The entries, ``(n,)`` or ``(cells, genes)``.
    places
        Their indices in the flattened ``counts``; None for all.
    largest
        The largest entry; None if unknown, or if entries are not whole numbers.
    """

    counts: Tensor
    x: Tensor
    places: Tensor | None = None
    largest: int | None = None

    @classmethod
    def of_matrix(cls, counts: Tensor) -> Entries:
        """List the counts that are not zero, or take all on a GPU and in compiled code."""
        if counts.device.type != "cpu" or torch.compiler.is_compiling():
            return cls(counts, counts)  # all, so that shapes do not depend on values
        places = counts.flatten().nonzero()[:, 0]
        x = counts.flatten()[places]
        largest = int(x.max()) if len(x) and torch.equal(x, x.round()) else None
        return cls(counts, x, places, largest)

    @property
    def genes(self) -> Tensor:
        """Index of the gene of each entry."""
        return self.places % self.counts.shape[1]

    def of(self, values: Tensor) -> Tensor:
        """Read ``values (cells, genes)`` or ``(genes,)`` at the entries."""
        if self.places is None:
            return values.expand_as(self.counts)
        return values.index_select(0, self.genes) if values.ndim == 1 else values.flatten()[self.places]

    def of_counts(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Evaluate a function of counts of at least 1, by a table if few different counts are possible."""
        if self.largest is None or self.largest >= len(self.x):
            return function(self.x.clamp(min=1))
        table = function(torch.arange(1, self.largest + 1, dtype=self.x.dtype))
        return table.index_select(0, self.x.long() - 1)

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        """Replace the entries of ``into (cells, genes)`` by ``values``; zeros stay."""
        if self.places is None:
            return torch.where(self.counts > 0, values, into)
        into.view(-1)[self.places] = values
        return into

    def rising(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\log\Gamma(x + \theta) - \log\Gamma(\theta)`, and its derivative by :math:`\theta`.

        For an integer ``x`` these are sums over ``k < x`` of :math:`\log(\theta + k)` and of :math:`1 / (\theta + k)`.
        With one ``theta`` per gene, the sums are computed once per gene.
        """
        if theta.ndim > 1 or self.largest is None:
            return _log_gamma_rise(self.x, self.of(theta))
        terms = theta[:, None] + torch.arange(min(N_TABULATED, self.largest), dtype=theta.dtype)
        slot = self.genes * terms.shape[1] + self.x.long().clamp(max=N_TABULATED) - 1
        rise, slope = (part.cumsum(1).flatten().index_select(0, slot) for part in (terms.log(), terms.reciprocal()))
        if self.largest > N_TABULATED:
            large = (self.x > N_TABULATED).nonzero()[:, 0]
            rise[large], slope[large] = _log_gamma_rise(self.x[large], theta[self.genes[large]])
        return rise, slope


def _log_gamma_rise(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    is_large = theta > LARGE_THETA
    direct = (x + theta).lgamma() - theta.lgamma(), (x + theta).digamma() - theta.digamma()
    series = _log_gamma_rise_of_large(x, theta)
    return torch.where(is_large, series[0], direct[0]), torch.where(is_large, series[1], direct[1])


def _log_gamma_rise_of_large(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract Stirling's series term by term; the difference of the sums loses too many digits in float32."""
    log_ratio, inverse = torch.log1p(x / theta), 1 / (x + theta)
    drop = x * inverse / theta  # of 1 / theta, on the way to 1 / (x + theta)
    rise = (x + theta - 0.5) * log_ratio + x * (theta.log() - 1) - drop / 12
    return rise, log_ratio + drop / 2 + drop * (inverse + 1 / theta) / 12


class _LogLikelihood(torch.autograd.Function):
    """Sum of log NB over genes; ``log(NB + exp(by_outlier))`` for counts above zero that may be outliers."""

    @staticmethod
    def forward(
        ctx: Any,
        entries: Entries,
        log_mean: Tensor,
        log_theta: Tensor,
        by_outlier: Tensor | None,
        responsibility_weight: Tensor | None,
    ) -> Tensor:
        theta, log_odds = log_theta.exp(), log_mean - log_theta
        value = softplus(log_odds).mul_(-theta)  # for counts of zero, with derivatives by log mean and log theta
        by_mean = torch.sigmoid(log_odds).mul_(-theta)
        by_theta = value - by_mean

        rise, slope = entries.rising(theta)
        x, log_odds, theta = entries.x, entries.of(log_odds), entries.of(theta)
        expected = x * torch.sigmoid(-log_odds)
        log_factorial = entries.of_counts(lambda counts: (counts + 1).lgamma())
        above = entries.of(value) + rise - log_factorial + x * logsigmoid(log_odds)
        above_by_mean = entries.of(by_mean) + expected
        above_by_theta = entries.of(by_theta) + theta * slope - expected
        share = None
        if by_outlier is not None:
            share = torch.sigmoid(by_outlier - above)
            above = torch.logaddexp(above, by_outlier)
            above_by_mean = above_by_mean * (1 - share * responsibility_weight)
            above_by_theta = above_by_theta * (1 - share)
            share = share if entries.places is not None else entries.put(share, torch.zeros_like(share))
        by_mean, by_theta = entries.put(above_by_mean, by_mean), entries.put(above_by_theta, by_theta)
        ctx.per_gene, ctx.places = log_theta.ndim == 1, entries.places
        ctx.save_for_backward(by_mean, by_theta, share)
        return entries.put(above, value).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_mean, by_theta, share = ctx.saved_tensors
        of_cells = gradient[:, None]
        for_theta = gradient @ by_theta if ctx.per_gene else of_cells * by_theta
        if share is not None:
            share = share * (of_cells if ctx.places is None else gradient[ctx.places // by_mean.shape[1]])
        return None, of_cells * by_mean, for_theta, share, None
