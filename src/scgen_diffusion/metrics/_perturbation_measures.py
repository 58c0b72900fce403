"""All figures of one prediction of one perturbation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ._distribution import wasserstein_2
from ._perturbation import correlation_of_changes, energy_distance, error_of_variances
from ._perturbation_differential import direction_of_effects, jaccard_of_effects, overlap_of_effects
from ._perturbation_effects import Effect, GeneMoments, Ranking, predicted_effect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ._expression import Expression
    from ._space import ComparisonSpace


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes
    ----------
    n_top
        Numbers of most changed genes.
    ranking
        By what genes change most.
    space
        Space of the distances; None is that of all genes.
    max_cells
        Largest number of cells of each kind in a distance.
    n_floor
        How often the real cells are split in two halves.
    seed
        Decides the draws.
    """

    n_top: tuple[int, ...]
    ranking: Ranking
    space: ComparisonSpace | None
    max_cells: int
    n_floor: int
    seed: int

    def project(self, cells: Expression) -> NDArray:
        """Return a draw of the cells in the space of the distances."""
        if len(cells) > self.max_cells:
            cells = cells[np.sort(np.random.default_rng(self.seed).permutation(len(cells))[: self.max_cells])]
        return cells.values.toarray() if self.space is None else self.space.project(cells)

    def project_change(self, change: NDArray) -> NDArray:
        """Return where a change of all cells moves them in that space; the projection is linear."""
        return change if self.space is None else self.space.pca.components_ @ change[self.space.genes]

    @cached_property
    def better(self) -> dict[str, str]:
        """Which way is better, by metric, in the order of the table."""
        tops = [f"top_{n_top}" for n_top in self.n_top]
        return {
            "energy_distance": "lower",
            "w2": "lower",
            "mean_change_error": "lower",
            "mean_change_correlation": "higher",
            **{f"mean_change_correlation_{top}": "higher" for top in tops},
            **{f"de_overlap_{top}": "higher" for top in tops},
            "de_jaccard": "higher",
            "de_direction": "higher",
            "variance_error": "lower",
            **{f"variance_error_{top}": "lower" for top in tops},
        }


@dataclass(frozen=True)
class Profile:
    """What of some cells is compared.

    Attributes
    ----------
    moments
        Of all genes.
    coordinates
        The cells in the space of the distances, `(cells, dimensions)`.
    """

    moments: GeneMoments
    coordinates: NDArray

    @classmethod
    def of(cls, cells: Expression, settings: Settings) -> Profile:
        """Take the profile of some cells."""
        return cls(GeneMoments.of(cells), settings.project(cells))

    def moved(self, change: NDArray, settings: Settings) -> Profile:
        """Return the profile of the same cells, each moved by a change of the genes."""
        moments = replace(self.moments, mean=self.moments.mean + change)
        return Profile(moments, self.coordinates + settings.project_change(change))


@dataclass(frozen=True)
class Truth:
    """Real perturbed cells and their control, against which predictions are measured.

    Attributes
    ----------
    real, control
        Profiles of both.
    """

    real: Profile
    control: Profile

    @cached_property
    def effect(self) -> Effect:
        """How the real cells differ from control."""
        return Effect(self.real.moments, self.control.moments)

    def measure(self, predicted: Profile, settings: Settings) -> dict[str, float]:
        """Return all figures of a prediction but `w2`, which needs as many cells of every prediction."""
        real = self.effect
        moments = predicted.moments
        effect = predicted_effect(moments, self.real.moments, self.control.moments)
        figures = {
            "energy_distance": energy_distance(self.real.coordinates, predicted.coordinates),
            "mean_change_error": float(np.abs(real.change - effect.change).mean()),
            "mean_change_correlation": correlation_of_changes(real, effect),
            "de_jaccard": jaccard_of_effects(real, effect),
            "de_direction": direction_of_effects(real, effect),
            "variance_error": error_of_variances(real.cells, moments),
        }
        for n_top in settings.n_top:
            top = real.top_genes(n_top, settings.ranking)
            figures |= {
                f"mean_change_correlation_top_{n_top}": correlation_of_changes(
                    real, effect, n_top=n_top, ranking=settings.ranking
                ),
                f"de_overlap_top_{n_top}": overlap_of_effects(real, effect, n_top, settings.ranking),
                f"variance_error_top_{n_top}": error_of_variances(real.cells, moments, top),
            }
        return figures


def wasserstein_of_equally_many(
    real: NDArray, predictions: Mapping[str, NDArray], *, n_splits: int, seed: int
) -> dict[str, float]:
    """Return the 2-Wasserstein distance of one half of the real cells to every prediction and to the other half (`floor`), the mean over splits.

    The distance of equal distributions falls with the number of cells, so that only figures of equally many cells can stand side by side: all
    sides have as many as the smallest allows.

    Parameters
    ----------
    real
        Real cells, `(cells, dimensions)`.
    predictions
        Predicted cells by name, each `(cells, dimensions)`.
    n_splits
        Number of splits.
    seed
        Decides the splits and draws, the same for predictions of equally many cells.
    """
    n_cells = min(len(real) // 2, *map(len, predictions.values()))
    found: dict[str, list[float]] = {name: [] for name in ("floor", *predictions)}
    for split in range(n_splits):
        drawn, other = np.split(_draw(real, 2 * n_cells, [seed, split]), 2)
        found["floor"].append(wasserstein_2(drawn, other))
        for name, values in predictions.items():
            found[name].append(wasserstein_2(drawn, _draw(values, n_cells, [seed, split, 1])))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _draw(values: NDArray, n_cells: int, seed: list[int]) -> NDArray:
    return values[np.random.default_rng(seed).permutation(len(values))[:n_cells]]
