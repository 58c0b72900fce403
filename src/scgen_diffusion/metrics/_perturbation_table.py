"""One table of how well the cells of perturbations are predicted, beside simple baselines and beside real cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._expression import Expression, align_genes, expression_of
from ._genes import correlation
from ._perturbation import GeneMoments, Ranking, energy_distance, top_changed_genes
from ._perturbation_baselines import SEPARATOR, mean_of, parts_of, sum_of
from ._space import ComparisonSpace, means

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

#: What stands in the column `group` where cells are not grouped.
ALL = "all"
N_TOP = 20
MIN_CELLS = 2

FIGURES = ("value", "floor", "no_change", "mean_shift", "additive")
COLUMNS = ("metric", "perturbation", "group", *FIGURES, "better")

#: Which way is better, by metric.
BETTER = {
    "energy_distance": "lower",
    "mean_change_error": "lower",
    "mean_change_correlation": "higher",
    "mean_change_correlation_top": "higher",
}


def evaluate_perturbation(
    real_test: AnnData,
    predicted: AnnData,
    *,
    control: AnnData,
    perturbation_key: str,
    train: AnnData | None = None,
    groupby: str | None = None,
    separator: str = SEPARATOR,
    n_top: int = N_TOP,
    ranking: Ranking = "welch",
    layer: str | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge predicted cells of perturbations against real ones, beside baselines that need no model.

    A model has predicted an effect only where it is better than every baseline, and it is as good as data of this size can tell where
    it reaches the floor.

    Parameters
    ----------
    real_test
        Real perturbed cells that the model has not seen. Every perturbation in it is judged.
    predicted
        Predicted cells of (at least) the same perturbations.
    control
        Real unperturbed cells. Where they have a value in ``obs[perturbation_key]``, cells with that value are taken as unperturbed in the
        other sets too and left out there, as is that part of a name such as ``"KLF1+ctrl"``.
    perturbation_key
        Column of `obs` with the perturbation.
    train
        Real cells that the model was trained on, for the baselines ``mean_shift`` and ``additive``. Their principal components, without the
        unperturbed cells, are the space of the energy distance.
    groupby
        Column of `obs` such as the cell type or cell line. Changes are then taken against the control cells of the same group;
        the mean shift is that of all training perturbations in all groups, the additive baseline that of parts in the same group.
    separator
        What stands between the names of the parts of a combination. Their order does not matter.
    n_top, ranking
        How many genes are the most changed ones, and by what (:func:`mean_change_correlation`).
    layer
        Layer with the counts.
    space
        Space of the energy distance, in place of the one fitted on `train`. With neither, it is that of all genes.
    max_cells
        Largest number of cells of each kind in an energy distance; a random draw of larger sets. Means use all cells.
    n_floor
        How often the real cells of a perturbation are split in two halves for the floor.
    seed
        Decides the draws.

    Returns
    -------
    One row per metric, perturbation and group, with columns

    ``metric``
        - ``energy_distance``: :func:`energy_distance` between real and predicted cells. Sees means, spread and shape.
        - ``mean_change_error``: mean absolute difference of real and predicted mean over genes. Sees the size of the effect.
        - ``mean_change_correlation``: :func:`mean_change_correlation` over all genes. Sees the direction, not the size.
        - ``mean_change_correlation_top``: the same over the genes that really change most.
    ``perturbation``, ``group``
        What is predicted; the group is ``"all"`` without `groupby`.
    ``value``
        Figure of the predicted cells.
    ``floor``
        Figure of one half of the real cells as prediction of the other, the mean over splits. A half has more sampling noise than
        all predicted cells, so a very good prediction can score slightly better. NaN below four cells.
    ``no_change``, ``mean_shift``, ``additive``
        Figures of the baselines: the control cells; control cells moved by the mean change of all training perturbations; control cells moved by the
        sum of the changes of the parts. NaN where `train` does not allow it.
    ``better``
        ``"lower"`` or ``"higher"``.

    Raises
    ------
    KeyError
        If a column is not in `obs`.
    ValueError
        If a perturbation has not been predicted, a group has no control cells, or a set has fewer than two cells.

    Notes
    -----
    cell-eval calls ``mean_change_correlation`` ``pearson_delta``, and ``mean_change_error`` ``mae``.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> def cells(rate, name):
    ...     counts = np.random.default_rng(len(name)).poisson(rate, (100, 30)).astype(np.float32)
    ...     return ad.AnnData(counts, obs=pd.DataFrame({"gene": name}, index=[f"{name}{i}" for i in range(100)]))
    >>> changed = np.repeat([2.0, 8.0], 15)
    >>> table = evaluate_perturbation(
    ...     cells(changed, "KLF1"), cells(changed, "KLF1"), control=cells(4.0, "none"), perturbation_key="gene"
    ... )
    >>> bool((table.query("metric == 'energy_distance'").value < 1e-6).all())
    True
    """
    keys = [perturbation_key] if groupby is None else [perturbation_key, groupby]
    for name, cells in (("real_test", real_test), ("predicted", predicted), ("control", control), ("train", train)):
        _check_columns(cells, keys[1:] if name == "control" else keys, name)
    controls = _names_of_control(control, perturbation_key)

    def read(cells: AnnData, name: str) -> _Cells:
        aligned = align_genes(cells, real_test.var_names, name=name)
        by_name = {} if name == "control" else _parts_by_name(cells, perturbation_key, separator, controls)
        parts = [by_name[own] for own in cells.obs[perturbation_key].astype(str)] if by_name else [()] * cells.n_obs
        groups = np.full(cells.n_obs, ALL) if groupby is None else cells.obs[groupby].astype(str).to_numpy()
        return _Cells(expression_of(aligned, layer=layer, name=name), _object_array(parts), groups)

    trained = None if train is None else read(train, "train").perturbed()
    if space is None and trained is not None:
        space = ComparisonSpace.fit(trained.expression, seed=seed)
    settings = _Settings(n_top, ranking, space, max_cells, n_floor, seed)
    sets = _Sets(
        read(real_test, "real_test").perturbed(), read(predicted, "predicted"), read(control, "control"), trained
    )
    names = {parts: name for name, parts in _parts_by_name(real_test, perturbation_key, separator, controls).items()}
    return pd.DataFrame(
        {"perturbation": names[case.parts], **row} for case in sets.cases() for row in case.rows(settings)
    )[list(COLUMNS)]


