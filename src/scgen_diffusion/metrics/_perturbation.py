"""How well is the effect of a perturbation predicted: distances between cells, and correlation of mean changes against control.

Names elsewhere: ``pearson_delta`` of cell-eval is :func:`mean_change_correlation` on all genes, its ``mae`` the mean absolute difference of
means; its ``pearson_edistance`` correlates distances *from control* over perturbations, which is another question than how far predicted
cells are from real ones. The ``edistance`` of pertpy and cell-eval counts each cell's distance of 0 to itself, so that it is larger than
:func:`energy_distance`, the more so the fewer cells there are; pertpy's ``pearson_distance`` is 1 minus the correlation of *means*, which
is near 0 whatever the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import stdtr
from scipy.stats import false_discovery_control

from ._cells import pair_of_expressions
from ._genes import correlation
from ._space import means, variances

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from ._cells import Cells, Expression

Ranking = Literal["welch", "change"]

FDR = 0.05


@dataclass(frozen=True)
class GeneMoments:
    """Mean and variance of every gene in some cells.

    Attributes
    ----------
    mean, variance
        Of log-normalised values, `(genes,)`; the variance is the unbiased one.
    n_cells
        Number of cells.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    n_cells: int

    @classmethod
    def of(cls, cells: Expression) -> Self:
        """Take the moments of some cells."""
        n_cells = len(cells)
        return cls(means(cells.values), variances(cells.values) * n_cells / max(n_cells - 1, 1), n_cells)

    @property
    def squared_error(self) -> NDArray[np.float64]:
        """Squared standard error of the mean, `(genes,)`.

        It is at least that of a gene which one of the cells expresses, with a value of 1. Cells that are moved as a whole, or predicted without spread, have
        genes with no variance at all, and the slightest change of these would be infinitely many standard errors.
        """
        return np.maximum(self.variance, 1 / self.n_cells) / self.n_cells


@dataclass(frozen=True)
class Effect:
    """How the genes of some cells differ from those of control cells.

    Attributes
    ----------
    cells, control
        Moments of both.
    """

    cells: GeneMoments
    control: GeneMoments

    @cached_property
    def change(self) -> NDArray[np.float64]:
        """Difference of the means, `(genes,)`."""
        return self.cells.mean - self.control.mean

    @cached_property
    def welch_t(self) -> NDArray[np.float64]:
        """Welch's *t* of every gene, `(genes,)`."""
        return self.change / np.sqrt(self._squared_error)

    @cached_property
    def is_significant(self) -> NDArray[np.bool_]:
        """Whether a gene is differential: Welch's test, both sides, false discovery rate 5 % (Benjamini and Hochberg), `(genes,)`."""
        p_values = 2 * stdtr(self._degrees_of_freedom, -np.abs(self.welch_t))
        return false_discovery_control(p_values) <= FDR

    def top_genes(self, n_top: int, ranking: Ranking = "welch") -> NDArray[np.intp]:
        """Return the positions of the genes that change most, most changed first, `(n_top,)`."""
        if ranking not in get_args(Ranking):
            msg = f"`ranking` must be one of {get_args(Ranking)}, but is {ranking!r}."
            raise ValueError(msg)
        if n_top < 2:
            msg = f"`n_top` must be at least 2 genes, so that they have a correlation, but is {n_top}."
            raise ValueError(msg)
        score = self.welch_t if ranking == "welch" else self.change
        return np.argsort(-np.abs(score), kind="stable")[:n_top]

    @cached_property
    def _squared_error(self) -> NDArray[np.float64]:
        return self.cells.squared_error + self.control.squared_error

    @property
    def _degrees_of_freedom(self) -> NDArray[np.float64]:
        """Degrees of freedom by Welch and Satterthwaite, `(genes,)`."""
        parts = [side.squared_error**2 / max(side.n_cells - 1, 1) for side in (self.cells, self.control)]
        return self._squared_error**2 / sum(parts)


def real_and_predicted_effect(
    real: Cells, predicted: Cells, control: Cells, layer: str | None = None
) -> tuple[Effect, Effect]:
    """Return the effect in real and in predicted cells, against the same control."""
    of_real, of_predicted = pair_of_expressions(real, predicted, layer, ("real", "predicted"))
    of_control = pair_of_expressions(real, control, layer, ("real", "control"))[1]
    real_moments, predicted_moments, control_moments = map(GeneMoments.of, (of_real, of_predicted, of_control))
    return Effect(real_moments, control_moments), predicted_effect(predicted_moments, real_moments, control_moments)


