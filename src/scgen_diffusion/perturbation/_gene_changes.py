"""Gaussian process of the mean changes of genes that perturbations cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ._groups import log_likelihoods, whitened_spectrum

if TYPE_CHECKING:
    from collections.abc import Iterable

RATIOS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # variance of effects, relative to that of cells
MOST_GENES = 2000  # that choose the kernel
DIGITS = 3  # of log likelihoods: kernels that the groups do not tell apart are equally probable
UNMEASURED = 1e9  # sampling variance, relative to that of one cell
FEWEST_GROUPS = 2  # of which others can be left out
SMALLEST = 1e-8


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
        self.register_buffer("misfit", torch.zeros(()))  # of control cells, see `SCLDMModule.misfit`
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
