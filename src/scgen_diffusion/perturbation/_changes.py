"""Gaussian processes of the mean changes of genes: what perturbations cause, and what predictions of it miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from scgen_diffusion.nn import TARGET_SUM

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RATIOS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # variance of effects, relative to that of cells
MOST_GENES = 2000  # that choose the kernel
DIGITS = 3  # of log likelihoods: kernels that the groups do not tell apart are equally probable
UNMEASURED = 1e9  # sampling variance, relative to that of one cell
FEWEST_GROUPS = 2  # of which others can be left out
SMALLEST = 1e-8
SIGNALS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # variance of what is missed, relative to the noise
LARGEST_LOG_FACTOR = 1.5
LOG_MEANS = (-13.8, 9.2)  # of the table of expected values
N_LOG_MEANS = 500
POISSON_MEAN, MOST_COUNTS = 100.0, 600  # a Poisson number of a larger mean is taken as this mean
LEAST_GAIN = 1.0  # of the log likelihood, as Akaike's criterion asks of a parameter


def whitened_spectrum(kernel: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a kernel after whitening the noise, ``(..., groups)``, and the basis.

    Both are ``(groups, groups)``, or one of them a stack. In the basis, changes are independent, with variances of 1
    from noise.
    """
    whitening = torch.linalg.inv(torch.linalg.cholesky(noise))
    signal, vectors = torch.linalg.eigh(whitening @ kernel @ whitening.mT)
    return signal.clamp(min=0), vectors.mT @ whitening


def log_likelihoods(squares: Tensor, signal: Tensor, ratios: Sequence[float]) -> Tensor:
    """Return the log likelihoods of ratios of signal to noise, ``(ratios, genes)``, in such a basis.

    More than the first ratio has to gain ``LEAST_GAIN``.

    Parameters
    ----------
    squares
        Squares of changes, relative to the variance of each gene, ``(groups, genes)``.
    signal
        Variances of signals of ratio 1, ``(groups, genes)`` or ``(groups, 1)``.
    ratios
        Variances of signals to choose from.
    """
    found = []
    for number, ratio in enumerate(ratios):
        total = ratio * signal + 1
        found.append(-((squares / total).sum(0) + total.log().sum(0)) / 2 - LEAST_GAIN * (number > 0))
    return torch.stack(found)


class Changes(NamedTuple):
    """Mean changes of genes, and the variances of their errors, ``(..., genes)``; NaN: not known."""

    mean: Tensor
    variance: Tensor


