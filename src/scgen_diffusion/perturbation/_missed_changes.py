"""Mean changes of genes that a prediction by perturbation flow and decoder misses."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from scgen_diffusion.nn import TARGET_SUM

from ._groups import log_likelihoods, whitened_spectrum

SIGNALS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # variance of what is missed, relative to the noise
LARGEST_LOG_FACTOR = 1.5
LOG_MEANS = (-13.8, 9.2)  # of the table of expected values
N_LOG_MEANS = 500
POISSON_MEAN, MOST_COUNTS = 100.0, 600  # a Poisson number of a larger mean is taken as this mean
SMALLEST = 1e-8


class MissedChanges(nn.Module):
    r"""What perturbed cells show, and the decoder of moved latents does not: small effects above all.

    In a group of cells :math:`g`, the measured minus the predicted mean of the log-normalised expression of gene
    :math:`i` is :math:`e_{gi}`, of which a part is sampling noise:

    .. math::

        e_i \sim \mathcal N\bigl(0,\, \sigma_i^2 (\rho_i K + N)\bigr), \qquad
        N_{gh} = \frac{[g = h]}{n_g} + \frac{[g, h\text{ have the same control cells}]}{m_g}

    with the covariance :math:`K` of the :class:`ExpectedShift`, the variance :math:`\sigma_i^2` of the gene within
    groups, and the numbers of perturbed and control cells :math:`n_g` and :math:`m_g`. Each :math:`\rho_i` is the most
    probable one, or zero unless the log likelihood gains more than 1 (Akaike's criterion): among groups that respond
    alike, it does if they agree. Other cells get the expected value given all groups.

    Parameters
    ----------
    n_groups, n_genes
        Number of groups that it learned from, and of genes with something missed.
    """

    def __init__(self, n_groups: int, n_genes: int) -> None:
        super().__init__()
        self.register_buffer("groups", torch.zeros(n_groups, dtype=torch.long))  # their numbers in the expected shift
        self.register_buffer("genes", torch.zeros(n_genes, dtype=torch.long))
        self.register_buffer("weights", torch.zeros(n_groups, n_genes))
        self.register_buffer("depth", torch.ones(()))  # counts of a cell for which the table is made

    @classmethod
    @torch.no_grad()
    def learn(
        cls, groups: Tensor, errors: Tensor, variances: Tensor, covariance: Tensor, noise: Tensor, depth: float
    ) -> Self:
        r"""Learn from groups.

        Parameters
        ----------
        groups
            Their numbers in the expected shift, ``(groups,)``.
        errors
            Measured minus predicted means :math:`e`, ``(groups, genes)``.
        variances
            Variances :math:`\sigma^2` of the genes within groups, ``(genes,)``.
        covariance, noise
            :math:`K` and :math:`N`, ``(groups, groups)``.
        depth
            Mean counts of a cell.
        """
        scale = noise.diagonal().mean() / covariance.diagonal().mean().clamp(min=SMALLEST)
        signal, whitened = whitened_spectrum(scale * covariance, noise)
        seen, signal = whitened @ errors, signal[:, None]
        likely = log_likelihoods(seen.square() / variances.clamp(min=SMALLEST), signal, SIGNALS)
        chosen = torch.tensor(SIGNALS, dtype=seen.dtype, device=seen.device)[likely.argmax(0)]
        genes = chosen.nonzero()[:, 0]
        weights = scale * whitened.T @ (chosen / (chosen * signal + 1) * seen)[:, genes]
        learned = cls(*weights.shape)
        learned.load_state_dict(
            {"groups": groups, "genes": genes, "weights": weights.float(), "depth": torch.tensor(depth)}
        )
        return learned

    def forward(self, covariance: Tensor, n_genes: int) -> Tensor:
        """Return changes of log-normalised means that were missed, ``(cells, n_genes)``.

        ``covariance (cells, groups)`` is that of cells with all groups of the expected shift.
        """
        changes = covariance.new_zeros(len(covariance), n_genes, dtype=torch.double)
        changes[:, self.genes] = covariance[:, self.groups] @ self.weights.double()
        return changes

    def log_factors(self, means: Tensor, changes: Tensor) -> Tensor:
        """Return log factors for expected counts that change log-normalised means so, all ``(cells, genes)``."""
        genes = changes.any(0).nonzero()[:, 0]  # few, unless a combination lacks changes
        factors, (log_means, values) = torch.zeros_like(means), self._table()
        before = self._log_means(means, genes)
        after = _interpolate(_interpolate(before, log_means, values) + changes[:, genes], values, log_means)
        factors[:, genes] = (after - before).clamp(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR).to(means.dtype)
        return factors

    def log_normalised(self, means: Tensor) -> Tensor:
        """Return expected log-normalised values of expected counts, both ``(cells, genes)``."""
        return _interpolate(self._log_means(means, slice(None)), *self._table())

    def _log_means(self, means: Tensor, genes: Tensor | slice) -> Tensor:
        """Return the logarithms of expected counts ``(cells, all genes)`` of genes, at the depth of the table."""
        depth = self.depth.double() / means.sum(1, keepdim=True).double().clamp(min=SMALLEST)
        return (means[:, genes] * depth).log().clamp(*LOG_MEANS)

    def _table(self) -> tuple[Tensor, Tensor]:
        """Tabulate the expected log-normalised value of Poisson counts by the logarithm of their mean."""
        log_means = torch.linspace(*LOG_MEANS, N_LOG_MEANS, dtype=torch.double, device=self.depth.device)
        factor, mean = TARGET_SUM / self.depth.double(), log_means.exp()
        counts = torch.arange(MOST_COUNTS, dtype=torch.double, device=mean.device)
        small = mean.clamp(max=POISSON_MEAN)[:, None]
        of_counts = (counts * small.log() - small - (counts + 1).lgamma()).exp() @ (factor * counts).log1p()
        return log_means, torch.where(mean <= POISSON_MEAN, of_counts, (factor * mean).log1p())


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate between increasing knots; beyond them, the value is that of the last one."""
    upper = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    share = ((x - knots[upper - 1]) / (knots[upper] - knots[upper - 1])).clamp(0, 1)
    return values[upper - 1].lerp(values[upper], share)
