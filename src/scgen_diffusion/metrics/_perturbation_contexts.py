"""The table of perturbations: real cells of each, beside all predictions of them.

Cells are read by perturbation and group. The baselines are predicted from control and training cells.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np

from scgen_diffusion._arguments import list_first, warn_user
from scgen_diffusion.data import SEPARATOR, CellFiles, as_labels, check_is_anndata

from ._catalogue import choose_metrics
from ._cells import Source, check_for_empty_cells, labels_of, means, stacked
from ._comparison import ALL, UNKNOWN, Context, table_of
from ._perturbation import GeneMoments, Panel, Prediction, Profile, control_share_of, unit_vectors
from ._safety import copied_cells
from ._space import ComparisonSpace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from ._cells import Expression
    from ._comparison import Draws, Need

#: The single perturbations of a cell, sorted; empty for unperturbed cells.
Parts: TypeAlias = tuple[str, ...]
#: The moments of the training cells of a perturbation, and their group.
Trained: TypeAlias = tuple[GeneMoments, str]

MIN_CELLS = 2
FIGURES = ("value", "real", "no_change", "mean_shift", "additive")  # columns, and one per entry of `others`
SETS = ("real_test", "synthetic", "control", "train")
MANY_COPIES = 0.2  # a larger share of held-out cells among synthetic ones is no accident


@dataclass(frozen=True)
class Perturbed:
    """Cells, and the positions of those of each perturbation in each group.

    Attributes
    ----------
    expression
        Log-normalised values.
    rows
        Positions of the cells by their single perturbations (empty for unperturbed cells) and group; sorted.
    control_share
        See :class:`GeneMoments`.
    """

    expression: Expression
    rows: dict[tuple[Parts, str], NDArray[np.intp]]
    control_share: float

    @classmethod
    def read(cls, source: Source, parts: Sequence[Parts], control_share: float) -> Self:
        """Read cells and their perturbations; unperturbed cells of ``real_test`` and ``train`` are left out."""
        kept = np.arange(len(source))
        if source.name in ("real_test", "train"):
            kept = np.flatnonzero([bool(own) for own in parts])
        places: dict[tuple[Parts, str], list[int]] = {}
        for place, row in enumerate(kept):
            group = ALL if source.labels is None else str(source.labels[row])
            places.setdefault((parts[row], group), []).append(place)
        rows = {key: np.array(own) for key, own in sorted(places.items())}
        return cls(stacked(source.chunks(kept)), rows, control_share)

    def of(self, parts: Parts, group: str) -> Expression:
        """Return the cells of one perturbation (empty for control) in one group."""
        return self.expression[self.rows.get((parts, group), np.zeros(0, dtype=np.intp))]


def read_perturbed(
    given: Mapping[str, AnnData],
    *,
    key: str,
    separator: str,
    groupby: str | Sequence[str] | None,
    layer: str | None,
) -> tuple[dict[str, Perturbed], dict[Parts, str]]:
    """Check and read ``real_test``, ``control`` and other sets. Return also the names of the real perturbations."""
    genes, untreated = given["real_test"].var_names, given["control"].obs
    controls = set(as_labels(untreated[key])) if key in untreated else set()
    if len(controls) > 1:
        warn_user(f"`control` has cells of {list_first(sorted(controls))}, which are all taken as unperturbed.")
    sources = {n: Source.of(cells, n, genes, groupby=groupby, layer=layer) for n, cells in given.items()}
    check_for_empty_cells(sources)
    sets, names = {}, {}
    for name, source in sources.items():
        parts: list[Parts] = [()] * len(source)
        if name != "control":
            perturbations = labels_of(given[name], key, name=name).tolist()
            by_name = {one: parts_of(one, separator=separator, ignored=controls) for one in sorted({*perturbations})}
            parts = [by_name[one] for one in perturbations]
        if name == "real_test":
            names = {own: one for one, own in by_name.items()}
        sets[name] = Perturbed.read(source, parts, control_share_of(given[name], given["control"]))
        if name in ("real_test", "train") and not sets[name].rows:
            msg = f"`{name}` needs perturbed cells, but `control` has all its names: {list_first(list(by_name))}."
            raise ValueError(msg)
    real = sets["real_test"]
    for parts, group in real.rows:
        for name, own in (("real_test", parts), ("synthetic", parts), ("control", ())):
            if (n_cells := len(sets[name].rows.get((own, group), ()))) < MIN_CELLS:
                where = f"perturbation {SEPARATOR.join(parts)!r}" + (f" of {group!r}" if group != ALL else "")
                msg = f"`{name}` must have at least {MIN_CELLS} cells for {where}, but has {n_cells}."
                raise ValueError(msg)
    if "train" in sets and copied_cells(real.expression, sets["train"].expression) > 0.5:
        msg = "`real_test` has cells of `train`."
        raise ValueError(msg)
    share, usual = (copied_cells(sets[name].expression, real.expression) for name in ("synthetic", "control"))
    if share - usual > MANY_COPIES:
        warn_user(f"{share:.0%} of the cells in `synthetic` are exact copies of cells in `real_test`. A mix-up?")
    return sets, names


@dataclass(frozen=True)
class Shift:
    """A change of the genes, learned from training perturbations: the weighted sum of their changes against control.

    Attributes
    ----------
    change
        The sum, `(genes,)`.
    noise
        Sampling variance that it has from perturbed cells, `(genes,)`.
    control_weights
        By group, how much of the mean of control cells was subtracted.
    """

    change: NDArray[np.float64]
    noise: NDArray[np.float64]
    control_weights: dict[str, float]

    @classmethod
    def of(cls, perturbed: Iterable[Trained], controls: Mapping[str, GeneMoments], weight: float = 1.0) -> Self:
        """Add the changes of these perturbations in their groups, each with the same weight, and their noise.

        The noise of a single cell is unknown: it varies as much as those of the other perturbations do on average.
        """
        moments, groups = zip(*perturbed, strict=True)
        weights = {group: weight * n for group, n in Counter(groups).items()}
        change = weight * np.sum([own.mean for own in moments], axis=0)
        change = change - np.sum([share * controls[group].mean for group, share in weights.items()], axis=0)
        variances = [own.variance for own in moments if own.n_cells > 1]
        variance = np.sum(variances, axis=0) / (len(variances) or UNKNOWN)
        noise = np.sum([own.noise if own.n_cells > 1 else variance for own in moments], axis=0)
        return cls(change, weight**2 * noise, weights)

    def move(self, group: str, controls: Mapping[str, GeneMoments]) -> GeneMoments:
        """Shift the control cells of a group. Part of their noise is subtracted again."""
        left = Counter({group: 1.0})
        left.subtract(self.control_weights)
        noise = self.noise + np.sum([share**2 * controls[own].noise for own, share in left.items()], axis=0)
        cells = controls[group]
        return replace(cells, mean=cells.mean + self.change, noise=noise, control_share=left[group])


def evaluate_perturbations(
    given: Mapping[str, AnnData],
    others: Mapping[str, AnnData],
    names: Collection[str] | None,
    draws: Draws,
    *,
    key: str,
    separator: str,
    groupby: str | Sequence[str] | None,
    layer: str | None,
    space: ComparisonSpace | None,
) -> pd.DataFrame:
    """Return the table of every perturbation.

    Parameters
    ----------
    given
        ``real_test``, ``synthetic``, ``control``, and ``train`` if given.
    others
        The predictions of other methods.
    names
        The metrics.
    draws, key, separator, groupby, layer, space
        As in :func:`evaluate`.
    """
    leading, figures = ("metric", "perturbation", "group"), (*FIGURES, *others)
    if taken := [name for name in others if name in {*leading, *FIGURES, *SETS, "better"}]:
        msg = f"`others` has the name {taken[0]!r}, which the table already uses; choose another name."
        raise ValueError(msg)
    given = {**given, **others}
    for name, cells in given.items():
        advice = " With `control`, read its cells: `train.read(rows)`." if isinstance(cells, CellFiles) else ""
        check_is_anndata(cells, name, advice)
    sets, of_parts = read_perturbed(given, key=key, separator=separator, groupby=groupby, layer=layer)
    available: set[Need] = {"control"} | ({"train"} & {*sets})
    available |= {"perturbations"} if len({parts for parts, _ in sets["real_test"].rows}) > 1 else set()
    metrics = choose_metrics(names, "perturbation", available, given["real_test"].n_vars)
    if "train" in sets and space is None:
        space = ComparisonSpace.fit(sets["train"].expression, seed=draws.seed)
    genes = None  # that count for the discrimination
    if any("perturbations" in metric.needs for metric in metrics):
        genes = ~given["real_test"].var_names.isin({part for parts in of_parts for part in parts})
    rows = [
        {"perturbation": of_parts[parts], "group": group, **context.row(metric)}
        for (parts, group), context in _contexts(sets, space, draws, genes)
        for metric in metrics
    ]
    rows.sort(key=lambda row: (row["perturbation"], row["group"]))
    return table_of(rows, leading, figures)


def _contexts(
    sets: Mapping[str, Perturbed], space: ComparisonSpace | None, draws: Draws, genes: NDArray[np.bool_] | None
) -> Iterator[tuple[tuple[Parts, str], Context]]:
    """Yield the comparisons of each perturbation in each group: its real cells, and all predictions of them."""
    real = sets["real_test"]
    controls = {group: GeneMoments.of(sets["control"].of(parts, group)) for parts, group in sets["control"].rows}
    panels = {} if genes is None else _panels(real, controls, draws, genes)
    trained: dict[tuple[Parts, str], Trained] = {}
    if "train" in sets:
        known = [place for place in sets["train"].rows if place[1] in controls]
        trained = {place: (GeneMoments.of(sets["train"].of(*place)), place[1]) for place in known}
        if not trained:
            warn_user("`control` has no cells of the groups in `train`, so `mean_shift` and `additive` are empty.")
    mean_response = Shift.of(trained.values(), controls, weight=1 / len(trained)) if trained else None

    def profile_of(cells: Expression, control_share: float = 0.0) -> Profile:
        """Compute the moments of all cells, and draw some for distances."""
        drawn = cells
        if len(cells) > draws.max_cells:
            drawn = cells[np.sort(np.random.default_rng(draws.seed).permutation(len(cells))[: draws.max_cells])]
        pcs = drawn.values.toarray() if space is None else space.project(drawn)
        return Profile(replace(GeneMoments.of(cells), control_share=control_share), pcs.astype(np.float64))

    def profile(name: str, parts: Parts, group: str) -> Profile:
        return profile_of(sets[name].of(parts, group), sets[name].control_share)

    def moved(control: Profile, group: str, shift: Shift) -> Profile:
        """Shift the control cells of a group by a change of the genes. The projection is linear."""
        step = shift.change if space is None else space.pca.components_ @ shift.change[space.genes]
        return Profile(shift.move(group, controls), control.pcs + step)

    control_of = lru_cache(maxsize=1)(partial(profile, "control", ()))  # many perturbations have the same one
    for place in sorted(real.rows, key=lambda place: place[1]):
        parts, group = place
        control, cells = control_of(group), real.of(*place)
        found = {"value": profile("synthetic", *place), "no_change": control}
        if mean_response is not None:
            found["mean_shift"] = moved(control, group, mean_response)
        singles = [trained.get(((part,), group)) for part in parts]
        if None not in singles:
            found["additive"] = moved(control, group, Shift.of(singles, controls))
        for name, own in sets.items():
            if name not in SETS and len(own.rows.get(place, ())) >= MIN_CELLS:
                found[name] = profile(name, *place)
        of_real = profile_of(cells)
        compare = partial(Prediction, control=control, mean_response=found.get("mean_shift"))
        whole, *of_halves = panels.get(place, [None] * (1 + draws.n_repeats))
        comparisons = {name: [compare(of_real, own, panel=whole)] for name, own in found.items()}
        pairs = [[profile_of(cells[half]) for half in pair] for pair in _halves_of(len(cells), draws)]
        comparisons["real"] = [compare(*pair, panel=panel) for pair, panel in zip(pairs, of_halves, strict=False)]
        yield place, Context(comparisons)


def _halves_of(n_cells: int, draws: Draws) -> list[list[NDArray[np.intp]]]:
    """Split the cells of a perturbation in two, several times: positions of both; no splits of too few cells."""
    if n_cells < 2 * MIN_CELLS:
        return []
    rng = np.random.default_rng(draws.seed)
    return [np.array_split(rng.permutation(n_cells), 2) for _ in range(draws.n_repeats)]


def _panels(
    real: Perturbed, controls: Mapping[str, GeneMoments], draws: Draws, genes: NDArray[np.bool_]
) -> dict[tuple[Parts, str], list[Panel]]:
    """Return the panel of each perturbation in its group, and those of the first halves in every split."""
    panels: dict[tuple[Parts, str], list[Panel]] = {}
    for group in {group for _, group in real.rows}:
        perturbations = [parts for parts, place in real.rows if place == group]
        directions = np.empty((1 + draws.n_repeats, len(perturbations), np.count_nonzero(genes)), dtype=np.float32)
        for row, parts in enumerate(perturbations):
            cells = real.of(parts, group)
            firsts = [cells[first] for first, _ in _halves_of(len(cells), draws)] or [cells] * draws.n_repeats
            changes = np.array([(means(one.values) - controls[group].mean)[genes] for one in (cells, *firsts)])
            directions[:, row] = unit_vectors(changes)
            panels[parts, group] = [Panel(of_split, row, genes) for of_split in directions]
    return panels


def parts_of(perturbation: str, *, separator: str = SEPARATOR, ignored: Collection[str] = ()) -> Parts:
    """Return the single perturbations of a combination, sorted, without the `ignored` ones, such as the control.

    Spaces around them do not matter, as for the sets of a model.

    Examples
    --------
    >>> parts_of("KLF1+ctrl", ignored=["ctrl"])
    ('KLF1',)
    """
    if perturbation in ignored:  # even if it has the separator, such as a control called "DMSO+PBS"
        return ()
    return tuple(sorted({part.strip() for part in perturbation.split(separator)} - set(ignored)))
