"""What the decoder's numbers mean: distributions of expression given the latent."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class Likelihood(Protocol):
    """Maps the decoder's outputs to a distribution of each gene's value.

    ``outputs`` is ``(cells, genes, n_outputs)``, ``library_size`` is ``(cells, 1)``.
    """

    n_outputs: int

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the expected values, ``(cells, genes)``."""
        ...

    def log_likelihood(self, target: Tensor, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the log-likelihood of each cell, summed over genes, ``(cells,)``."""
        ...

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one cell from its row of :meth:`parameters`, ``(genes,)``."""
        ...

    def parameters_per_cell(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return what :meth:`sample` needs, one row per cell."""
        ...


class NegativeBinomialLikelihood(nn.Module):
    r"""Counts with mean :math:`\mu_g = l\,\operatorname{softmax}(\ell)_g` and variance :math:`\mu_g + \mu_g^2 / \theta_g`.

    Parameters
    ----------
    n_genes
        Size of the panel.
    per_cell
        Whether each cell and gene has its own dispersion, :math:`\log\theta` being the decoder's second output. Otherwise
        it is a parameter of the gene.
    initial_log_theta
        Where the dispersions of genes start. Published: 1.
    """

    def __init__(self, n_genes: int, *, per_cell: bool = False, initial_log_theta: float = 2.0) -> None:
        super().__init__()
        self.n_outputs = 2 if per_cell else 1
        self.log_theta = None if per_cell else nn.Parameter(torch.full((n_genes,), initial_log_theta))

    def log_mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the logarithm of the mean, ``(cells, genes)``."""
        return outputs[..., 0].float().log_softmax(1) + library_size.log()

    def log_dispersion(self, outputs: Tensor) -> Tensor:
        """Return the logarithm of ``theta``, broadcastable to ``(cells, genes)``."""
        return outputs[..., 1].float() if self.log_theta is None else self.log_theta

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return ``mu``, ``(cells, genes)``."""
        return self.log_mean(outputs, library_size).exp()

    def log_likelihood(self, target: Tensor, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return each cell's log-likelihood of counts ``(cells, genes)``."""
        return negative_binomial_log_likelihood(
            target, self.log_mean(outputs, library_size), self.log_dispersion(outputs)
        )

    def parameters_per_cell(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return ``mu`` and ``theta``, ``(cells, 2, genes)``."""
        mu = self.mean(outputs, library_size)
        return torch.stack([mu, self.log_dispersion(outputs).exp().expand_as(mu)], dim=1)

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts ``(genes,)`` as a Poisson variable with a Gamma-distributed rate."""
        mu, theta = parameters.double()  # a Gamma draw of a small shape underflows in single precision
        rate = torch._standard_gamma(theta, generator=generator) * (mu / theta)
        return torch.poisson(rate, generator=generator).float()


class GaussianLikelihood(nn.Module):
    """Log-normalised values with unit variance, so that the loss is the squared error (published alternative head)."""

    n_outputs = 1

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:  # noqa: ARG002 (log-normalised values have none)
        """Return the expected log-normalised values, ``(cells, genes)``."""
        return outputs[..., 0].float()

    def log_likelihood(self, target: Tensor, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return each cell's negative squared error against log-normalised values ``(cells, genes)``."""
        return -(target - self.mean(outputs, library_size)).square().sum(1)

    def parameters_per_cell(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the means, ``(cells, genes)``."""
        return self.mean(outputs, library_size)

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 (noise would hide zeros)
        """Return the mean itself, as published: the head has no noise of its own."""
        return parameters


def negative_binomial_log_likelihood(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    r"""Compute the log-likelihood of counts, summed over genes.

    .. math:: \log\Gamma(x + \theta) - \log\Gamma(\theta) - \log x! + x (\log\mu - \log\theta) - (x + \theta)
        \log(1 + \mu / \theta)

    Everything but the last term vanishes at ``x = 0``, so on a CPU it is computed for non-zero counts only.

    Parameters
    ----------
    counts
        ``(cells, genes)``.
    log_mean
        Logarithm of the mean, ``(cells, genes)``.
    log_theta
        Logarithm of the inverse dispersion, ``(genes,)`` or ``(cells, genes)``.

    Returns
    -------
    Tensor
        ``(cells,)``.
    """
    theta = log_theta.exp()
    log_excess = softplus(log_mean - log_theta)
    at_zero = -(theta * log_excess).sum(1)
    if counts.is_cuda:  # finding the non-zero counts would make the GPU wait
        return at_zero + _above_zero(counts, theta, log_mean - log_theta - log_excess).sum(1)
    cells, genes = counts.nonzero(as_tuple=True)
    above = _above_zero(
        counts[cells, genes],
        theta.expand_as(counts)[cells, genes],
        (log_mean - log_theta - log_excess)[cells, genes],
    )
    return at_zero.index_add(0, cells, above)


def _above_zero(counts: Tensor, theta: Tensor, log_success: Tensor) -> Tensor:
    return (counts + theta).lgamma() - theta.lgamma() - (counts + 1).lgamma() + counts * log_success
