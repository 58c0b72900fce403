"""The cells that belong to each perturbation in each group, and the rows of the table that they give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._perturbation_baselines import mean_of, sum_of
from ._perturbation_measures import Profile, Settings, Truth, wasserstein_of_equally_many
from ._space import means

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from ._expression import Expression

#: What stands in the column `group` where cells are not grouped.
ALL = "all"
MIN_CELLS = 2

#: Columns that every table has; those of other predictions follow.
FIGURES = ("value", "floor", "no_change", "mean_shift", "additive")


@dataclass(frozen=True)
class PerturbedCells:
    """Some cells, and what was done to each.

    Attributes
    ----------
    expression
        Log-normalised values.
    parts
        The single perturbations of each cell, `(cells,)` of tuples; empty ones for unperturbed cells.
    groups
        Group of each cell, `(cells,)`.
    """

    expression: Expression
    parts: NDArray
    groups: NDArray

    def __getitem__(self, rows: NDArray) -> PerturbedCells:
        """Return some of the cells, by position or mask."""
        return PerturbedCells(self.expression[rows], self.parts[rows], self.groups[rows])

    def treated(self) -> PerturbedCells:
        """Leave unperturbed cells out."""
        is_perturbed = np.array([bool(parts) for parts in self.parts])
        if not is_perturbed.any():
            msg = "`real_test` and `train` must have perturbed cells, but all of theirs are named as `control` is."
            raise ValueError(msg)
        return self[is_perturbed]

    @cached_property
    def contexts(self) -> dict[tuple[tuple[str, ...], str], NDArray[np.intp]]:
        """The cells of each pair of perturbation and group, by position."""
        found: dict[tuple[tuple[str, ...], str], list[int]] = {}
        for position, context in enumerate(zip(self.parts, self.groups.tolist(), strict=True)):
            found.setdefault(context, []).append(position)
        return {context: np.array(found[context]) for context in sorted(found)}

    def of(self, parts: tuple[str, ...], group: str) -> Expression:
        """Return the cells of one perturbation in one group."""
        return self.expression[self.contexts.get((parts, group), np.array([], dtype=np.intp))]


@dataclass(frozen=True)
class Sets:
    """All cells that a table is made of.

    Attributes
    ----------
    real, predicted, control
        Perturbed cells, real and predicted, and real unperturbed ones.
    train
        Perturbed cells that the model was trained on; None without the baselines that need them.
    others
        Cells that other methods predict, by the name of the method.
    """

    real: PerturbedCells
    predicted: PerturbedCells
    control: PerturbedCells
    train: PerturbedCells | None
    others: Mapping[str, PerturbedCells]

    def cases(self) -> Iterator[Case]:
        """Gather what belongs to each perturbation in each group."""
        changes = self._changes()
        for parts, group in self.real.contexts:
            others = {name: cells.of(parts, group) for name, cells in self.others.items()}
            yield Case(
                parts,
                group,
                real=_at_least_two(self.real.of(parts, group), "real_test", parts, group),
                predicted=_at_least_two(self.predicted.of(parts, group), "predicted", parts, group),
                control=_at_least_two(self.control.of((), group), "control", parts, group),
                others={name: cells for name, cells in others.items() if len(cells) >= MIN_CELLS},
                changes=changes,
            )

    def _changes(self) -> dict[tuple[tuple[str, ...], str], NDArray]:
        """Return the mean change of every training perturbation in every group that has control cells."""
        if self.train is None:
            return {}
        controls = {group: means(self.control.of((), group).values) for group in np.unique(self.control.groups)}
        return {
            (parts, group): means(self.train.of(parts, group).values) - controls[group]
            for parts, group in self.train.contexts
            if group in controls
        }


@dataclass(frozen=True)
class Case:
    """One perturbation in one group.

    Attributes
    ----------
    parts, group
        What is predicted.
    real, predicted, control
        Its cells.
    others
        Cells that other methods predict of it, of the methods that do.
    changes
        Mean change of every training perturbation in every group.
    """

    parts: tuple[str, ...]
    group: str
    real: Expression
    predicted: Expression
    control: Expression
    others: dict[str, Expression]
    changes: dict[tuple[tuple[str, ...], str], NDArray]

    def rows(self, settings: Settings, columns: tuple[str, ...]) -> list[dict]:
        """Return one row per metric, with a figure for each of the columns; NaN for what was not predicted."""
        figures = self._figures(settings)
        return [
            {
                "metric": metric,
                "group": self.group,
                "better": better,
                **{name: figures.get(name, {}).get(metric, np.nan) for name in columns},
            }
            for metric, better in settings.better.items()
        ]

    def _figures(self, settings: Settings) -> dict[str, dict[str, float]]:
        control, real = Profile.of(self.control, settings), Profile.of(self.real, settings)
        truth = Truth(real, control)
        predictions = {
            "value": Profile.of(self.predicted, settings),
            "no_change": control,
            **{name: control.moved(change, settings) for name, change in self._baseline_changes().items()},
            **{name: Profile.of(cells, settings) for name, cells in self.others.items()},
        }
        figures = {name: truth.measure(prediction, settings) for name, prediction in predictions.items()}
        figures["floor"] = self._floor(control, settings)
        distances = wasserstein_of_equally_many(
            real.coordinates,
            {name: prediction.coordinates for name, prediction in predictions.items()},
            n_splits=max(settings.n_floor, 1),
            seed=settings.seed,
        )
        return {name: found | ({"w2": distances[name]} if found else {}) for name, found in figures.items()}

    def _baseline_changes(self) -> dict[str, NDArray]:
        """Return the changes that the baselines predict, those for which there are training perturbations."""
        parts = [((part,), self.group) for part in self.parts]
        found = {"mean_shift": mean_of(self.changes)} if self.changes else {}
        return found | ({"additive": sum_of(self.changes, parts)} if set(parts) <= set(self.changes) else {})

    def _floor(self, control: Profile, settings: Settings) -> dict[str, float]:
        """Return what one half of the real cells scores as prediction of the other."""
        n_cells = len(self.real)
        if n_cells < 2 * MIN_CELLS or settings.n_floor < 1:
            return {}
        rng = np.random.default_rng(settings.seed)
        halves = [np.array_split(rng.permutation(n_cells), 2) for _ in range(settings.n_floor)]
        profiles = [[Profile.of(self.real[half], settings) for half in pair] for pair in halves]
        return (
            pd.DataFrame([Truth(real, control).measure(other, settings) for real, other in profiles]).mean().to_dict()
        )


def _at_least_two(cells: Expression, name: str, parts: tuple[str, ...], group: str) -> Expression:
    if len(cells) < MIN_CELLS:
        where = f"perturbation {'+'.join(parts)!r}" + ("" if group == ALL else f" in group {group!r}")
        msg = f"`{name}` must have at least {MIN_CELLS} cells for {where}, but has {len(cells)}."
        raise ValueError(msg)
    return cells
