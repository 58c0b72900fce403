"""How well the effect of a perturbation is predicted: changes against control, and the comparisons behind the table.

Other packages use other names and definitions. ``pearson_delta`` of cell-eval is :func:`mean_change_correlation` on all
genes, and its ``mae`` is the mean absolute difference of means. Its ``pearson_edistance`` correlates distances *from
control* over perturbations, which is a different question. The ``edistance`` of pertpy and cell-eval includes each
cell's distance of 0 to itself, so it is larger than :func:`energy_distance`, above all for few cells. pertpy's
``pearson_distance`` is 1 minus the correlation of *means*, which is near 0 whatever the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import stdtr
from scipy.stats import false_discovery_control

from scgen_diffusion._arguments import warn_user

from ._cells import Source, labels_of, means, pair_of_expressions, variances
from ._comparison import ALL, UNKNOWN, Comparison, Context
from ._genes import correlation
from ._safety import copied_cells
from ._space import ComparisonSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Cells, Expression
    from ._comparison import Draws

#: The single perturbations of a cell, sorted; empty for unperturbed cells.
Parts: TypeAlias = tuple[str, ...]

FDR = 0.05
SEPARATOR = "+"
MIN_CELLS = 2
MANY_COPIES = 0.2  # more copies than this share of the predicted cells are no accident


@dataclass(frozen=True)
class GeneMoments:
    """Mean and variance of every gene in some cells.

    Attributes
    ----------
    mean, variance
        Mean and unbiased variance of log-normalised values, `(genes,)`.
    n_cells
        Number of cells.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    n_cells: int

    @classmethod
    def of(cls, cells: Expression) -> Self:
        """Compute the moments of some cells."""
        n_cells = len(cells)
        return cls(means(cells.values), variances(cells.values) * n_cells / max(n_cells - 1, 1), n_cells)

    @property
    def squared_error(self) -> NDArray[np.float64]:
        """Squared standard error of the mean, `(genes,)`.

        It is at least that of a gene expressed in one cell, with a value of 1. Cells that are shifted as a whole, or
        predicted without spread, have genes with no variance, and their slightest change would be infinitely many
        standard errors.
        """
        return np.maximum(self.variance, 1 / self.n_cells) / self.n_cells


@dataclass(frozen=True)
class Effect:
    """How the genes of some cells differ from those of control cells.

    Attributes
    ----------
    cells, control
        Moments of the two sets.
    """

    cells: GeneMoments
    control: GeneMoments

    @cached_property
    def change(self) -> NDArray[np.float64]:
        """Difference of the means, `(genes,)`."""
        return self.cells.mean - self.control.mean

    @cached_property
    def squared_error(self) -> NDArray[np.float64]:
        """Squared standard error of the difference, `(genes,)`."""
        return self.cells.squared_error + self.control.squared_error

    @cached_property
    def welch_t(self) -> NDArray[np.float64]:
        """Welch's *t* of every gene, `(genes,)`."""
        return self.change / np.sqrt(self.squared_error)

    @cached_property
    def is_significant(self) -> NDArray[np.bool_]:
        """Whether each gene is differential, `(genes,)`: two-sided Welch test, Benjamini-Hochberg FDR of 5 %."""
        # Welch-Satterthwaite degrees of freedom
        parts = [side.squared_error**2 / max(side.n_cells - 1, 1) for side in (self.cells, self.control)]
        p_values = 2 * stdtr(self.squared_error**2 / sum(parts), -np.abs(self.welch_t))
        return false_discovery_control(p_values) <= FDR

    def top_genes(self, n_top: int) -> NDArray[np.intp]:
        """Return the positions of the genes with the largest absolute Welch *t*, largest first, `(n_top,)`."""
        if n_top < 2:
            msg = f"`n_top` must be at least 2 genes, but is {n_top}."
            raise ValueError(msg)
        return np.argsort(-np.abs(self.welch_t), kind="stable")[:n_top]