@dataclass(frozen=True)
class _Settings:
    n_top: int
    ranking: Ranking
    space: ComparisonSpace | None
    max_cells: int
    n_floor: int
    seed: int

    def project(self, cells: Expression) -> NDArray:
        """Return a draw of the cells in the space of the energy distance."""
        if len(cells) > self.max_cells:
            cells = cells[np.sort(np.random.default_rng(self.seed).permutation(len(cells))[: self.max_cells])]
        return cells.values.toarray() if self.space is None else self.space.project(cells)

    def project_change(self, change: NDArray) -> NDArray:
        """Return where a change of all cells moves them in that space; the projection is linear."""
        return change if self.space is None else self.space.pca.components_ @ change[self.space.genes]


@dataclass(frozen=True)
class _Cells:
    """Expression, perturbation (the parts of its name) and group of some cells."""

    expression: Expression
    parts: NDArray  # (cells,) of tuples; empty ones for unperturbed cells
    groups: NDArray  # (cells,)

    def __getitem__(self, rows: NDArray) -> _Cells:
        return _Cells(self.expression[rows], self.parts[rows], self.groups[rows])

    def perturbed(self) -> _Cells:
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
        for position, context in enumerate(zip(self.parts, self.groups, strict=True)):
            found.setdefault(context, []).append(position)
        return {context: np.array(found[context]) for context in sorted(found)}

    def of(self, parts: tuple[str, ...], group: str) -> Expression:
        """Return the cells of one perturbation in one group."""
        return self.expression[self.contexts.get((parts, group), np.array([], dtype=np.intp))]