class GeneChanges(nn.Module):
    r"""Gaussian process of mean changes of genes, over groups of cells.

    In group :math:`g`, the mean log-normalised expression of gene :math:`i` changes by :math:`d_{gi}`, with

    .. math::

        d_i \sim \mathcal N\bigl(0,\, \sigma_i^2 (r_i K + N)\bigr), \qquad
        N_{gh} = \frac{[g = h]}{n_g} + \frac{[g, h\text{ have the same control cells}]}{m_g},

    the variance :math:`\sigma_i^2` of the gene within groups, the numbers of perturbed and control cells :math:`n_g`
    and :math:`m_g`, and the similarity :math:`K` of perturbations times that of control cells. The most probable
    :math:`r_i` and :math:`K` are taken. The posterior variance is scaled to the errors in groups that were left out.

    Parameters
    ----------
    n_groups, n_genes
        Number of groups to learn from, and of genes.
    n_patterns
        Number of sets of groups in which genes were measured.
    """

    def __init__(self, n_groups: int, n_genes: int, n_patterns: int = 1) -> None:
        super().__init__()
        self.register_buffer("groups", torch.zeros(n_groups, dtype=torch.long))  # their numbers in the expected shift
        self.register_buffer("kernel", torch.ones(4))  # see `ExpectedShift.kernel`
        self.register_buffer("misfit", torch.zeros(()))  # of control cells, see `SCLDMModule.draw_and_judge`
        self.register_buffer("pattern", torch.zeros(n_genes, dtype=torch.long))
        self.register_buffer("ratio", torch.zeros(n_genes, dtype=torch.long))  # number of r in `RATIOS`
        self.register_buffer("variances", torch.full((n_genes,), torch.nan))  # within groups
        self.register_buffer("signal", torch.zeros(n_patterns, n_groups, dtype=torch.double))
        self.register_buffer("basis", torch.zeros(n_patterns, n_groups, n_groups, dtype=torch.double))
        self.register_buffer("weights", torch.zeros(n_groups, n_genes))
        self.register_buffer("calibration", torch.full((), torch.nan))

    @torch.no_grad()
    def fit(self, changes: Tensor, variances: Tensor, noise: Tensor, kernels: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Learn from groups.

        Parameters
        ----------
        changes
            Measured mean changes, ``(groups, genes)``; NaN where they were not measured.
        variances
            Variances of the genes within groups, ``(genes,)``.
        noise
            :math:`N`, ``(groups, groups)``.
        kernels
            Options and :math:`K` to choose from; the first of those that are equally probable.
        """
        known = changes.isfinite()
        patterns, self.pattern = known.unique(dim=1, return_inverse=True)
        d, variances = changes.nan_to_num(), variances.double().clamp(min=SMALLEST)
        self.variances.copy_(variances.where(known.any(0), torch.nan))
        some = torch.linspace(0, d.shape[1] - 1, min(d.shape[1], MOST_GENES)).long()
        chosen = max(
            ((*kernel, *_spectrum(kernel[1], noise, patterns)) for kernel in kernels),
            key=lambda found: round(float(self._likelihoods(d, variances, some, *found[2:]).amax(0).sum()), DIGITS),
        )
        self.kernel, self.signal, self.basis = chosen[0].to(self.kernel), *chosen[2:]
        every = torch.arange(d.shape[1])
        self.ratio = self._likelihoods(d, variances, every, self.signal, self.basis).argmax(0)
        total = self._ratios * self.signal[self.pattern].T + 1  # variances in the basis, where changes are independent
        explained = _from_basis(self.basis, _in_basis(self.basis, d, self.pattern) / total, self.pattern)
        precision = _from_basis(self.basis.square(), 1 / total, self.pattern)
        self.weights.copy_(self._ratios * explained)
        sampling = (noise.diagonal()[:, None] * variances).where(known, torch.nan)
        if len(d) < FEWEST_GROUPS:
            return
        errors, expected = explained / precision, (variances / precision - sampling).clamp(min=0)  # of groups left out
        weight = expected / (expected + sampling + SMALLEST).square()
        squares = ((errors.square() - sampling) * weight).nansum()
        self.calibration.copy_((squares / (expected * weight).nansum().clamp(min=SMALLEST)).clamp(min=SMALLEST))

    @property
    def _ratios(self) -> Tensor:
        return torch.tensor(RATIOS, dtype=torch.double, device=self.ratio.device)[self.ratio]

    def _likelihoods(self, d: Tensor, variances: Tensor, genes: Tensor, signal: Tensor, basis: Tensor) -> Tensor:
        """Return the log likelihood of each ratio and some genes, ``(ratios, genes)``."""
        pattern = self.pattern[genes]
        squares = _in_basis(basis, d[:, genes], pattern).square() / variances[genes]
        return log_likelihoods(squares, signal[pattern].T, RATIOS)

    def forward(self, covariance: Tensor, prior: Tensor) -> tuple[Changes, Tensor]:
        """Return what the groups tell about mean changes, and which share of their variance they explain.

        Parameters
        ----------
        covariance, prior
            :math:`K` between sets of cells and the groups, ``(sets, groups)``, and of each set itself, ``(sets,)``.
        """
        covariance, prior = covariance.double(), prior.double()[:, None]
        squares = torch.einsum("pjg,sg->spj", self.basis, covariance).square()
        ratios = torch.tensor(RATIOS, dtype=torch.double, device=prior.device)
        told = torch.stack([(squares * (r**2 / (r * self.signal + 1))).sum(2) for r in ratios], dim=2)
        before = self.variances * self._ratios * prior
        after = before - self.variances * told[:, self.pattern, self.ratio]
        changes = Changes(covariance @ self.weights.double(), self.calibration * after.clamp(min=0))
        return changes, (1 - after.nansum(1) / before.nansum(1)).nan_to_num().clamp(0, 1)


def _spectrum(kernel: Tensor, noise: Tensor, patterns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of the kernel after whitening the noise, ``(patterns, groups)``, and the basis.

    ``patterns (groups, patterns)`` are sets of groups in which genes were measured.
    """
    unmeasured = UNMEASURED * (~patterns.T).double()
    return whitened_spectrum(kernel, noise + unmeasured.diag_embed())


def _in_basis(basis: Tensor, d: Tensor, pattern: Tensor) -> Tensor:
    """Return changes ``(groups, genes)`` in the basis of the pattern of each gene."""
    return torch.einsum("pjg,gi,ip->ji", basis, d, one_hot(pattern, len(basis)).to(d))


def _from_basis(basis: Tensor, values: Tensor, pattern: Tensor) -> Tensor:
    """Return values ``(groups, genes)`` in that basis as values of the groups."""
    return torch.einsum("pjg,ji,ip->gi", basis, values, one_hot(pattern, len(basis)).to(values))


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
