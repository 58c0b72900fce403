"""Likelihoods: distributions of expression given the latent, and the joint one of all modalities of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from scgen_diffusion.diffusion import check_finite, counterfactual_counts, draw_negative_binomial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scgen_diffusion.diffusion import Generators

LARGEST_LOG_THETA = 10.0
N_TABULATED = 16  # most counts are smaller; their log-Gammas are short sums
LARGE_THETA = 1e3  # above it a short series is more accurate than lgamma and digamma
N_NEWTON_STEPS = 8
SMALLEST_RATE = 1e-12  # below it log(1 - exp(-rate)) would be infinite in single precision
RARER_AT_LARGE_MEANS = 2.0  # power of the mean with which outliers become rarer


class NegativeBinomialLikelihood(nn.Module):
    r"""Counts with mean :math:`\mu_g = l\,\mathrm{softmax}(\ell)_g` and variance :math:`\mu_g + \mu_g^2 / \theta_g`.

    With outliers, a learned factor on the library size :math:`l` leaves room for their counts.

    Parameters
    ----------
    n_genes
        Size of the panel.
    per_cell
        True: each cell and gene has its own :math:`\log\theta`, the decoder's second output. False: it is a parameter
        of each gene.
    outliers
        Whether a rare second component explains isolated large counts, see :class:`OutlierCounts`.
    initial_log_theta
        Initial :math:`\log\theta` (published: 1).
    largest_log_theta
        Limit of :math:`|\log\theta|`. Beyond the default the distribution is practically Poisson, and likelihoods
        suffer from rounding errors.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        per_cell: bool = False,
        outliers: bool = True,
        initial_log_theta: float = 2.0,
        largest_log_theta: float = LARGEST_LOG_THETA,
    ) -> None:
        super().__init__()
        self.n_outputs = 2 if per_cell else 1
        self.log_theta = None if per_cell else nn.Parameter(torch.full((n_genes,), initial_log_theta))
        self.largest_log_theta = largest_log_theta
        self.outliers = OutlierCounts(n_genes) if outliers else None

    def outputs_at(self, mean: Tensor) -> Tensor:
        """Return the first outputs that give mean counts ``(genes,)``, finite for genes without counts."""
        return log_share(mean)

    def log_mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the logarithm of ``mu``, ``(cells, genes)``."""
        log_mean = outputs[..., 0].float().log_softmax(1) + library_size.log()
        return log_mean if self.outliers is None else log_mean + self.outliers.log_scale

    def log_dispersion(self, outputs: Tensor) -> Tensor:
        """Return the logarithm of ``theta``, broadcastable to ``(cells, genes)``."""
        log_theta = 0.0 if self.log_theta is None else self.log_theta
        if outputs.shape[-1] > 1:
            log_theta = log_theta + outputs[..., 1].float()
        return log_theta.clamp(-self.largest_log_theta, self.largest_log_theta)

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the expected counts, ``(cells, genes)``."""
        mu = self.log_mean(outputs, library_size).exp()
        return mu if self.outliers is None else self.outliers.mix_into(mu)

    def probability_of_zero(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the probability that a gene has no counts, ``(cells, genes)``."""
        log_mean, log_theta = self.log_mean(outputs, library_size), self.log_dispersion(outputs)
        zero = torch.exp(-log_theta.exp() * softplus(log_mean - log_theta))
        return zero if self.outliers is None else zero * (1 - self.outliers.log_odds_at(log_mean).sigmoid())

    def forward(self, target: Tensor, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return each cell's log-likelihood of counts ``(cells, genes)``."""
        log_mean, log_theta = self.log_mean(outputs, library_size), self.log_dispersion(outputs)
        return negative_binomial_log_likelihood(target, log_mean, log_theta, self.outliers)

    def parameters_per_cell(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return ``mu`` and ``theta``, ``(cells, 2, genes)``."""
        mu = self.log_mean(outputs, library_size).exp()
        return torch.stack([mu, self.log_dispersion(outputs).exp().expand_as(mu)], dim=1)

    def sample(self, parameters: Tensor, generators: Generators) -> Tensor:
        """Draw counts ``(cells, genes)``."""
        mu, theta = parameters.unbind(1)
        if self.outliers is not None:
            return self.outliers.sample(mu, theta, generators)
        return draw_negative_binomial(generators.uniform(mu.shape[1], dtype=torch.float64), mu, theta)

    def counterfactual(self, x: Tensor, before: Tensor, after: Tensor, generators: Generators) -> Tensor:
        """Draw what counts ``x (cells, genes)`` would be under other parameters; they keep their dispersions."""
        (mean, theta), new_mean = before.unbind(1), after[:, 0]
        check_finite(mean=mean, new_mean=new_mean, theta=theta)
        uniform = generators.uniform(x.shape[1], dtype=torch.float64)
        if self.outliers is None:
            return counterfactual_counts(uniform, x, mean, new_mean, theta)
        return self.outliers.counterfactual(uniform, x, mean, new_mean, theta, generators)


class OutlierCounts(nn.Module):
    r"""A rare second component for isolated large counts.

    Some data have isolated counts, often ten times higher than in any other cell and unrelated to the rest of the cell.
    A dispersion that covers them is far too wide for all other counts. This component replaces a count by
    :math:`1 + \operatorname{NB}(b, \theta_b)` with a small probability. The log odds for gene ``g`` are
    :math:`a + s\,(\log p_g - \overline{\log p}) - \log(1 + (\mu / b)^2)`, where ``p`` is the mean profile and
    :math:`\mu` the expected count: a count that is expected to be larger is not replaced by a smaller one. Five
    parameters are shared by all genes: ``a``, ``s``, ``b``, :math:`\theta_b`, and a factor on the means of the other
    counts. In data without such counts, training drives the probability to zero.

    Parameters
    ----------
    n_genes
        Size of the panel.

    Attributes
    ----------
    responsibility_weight
        Weight of the outliers' responsibilities in the gradients of the other counts' means. 1 is the gradient of the
        likelihood; with 0, means leave no count to the outliers. Dispersions do, or these counts would widen them.
    """

    log_share: Tensor
    responsibility_weight: Tensor

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(torch.tensor(-8.0))
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.log_mean = nn.Parameter(torch.tensor(15.0).log())
        self.log_theta = nn.Parameter(torch.tensor(0.0))
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("log_share", torch.zeros(n_genes))
        self.register_buffer("responsibility_weight", torch.tensor(1.0), persistent=False)

    def log_odds_at(self, log_mean: Tensor) -> Tensor:
        """Return the log odds of an outlier where the log mean of other counts is ``(cells, genes)``."""
        of_genes = self.log_odds + self.slope * (self.log_share - self.log_share.mean())
        return of_genes - softplus(RARER_AT_LARGE_MEANS * (log_mean - self.log_mean))

    def _log_dispersion(self) -> Tensor:
        return self.log_theta.clamp(-LARGEST_LOG_THETA, LARGEST_LOG_THETA)

    def log_probability(self, counts: Tensor) -> Tensor:
        """Return the log probability of outlier counts, each at least 1."""
        return negative_binomial_log_probability(counts - 1, self.log_mean, self._log_dispersion())

    def probability_given(self, counts: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
        """Return the probability that counts ``(cells, genes)`` are outliers, given them."""
        entries, log_mean = Entries.of_matrix(counts), mu.log()
        by_others = negative_binomial_log_probability(entries.x, entries.of(log_mean), entries.of(theta).log())
        by_outlier = entries.of(self.log_odds_at(log_mean)) + entries.of_counts(self.log_probability)
        return entries.put((by_outlier - by_others).sigmoid(), torch.zeros_like(counts))

    def mix_into(self, mu: Tensor) -> Tensor:
        """Return the mean of the mixture for means ``mu (cells, genes)`` of the main component."""
        probability = self.log_odds_at(mu.log()).sigmoid()
        return (1 - probability) * mu + probability * (1 + self.log_mean.exp())

    def sample(self, mu: Tensor, theta: Tensor, generators: Generators) -> Tensor:
        """Draw counts ``(cells, genes)`` of the mixture; ``mu`` and ``theta`` belong to the main component."""
        is_outlier = generators.uniform(mu.shape[1]) < self.log_odds_at(mu.log()).sigmoid()
        mu = torch.where(is_outlier, self.log_mean.exp(), mu)
        theta = torch.where(is_outlier, self._log_dispersion().exp(), theta)
        uniform = generators.uniform(mu.shape[1], dtype=torch.float64)
        return draw_negative_binomial(uniform, mu, theta) + is_outlier

    def counterfactual(
        self, uniform: Tensor, x: Tensor, mean: Tensor, new_mean: Tensor, theta: Tensor, generators: Generators
    ) -> Tensor:
        """Draw what counts ``x (cells, genes)`` of the mixture would be under new means of the main component.

        An outlier says nothing about the count that it replaced. It stays unless outliers are rarer at the new mean;
        then the other count is drawn. Where outliers are more frequent, some appear. If ``x`` follows the mixture of
        the old means, the result follows that of the new ones.
        """
        probability, new_probability = (self.log_odds_at(mu.log()).sigmoid() for mu in (mean, new_mean))
        given, level = self.probability_given(x, mean, theta), generators.uniform(x.shape[1])
        was_outlier = level < given
        stays = was_outlier & (level * probability <= given * new_probability)
        appears = (1 - level) * (1 - probability) < (1 - given) * (new_probability - probability)
        counts, mean = (torch.where(was_outlier | appears, 0, values) for values in (x, mean))
        new_mean = torch.where(appears, self.log_mean.exp(), new_mean)
        theta = torch.where(appears, self._log_dispersion().exp(), theta)
        return torch.where(stays, x, counterfactual_counts(uniform, counts, mean, new_mean, theta) + appears)


class GaussianLikelihood(nn.Module):
    """Log-normalised values with variance 1/2, so that the loss is the squared error (published alternative head)."""

    n_outputs = 1

    def outputs_at(self, mean: Tensor) -> Tensor:
        """Return the outputs that give mean values ``(genes,)``: these."""
        return mean

    def mean(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the expected log-normalised values, ``(cells, genes)``, which are never negative."""
        return outputs[..., 0].float().clamp(min=0)

    def forward(self, target: Tensor, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return each cell's negative squared error against log-normalised values ``(cells, genes)``."""
        return -(target - outputs[..., 0].float()).square().sum(1)

    def parameters_per_cell(self, outputs: Tensor, library_size: Tensor) -> Tensor:
        """Return the means, ``(cells, genes)``."""
        return self.mean(outputs, library_size)

    def sample(self, parameters: Tensor, generators: Generators) -> Tensor:
        """Return the mean itself, as published: this head has no noise."""
        return parameters

    def counterfactual(self, x: Tensor, before: Tensor, after: Tensor, generators: Generators) -> Tensor:
        """Shift log-normalised values ``x (cells, genes)`` as their means change, to 0 at least."""
        return (x + after - before).clamp(min=0)


class BernoulliLikelihood(nn.Module):
    r"""Zeros and ones: whether a Poisson count of rate :math:`\lambda\,\operatorname{softmax}(\ell)_g` is above zero.

    So :math:`p_g = 1 - \exp(-\lambda\,\operatorname{softmax}(\ell)_g)`. The cell's rate :math:`\lambda` is chosen such
    that the expected number of ones is the library size. Cells with deeper sequencing have more ones, and features of
    high probability saturate.
    """

    n_outputs = 1

    def outputs_at(self, mean: Tensor) -> Tensor:
        """Return the outputs that give shares of ones ``(features,)``, by Poisson rates with these probabilities."""
        return log_share(-torch.log1p(-mean.clamp(max=0.999)))

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
        check_finite(probability=probability)
        return (generators.uniform(probability.shape[1]) < probability).float()

    def counterfactual(self, x: Tensor, before: Tensor, after: Tensor, generators: Generators) -> Tensor:
        """Draw what zeros and ones ``x (cells, features)`` are under other probabilities; change as few as possible."""
        p, new_p = before[:, 0], after[:, 0]
        check_finite(p=p, new_p=new_p)
        gained = (new_p - p) / (1 - p).clamp(min=SMALLEST_RATE)
        return (generators.uniform(x.shape[1]) < torch.where(x > 0, new_p / p, gained)).float()


def log_share(mean: Tensor) -> Tensor:
    """Return the log of each gene's share of mean counts ``(genes,)``; finite for genes without counts."""
    share = mean / mean.sum()
    return (share + 0.1 / len(share) * share.mean()).log()


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


Likelihood: TypeAlias = NegativeBinomialLikelihood | GaussianLikelihood | BernoulliLikelihood
"""Maps a decoder's outputs ``(cells, genes, n_outputs)`` and totals ``(cells, 1)`` to a distribution of expression."""


class MultimodalLikelihood(nn.Module):
    """The likelihoods of a cell's modalities, independent given its latent.

    Outputs are one tensor per modality. Values, means and targets are concatenated, ``(cells, features of all)``.
    Library sizes are ``(cells, modalities)``.
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

    def parameters_per_cell(self, outputs: Sequence[Tensor], library_size: Tensor) -> list[Tensor]:
        """Return what :meth:`sample` needs of each modality."""
        return [part.parameters_per_cell(o, size) for part, o, size in self._each(outputs, library_size)]

    def sample(self, parameters: Sequence[Tensor], generators: Generators) -> Tensor:
        """Draw cells ``(cells, features of all)`` from the parameters of each modality."""
        drawn = [part.sample(own, generators) for part, own in zip(self.parts, parameters, strict=True)]
        generators.uniform(len(drawn))  # keeps later draws as they were
        return torch.cat(drawn, dim=1)

    def counterfactual(
        self, x: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], generators: Generators
    ) -> Tensor:
        """Draw what cells ``x (cells, features of all)`` would be under other parameters.

        Modalities that a cell lacks are drawn: they had no counts, and means of nearly zero.
        """
        drawn = []
        for part, values, old, new in zip(self.parts, x.split(self.n_features, dim=1), before, after, strict=True):
            none = torch.cat([torch.full_like(new[:, :1], SMALLEST_RATE), new[:, 1:]], dim=1)
            old = torch.where(has_counts(values)[:, None, None], old, none)
            drawn.append(part.counterfactual(values, old, new, generators))
        return torch.cat(drawn, dim=1)

    def _each(self, outputs: Sequence[Tensor], library_size: Tensor) -> zip[tuple[Likelihood, Tensor, Tensor]]:
        return zip(self.parts, outputs, library_size.split(1, dim=1), strict=True)


def has_counts(values: Tensor) -> Tensor:
    """Return which cells have any count in a modality's values ``(cells, features)``, ``(cells,)``."""
    return (values > 0).any(1)


# --- the log-likelihood of negative binomial counts, with an explicit gradient ----------------------------------------


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
    """Subtract Stirling's series term by term if ``theta`` is large, as a difference of sums loses float32's digits."""
    rise, slope = (x + theta).lgamma() - theta.lgamma(), (x + theta).digamma() - theta.digamma()
    log_ratio, inverse = torch.log1p(x / theta), 1 / (x + theta)
    drop = x * inverse / theta  # of 1 / theta, on the way to 1 / (x + theta)
    rise_of_large = (x + theta - 0.5) * log_ratio + x * (theta.log() - 1) - drop / 12
    slope_of_large = log_ratio + drop / 2 + drop * (inverse + 1 / theta) / 12
    is_large = theta > LARGE_THETA
    return torch.where(is_large, rise_of_large, rise), torch.where(is_large, slope_of_large, slope)


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
