"""Total counts of generated cells, given their conditions and what else was generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgen_diffusion.nn import ConditionEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.nn import ConditionEncoding

HEAD_WIDTH = 64
N_COMPONENTS = 5
N_HALVINGS = 30  # of the interval that holds a quantile
RAREST = 0.001  # level of the smallest and largest totals that are drawn, in place of rarer ones
FARTHEST = 6.0  # standard deviations of a component from its mean
SMALLEST_STD = 0.01  # of log totals
LOG_STDS = (-4.0, 2.0)  # of the components, in standard deviations of all cells


class LibrarySizeModel(nn.Module):
    r"""Distribution of the logarithm of a cell's total counts, a mixture of normals.

    .. math::

        p(\log l \mid c, h) = \sum_k \pi_k(c, h)\, \mathcal N\bigl(\log l;\, m_k(c, h), s_k(c, h)^2\bigr)

    A small network reads the condition :math:`c` and features :math:`h`: the latent of SCLDM, the profile of SCRDIT and
    WBDIT, none of SCMDM. So totals follow from what was generated, also under conditions that no training cell has.

    Parameters
    ----------
    conditions
        Encoding of each condition key.
    n_features
        Number of features.
    """

    shape: tuple[int, ...] = ()
    """Shape of a cell's totals; one number."""
    log_mean: Tensor
    log_std: Tensor
    extremes: Tensor

    def __init__(self, conditions: Sequence[ConditionEncoding], n_features: int) -> None:
        super().__init__()
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("log_std", torch.ones(()))
        self.register_buffer("extremes", torch.tensor([torch.inf, -torch.inf]))  # log totals of the training cells
        self.embed = ConditionEmbedding(conditions, HEAD_WIDTH + 1)  # and what a condition adds to all means
        first, last = nn.Linear(HEAD_WIDTH + n_features, HEAD_WIDTH), nn.Linear(HEAD_WIDTH, 3 * N_COMPONENTS)
        self.head = nn.Sequential(first, nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        last.bias.data[N_COMPONENTS : 2 * N_COMPONENTS] = torch.linspace(-1, 1, N_COMPONENTS)  # their means

    @property
    def is_fitted(self) -> bool:
        """Whether the totals of training cells are known."""
        return bool(self.extremes.isfinite().all())

    @property
    def is_trained(self) -> bool:
        """Whether the head has learned anything: its last layer starts at zero."""
        return bool(self.head[-1].weight.any())

    @torch.no_grad()
    def fit(self, log_totals: Tensor) -> None:
        """Take range and scale of log totals ``(cells,)``; a scale that the head has learned stays."""
        if not len(log_totals):  # no cell has this modality
            return
        if not self.is_fitted:
            self.log_mean.copy_(log_totals.mean())
            self.log_std.copy_(log_totals.std(correction=0).clamp(min=SMALLEST_STD))
        least, largest = self.extremes.to(log_totals)
        self.extremes.copy_(torch.stack([log_totals.min().minimum(least), log_totals.max().maximum(largest)]))

    def standardise(self, log_totals: Tensor) -> Tensor:
        """Return log totals in standard deviations from the mean of the first training cells."""
        return (log_totals - self.log_mean) / self.log_std

    def loss(self, condition: Tensor, features: Tensor, log_totals: Tensor) -> Tensor:
        """Return the negative log-likelihood of standardised log totals ``(n,)``.

        Conditions are ``(n, columns)``, and features ``(n, ...)``.
        """
        log_weights, means, log_stds = self._components(condition, features)
        deviations = (self.standardise(log_totals)[:, None] - means) / log_stds.exp()
        return -(log_weights - deviations.square() / 2 - log_stds).logsumexp(1)

    def draw(self, condition: Tensor, features: Tensor, uniform: Tensor, given: Tensor | None = None) -> Tensor:
        """Return totals of at least 1 at levels ``uniform (n,)`` of the distributions, by bisection, or those given."""
        if given is not None:
            return given
        log_weights, means, log_stds = self._components(condition, features)
        reach = FARTHEST * log_stds.exp()
        low, high = (means - reach).amin(1), (means + reach).amax(1)
        uniform = uniform.clamp(RAREST, 1 - RAREST)
        for _ in range(N_HALVINGS):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle[:, None] - means) / log_stds.exp())
            is_above = (log_weights.exp() * below).sum(1) >= uniform
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        log_total = self.log_mean + self.log_std * high
        return log_total.exp().round().clamp(min=1)

    def limits(self) -> Tensor:
        """Return the least and the largest total of all training cells, ``(1, 2)``."""
        return self.extremes[None].exp().round()

    def _components(self, condition: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and log deviations of the components, each ``(n, components)``."""
        shown, added = self.embed(condition).tensor_split([HEAD_WIDTH], dim=1)
        outputs = self.head(torch.cat([shown, features.flatten(1)], dim=1)).float()  # bfloat16 has too few digits
        weights, means, log_stds = outputs.chunk(3, dim=1)
        return weights.log_softmax(1), means + added, log_stds.clamp(*LOG_STDS)


class MultimodalLibrarySize(nn.Module):
    """One :class:`LibrarySizeModel` per modality. Totals are ``(cells, modalities)``, NaN for what a cell lacks.

    A modality's total follows from the latent *and* the totals of the modalities before it, because a cell that lost
    half of its content lost it in all modalities.
    """

    def __init__(self, n_modalities: int, conditions: Sequence[ConditionEncoding], n_features: int) -> None:
        super().__init__()
        self.shape = (n_modalities,)
        parts = (LibrarySizeModel(conditions, n_features + before) for before in range(n_modalities))
        self.parts = nn.ModuleList(parts)

    @property
    def is_fitted(self) -> bool:
        """Whether the totals of training cells are known."""
        return all(part.is_fitted for part in self.parts)

    @property
    def is_trained(self) -> bool:
        """Whether the heads have learned anything."""
        return any(part.is_trained for part in self.parts)

    def fit(self, log_totals: Tensor) -> None:
        """Take ranges and scales of log totals ``(cells, modalities)``."""
        for part, totals in zip(self.parts, log_totals.unbind(1), strict=True):
            part.fit(totals[~totals.isnan()])

    def loss(self, condition: Tensor, features: Tensor, log_totals: Tensor) -> Tensor:
        """Return the negative log-likelihood of the log totals that are not NaN, ``(n,)``."""
        losses = []
        for n, (part, totals) in enumerate(zip(self.parts, log_totals.unbind(1), strict=True)):
            loss = part.loss(condition, self._features(features, log_totals[:, :n]), totals.nan_to_num())
            losses.append(torch.where(totals.isnan(), 0, loss))
        return torch.stack(losses).sum(0)

    def draw(self, condition: Tensor, features: Tensor, uniform: Tensor, given: Tensor | None = None) -> Tensor:
        """Draw totals at levels ``uniform (n, modalities)``; ``given`` ones stay, except NaN, and later ones follow."""
        totals = torch.full_like(uniform, torch.nan) if given is None else given.clone()
        for n, (part, level) in enumerate(zip(self.parts, uniform.unbind(1), strict=True)):
            drawn = part.draw(condition, self._features(features, totals[:, :n].clamp(min=1).log()), level)
            totals[:, n] = torch.where(totals[:, n].isnan(), drawn, totals[:, n])
        return totals

    def limits(self) -> Tensor:
        """Return the least and the largest total of all training cells in each modality, ``(modalities, 2)``."""
        return torch.cat([part.limits() for part in self.parts])

    def typical(self) -> Tensor:
        """Return the typical total of each modality, ``(modalities,)``."""
        return torch.stack([part.log_mean for part in self.parts]).exp()

    def _features(self, features: Tensor, log_totals: Tensor) -> Tensor:
        """Append the standardised earlier totals to the latents; missing ones count as average."""
        parts: Sequence[LibrarySizeModel] = [*self.parts][: log_totals.shape[1]]
        earlier = zip(parts, log_totals.unbind(1), strict=True)
        known = [part.standardise(totals).nan_to_num()[:, None] for part, totals in earlier]
        return torch.cat([features.flatten(1), *known], dim=1)