def real_and_predicted_effect(
    real: Cells, predicted: Cells, control: Cells, layer: str | None = None
) -> tuple[Effect, Effect]:
    """Return the effect in real and in predicted cells, against the same control."""
    of_real, of_predicted = pair_of_expressions(real, predicted, layer, ("real", "predicted"))
    of_control = pair_of_expressions(real, control, layer, ("real", "control"))[1]
    real_moments, predicted_moments, control_moments = map(GeneMoments.of, (of_real, of_predicted, of_control))
    return Effect(real_moments, control_moments), predicted_effect(predicted_moments, real_moments, control_moments)


def predicted_effect(predicted: GeneMoments, real: GeneMoments, control: GeneMoments) -> Effect:
    """Return the effect in predicted cells, tested as if there were as many as real cells.

    More cells give smaller p-values. Without this, a model would get more differential genes by generating more cells.
    """
    return Effect(replace(predicted, n_cells=real.n_cells), control)


def mean_change_correlation(
    real: Cells,
    predicted: Cells,
    control: Cells,
    *,
    n_top: int | None = None,
    layer: str | None = None,
) -> float:
    r"""Measure whether predicted changes against control have the right direction (Pearson correlation over genes).

    .. math:: \operatorname{corr}_g \left( \bar x^{\text{real}}_g - \bar x^{\text{control}}_g,\;
        \bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g \right)

    From -1 to 1; 1 is perfect, and 0 is returned if one side does not change at all.

    *Catches* changes in the wrong genes or the wrong direction. *Misses* the size of the change, and everything but
    means. Both sides subtract the same control cells, so with few control cells their sampling noise alone gives a
    positive value. Read it together with the baselines (:func:`evaluate` with `control`).

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    n_top
        Use only the genes with the largest absolute Welch *t* between real perturbed cells and control; all genes if
        None.
    layer
        Layer with the counts.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rate = np.full(50, 5.0)
    >>> changed = np.where(np.arange(50) < 10, 15.0, 5.0)
    >>> control, real, predicted = (
    ...     rng.poisson(r, (200, 50)) for r in (rate, changed, changed)
    ... )
    >>> round(mean_change_correlation(real, predicted, control), 1)
    1.0
    """
    effects = real_and_predicted_effect(real, predicted, control, layer)
    return correlation_of_changes(*effects, n_top=n_top)


def variance_error(
    real: Cells,
    predicted: Cells,
    *,
    control: Cells | None = None,
    n_top: int | None = None,
    layer: str | None = None,
) -> float:
    r"""Measure how far the genes' variances in predicted cells are from those in real cells.

    .. math:: \frac{1}{G} \sum_g \bigl| s^2_g(\text{real}) - s^2_g(\text{predicted}) \bigr|

    with unbiased variances of log-normalised values. From 0 (perfect) upwards; lower is better. It uses plain
    differences because a correlation of variances would not notice that all of them are too small, and logarithms would
    be dominated by genes that few cells express.

    *Catches* cells without spread (predicted means), added noise, and control cells that are only shifted, which keep
    the spread of control. The genes that change most show this best. *Misses* means, and everything between genes.

    Parameters
    ----------
    real, predicted
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    control
        Control cells; needed only with `n_top`.
    n_top
        Use only the genes with the largest absolute Welch *t* between real perturbed cells and control; all genes if
        None.
    layer
        Layer with the counts.

    Raises
    ------
    ValueError
        If `n_top` is given without `control`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> real, predicted = rng.poisson(50.0, (200, 50)), rng.poisson(50.0, (200, 50))
    >>> smooth = np.full((200, 50), 50)
    >>> variance_error(real, predicted) < variance_error(real, smooth) / 3
    True
    """
    if n_top is not None and control is None:
        msg = "`n_top` needs `control`, because it ranks genes by their change against control."
        raise ValueError(msg)
    effects = real_and_predicted_effect(real, predicted, real if control is None else control, layer)
    return error_of_variances(*effects, n_top=n_top)