def predicted_effect(predicted: GeneMoments, real: GeneMoments, control: GeneMoments) -> Effect:
    """Return the effect in predicted cells, tested as if there were as many of them as real ones.

    More cells give smaller p-values: without this, a model would have more differential genes the more cells it generates.
    """
    return Effect(replace(predicted, n_cells=real.n_cells), control)


def mean_change_correlation(
    real: Cells,
    predicted: Cells,
    control: Cells,
    *,
    n_top: int | None = None,
    ranking: Ranking = "welch",
    layer: str | None = None,
) -> float:
    r"""Correlate real and predicted mean changes against control over genes (Pearson).

    .. math:: \operatorname{corr}_g \left( \bar x^{\text{real}}_g - \bar x^{\text{control}}_g,\;
        \bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g \right)

    From -1 to 1; 1 is best, and 0 is returned where one side does not change at all. It does not see the size of the change, nor anything but
    means; and since both sides subtract the same control cells, the sampling noise of these alone gives a positive value where control
    cells are few. Read it beside the baselines (:func:`evaluate_perturbation`).

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, the same genes.
    n_top
        Use only this many genes, those that change most between the real perturbed cells and control; all genes if None.
    ranking
        What "most" means: the absolute Welch *t* statistic, or the absolute change of the mean.
    layer
        Layer with the counts.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rate = np.full(50, 5.0)
    >>> changed = np.where(np.arange(50) < 10, 15.0, 5.0)
    >>> control, real, predicted = (rng.poisson(r, (200, 50)) for r in (rate, changed, changed))
    >>> round(mean_change_correlation(real, predicted, control), 1)
    1.0
    """
    effects = real_and_predicted_effect(real, predicted, control, layer)
    return correlation_of_changes(*effects, n_top=n_top, ranking=ranking)


def variance_error(
    real: Cells,
    predicted: Cells,
    *,
    control: Cells | None = None,
    n_top: int | None = None,
    ranking: Ranking = "welch",
    layer: str | None = None,
) -> float:
    r"""Return how far the genes' variances in predicted cells are from those in real cells.

    .. math:: \frac{1}{G} \sum_g \bigl| s^2_g(\text{real}) - s^2_g(\text{predicted}) \bigr|

    with unbiased variances of log-normalised values. From 0 upwards; lower is better. The plain difference is taken because a correlation of variances does not see
    that all of them are too small, and logarithms drown in the noise of genes that few cells have. (CD14 monocytes of `kang_ifnb`, half of the real cells
    0.022; with cells averaged in fives 0.080, control cells 0.055: the correlations of the log variances over genes are 0.93, 0.92 and 0.87.)

    *Catches* cells without their spread (predicted means), noise added, and control cells moved as they are, whose spread is that of control:
    most clearly in the genes that change most. *Misses* means, and everything between genes.

    Parameters
    ----------
    real, predicted
        Counts, or AnnData with counts or `log1p` values, the same genes.
    control
        Control cells, needed with `n_top` only.
    n_top
        Use only this many genes, those that change most between the real perturbed cells and control; all genes if None.
    ranking
        What "most" means, as in :func:`mean_change_correlation`.
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
    if n_top is None:
        of_both = map(GeneMoments.of, pair_of_expressions(real, predicted, layer, ("real", "predicted")))
        return error_of_variances(*of_both)
    if control is None:
        msg = "`n_top` needs `control`, against which genes change."
        raise ValueError(msg)
    effect, predicted_effect = real_and_predicted_effect(real, predicted, control, layer)
    return error_of_variances(effect.cells, predicted_effect.cells, effect.top_genes(n_top, ranking))


def correlation_of_changes(
    real: Effect, predicted: Effect, *, n_top: int | None = None, ranking: Ranking = "welch"
) -> float:
    """Return :func:`mean_change_correlation` of two effects against the same control."""
    genes = slice(None) if n_top is None else real.top_genes(n_top, ranking)
    return correlation(real.change[genes], predicted.change[genes])


def error_of_variances(real: GeneMoments, predicted: GeneMoments, genes: NDArray | slice = slice(None)) -> float:
    """Return :func:`variance_error` of two sets of cells."""
    return float(np.abs(real.variance - predicted.variance)[genes].mean())


UNKNOWN = float("nan")


def gene_changes(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> pd.DataFrame:
    """Return every gene's change against control, in real and in predicted cells.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    A row per gene, those first that are most clearly changed in real cells: `real` and `predicted`, the change of the mean (log-normalised values); `real_t` and
    `predicted_t`, Welch's statistic, of predicted cells as if there were as many as real ones; `real_is_differential` and `predicted_is_differential`, whether Welch's
    test says so at a false discovery rate of 5 %. The index holds the genes' names, or their positions where the cells have no names.

    See Also
    --------
    mean_change_correlation, de_overlap, de_jaccard, de_direction : single figures of this table.

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
    ranking: Ranking = "welch",
    layer: str | None = None,
) -> float:
    r"""Return the share in common of the genes that change most against control in real and in predicted cells.

    .. math:: \frac{|T \cap T'|}{|T|}

    with the `n_top` genes :math:`T` of the largest absolute Welch *t* in real cells and :math:`T'` in predicted cells. From 0 to 1; higher is
    better. Both lists have one length, so that this is precision and recall at `n_top` at once, and Jaccard's index of the lists is
    :math:`o / (2 - o)`. Genes that do not change at all are in no list: the control cells themselves score 0.

    *Catches* effects in the wrong genes, and effects that drown in wrong variances. *Misses* direction (:func:`de_direction`) and size, and lets the weakest of the
    real list count as much as the strongest. Where hardly any gene changes, real lists are noise: read it beside the floor.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, the same genes.
    n_top
        Length of the lists.
    ranking
        What "most" means: the absolute Welch *t* statistic, of predicted cells as if there were as many as real ones, or the absolute change of the mean.
    layer
        Layer with the counts.

    Returns
    -------
    The share; NaN where no gene changes in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> changed, half_right = np.full(50, 5.0), np.full(50, 5.0)
    >>> changed[:10], half_right[5:15] = 15.0, 15.0
    >>> control, real, predicted = (rng.poisson(r, (200, 50)) for r in (np.full(50, 5.0), changed, half_right))
    >>> de_overlap(real, predicted, control, n_top=10)
    0.5
    """
    return overlap_of_effects(*real_and_predicted_effect(real, predicted, control, layer), n_top, ranking)


