"""Total counts of generated cells in each modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._library_size import LibrarySizeModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.nn import ConditionSpec

    from ._library_size import LibrarySizeKind


class MultimodalLibrarySize(nn.Module):
    """One :class:`LibrarySizeModel` per modality. Totals are ``(cells, modalities)``, NaN for what a cell lacks.

    ``"latent"`` predicts a modality's total from the latent *and* the totals of the modalities before it, because a
    cell that lost half of its content lost it in all modalities. The other distributions draw the totals independently.

    Parameters
    ----------
    n_modalities
        Number of modalities.
    conditions
        Kind of each condition key.
    n_latent
        Number of latent dimensions over all tokens.
    """

    def __init__(self, n_modalities: int, conditions: Sequence[ConditionSpec], n_latent: int) -> None:
        super().__init__()
        self.shape = (n_modalities,)
        self.parts = nn.ModuleList(LibrarySizeModel(conditions, n_latent + before) for before in range(n_modalities))

    @property
    def is_fitted(self) -> bool:
        """Whether there are groups to draw from."""
        return all(part.is_fitted for part in self.parts)

    @property
    def can_predict(self) -> bool:
        """Whether :meth:`predict` is trained: :meth:`fit_predicted` has replaced what :meth:`fit` sets."""
        return not any(torch.equal(part.predicted_quantiles, part.quantiles) for part in self.parts)

    def fit(self, log_totals: Tensor, condition: Tensor) -> None:
        """Summarise log totals ``(cells, modalities)`` by the groups of conditions ``(cells, columns)``."""
        for part, totals in zip(self.parts, log_totals.unbind(1), strict=True):
            part.fit(totals[~totals.isnan()], condition[~totals.isnan()])

    def fit_predicted(self, drawn: Tensor, condition: Tensor, n_draws: int = 1) -> None:
        """Summarise log totals ``(cells * n_draws, modalities)`` drawn from :meth:`predict` for the training cells."""
        for part, totals in zip(self.parts, drawn.unbind(1), strict=True):
            part.fit_predicted(totals[~totals.isnan()], condition[~totals.isnan()], n_draws)

    def draw(
        self,
        kind: LibrarySizeKind,
        condition: Tensor,
        z: Tensor,
        uniform: Tensor,
        given: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Draw totals ``(n, modalities)`` from ``uniform (n, modalities)``; see :meth:`LibrarySizeModel.draw`.

        Totals that are ``given (n, modalities)`` stay, except NaN, and those of later modalities follow them.
        """
        conditions = [condition] if start is None else [condition, start]
        totals = uniform.new_zeros(len(conditions), len(z), 0)  # of the cells, and of their starts, which levels need
        for number, (part, level) in enumerate(zip(self.parts, uniform.unbind(1), strict=True)):
            features = self._features(z, totals[-1].clamp(min=1).log())
            total = torch.stack([part.draw(kind, own, features, level, start) for own in conditions])
            if given is not None:
                expected = torch.stack([part.expected(own) for own in conditions])
                wanted = given[:, number] * (expected - expected[0]).exp()  # as far from what its start expects
                total = torch.where(wanted.isnan(), total, wanted)
            totals = torch.cat([totals, total[..., None]], dim=2)
        return totals[0]

    def predict(self, z: Tensor, log_totals: Tensor) -> tuple[Tensor, Tensor]:
        """Predict mean and deviation of each log total from latents and earlier totals, ``(n, modalities)``."""
        before = [self._features(z, log_totals[:, :number]) for number in range(len(self.parts))]
        means, stds = zip(*(part.predict(known) for part, known in zip(self.parts, before, strict=True)), strict=True)
        return torch.stack(means, dim=1), torch.stack(stds, dim=1)

    def loss(self, z: Tensor, log_totals: Tensor) -> Tensor:
        """Return the negative log-likelihood of the log totals that are not NaN, ``(n,)``."""
        losses = [
            torch.where(totals.isnan(), 0, part.loss(self._features(z, log_totals[:, :number]), totals.nan_to_num()))
            for number, (part, totals) in enumerate(zip(self.parts, log_totals.unbind(1), strict=True))
        ]
        return torch.stack(losses).sum(0)

    def limits(self) -> Tensor:
        """Return the least and the largest total of all training cells in each modality, ``(modalities, 2)``."""
        return torch.cat([part.limits() for part in self.parts])

    def typical(self) -> Tensor:
        """Return the typical total of each modality, ``(modalities,)``."""
        return torch.stack([part.means[0] for part in self.parts]).exp()

    def _features(self, z: Tensor, log_totals: Tensor) -> Tensor:
        """Append the standardised earlier totals to the latents; missing ones count as average."""
        known = [
            part.standardise(totals).nan_to_num()
            for part, totals in zip(self.parts, log_totals.unbind(1), strict=False)
        ]
        return torch.cat([z.flatten(1), *(column[:, None] for column in known)], dim=1)