def correlation_of_changes(real: Effect, predicted: Effect, *, n_top: int | None = None) -> float:
    """Return :func:`mean_change_correlation` of two effects against the same control."""
    genes = slice(None) if n_top is None else real.top_genes(n_top)
    return correlation(real.change[genes], predicted.change[genes])


def error_of_changes(real: Effect, predicted: Effect) -> float:
    """Return the mean absolute difference of the changes of two effects against the same control."""
    return float(np.abs(real.change - predicted.change).mean())


def error_of_variances(real: Effect, predicted: Effect, *, n_top: int | None = None) -> float:
    """Return :func:`variance_error` of the cells of two effects against the same control."""
    genes = slice(None) if n_top is None else real.top_genes(n_top)
    return float(np.abs(real.cells.variance - predicted.cells.variance)[genes].mean())


def gene_changes(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> pd.DataFrame:
    """Return every gene's change against control, in real and in predicted cells.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    A row per gene, sorted by how clearly it changes in real cells: `real` and `predicted`, the change of the mean
    (log-normalised values); `real_t` and `predicted_t`, Welch's *t*; `real_is_differential` and
    `predicted_is_differential`, from Welch's test at a false discovery rate of 5 %. Predicted cells are tested as if
    there were as many as real ones. The index holds the gene names, or positions if the cells have no names.

    See Also
    --------
    mean_change_correlation, de_overlap, de_jaccard, de_direction : single figures from this table.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rates = np.full(30, 5.0), np.where(np.arange(30) == 7, 20.0, 5.0)
    >>> control, real, predicted = (rng.poisson(rates[i], (100, 30)) for i in (0, 1, 1))
    >>> int(gene_changes(real, predicted, control).index[0])
    7
    """
    effects = dict(zip(("real", "predicted"), real_and_predicted_effect(real, predicted, control, layer), strict=True))
    columns = {name: effect.change for name, effect in effects.items()}
    columns |= {f"{name}_t": effect.welch_t for name, effect in effects.items()}
    columns |= {f"{name}_is_differential": effect.is_significant for name, effect in effects.items()}
    names = real.var_names if isinstance(real, AnnData) else pd.RangeIndex(len(columns["real"]))
    return pd.DataFrame(columns, index=names).iloc[effects["real"].top_genes(len(names))]


def de_overlap(
    real: Cells,
    predicted: Cells,
    control: Cells,
    *,
    n_top: int = 100,
    layer: str | None = None,
) -> float:
    r"""Measure whether the genes that change most are the right ones: the overlap of the real and predicted top genes.

    .. math:: \frac{|T \cap T'|}{|T|}

    with the `n_top` genes :math:`T` of the largest absolute Welch *t* in real cells and :math:`T'` in predicted cells.
    From 0 to 1; higher is better. Genes that do not change at all are in no list, so the control cells themselves score
    0. Both lists have the same length, so the overlap :math:`o` is both precision and recall at `n_top`, and their
    Jaccard index is :math:`o / (2 - o)`.

    *Catches* effects in the wrong genes, and effects hidden by wrong variances. *Misses* direction
    (:func:`de_direction`) and size. The weakest gene of the real list counts as much as the strongest. If hardly any
    gene changes, the real list is noise: read the overlap next to the floor.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    n_top
        Length of the lists. Predicted cells are tested as if there were as many as real ones.
    layer
        Layer with the counts.

    Returns
    -------
    The share; NaN if no gene changes in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> changed, half_right = np.full(50, 5.0), np.full(50, 5.0)
    >>> changed[:10], half_right[5:15] = 15.0, 15.0
    >>> control, real, predicted = (
    ...     rng.poisson(r, (200, 50)) for r in (np.full(50, 5.0), changed, half_right)
    ... )
    >>> de_overlap(real, predicted, control, n_top=10)
    0.5
    """
    effects = real_and_predicted_effect(real, predicted, control, layer)
    return overlap_of_effects(*effects, n_top=n_top)


def de_jaccard(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> float:
    r"""Measure whether the same genes are differential in real and predicted cells (Jaccard index).

    .. math:: \frac{|D \cap D'|}{|D \cup D'|}

    with the genes :math:`D` that differ from control in real cells and :math:`D'` in predicted cells, by Welch's test
    at a false discovery rate of 5 %. Predicted cells are tested as if there were as many as real ones. From 0 to 1;
    higher is better.

    *Catches* wrong numbers of differential genes, which :func:`de_overlap` does not see: too few if effects are too
    small or too noisy, far too many if cells lack spread. *Misses* direction and size. It falls with the number of
    cells even for real cells, as statistical power does, so compare it only with the floor.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    The index; NaN if no gene differs in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> changed, half_right = np.full(40, 5.0), np.full(40, 5.0)
    >>> changed[:2], changed[2:4], half_right[:1], half_right[2:3] = 9.0, 1.0, 9.0, 1.0
    >>> control, real, predicted = (
    ...     rng.poisson(r, (300, 40)) for r in (np.full(40, 5.0), changed, half_right)
    ... )
    >>> de_jaccard(real, predicted, control)
    0.5
    """
    return jaccard_of_effects(*real_and_predicted_effect(real, predicted, control, layer))


def de_direction(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> float:
    r"""Measure whether differential genes go up and down as they really do: the share with the right direction.

    .. math:: \frac{1}{|D|} \bigl|\{ g \in D : \operatorname{sign}(\bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g) =
        \operatorname{sign}(\bar x^{\text{real}}_g - \bar x^{\text{control}}_g) \}\bigr|

    over the genes :math:`D` that differ from control in real cells (Welch's test, false discovery rate 5 %). From 0 to
    1; higher is better. Random guessing scores 0.5; the control cells themselves score 0, because they predict no
    change.

    *Catches* effects in the wrong direction. *Misses* their size: the slightest change in the right direction is
    enough. If nearly all genes change in one direction, a single guess is right for all; the baselines show that.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    The share; NaN if no gene differs in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> changed, one_wrong = np.full(40, 5.0), np.full(40, 5.0)
    >>> changed[:2], changed[2:4], one_wrong[:1], one_wrong[1:4] = 9.0, 1.0, 9.0, 1.0
    >>> control, real, predicted = (
    ...     rng.poisson(r, (300, 40)) for r in (np.full(40, 5.0), changed, one_wrong)
    ... )
    >>> de_direction(real, predicted, control)
    0.75
    """
    return direction_of_effects(*real_and_predicted_effect(real, predicted, control, layer))


def overlap_of_effects(real: Effect, predicted: Effect, *, n_top: int) -> float:
    """Return :func:`de_overlap` of two effects against the same control."""
    top, predicted_top = (
        {gene for gene in effect.top_genes(n_top) if effect.change[gene] != 0} for effect in (real, predicted)
    )
    return len(top & predicted_top) / len(top) if top else UNKNOWN


def jaccard_of_effects(real: Effect, predicted: Effect) -> float:
    """Return :func:`de_jaccard` of two effects against the same control."""
    if not real.is_significant.any():
        return UNKNOWN
    both, either = real.is_significant & predicted.is_significant, real.is_significant | predicted.is_significant
    return float(both.sum() / either.sum())


def direction_of_effects(real: Effect, predicted: Effect) -> float:
    """Return :func:`de_direction` of two effects against the same control."""
    if not real.is_significant.any():
        return UNKNOWN
    agrees = np.sign(real.change) == np.sign(predicted.change)
    return float(agrees[real.is_significant].mean())


# --- the comparisons --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """What metrics of perturbations need to know about some cells.

    Attributes
    ----------
    moments
        Mean and variance of all genes.
    pcs
        The cells in the space for distances, `(cells, dimensions)`.
    """

    moments: GeneMoments
    pcs: NDArray


@dataclass(frozen=True)
class Perturbed:
    """Cells, and the positions of those of each perturbation in each group.

    Attributes
    ----------
    name
        Name of the set in error messages.
    expression
        Log-normalised values.
    rows
        Positions of the cells by their single perturbations (empty for unperturbed cells) and group; sorted.
    """

    name: str
    expression: Expression
    rows: dict[tuple[Parts, str], list[int]]

    @classmethod
    def read(cls, cells: AnnData, source: Source, key: str, split_name: Callable[[str], Parts]) -> Perturbed:
        """Read cells and their perturbations from a column of `obs`.

        Cells of ``control`` are all unperturbed; unperturbed cells of ``real_test`` and ``train`` are left out.
        """
        parts: list[Parts] = [()] * len(source)
        if source.name != "control":
            named = labels_of(cells, key, name=source.name)
            by_name = {name: split_name(name) for name in np.unique(named).tolist()}
            parts = [by_name[name] for name in named]
        kept = np.arange(len(source))
        if source.name in ("real_test", "train"):
            kept = np.array([row for row in kept if parts[row]], dtype=np.intp)
            if not len(kept):
                msg = f"`{source.name}` must have perturbed cells, but all of its cells have the name of the control."
                raise ValueError(msg)
        rows: dict[tuple[Parts, str], list[int]] = {}
        for place, row in enumerate(kept):
            group = ALL if source.labels is None else str(source.labels[row])
            rows.setdefault((parts[row], group), []).append(place)
        return cls(source.name, source.read(kept), dict(sorted(rows.items())))

    def of(self, parts: Parts, group: str) -> Expression:
        """Return the cells of one perturbation (empty for control) in one group."""
        return self.expression[np.array(self.rows.get((parts, group), []), dtype=np.intp)]

    def enough_of(self, parts: Parts, group: str, wanted: Parts) -> Expression:
        """Return the same cells. If there are fewer than two, raise and name the perturbation that needs them."""
        found = self.of(parts, group)
        if len(found) < MIN_CELLS:
            where = f"perturbation {SEPARATOR.join(wanted)!r}" + ("" if group == ALL else f" in group {group!r}")
            msg = f"`{self.name}` must have at least {MIN_CELLS} cells for {where}, but has {len(found)}."
            raise ValueError(msg)
        return found


def perturbation_contexts(
    given: Mapping[str, AnnData],
    *,
    key: str,
    separator: str,
    groupby: str | Sequence[str] | None,
    layer: str | None,
    space: ComparisonSpace | None,
    draws: Draws,
) -> Iterator[Context]:
    """Yield the comparisons of each perturbation in each group: its real cells, and all predictions of them.

    Parameters
    ----------
    given
        ``real_test``, ``synthetic``, ``control``, ``train`` if given, and the predictions of other methods.
    key, separator, groupby, layer, space, draws
        As in :func:`evaluate`.
    """
    if not (isinstance(key, str) and separator and isinstance(separator, str)):
        msg = f"`perturbation_key` and `separator` must be non-empty strings, but are {key!r} and {separator!r}."
        raise TypeError(msg)
    for name, cells in given.items():
        if not isinstance(cells, AnnData):
            msg = f"`{name}` must be an AnnData, but is {type(cells).__name__}."
            raise TypeError(msg)
    genes, untreated = given["real_test"].var_names, given["control"].obs
    controls = set(untreated[key].astype(str)) if key in untreated else set()
    split_name = partial(parts_of, separator=separator, ignored=controls)
    sources = {n: Source.of(cells, n, genes, groupby=groupby, layer=layer) for n, cells in given.items()}
    sets = {name: Perturbed.read(given[name], source, key, split_name) for name, source in sources.items()}
    real_cells = sets["real_test"].expression
    found, usual = (copied_cells(sets[name].expression, real_cells) for name in ("synthetic", "control"))
    if found - usual > MANY_COPIES:  # no two measured cells are equal, except in data with very few counts
        msg = (
            f"{found:.0%} of the cells in `synthetic` are exact copies of cells in `real_test`, "
            "so the figures say nothing about a model."
        )
        warn_user(msg)

    changes: dict[tuple[Parts, str], NDArray] = {}  # of training perturbations with control cells
    if "train" in sets:
        space = ComparisonSpace.fit(sets["train"].expression, seed=draws.seed) if space is None else space
        controls_of = {group: means(sets["control"].of((), group).values) for _, group in sets["control"].rows}
        changes = {
            (parts, group): means(sets["train"].of(parts, group).values) - controls_of[group]
            for parts, group in sets["train"].rows
            if group in controls_of
        }

    def profile(cells: Expression) -> Profile:
        """Compute the moments of all cells, and draw some cells for distances."""
        drawn = cells
        if len(cells) > draws.max_cells:
            drawn = cells[np.sort(np.random.default_rng(draws.seed).permutation(len(cells))[: draws.max_cells])]
        return Profile(GeneMoments.of(cells), drawn.values.toarray() if space is None else space.project(drawn))

    def moved(cells: Profile, change: NDArray) -> Profile:
        """Shift all cells by a change of the genes. The projection is linear."""
        step = change if space is None else space.pca.components_ @ change[space.genes]
        return Profile(replace(cells.moments, mean=cells.moments.mean + change), cells.pcs + step)

    names = {split_name(name): name for name in np.unique(labels_of(given["real_test"], key)).tolist()}
    others = [name for name in sets if name not in ("real_test", "synthetic", "control", "train")]
    for parts, group in sets["real_test"].rows:
        cells = sets["real_test"].enough_of(parts, group, parts)
        predictions = {"value": profile(sets["synthetic"].enough_of(parts, group, parts))}
        predictions["no_change"] = control = profile(sets["control"].enough_of((), group, parts))
        if changes:
            predictions["mean_shift"] = moved(control, np.mean(list(changes.values()), axis=0))
        single = [((part,), group) for part in parts]
        if set(single) <= set(changes):
            predictions["additive"] = moved(control, np.sum([changes[one] for one in single], axis=0))
        by_others = {name: sets[name].of(parts, group) for name in others}
        predictions |= {name: profile(own) for name, own in by_others.items() if len(own) >= MIN_CELLS}

        real = profile(cells)
        players = {name: [Comparison(real, own, control=control)] for name, own in predictions.items()}
        rng = np.random.default_rng(draws.seed)
        if len(cells) >= 2 * MIN_CELLS and draws.n_floor:
            halves = [np.array_split(rng.permutation(len(cells)), 2) for _ in range(draws.n_floor)]
            pairs = [[profile(cells[half]) for half in pair] for pair in halves]
            players["floor"] = [Comparison(*pair, control=control) for pair in pairs]
        equal = _equal_players(real, predictions, n_splits=max(draws.n_floor, 1), seed=draws.seed)
        equal = {name: comparisons for name, comparisons in equal.items() if name in players}
        yield Context({"perturbation": names[parts], "group": group}, players, equal_players=equal)


def _equal_players(
    real: Profile, predictions: Mapping[str, Profile], *, n_splits: int, seed: int
) -> dict[str, list[Comparison]]:
    """Compare one half of the real cells with every prediction and with the other half (`floor`), several times.

    The distance between equal distributions falls with the number of cells, so only figures for equal numbers of cells
    are comparable. All sides have as many cells as the smallest set allows.
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


def parts_of(perturbation: str, *, separator: str = SEPARATOR, ignored: Collection[str] = ()) -> Parts:
    """Return the single perturbations of a combination, sorted, without the `ignored` ones, such as the control.

    Examples
    --------
    >>> parts_of("KLF1+ctrl", ignored=["ctrl"])
    ('KLF1',)
    """
    return tuple(sorted(part for part in perturbation.split(separator) if part not in ignored))
