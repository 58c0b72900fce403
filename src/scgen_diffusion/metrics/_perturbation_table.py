"""One table of how well the cells of perturbations are predicted, beside simple baselines and beside real cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgen_diffusion.data import is_whole_number, warn_user

from ._cells import align_genes, expression_of, labels_of
from ._distribution import wasserstein_2
from ._evaluate import check_genes, check_numbers, check_space, layer_to_read
from ._perturbation import (
    SEPARATOR,
    Effect,
    GeneMoments,
    Ranking,
    correlation_of_changes,
    direction_of_effects,
    energy_distance,
    error_of_variances,
    jaccard_of_effects,
    mean_of,
    overlap_of_effects,
    parts_of,
    predicted_effect,
    sum_of,
)
from ._safety import copied_cells
from ._space import ComparisonSpace, means

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ._cells import Expression

N_TOP = (20, 100)
NAMES = ("metric", "perturbation", "group")
MANY = 0.2  # of the predicted cells: more copies than this are no accident


def evaluate_perturbation(
    real_test: AnnData,
    predicted: AnnData,
    *,
    control: AnnData,
    perturbation_key: str,
    train: AnnData | None = None,
    others: Mapping[str, AnnData] | None = None,
    groupby: str | Sequence[str] | None = None,
    separator: str = SEPARATOR,
    n_top: int | Sequence[int] = N_TOP,
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
        unperturbed cells, are the space of the distances.
    others
        Cells that other methods predict, by the name of the method, such as ``{"latent_arithmetic": cells}``. Each gets a column, measured as `predicted` is.
    groupby
        Column of `obs` such as the cell type or cell line, or several. Changes are then taken against the control cells of the same group;
        the mean shift is that of all training perturbations in all groups, the additive baseline that of parts in the same group.
    separator
        What stands between the names of the parts of a combination. Their order does not matter.
    n_top, ranking
        How many genes are the most changed ones, one number or several, and by what (:func:`mean_change_correlation`).
    layer
        Layer with the counts of real cells, and of predicted cells if they have it.
    space
        Space of the distances, in place of the one fitted on `train`. With neither, it is that of all genes.
    max_cells
        Largest number of cells of each kind in a distance; a random draw of larger sets. Means and variances use all cells.
    n_floor
        How often the real cells of a perturbation are split in two halves for the floor.
    seed
        Decides the draws.

    Returns
    -------
    One row per metric, perturbation and group, with columns

    ``metric``
        - ``energy_distance``: :func:`energy_distance` between real and predicted cells. Sees means, spread and shape.
        - ``w2``: :func:`wasserstein_2` between one half of the real cells and as many predicted ones, the mean over `n_floor` halves. All columns have
          equally many cells, on which this distance depends: half of the real cells, or fewer where a prediction or the control has fewer.
        - ``mean_change_error``: mean absolute difference of real and predicted mean over genes. Sees the size of the effect.
        - ``mean_change_correlation``: :func:`mean_change_correlation` over all genes. Sees the direction, not the size.
        - ``mean_change_correlation_top_20``, ``.._100``: the same over the genes that really change most.
        - ``de_overlap_top_20``, ``.._100``: :func:`de_overlap`, whether the genes that change most are the right ones.
        - ``de_jaccard``: :func:`de_jaccard`, whether the genes called differential are the right ones, and as many.
        - ``de_direction``: :func:`de_direction`, whether differential genes go the right way.
        - ``variance_error``, ``variance_error_top_20``, ``.._100``: :func:`variance_error` over all genes, and over those that really change most. Sees spread only.

        The numbers are those of `n_top`.
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
    names of `others`
        Figures of what these methods predict. NaN where one has fewer than two cells of a perturbation.
    ``better``
        ``"lower"`` or ``"higher"``.

    Raises
    ------
    KeyError
        If a column is not in `obs`.
    TypeError
        If a set is no AnnData.
    ValueError
        If a cell has no perturbation or group, a perturbation has not been predicted, a group has no control cells, a set has fewer than two cells, or a name of `others` is that of
        another column.

    Notes
    -----
    cell-eval calls ``mean_change_correlation`` ``pearson_delta``, ``mean_change_error`` ``mae``, ``de_overlap`` ``overlap_at_N`` and ``de_direction``
    ``de_direction_match``.

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
    check_numbers(max_cells=max_cells, n_floor=n_floor, seed=seed, min_cells=2)
    check_space(space)
    if not (isinstance(perturbation_key, str) and separator and isinstance(separator, str)):
        msg = f"`perturbation_key` must name a column of `obs` and `separator` be a text, but they are {perturbation_key!r} and {separator!r}."
        raise TypeError(msg)
    if not isinstance(others, Mapping | None):
        msg = f"`others` must be a dict of AnnData by the name of the method, but is {type(others).__name__}."
        raise TypeError(msg)
    others = dict(others or {})
    columns = _figure_columns(others)
    given = {"real_test": real_test, "predicted": predicted, "control": control} | others
    given |= {} if train is None else {"train": train}
    for name, cells in given.items():
        if not isinstance(cells, AnnData):
            msg = f"`{name}` must be an AnnData, but is {type(cells).__name__}."
            raise TypeError(msg)
        check_genes(name, cells, real_test.var_names)
    reader = _Reader(
        real_test.var_names, perturbation_key, groupby, separator, _names_of_control(control, perturbation_key), layer
    )
    trained = None if train is None else reader.perturbed(train, "train").treated()
    if space is None and trained is not None:
        space = ComparisonSpace.fit(trained.expression, seed=seed)
    settings = Settings(_numbers_of_genes(n_top), ranking, space, max_cells, n_floor, seed)
    sets = Sets(
        reader.perturbed(real_test, "real_test").treated(),
        reader.perturbed(predicted, "predicted"),
        reader.unperturbed(control, "control"),
        trained,
        {name: reader.perturbed(cells, name) for name, cells in others.items()},
    )
    _warn_of_real_cells(sets)
    names = {parts: name for name, parts in reader.parts_by_name(real_test, "real_test").items()}
    return pd.DataFrame(
        {"perturbation": names[case.parts], **row} for case in sets.cases() for row in case.rows(settings, columns)
    )[[*NAMES, *columns, "better"]]


def _warn_of_real_cells(sets: Sets) -> None:
    """Warn where the predicted cells are the real ones, which no two measured cells are but in data with hardly any counts."""
    found, usual = (copied_cells(cells.expression, sets.real.expression) for cells in (sets.predicted, sets.control))
    if found - usual > MANY:
        msg = f"{found:.0%} of the cells in `predicted` are cells of `real_test`, count by count: these figures say nothing of a model."
        warn_user(msg)


@dataclass(frozen=True)
class _Reader:
    """Which genes and columns are read, and how names are taken apart."""

    genes: pd.Index
    perturbation_key: str
    groupby: str | Sequence[str] | None
    separator: str
    controls: set[str]
    layer: str | None

    def perturbed(self, cells: AnnData, name: str) -> PerturbedCells:
        """Read cells with the perturbation that each names."""
        by_name = self.parts_by_name(cells, name)
        return self._read(cells, [by_name[own] for own in labels_of(cells, self.perturbation_key, name=name)], name)

    def unperturbed(self, cells: AnnData, name: str) -> PerturbedCells:
        """Read cells as unperturbed ones, whatever they name."""
        return self._read(cells, [()] * cells.n_obs, name)

    def parts_by_name(self, cells: AnnData, name: str) -> dict[str, tuple[str, ...]]:
        """Return the single perturbations of every name."""
        names = np.unique(labels_of(cells, self.perturbation_key, name=name)).tolist()
        return {name: parts_of(name, separator=self.separator, ignored=self.controls) for name in names}

    def _read(self, cells: AnnData, parts: list[tuple[str, ...]], name: str) -> PerturbedCells:
        layer = layer_to_read(name, cells, self.layer)
        expression = expression_of(align_genes(cells, self.genes, name=name), layer=layer, name=name)
        groups = np.full(cells.n_obs, ALL) if self.groupby is None else labels_of(cells, self.groupby, name=name)
        return PerturbedCells(expression, _object_array(parts), groups)


def _figure_columns(others: Mapping[str, AnnData]) -> tuple[str, ...]:
    for name in others:
        if name in {*NAMES, *FIGURES, "better", "real_test", "predicted", "control", "train"}:
            msg = f"`others` has the name {name!r}, which is a name of the table or of another set of cells; choose another one."
            raise ValueError(msg)
    return (*FIGURES, *others)


def _numbers_of_genes(n_top: int | Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(np.unique(np.atleast_1d(n_top)).tolist())
    if not numbers or not all(is_whole_number(number) and number >= 2 for number in numbers):
        msg = f"`n_top` must be at least 2 genes, or several such numbers, but is {n_top}."
        raise ValueError(msg)
    return numbers


def _object_array(items: list[tuple[str, ...]]) -> NDArray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _names_of_control(control: AnnData, perturbation_key: str) -> set[str]:
    return set(control.obs[perturbation_key].astype(str)) if perturbation_key in control.obs else set()


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
