"""Likelihoods of other modalities than RNA, and the joint likelihood of all modalities of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from scgen_diffusion.diffusion import finite_mask, keep_where

from ._likelihoods import Likelihood, NegativeBinomialLikelihood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.diffusion import Generators

N_NEWTON_STEPS = 8
SMALLEST_RATE = 1e-12  # below it log(1 - exp(-rate)) would be infinite in single precision


class ModalityPanel(NamedTuple):
    """Number of features and likelihood of a modality.

    Attributes
    ----------
    n_features
        Number of features.
    likelihood
        ``"negative_binomial"`` or ``"bernoulli"``.
    """

    n_features: int
    likelihood: str


class BernoulliLikelihood(nn.Module):
    r"""Zeros and ones: whether a Poisson count of rate :math:`\lambda\,\operatorname{softmax}(\ell)_g` is above zero.

    So :math:`p_g = 1 - \exp(-\lambda\,\operatorname{softmax}(\ell)_g)`. The cell's rate :math:`\lambda` is chosen such
    that the expected number of ones is the library size. Cells with deeper sequencing have more ones, and features of
    high probability saturate.
    """

    n_outputs = 1

    def rates(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the Poisson rates, ``(cells, features)``."""
        share = outputs[..., 0].float().softmax(1)
        return (share * total_rate(share, library_size)).clamp(min=SMALLEST_RATE)

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the probabilities of a one, ``(cells, features)``."""
        return -torch.expm1(-self.rates(outputs, library_size))

    def forward(self, target: Tensor, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return each cell's log-likelihood of zeros and ones ``(cells, features)``."""
        rates = self.rates(outputs, library_size)
        return torch.where(target > 0, (-torch.expm1(-rates)).log(), -rates).sum(1)

    def parameters_per_cell(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the probabilities, ``(cells, 1, features)``."""
        return self.mean(outputs, library_size)[:, None]

    def sample(self, parameters: Tensor, generators: Generators) -> Tensor:
        """Draw zeros and ones ``(cells, features)``."""
        probability = parameters[:, 0]
        drawn = (generators.uniform(probability.shape[1]) < probability).float()
        return keep_where(finite_mask(probability=probability), drawn, torch.nan)

    def counterfactual(self, x: Tensor, before: Tensor, after: Tensor, generators: Generators) -> Tensor:
        """Draw what zeros and ones ``x (cells, features)`` are under other probabilities; change as few as possible."""
        p, new_p = before[:, 0], after[:, 0]
        gained = (new_p - p) / (1 - p).clamp(min=SMALLEST_RATE)
        drawn = (generators.uniform(x.shape[1]) < torch.where(x > 0, new_p / p, gained)).float()
        return keep_where(finite_mask(p=p, new_p=new_p), drawn, torch.nan)


def total_rate(share: Tensor, n_ones: Tensor) -> Tensor:
    r"""Solve :math:`\sum_g 1 - \exp(-\lambda s_g) = n` for :math:`\lambda`.

    The left side is concave, so Newton steps from :math:`\lambda = n` approach the root from below. Only the last step
    is differentiated, which gives the derivative of the root.

    Parameters
    ----------
    share
        :math:`s`, ``(cells, features)``.
    n_ones
        :math:`n`, ``(cells, 1)``; limited to the number of features minus one half.

    Returns
    -------
    Tensor
        ``(cells, 1)``.
    """
    n_ones = n_ones.clamp(max=share.shape[1] - 0.5)
    rate = n_ones
    with torch.no_grad():
        for _ in range(N_NEWTON_STEPS):
            rate = rate + _shortfall(share, rate, n_ones) / _slope(share, rate)
        slope = _slope(share, rate)
    return rate + _shortfall(share, rate, n_ones) / slope


def _shortfall(share: Tensor, rate: Tensor, n_ones: Tensor) -> Tensor:
    return n_ones + torch.expm1(-rate * share).sum(1, keepdim=True)


def _slope(share: Tensor, rate: Tensor) -> Tensor:
    return (share * (-rate * share).exp()).sum(1, keepdim=True).clamp(min=SMALLEST_RATE)


class MultimodalLikelihood(nn.Module):
    """The likelihoods of a cell's modalities, independent given its latent.

    Outputs are one tensor per modality. Values, means and targets are concatenated, ``(cells, features of all)``.
    Library sizes are ``(cells, modalities)``.

    Parameters
    ----------
    parts
        Likelihood of each modality.
    n_features
        Number of features of each modality.
    """

    def __init__(self, parts: Sequence[Likelihood], n_features: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.n_features = list(n_features)

    def mean(self, outputs: Sequence[Tensor], library_size: Tensor) -> Tensor:
        """Return the expected values, ``(cells, features of all)``."""
        return torch.cat([part.mean(o, size) for part, o, size in self._each(outputs, library_size)], dim=1)

    def forward(self, target: Tensor, outputs: Sequence[Tensor], library_size: Tensor) -> Tensor:
        """Return each cell's log-likelihood, summed over its modalities, ``(cells,)``."""
        total = torch.zeros(len(target), device=target.device)
        targets = target.split(self.n_features, dim=1)
        for values, (part, output, size) in zip(targets, self._each(outputs, library_size), strict=True):
            total = total + torch.where(has_counts(values), part(values, output, size), 0)
        return total

    def parameters_per_cell(self, outputs: Sequence[Tensor], library_size: Tensor) -> Tensor:
        """Return what :meth:`sample` needs, one row per cell."""
        parameters = [
            part.parameters_per_cell(o, size).flatten(1) for part, o, size in self._each(outputs, library_size)
        ]
        return torch.cat(parameters, dim=1)

    def sample(self, parameters: Tensor, generators: Generators) -> Tensor:
        """Draw cells ``(cells, features of all)`` from their rows of parameters."""
        blocks = self._by_modality(parameters)
        drawn = [part.sample(block, generators) for part, block in zip(self.parts, blocks, strict=True)]
        generators.uniform(len(drawn))  # keeps later draws as they were
        return torch.cat(drawn, dim=1)

    def counterfactual(self, x: Tensor, before: Tensor, after: Tensor, generators: Generators) -> Tensor:
        """Draw what cells ``x (cells, features of all)`` would be under other parameters.

        Modalities that a cell lacks are drawn: they had no counts, and means of nearly zero.
        """
        drawn = []
        blocks = x.split(self.n_features, dim=1), self._by_modality(before), self._by_modality(after)
        for part, values, old, new in zip(self.parts, *blocks, strict=True):
            none = torch.cat([torch.full_like(new[:, :1], SMALLEST_RATE), new[:, 1:]], dim=1)
            old = torch.where(has_counts(values)[:, None, None], old, none)
            drawn.append(part.counterfactual(values, old, new, generators))
        return torch.cat(drawn, dim=1)

    def _by_modality(self, parameters: Tensor) -> list[Tensor]:
        """Split rows of parameters into those of each modality, ``(cells, parameters per feature, features)``."""
        rows = [2 if isinstance(part, NegativeBinomialLikelihood) else 1 for part in self.parts]
        blocks = parameters.split([n * k for n, k in zip(self.n_features, rows, strict=True)], dim=1)
        return [block.unflatten(1, (k, n)) for block, k, n in zip(blocks, rows, self.n_features, strict=True)]

    def _each(self, outputs: Sequence[Tensor], library_size: Tensor) -> zip[tuple[Likelihood, Tensor, Tensor]]:
        return zip(self.parts, outputs, library_size.split(1, dim=1), strict=True)


def has_counts(values: Tensor) -> Tensor:
    """Return which cells have any count in a modality's values ``(cells, features)``, ``(cells,)``."""
    return (values > 0).any(1)