def de_jaccard(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> float:
    r"""Return Jaccard's index of the differential genes of real and of predicted cells.

    .. math:: \frac{|D \cap D'|}{|D \cup D'|}

    with the genes :math:`D` that differ from control in real cells and :math:`D'` in predicted cells: Welch's test with a false discovery rate of 5 %, of predicted
    cells as if there were as many as real ones. From 0 to 1; higher is better.

    *Catches* how many genes are called, which :func:`de_overlap` does not: effects that are too small or too noisy (few genes), cells without their
    spread (far too many, since their variance is too small). *Misses* direction and size. It falls with the number of cells even for real cells, as power does: compare it with the
    floor only.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    The index; NaN where no gene differs in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> changed, half_right = np.full(40, 5.0), np.full(40, 5.0)
    >>> changed[:2], changed[2:4], half_right[:1], half_right[2:3] = 9.0, 1.0, 9.0, 1.0
    >>> control, real, predicted = (rng.poisson(r, (300, 40)) for r in (np.full(40, 5.0), changed, half_right))
    >>> de_jaccard(real, predicted, control)
    0.5
    """
    return jaccard_of_effects(*real_and_predicted_effect(real, predicted, control, layer))


def de_direction(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> float:
    r"""Return the share of the differential genes whose direction of change is predicted.

    .. math:: \frac{1}{|D|} \bigl|\{ g \in D : \operatorname{sign}(\bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g) =
        \operatorname{sign}(\bar x^{\text{real}}_g - \bar x^{\text{control}}_g) \}\bigr|

    over the genes :math:`D` that differ from control in real cells (Welch's test, false discovery rate 5 %). From 0 to 1; higher is better. Tossing a coin scores 0.5; the
    control cells themselves score 0, since they say nothing of any gene.

    *Catches* effects that go the wrong way. *Misses* their size: the slightest move in the right direction is enough. Where nearly all genes go one way, so
    that one guess is right for all, it says little: the baselines show that.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    The share; NaN where no gene differs in the real cells.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> changed, one_wrong = np.full(40, 5.0), np.full(40, 5.0)
    >>> changed[:2], changed[2:4], one_wrong[:1], one_wrong[1:4] = 9.0, 1.0, 9.0, 1.0
    >>> control, real, predicted = (rng.poisson(r, (300, 40)) for r in (np.full(40, 5.0), changed, one_wrong))
    >>> de_direction(real, predicted, control)
    0.75
    """
    return direction_of_effects(*real_and_predicted_effect(real, predicted, control, layer))


def overlap_of_effects(real: Effect, predicted: Effect, n_top: int, ranking: Ranking = "welch") -> float:
    """Return :func:`de_overlap` of two effects against the same control."""
    top, predicted_top = _changed_top(real, n_top, ranking), _changed_top(predicted, n_top, ranking)
    return len(np.intersect1d(top, predicted_top)) / len(top) if len(top) else UNKNOWN


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


def _changed_top(effect: Effect, n_top: int, ranking: Ranking) -> NDArray[np.intp]:
    top = effect.top_genes(n_top, ranking)
    return top[effect.change[top] != 0]


SEPARATOR = "+"


def mean_changes(values: NDArray, perturbations: ArrayLike, control: NDArray) -> dict[str, NDArray[np.float64]]:
    """Return every perturbation's mean change against control, `(genes,)` each.

    Parameters
    ----------
    values
        Log-normalised values of perturbed cells, `(cells, genes)`.
    perturbations
        Each cell's perturbation.
    control
        Log-normalised values of control cells, `(cells, genes)`.
    """
    perturbations = np.asarray(perturbations).astype(str)
    if len(perturbations) != len(values):
        msg = f"`values` has {len(values)} cells and `perturbations` {len(perturbations)} entries; there must be one per cell."
        raise ValueError(msg)
    reference = control.mean(axis=0, dtype=np.float64)
    return {
        str(name): values[perturbations == name].mean(axis=0, dtype=np.float64) - reference
        for name in np.unique(perturbations)
    }


def predict_no_change(control: NDArray) -> NDArray:
    """Predict that nothing happens: the control cells."""
    return control


def predict_mean_shift(control: NDArray, changes: Mapping[Hashable, NDArray]) -> NDArray:
    """Predict the same for every perturbation: control cells moved by the mean change of the training perturbations.

    Every perturbation counts the same, however many cells it has.

    Parameters
    ----------
    control
        Control cells, `(cells, genes)`.
    changes
        Mean changes of the training perturbations (:func:`mean_changes`).

    Examples
    --------
    >>> import numpy as np
    >>> predict_mean_shift(np.zeros((1, 2)), {"A": np.array([1.0, 0.0]), "B": np.array([0.0, 3.0])})
    array([[0.5, 1.5]])
    """
    if not changes:
        msg = "`changes` is empty; a mean shift needs at least one training perturbation."
        raise ValueError(msg)
    return control + mean_of(changes)


def predict_additive(
    control: NDArray, changes: Mapping[str, NDArray], perturbation: str, *, separator: str = SEPARATOR
) -> NDArray:
    """Predict a combination of perturbations: control cells moved by the sum of the changes of its parts.

    Parameters
    ----------
    control
        Control cells, `(cells, genes)`.
    changes
        Mean changes of the training perturbations (:func:`mean_changes`), those of the parts among them.
    perturbation
        Name of the combination.
    separator
        What stands between the names of the parts.

    Raises
    ------
    KeyError
        If a part was not perturbed alone in training.

    Examples
    --------
    >>> import numpy as np
    >>> predict_additive(np.zeros((1, 2)), {"A": np.array([1.0, 0.0]), "B": np.array([0.0, 3.0])}, "A+B")
    array([[1., 3.]])
    """
    parts = parts_of(perturbation, separator=separator)
    missing = [part for part in parts if part not in changes]
    if missing:
        msg = f"`changes` lacks {missing}, the parts of {perturbation!r} that were not perturbed alone in training."
        raise KeyError(msg)
    return control + sum_of(changes, parts)


def mean_of(changes: Mapping[Hashable, NDArray]) -> NDArray[np.float64]:
    """Return the mean change, `(genes,)`."""
    return np.mean(list(changes.values()), axis=0)


def sum_of(changes: Mapping[Hashable, NDArray], parts: Iterable[Hashable]) -> NDArray[np.float64]:
    """Return the sum of the changes of some parts, `(genes,)`."""
    return np.sum([changes[part] for part in parts], axis=0)


def parts_of(perturbation: str, *, separator: str = SEPARATOR, ignored: Collection[str] = ()) -> tuple[str, ...]:
    """Return the single perturbations of a combination, sorted, without those `ignored`, such as the name of the control.

    Examples
    --------
    >>> parts_of("KLF1+ctrl", ignored=["ctrl"])
    ('KLF1',)
    """
    return tuple(sorted(part for part in perturbation.split(separator) if part not in ignored))
