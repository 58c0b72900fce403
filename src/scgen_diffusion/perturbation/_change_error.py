"""Errors of predicted mean changes of genes, learned from groups of cells that were predicted from all others."""

from __future__ import annotations

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

PSEUDO_GROUPS = 2.0  # weight of the mean over genes
FEWEST_GROUPS = 2
LARGE = 0.05  # share of genes whose changes are large
NO_SURPRISE = 2.0  # times the expected square of a departure
SMALLEST = 1e-9


class ChangeError(nn.Module):
    r"""Variance of the errors of predicted mean changes of genes.

    Each group of cells :math:`g` was predicted from all others. The :class:`ExpectedShift` says how sure it is, by its
    variance :math:`k_g`. The error :math:`e_{gi}` of the change of gene :math:`i` includes sampling noise of the
    variance :math:`v_{gi}`. For another prediction of variance :math:`k`, change :math:`\Delta_i` and sampling
    variance :math:`v_i`, the expected squared error is

    .. math::

        k \, (\tau_i + \rho \Delta_i^2) + \frac{(\Delta_i - \bar\Delta_i)^2}{2} + v_i,
        \qquad \tau_i = \frac{\sum_g (e_{gi}^2 - v_{gi})}{\sum_g k_g}

    - Each :math:`\tau_i` is shrunk towards the mean over genes.
    - :math:`\rho` is the relative squared error of large changes: a gene that changes much has a larger error.
    - :math:`\bar\Delta_i` is a second prediction, which the decoder has no part in: the weighted mean of the changes of
      the groups. The decoder has seen the perturbed cells of all groups, but none of a new one, so the errors of the
      groups are too small. The variance of the two predictions makes up for it.

    How far a true change may depart from the second prediction is learned from the groups as well, see :meth:`share`.

    Parameters
    ----------
    n_groups, n_genes
        Number of groups and genes.
    """

    def __init__(self, n_groups: int, n_genes: int) -> None:
        super().__init__()
        self.register_buffer("per_gene", torch.zeros(n_genes))
        self.register_buffer("relative", torch.zeros(()))
        self.register_buffer("groups", torch.zeros(n_groups, dtype=torch.long))  # numbers of the groups
        self.register_buffer("changes", torch.zeros(n_groups, n_genes))
        self.register_buffer("departure", torch.full((2,), torch.inf))  # of all genes, squared, by variance of a shift
        self.register_buffer("misfit", torch.zeros(()))  # of control cells, see `SCLDMModule.misfit`

    @torch.no_grad()
    def fit(self, groups: Tensor, errors: Tensor, changes: Tensor, noise: Tensor, variances: Tensor) -> None:
        """Learn from groups that were predicted from all others.

        Parameters
        ----------
        groups
            Their numbers, ``(groups,)``.
        errors
            Observed minus predicted mean change of each gene, ``(groups, genes)``; NaN where it was not measured. Of a
            gene that no group has, nothing is known.
        changes
            Observed mean changes, ``(groups, genes)``.
        noise
            Sampling variance of both, ``(groups, genes)``.
        variances
            Variance of the expected shift of each group, ``(groups,)``.
        """
        known, variances = errors.isfinite() & noise.isfinite(), variances.double()
        errors, changes, noise = (torch.where(known, values, 0).double() for values in (errors, changes, noise))
        self.groups.copy_(groups)
        self.changes.copy_(changes)
        n, excess = known.sum(0), errors.square() - noise
        per_gene = excess.sum(0) / (known * variances[:, None]).sum(0).clamp(min=SMALLEST)
        per_gene = per_gene.where(n > 0, torch.nan)
        shrunk = (n * per_gene + PSEUDO_GROUPS * per_gene.nanmean()) / (n + PSEUDO_GROUPS)
        self.per_gene.copy_(shrunk.clamp(min=0))
        n_large = max(round(LARGE * int((n > 0).sum())), 1)
        large = changes.abs().topk(n_large, dim=1).indices
        squares = (changes.square() - noise).gather(1, large) * variances[:, None]
        self.relative.copy_((excess.gather(1, large).sum() / squares.sum().clamp(min=SMALLEST)).clamp(min=0))

    @torch.no_grad()
    def fit_departure(
        self, departures: Tensor, variances: Tensor, sampling: Tensor, noise: Tensor, of_shifts: Tensor
    ) -> None:
        r"""Learn how far changes depart from what other groups suggest, :math:`\rho` and :math:`c` of :meth:`share`.

        Parameters
        ----------
        departures, variances, sampling
            What :meth:`ExpectedShift.departures` returns.
        noise
            As in :meth:`fit`.
        of_shifts
            Sampling variance of the shift of each group, ``(groups,)``, from all its cells, while ``noise`` is of some:
            :math:`c` is their ratio on average.
        """
        if len(departures) < FEWEST_GROUPS:
            return
        scale = noise.nansum() / of_shifts.sum().clamp(min=SMALLEST)
        excess = departures.square().sum() - scale * sampling.sum()
        of_groups = excess.clamp(min=0) / (variances - sampling).sum().clamp(min=SMALLEST)
        self.departure.copy_(torch.stack([of_groups, scale]))

    @property
    def are_known(self) -> Tensor:
        """Which genes any group has, ``(genes,)``."""
        return self.per_gene.isfinite()

    def share(self, variance: float, sampling: float, departure: Tensor) -> float:
        r"""Return which share of a departure from the second prediction to believe, from 0 to 1.

        In squares added over genes, the second prediction misses :math:`\rho k + c v` on average, as groups predicted
        from all others tell, and a departure of twice as much is no surprise. A prediction :math:`\Delta` that departs
        farther, for cells that training never had, has an error of its own. The decoder's share is then
        :math:`2 (\rho k + c v) / \lVert\Delta - \bar\Delta\rVert^2`.

        Parameters
        ----------
        variance, sampling
            Variance :math:`k` of the expected shift without its part :math:`v` from sampling, and that part.
        departure
            :math:`\Delta - \bar\Delta`, ``(genes,)``.
        """
        if not self.departure.isfinite().all():
            return 1.0
        of_groups, scale = self.departure.tolist()
        allowed = NO_SURPRISE * (of_groups * variance + scale * sampling)
        return min(allowed / max(float(departure.square().sum()), SMALLEST), 1.0)

    def half_width(self, variance: float, change: Tensor, departure: Tensor, noise: Tensor, coverage: float) -> Tensor:
        """Return half the width of intervals of mean changes, ``(genes,)``.

        NaN if too few groups were predicted, and of genes that none of them has.

        Parameters
        ----------
        variance
            Variance of the expected shift.
        change
            Predicted change, ``(genes,)``.
        departure
            What perturbation flow and decoder alone predict, minus the second prediction, ``(genes,)``.
        noise
            Sampling variance of predicted and observed means together, ``(genes,)``.
        coverage
            Share of intervals that should hold what is observed.
        """
        n_groups = len(self.groups)
        if n_groups < FEWEST_GROUPS:
            return torch.full_like(change, torch.nan)
        per_gene, relative = self.per_gene.double().cpu(), float(self.relative)
        squares = variance * (per_gene + relative * change.square()) + departure.square() / 2 + noise
        return float(stdtrit(n_groups + PSEUDO_GROUPS - 1, (1 + coverage) / 2)) * squares.sqrt()
