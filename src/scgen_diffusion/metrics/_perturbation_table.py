"""One table of how well the cells of perturbations are predicted, beside simple baselines and beside real cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgen_diffusion.data import is_whole_number, warn_user

from ._catalogue import Comparison, Metric
from ._cells import Expression, Source, labels_of
from ._distribution import energy_distance, wasserstein_2
from ._evaluate import check_numbers, check_space
from ._perturbation import (
    SEPARATOR,
    Effect,
    GeneMoments,
    correlation_of_changes,
    direction_of_effects,
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
from ._table import ALL, Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ._perturbation import Ranking

    #: The single perturbations of a cell, sorted; none for unperturbed cells.
    Parts = tuple[str, ...]

N_TOP = (20, 100)
MIN_CELLS = 2
MANY = 0.2  # of the predicted cells: more copies than this are no accident
NAMES = ("metric", "perturbation", "group")
#: Columns that every table has; those of other predictions follow.
FIGURES = ("value", "floor", "no_change", "mean_shift", "additive")


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
    check_numbers(max_cells=max_cells, n_floor=n_floor, seed=seed, min_cells=MIN_CELLS)
    check_space(space)
    if not (isinstance(perturbation_key, str) and separator and isinstance(separator, str)):
        msg = f"`perturbation_key` must name a column of `obs` and `separator` be a text, but they are {perturbation_key!r} and {separator!r}."
        raise TypeError(msg)
    if not isinstance(others, Mapping | None):
        msg = f"`others` must be a dict of AnnData by the name of the method, but is {type(others).__name__}."
        raise TypeError(msg)
    others = dict(others or {})
    for name in others:
        if name in {*NAMES, *FIGURES, "better", "real_test", "predicted", "control", "train"}:
            msg = f"`others` has the name {name!r}, which is a name of the table or of another set of cells; choose another one."
            raise ValueError(msg)
    numbers = np.unique(np.atleast_1d(n_top)).tolist()
    if not numbers or not all(is_whole_number(number) and number >= 2 for number in numbers):
        msg = f"`n_top` must be at least 2 genes, or several such numbers, but is {n_top}."
        raise ValueError(msg)
    given = {"real_test": real_test, "predicted": predicted, "control": control, "train": train} | others
    sources = {}
    for name, cells in given.items():
        if name == "train" and cells is None:
            continue
        if not isinstance(cells, AnnData):
            msg = f"`{name}` must be an AnnData, but is {type(cells).__name__}."
            raise TypeError(msg)
        sources[name] = Source.of(cells, name, real_test.var_names, groupby=groupby, layer=layer)
    has_names = perturbation_key in control.obs
    controls = set(control.obs[perturbation_key].astype(str)) if has_names else set()
    split_name = partial(parts_of, separator=separator, ignored=controls)
    sets = {
        name: PerturbedCells.read(source, None if name == "control" else perturbation_key, split_name)
        for name, source in sources.items()
    }
    sets["real_test"] = sets["real_test"].treated()
    if train is not None:
        sets["train"] = sets["train"].treated()
        space = ComparisonSpace.fit(sets["train"].expression, seed=seed) if space is None else space
    _warn_of_real_cells(sets)
    names = {split_name(name): name for name in np.unique(labels_of(real_test, perturbation_key)).tolist()}
    contexts = _contexts(sets, list(others), names, Profiles(space, max_cells, seed), n_floor=n_floor)
    metrics = _metrics(numbers, ranking)
    rows = [context.row(metric) for context in contexts for metric in metrics]
    columns = [*FIGURES, *others]
    return pd.DataFrame(rows, columns=[*NAMES, *columns, "better"]).astype(dict.fromkeys(columns, float))


def _warn_of_real_cells(sets: Mapping[str, PerturbedCells]) -> None:
    """Warn where the predicted cells are the real ones, which no two measured cells are but in data with hardly any counts."""
    real = sets["real_test"].expression
    found, usual = (copied_cells(sets[name].expression, real) for name in ("predicted", "control"))
    if found - usual > MANY:
        msg = f"{found:.0%} of the cells in `predicted` are cells of `real_test`, count by count: these figures say nothing of a model."
        warn_user(msg)


# --- the cells of each perturbation in each group ---------------------------------------------------------------------


@dataclass(frozen=True)
class PerturbedCells:
    """Some cells, and what was done to each.

    Attributes
    ----------
    name
        What errors call them.
    expression
        Log-normalised values.
    parts
        The single perturbations of each cell, `(cells,)` of tuples; empty ones for unperturbed cells.
    groups
        Group of each cell, `(cells,)`.
    """

    name: str
    expression: Expression
    parts: NDArray
    groups: NDArray

    @classmethod
    def read(cls, source: Source, key: str | None, split_name: Callable[[str], Parts]) -> PerturbedCells:
        """Read cells with the perturbation that each names in a column of `obs`; unperturbed ones without a column."""
        parts = np.empty(len(source), dtype=object)
        if key is None:
            parts[:] = [()] * len(source)
        else:
            named = labels_of(source.cells, key, name=source.name)
            by_name = {name: split_name(name) for name in np.unique(named).tolist()}
            parts[:] = [by_name[name] for name in named]
        groups = np.full(len(source), ALL) if source.labels is None else source.labels
        return cls(source.name, source.expression(), parts, groups)

    def treated(self) -> PerturbedCells:
        """Leave unperturbed cells out."""
        rows = np.array([bool(parts) for parts in self.parts])
        if not rows.any():
            msg = "`real_test` and `train` must have perturbed cells, but all of theirs are named as `control` is."
            raise ValueError(msg)
        return PerturbedCells(self.name, self.expression[rows], self.parts[rows], self.groups[rows])

    @cached_property
    def positions(self) -> dict[tuple[Parts, str], NDArray[np.intp]]:
        """The cells of each pair of perturbation and group, by position."""
        found: dict[tuple[Parts, str], list[int]] = {}
        for position, pair in enumerate(zip(self.parts, self.groups.tolist(), strict=True)):
            found.setdefault(pair, []).append(position)
        return {pair: np.array(found[pair]) for pair in sorted(found)}

    def of(self, parts: Parts, group: str) -> Expression:
        """Return the cells of one perturbation in one group."""
        return self.expression[self.positions.get((parts, group), np.array([], dtype=np.intp))]

    def enough_of(self, cells: Parts, parts: Parts, group: str) -> Expression:
        """Return the cells of one perturbation, none for control, that the context of another needs: at least two."""
        found = self.of(cells, group)
        if len(found) < MIN_CELLS:
            where = f"perturbation {'+'.join(parts)!r}" + ("" if group == ALL else f" in group {group!r}")
            msg = f"`{self.name}` must have at least {MIN_CELLS} cells for {where}, but has {len(found)}."
            raise ValueError(msg)
        return found


@dataclass(frozen=True)
class Profile:
    """What of some cells is compared.

    Attributes
    ----------
    moments
        Of all genes.
    pcs
        The cells in the space of the distances, `(cells, dimensions)`.
    """

    moments: GeneMoments
    pcs: NDArray


@dataclass(frozen=True)
class Profiles:
    """Take profiles of cells.

    Attributes
    ----------
    space
        Space of the distances; None is that of all genes.
    max_cells
        Largest number of cells of each kind in a distance.
    seed
        Decides the draws.
    """

    space: ComparisonSpace | None
    max_cells: int
    seed: int

    def of(self, cells: Expression) -> Profile:
        """Return the profile of some cells: all of them for moments, a draw for distances."""
        drawn = cells
        if len(cells) > self.max_cells:
            drawn = cells[np.sort(np.random.default_rng(self.seed).permutation(len(cells))[: self.max_cells])]
        pcs = drawn.values.toarray() if self.space is None else self.space.project(drawn)
        return Profile(GeneMoments.of(cells), pcs)

    def moved(self, profile: Profile, change: NDArray) -> Profile:
        """Return the profile of the same cells, each moved by a change of the genes; the projection is linear."""
        step = change if self.space is None else self.space.pca.components_ @ change[self.space.genes]
        return Profile(replace(profile.moments, mean=profile.moments.mean + change), profile.pcs + step)


def _contexts(
    sets: Mapping[str, PerturbedCells],
    others: Sequence[str],
    names: Mapping[Parts, str],
    profiles: Profiles,
    *,
    n_floor: int,
) -> Iterator[Context]:
    """Gather what belongs to each perturbation in each group: its cells, and all who predict them."""
    changes = _changes(sets)
    for parts, group in sets["real_test"].positions:
        cells = sets["real_test"].enough_of(parts, parts, group)
        predicted = sets["predicted"].enough_of(parts, parts, group)
        control = profiles.of(sets["control"].enough_of((), parts, group))
        by_others = {name: sets[name].of(parts, group) for name in others}
        predictions = {"value": profiles.of(predicted), "no_change": control}
        if changes:
            predictions["mean_shift"] = profiles.moved(control, mean_of(changes))
        single = [((part,), group) for part in parts]
        if set(single) <= set(changes):
            predictions["additive"] = profiles.moved(control, sum_of(changes, single))
        predictions |= {name: profiles.of(own) for name, own in by_others.items() if len(own) >= MIN_CELLS}

        real = profiles.of(cells)
        players = {name: [Comparison(real, own, control=control)] for name, own in predictions.items()}
        rng = np.random.default_rng(profiles.seed)
        if len(cells) >= 2 * MIN_CELLS and n_floor:
            halves = [np.array_split(rng.permutation(len(cells)), 2) for _ in range(n_floor)]
            pairs = [[profiles.of(cells[half]) for half in pair] for pair in halves]
            players["floor"] = [Comparison(*pair, control=control) for pair in pairs]
        equal = _equal_players(real, predictions, n_splits=max(n_floor, 1), seed=profiles.seed)
        yield Context(
            {"perturbation": names[parts], "group": group},
            players,
            equal_players={name: comparisons for name, comparisons in equal.items() if name in players},
        )


def _changes(sets: Mapping[str, PerturbedCells]) -> dict[tuple[Parts, str], NDArray]:
    """Return the mean change of every training perturbation in every group that has control cells."""
    if "train" not in sets:
        return {}
    train, control = sets["train"], sets["control"]
    controls = {group: means(control.of((), group).values) for group in np.unique(control.groups)}
    return {
        (parts, group): means(train.of(parts, group).values) - controls[group]
        for parts, group in train.positions
        if group in controls
    }


def _equal_players(
    real: Profile, predictions: Mapping[str, Profile], *, n_splits: int, seed: int
) -> dict[str, list[Comparison]]:
    """Compare one half of the real cells with every prediction and with the other half (`floor`), several times.

    The distance of equal distributions falls with the number of cells, so that only figures of equally many cells can stand side by side: all
    sides have as many as the smallest allows. Predictions of equally many cells are drawn from in the same way.
    """
    n_cells = min(len(real.pcs) // 2, *(len(own.pcs) for own in predictions.values()))

    def draw(profile: Profile, n_cells: int, seed: list[int]) -> Profile:
        order = np.random.default_rng(seed).permutation(len(profile.pcs))
        return replace(profile, pcs=profile.pcs[order[:n_cells]])

    players: dict[str, list[Comparison]] = {name: [] for name in ("floor", *predictions)}
    for split in range(n_splits):
        both = draw(real, 2 * n_cells, [seed, split])
        first, second = (replace(real, pcs=half) for half in np.split(both.pcs, 2))
        players["floor"].append(Comparison(first, second))
        for name, own in predictions.items():
            players[name].append(Comparison(first, draw(own, n_cells, [seed, split, 1])))
    return players


# --- the metrics ------------------------------------------------------------------------------------------------------


def _metrics(n_top: Sequence[int], ranking: Ranking) -> list[Metric]:
    """Return the metrics in the order of the table."""
    by_top = {f"top_{n}": {"n_top": n, "ranking": ranking} for n in n_top}
    on_pcs = lambda function: lambda c: float(function(c.real.pcs, c.synthetic.pcs))
    on_effects = lambda function, **options: lambda c: function(*c.once(_effects), **options)
    return [
        Metric("energy_distance", "lower", on_pcs(energy_distance)),
        Metric("w2", "lower", on_pcs(wasserstein_2), equal_cells=True),
        Metric("mean_change_error", "lower", on_effects(_error_of_changes)),
        Metric("mean_change_correlation", "higher", on_effects(correlation_of_changes)),
        *(
            Metric(f"mean_change_correlation_{top}", "higher", on_effects(correlation_of_changes, **options))
            for top, options in by_top.items()
        ),
        *(Metric(f"de_overlap_{top}", "higher", on_effects(overlap_of_effects, **own)) for top, own in by_top.items()),
        Metric("de_jaccard", "higher", on_effects(jaccard_of_effects)),
        Metric("de_direction", "higher", on_effects(direction_of_effects)),
        Metric("variance_error", "lower", on_effects(_error_of_variances)),
        *(
            Metric(f"variance_error_{top}", "lower", on_effects(_error_of_variances, **options))
            for top, options in by_top.items()
        ),
    ]


def _effects(comparison: Comparison) -> tuple[Effect, Effect]:
    real, predicted, control = (side.moments for side in (comparison.real, comparison.synthetic, comparison.control))
    return Effect(real, control), predicted_effect(predicted, real, control)


def _error_of_changes(real: Effect, predicted: Effect) -> float:
    return float(np.abs(real.change - predicted.change).mean())


def _error_of_variances(real: Effect, predicted: Effect, **top: object) -> float:
    return error_of_variances(real.cells, predicted.cells, real.top_genes(**top) if top else slice(None))