@dataclass(frozen=True)
class _Sets:
    real: _Cells
    predicted: _Cells
    control: _Cells
    train: _Cells | None

    def cases(self) -> Iterator[_Case]:
        """Gather what belongs to each perturbation in each group."""
        changes = self._changes()
        for parts, group in self.real.contexts:
            yield _Case(
                parts,
                group,
                real=_at_least_two(self.real.of(parts, group), "real_test", parts, group),
                predicted=_at_least_two(self.predicted.of(parts, group), "predicted", parts, group),
                control=_at_least_two(self.control.of((), group), "control", parts, group),
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
class _Profile:
    """What of some cells is compared: moments of all genes, and the cells in a space."""

    moments: GeneMoments
    coordinates: NDArray

    @classmethod
    def of(cls, cells: Expression, settings: _Settings) -> _Profile:
        return cls(GeneMoments.of(cells), settings.project(cells))

    def moved(self, change: NDArray, settings: _Settings) -> _Profile:
        """Return the profile of the same cells, each moved by a change of the genes."""
        moments = replace(self.moments, mean=self.moments.mean + change)
        return _Profile(moments, self.coordinates + settings.project_change(change))


@dataclass(frozen=True)
class _Case:
    """One perturbation in one group."""

    parts: tuple[str, ...]
    group: str
    real: Expression
    predicted: Expression
    control: Expression
    changes: dict[tuple[tuple[str, ...], str], NDArray]

    def rows(self, settings: _Settings) -> list[dict]:
        control, real = _Profile.of(self.control, settings), _Profile.of(self.real, settings)

        def measure(prediction: _Profile) -> dict[str, float]:
            return _measure(real, prediction, control, settings)

        columns = {
            "value": measure(_Profile.of(self.predicted, settings)),
            "floor": self._floor(control, settings),
            "no_change": measure(control),
            **{name: measure(control.moved(change, settings)) for name, change in self._baseline_changes().items()},
        }
        return [
            {
                "metric": metric,
                "group": self.group,
                "better": better,
                **{name: columns.get(name, {}).get(metric, np.nan) for name in FIGURES},
            }
            for metric, better in BETTER.items()
        ]

    def _baseline_changes(self) -> dict[str, NDArray]:
        """Return the changes that the baselines predict, those for which there are training perturbations."""
        parts = [((part,), self.group) for part in self.parts]
        found = {"mean_shift": mean_of(self.changes)} if self.changes else {}
        return found | ({"additive": sum_of(self.changes, parts)} if set(parts) <= set(self.changes) else {})

    def _floor(self, control: _Profile, settings: _Settings) -> dict[str, float]:
        """Return what one half of the real cells scores as prediction of the other."""
        n_cells = len(self.real)
        if n_cells < 2 * MIN_CELLS or settings.n_floor < 1:
            return {}
        rng = np.random.default_rng(settings.seed)
        halves = [np.array_split(rng.permutation(n_cells), 2) for _ in range(settings.n_floor)]
        scores = [
            _measure(*(_Profile.of(self.real[half], settings) for half in pair), control, settings) for pair in halves
        ]
        return pd.DataFrame(scores).mean().to_dict()


def _measure(real: _Profile, predicted: _Profile, control: _Profile, settings: _Settings) -> dict[str, float]:
    reference = control.moments.mean
    real_change, predicted_change = real.moments.mean - reference, predicted.moments.mean - reference
    top = top_changed_genes(real.moments, control.moments, settings.n_top, settings.ranking)
    return {
        "energy_distance": energy_distance(real.coordinates, predicted.coordinates),
        "mean_change_error": float(np.abs(real_change - predicted_change).mean()),
        "mean_change_correlation": correlation(real_change, predicted_change),
        "mean_change_correlation_top": correlation(real_change[top], predicted_change[top]),
    }


def _parts_by_name(
    cells: AnnData, perturbation_key: str, separator: str, controls: set[str]
) -> dict[str, tuple[str, ...]]:
    names = cells.obs[perturbation_key].astype(str).unique()
    return {name: parts_of(name, separator=separator, ignored=controls) for name in names}


def _object_array(items: list[tuple[str, ...]]) -> NDArray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _names_of_control(control: AnnData, perturbation_key: str) -> set[str]:
    return set(control.obs[perturbation_key].astype(str)) if perturbation_key in control.obs else set()


def _at_least_two(cells: Expression, name: str, parts: tuple[str, ...], group: str) -> Expression:
    if len(cells) < MIN_CELLS:
        where = f"perturbation {'+'.join(parts)!r}" + ("" if group == ALL else f" in group {group!r}")
        msg = f"`{name}` must have at least {MIN_CELLS} cells for {where}, but has {len(cells)}."
        raise ValueError(msg)
    return cells


def _check_columns(cells: AnnData | None, keys: list[str], name: str) -> None:
    missing = [] if cells is None else [key for key in keys if key not in cells.obs]
    if missing:
        msg = f"`{name}.obs` has no column {missing[0]!r}; there are {list(cells.obs.columns)}."
        raise KeyError(msg)
