"""Statistics of the training cells from which a gene-space model is initialised."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@dataclass(frozen=True)
class ProfileSummary:
    """Frequency and level of expression of each gene.

    Parameters
    ----------
    frequency
        Share of cells that express the gene, ``(genes,)``.
    expressed_mean, expressed_std
        Mean and standard deviation of its value in these cells, ``(genes,)``; for genes without such cells, the mean
        over all genes and 0.
    smallest, largest
        Extremes of all values above zero.
    fewest_zeros
        Smallest share of zeros of a cell.
    """

    frequency: Tensor
    expressed_mean: Tensor
    expressed_std: Tensor
    smallest: Tensor
    largest: Tensor
    fewest_zeros: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> ProfileSummary:
        """Summarise batches of profiles ``(cells, genes)``, read once."""
        n_cells, sums = 0, torch.zeros(1)
        smallest, largest, fewest_zeros = torch.tensor(torch.inf), torch.tensor(0.0), torch.tensor(1.0)
        for profile in batches:
            x = profile.cpu().double()
            sums = sums + torch.stack([(x > 0).sum(0), x.sum(0), x.square().sum(0)])
            n_cells += len(x)
            smallest = torch.minimum(smallest, x.where(x > 0, torch.inf).min())
            largest = torch.maximum(largest, x.max())
            fewest_zeros = torch.minimum(fewest_zeros, (x == 0).double().mean(1).min())
        n_expressed, total, squares = sums
        mean = (total / n_expressed).where(n_expressed > 0, total.sum() / n_expressed.sum())
        variance = (squares / n_expressed - mean.square()).where(n_expressed > 0, 0.0)
        parts = (n_expressed / n_cells, mean, variance.clamp(min=0).sqrt(), smallest, largest, fewest_zeros)
        return cls(*(part.float() for part in parts))

    def to(self, device: torch.device | str) -> ProfileSummary:
        """Return the same on another device."""
        return ProfileSummary(*(getattr(self, field.name).to(device) for field in fields(self)))

    def moments(self, zero: float) -> tuple[Tensor, Tensor]:
        """Return each gene's mean and standard deviation over all cells, with zeros replaced by ``zero``."""
        p, distance = self.frequency, self.expressed_mean - zero
        variance = p * self.expressed_std.square() + p * (1 - p) * distance.square()
        return zero + p * distance, variance.sqrt()
