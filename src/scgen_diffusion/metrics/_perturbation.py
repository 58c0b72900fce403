"""How well the effect of a perturbation is predicted: changes of genes against control, real and predicted.

Other packages use other names and definitions. ``pearson_delta`` of cell-eval is :func:`mean_change_correlation` on all
genes, and its ``mae`` is the mean absolute difference of means. Its ``pearson_edistance`` correlates distances *from
control* over perturbations, which is a different question. The ``edistance`` of pertpy and cell-eval includes each
cell's distance of 0 to itself, so it is larger than :func:`energy_distance`, above all for few cells. pertpy's
``pearson_distance`` is 1 minus the correlation of *means*, which is near 0 whatever the change.

``vcc2026``, the metrics of the Virtual Cell Challenge 2026 (cell-eval2), works with summed counts and Wilcoxon tests.
Here, means and Welch's tests of log-normalised cells take their place, and the perturbed gene itself counts like any
other, except in ``perturbation_discrimination``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control, percentileofscore, ttest_ind_from_stats
from sklearn.preprocessing import normalize
from tqdm.auto import tqdm

from scgen_diffusion.data import OF_CONTROL, SEPARATOR

from ._cells import means, pair_of_expressions, stacked, variances
from ._comparison import ALL, MIN_CELLS_PER_PERTURBATION, Comparison, Context
from ._genes import correlation
from ._safety import copied_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Cells, ComparisonSpace, Expression, Source
    from ._comparison import Draws

#: The single perturbations of a cell, sorted; empty for unperturbed cells.
Parts: TypeAlias = tuple[str, ...]
#: A perturbation and a group.
Place: TypeAlias = tuple[Parts, str]

SETS = ("real_test", "synthetic", "control", "train")
FDR = 0.05
N_ERRORS = 2  # standard errors (of independent genes) by which a squared change must exceed 0 for a slope
N_NAMES_CHECKED = 20


@dataclass(frozen=True)
class GeneMoments:
    """Mean and variance of every gene in some cells.

    Attributes
    ----------
    mean, variance
        Mean and unbiased variance of log-normalised values, `(genes,)`.
    n_cells
        Number of cells.
    noise
        Sampling variance of the mean, `(genes,)`: for independent cells, the variance divided by their number. The
        jackknife gives the same.
    control_share
        How much of the control cells' sampling noise the mean contains: 0 for cells drawn independently of them, 1 for
        control cells and for cells predicted from them.
    pcs
        Some of the cells in the space for distances, `(cells, dimensions)`; None if no distance is needed.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    n_cells: int
    noise: NDArray[np.float64] = field(default=None)
    control_share: float = 0.0
    pcs: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.noise is None:
            object.__setattr__(self, "noise", self.variance / self.n_cells)

    @classmethod
    def of(cls, cells: Expression) -> Self:
        """Compute the moments of some cells."""
        n_cells = len(cells)
        return cls(means(cells.values), variances(cells.values) * n_cells / max(n_cells - 1, 1), n_cells)


@dataclass(frozen=True)
class Effect:
    """How the genes of some cells differ from those of control cells; :func:`effects` makes them.

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
    def _test(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Welch's *t* and its p-value, each `(genes,)`.

        A gene that few cells express may have no count in a small set, whose variance is then too small by far. So the
        smaller set has at least the variance of the larger one, and its degrees of freedom. The variance is also at
        least that of a gene expressed in one cell, with a value of 1: cells that are shifted as a whole, or predicted
        without spread, would change by infinitely many standard errors.
        """
        sides = []
        for side, other in ((self.cells, self.control), (self.control, self.cells)):
            variance = np.maximum(side.variance, 1 / side.n_cells)
            is_borrowed = (other.variance > variance) & (other.n_cells > side.n_cells)
            n_cells = np.where(is_borrowed, other.n_cells, side.n_cells)
            squared_error = np.where(is_borrowed, other.variance, variance) / side.n_cells
            sides += [side.mean, np.sqrt(squared_error * n_cells), n_cells]
        return ttest_ind_from_stats(*sides, equal_var=False)

    @property
    def welch_t(self) -> NDArray[np.float64]:
        """Welch's *t* of every gene, `(genes,)`; the smaller set has at least the variance of the larger one."""
        return self._test[0]

    @cached_property
    def is_significant(self) -> NDArray[np.bool_]:
        """Whether each gene is differential, `(genes,)`: two-sided Welch test, Benjamini-Hochberg FDR of 5 %."""
        return false_discovery_control(self._test[1]) <= FDR

    def top_genes(self, n_top: int) -> NDArray[np.intp]:
        """Return the positions of the genes with the largest absolute Welch *t*, largest first, `(n_top,)`."""
        return np.argsort(-np.abs(self.welch_t), kind="stable")[:n_top]


def effects(real: Cells, predicted: Cells, control: Cells, *, layer: str | None = None) -> tuple[Effect, Effect]:
    """Return the effect of a perturbation in real and in predicted cells, against the same control.

    All metrics of changes compare these two. More predicted than real cells are tested as if there were as many as real
    ones; fewer find fewer differential genes. In the tests, the smaller of two sets has at least the variance of the
    larger one: with few cells against many, Welch's own test calls genes that happen to have no count in the few cells.

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, with the same genes.
    layer
        Layer with the counts.

    Returns
    -------
    tuple of Effect
        The effect in real and in predicted cells.

    Raises
    ------
    ValueError
        If genes differ, or values are neither counts nor logarithms.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> control, real, predicted = (
    ...     rng.poisson([rate, 5.0, 5.0], (100, 3)) for rate in (5.0, 9.0, 9.0)
    ... )
    >>> of_real, of_predicted = effects(real, predicted, control)
    >>> of_real.is_significant
    array([ True,  True,  True])
    >>> de_jaccard(of_real, of_predicted), de_direction(of_real, of_predicted)
    (1.0, 1.0)
    """
    of_real, of_predicted = pair_of_expressions(real, predicted, layer, ("real", "predicted"))
    of_control = pair_of_expressions(real, control, layer, ("real", "control"))[1]
    real_moments, predicted_moments, control_moments = map(GeneMoments.of, (of_real, of_predicted, of_control))
    predicted_moments = replace(predicted_moments, control_share=control_share_of(predicted, control))
    return Effect(real_moments, control_moments), predicted_effect(predicted_moments, real_moments, control_moments)


def control_share_of(predicted: Cells, control: Cells) -> float:
    """Return 1 if predicted cells are the control cells, or say that they were predicted from them; otherwise 0.

    They say so by a column ``"<key>_of_control"`` of ``obs`` or ``obsm``, and by names that end with those of control
    cells. Names alone say nothing: different sets may have the same ones.
    """
    if predicted is control:
        return 1.0
    keys = (*predicted.obs, *predicted.obsm) if isinstance(predicted, AnnData) else ()
    if not any(str(key).endswith(OF_CONTROL) for key in keys):
        return 0.0
    rows = np.linspace(0, predicted.n_obs - 1, N_NAMES_CHECKED).astype(int)
    known = tuple(getattr(control, "obs_names", ()))  # arrays have none
    return float(all(name.endswith(known) for name in predicted.obs_names[rows]))


def predicted_effect(predicted: GeneMoments, real: GeneMoments, control: GeneMoments) -> Effect:
    """Return the effect in predicted cells, tested as if there were at most as many as real cells.

    More cells give smaller p-values. Without this, a model would get more differential genes by generating more cells.
    """
    return Effect(replace(predicted, n_cells=min(predicted.n_cells, real.n_cells)), control)


def mean_change_correlation(real: Effect, predicted: Effect, *, n_top: int | None = None) -> float:
    r"""Whether genes change in the right direction and proportion, against control. Misses the size of the effect.

    .. math:: \operatorname{corr}_g \left( \bar x^{\text{real}}_g - \bar x^{\text{control}}_g,\;
        \bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g \right)

    From -1 to 1; 1 is perfect, and 0 is returned if one side does not change at all.

    *Catches* changes in the wrong genes or the wrong direction. *Misses* the size of the change, and everything but
    means. Both sides subtract the same control cells, so with few control cells their sampling noise alone gives a
    positive value. Read it together with the baselines (:func:`evaluate` with `control`).

    Most perturbations share a response, such as stress, and whoever predicts this alone correlates well. With perturbed
    cells as the `control` of :func:`effects`, only what is special to the perturbation counts (Systema). In the table
    this is ``specific_change_correlation``, against the mean of all training perturbations.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.
    n_top
        Use only this many genes, at least 2, with the largest absolute Welch *t* between real perturbed cells and
        control; all genes if None.

    References
    ----------
    Viñas Torné et al. 2025, Systema: a framework for evaluating genetic perturbation response prediction beyond
    systematic variation. Nat Biotechnol.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rate = np.full(50, 5.0)
    >>> changed = np.where(np.arange(50) < 10, 15.0, 5.0)
    >>> control, real, predicted = (
    ...     rng.poisson(r, (200, 50)) for r in (rate, changed, changed)
    ... )
    >>> round(mean_change_correlation(*effects(real, predicted, control)), 1)
    1.0
    """
    genes = slice(None) if n_top is None else real.top_genes(n_top)
    return correlation(real.change[genes], predicted.change[genes])


def variance_error(real: Effect, predicted: Effect, *, n_top: int | None = None) -> float:
    r"""Difference of a gene's predicted and real variance, averaged over genes. Misses relations between genes.

    .. math:: \frac{1}{G} \sum_g \bigl| s^2_g(\text{real}) - s^2_g(\text{predicted}) \bigr|

    with unbiased variances of log-normalised values. From 0 (perfect) upwards; lower is better. It uses plain
    differences because a correlation of variances would not notice that all of them are too small, and logarithms would
    be dominated by genes that few cells express.

    *Catches* cells without spread (predicted means), added noise, and control cells that are only shifted, which keep
    the spread of control. The genes that change most show this best. *Misses* means, and everything between genes.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.
    n_top
        Use only this many genes, at least 2, with the largest absolute Welch *t* between real perturbed cells and
        control; all genes if None.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> real, predicted, control = rng.poisson(50.0, (3, 200, 50))
    >>> smooth = np.full((200, 50), 50)
    >>> error, of_smooth = (
    ...     variance_error(*effects(real, cells, control)) for cells in (predicted, smooth)
    ... )
    >>> error < of_smooth / 3
    True
    """
    genes = slice(None) if n_top is None else real.top_genes(n_top)
    return float(np.abs(real.cells.variance - predicted.cells.variance)[genes].mean())


def mean_change_error(real: Effect, predicted: Effect) -> float:
    """Difference of a gene's predicted and real mean, averaged over genes. Misses differences between cells.

    From 0; lower is better. Sampling noise of both counts as error (:func:`mean_change_debiased_error` subtracts it).

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.
    """
    return float(np.abs(real.change - predicted.change).mean())


def mean_change_debiased_error(real: Effect, predicted: Effect) -> float:
    r"""Squared error of mean changes, less what noise adds: 0 on average if perfect; may be negative.

    .. math:: \frac{1}{G} \sum_g \left[ \left( \bar x^{\text{real}}_g - \bar x^{\text{predicted}}_g \right)^2
        - \frac{s^2_g(\text{real})}{n_\text{real}} - \frac{s^2_g(\text{predicted})}{n_\text{predicted}} \right]

    Means of few cells are noisy, so two perfect sets of cells have different means. This error subtracts the sampling
    variance of both means (which is what a jackknife over cells estimates), and so is 0 on average for a perfect
    prediction, whatever the numbers of cells. Lower is better. It may be negative: then the data show no error. The
    control cells cancel, so changes and means have the same error.

    For control cells in place of a prediction, it estimates the squared effect itself. The error divided by that of
    control cells (the column `no_change` of :func:`evaluate`) is the share of the effect that was not predicted: 0 for
    a perfect prediction and 1 for none. To combine perturbations, divide the sums.

    *Catches* effects in the wrong genes, of the wrong size or direction. *Misses* all but means. It takes the predicted
    cells for independent draws: cells that spread more than their mean varies get too much taken off.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.

    References
    ----------
    Arc Institute 2026, The vcc2026 metric suite (cell-eval2): ``expr_mse_unbiased_capped_norm``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> unchanged, changed = np.full(50, 5.0), np.where(np.arange(50) < 10, 15.0, 5.0)
    >>> real, perfect, control = (
    ...     rng.poisson(rate, (200, 50)) for rate in (changed, changed, unchanged)
    ... )
    >>> error, squared_effect = (
    ...     mean_change_debiased_error(*effects(real, cells, control))
    ...     for cells in (perfect, control)
    ... )
    >>> abs(error / squared_effect) < 0.01
    True
    """
    noise = real.cells.noise + predicted.cells.noise
    return float(((real.change - predicted.change) ** 2 - noise).mean())


def mean_change_slope(real: Effect, predicted: Effect) -> float:
    r"""Size of effects relative to real ones: 1 is right, below 1 too small. Misses changes in the wrong genes.

    .. math:: \frac{\sum_g d_g e_g - (1 - c)\, v_g}{\sum_g d_g^2 - u_g - v_g}

    for real changes :math:`d_g` and predicted changes :math:`e_g` of the means against control, the sampling variances
    :math:`u_g` and :math:`v_g` of the means of real and of control cells, and :math:`c = 1` for cells predicted from
    these control cells, else 0. 1 is best. Below 1, effects are too small on average (attenuation); above 1, they are
    exaggerated; 0 is no change. Any value is possible.

    Noise in the real changes makes a plain regression too flat, and the noise of control cells, which both sides
    subtract, makes it too steep. Subtracting the variances corrects both (errors in variables), as the mean over all
    split halves would, so the slope of a clear effect does not depend on the numbers of cells. Of effects near the
    noise, only those that noise happens to increase have a slope: where many perturbations have no value, perfect
    predictions of the others score 0.4 to 0.8. Cells predicted from the control cells share their noise, and then it
    cancels. Cells count as such if they are the control cells, or if ``obs`` has a column ``"<key>_of_control"`` and
    their names end with those of control cells, as :meth:`~scgen_diffusion.model.SCLDM.predict_perturbation` writes
    both. All others are taken as drawn independently; add the column to cells that another method predicts from
    control cells. This matters if control cells are few.

    *Catches* effects of the wrong size. *Misses* changes in genes that do not change really, and everything but means:
    read it beside :func:`mean_change_correlation`.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.

    Returns
    -------
    The slope; NaN if the real change cannot be told from the sampling noise of independent genes. As real genes vary
    together, about one in ten perturbations without any effect has a slope.

    References
    ----------
    Fuller 1987, Measurement error models.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rate, log_change = np.full(200, 20.0), np.where(np.arange(200) < 20, 0.8, 0.0)
    >>> control, real, half = (
    ...     rng.poisson(rate * np.exp(step * log_change), (500, 200))
    ...     for step in (0, 1, 0.5)
    ... )
    >>> round(mean_change_slope(*effects(real, half, control)), 1)
    0.5
    """
    noise = real.cells.noise + real.control.noise
    squared = float((real.change**2 - noise).sum())
    if squared <= N_ERRORS * np.sqrt(2 * (noise**2).sum()):  # standard error of the sum without any effect
        return np.nan
    shared = (1 - predicted.cells.control_share) * real.control.noise
    return float((real.change * predicted.change - shared).sum() / squared)


def rank_score(directions: NDArray, row: int, genes: NDArray[np.bool_], change: NDArray) -> float:
    """Return the share of real changes that are less similar to a predicted one than the change of its perturbation is.

    Ties count half; NaN if there is no other.

    Parameters
    ----------
    directions
        Changes of all perturbations, scaled to length 1, `(perturbations, genes that count)`.
    row
        Place of the perturbation that is predicted.
    genes
        Which genes count: those that are no perturbation.
    change
        The predicted change, `(genes,)`.
    """
    similarities = directions @ change[genes].astype(np.float32)
    return float(percentileofscore(np.delete(similarities, row), similarities[row], kind="mean") / 100)


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
    `predicted_is_differential`, from Welch's test at a false discovery rate of 5 %. More predicted than real cells are
    tested as if there were as many as real ones. The index holds the gene names, or positions if the cells have no
    names.

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
    sides = dict(zip(("real", "predicted"), effects(real, predicted, control, layer=layer), strict=True))
    columns = {name: effect.change for name, effect in sides.items()}
    columns |= {f"{name}_t": effect.welch_t for name, effect in sides.items()}
    columns |= {f"{name}_is_differential": effect.is_significant for name, effect in sides.items()}
    names = real.var_names if isinstance(real, AnnData) else pd.RangeIndex(len(columns["real"]))
    return pd.DataFrame(columns, index=names).iloc[np.argsort(-np.abs(sides["real"].welch_t), kind="stable")]


def de_overlap(real: Effect, predicted: Effect, *, n_top: int = 100) -> float:
    r"""Measure whether the genes that change most are the right ones: the overlap of the real and predicted top genes.

    .. math:: \frac{|T \cap T'|}{|T|}

    with the `n_top` genes :math:`T` of the largest absolute Welch *t* in real cells and :math:`T'` in predicted cells.
    From 0 to 1; higher is better. Each list has `n_top` genes, or fewer if fewer genes change at all: genes without any
    change are in no list, so the control cells themselves score 0. The overlap :math:`o` is the recall of the real
    list. If both lists are equally long, as in nearly all data, precision equals recall, and the Jaccard index of the
    lists is :math:`o / (2 - o)`.

    *Catches* effects in the wrong genes, and effects hidden by too much spread. *Misses* direction
    (:func:`de_direction`) and size. The weakest gene of the real list counts as much as the strongest. If hardly any
    gene changes, the real list is noise: read the overlap next to the real value.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.
    n_top
        Largest length of the lists, at least 2.

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
    >>> de_overlap(*effects(real, predicted, control), n_top=10)
    0.5
    """
    top, predicted_top = (
        {gene for gene in effect.top_genes(n_top) if effect.change[gene] != 0} for effect in (real, predicted)
    )
    return len(top & predicted_top) / len(top) if top else np.nan


def de_jaccard(real: Effect, predicted: Effect) -> float:
    r"""Differential genes that prediction and reality share, among those of either. Misses direction and size.

    .. math:: \frac{|D \cap D'|}{|D \cup D'|}

    with the genes :math:`D` that differ from control in real cells and :math:`D'` in predicted cells, by Welch's test
    at a false discovery rate of 5 %. From 0 to 1; higher is better.

    *Catches* wrong numbers of differential genes, which :func:`de_overlap` does not see: too few if effects are too
    small or too noisy, too many if they are exaggerated. *Misses* direction and size. It falls with the number of
    cells even for real cells, as statistical power does, so compare it only with the real value.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.

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
    >>> de_jaccard(*effects(real, predicted, control))
    0.5
    """
    if not real.is_significant.any():
        return np.nan
    both, either = real.is_significant & predicted.is_significant, real.is_significant | predicted.is_significant
    return float(both.sum() / either.sum())


def de_direction(real: Effect, predicted: Effect) -> float:
    r"""Share of differential genes predicted to change in the right direction; guessing scores 0.5. Misses the size.

    .. math:: \frac{1}{|D|} \bigl|\{ g \in D :
        \operatorname{sign}(\bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g) =
        \operatorname{sign}(\bar x^{\text{real}}_g - \bar x^{\text{control}}_g) \}\bigr|

    over the genes :math:`D` that differ from control in real cells (Welch's test, false discovery rate 5 %). From 0 to
    1; higher is better. Random guessing scores 0.5; the control cells themselves score 0, because they predict no
    change.

    *Catches* effects in the wrong direction. *Misses* their size: the slightest change in the right direction is
    enough. If nearly all genes change in one direction, a single guess is right for all; the baselines show that.

    Parameters
    ----------
    real, predicted
        The effect in real and in predicted cells, from :func:`effects`.

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
    >>> de_direction(*effects(real, predicted, control))
    0.75
    """
    if not real.is_significant.any():
        return np.nan
    agrees = np.sign(real.change) == np.sign(predicted.change)
    return float(agrees[real.is_significant].mean())


# --- the cells of each perturbation, beside all predictions of them ---------------------------------------------------


@dataclass(frozen=True)
class Prediction(Comparison):
    """The effect of a perturbation in real cells, and in a prediction of them.

    Attributes
    ----------
    mean_response
        Control cells with the mean change of all training perturbations; None without these.
    discriminate
        Function that scores a predicted change, `(genes,)`, among the real changes of all perturbations.
    """

    real: Effect
    synthetic: Effect
    mean_response: GeneMoments | None
    discriminate: Callable[[NDArray], float]


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
    rows: dict[Place, NDArray[np.intp]]
    control_share: float

    @classmethod
    def read(cls, source: Source, parts: Sequence[Parts], control_share: float) -> Self:
        """Read cells and their perturbations; unperturbed cells of ``real_test`` and ``train`` are left out."""
        kept = np.arange(len(source))
        if source.name in ("real_test", "train"):
            kept = np.flatnonzero([bool(own) for own in parts])
        groups = np.full(len(source), ALL) if source.labels is None else source.labels
        places = pd.DataFrame({"parts": [parts[row] for row in kept], "group": groups[kept]})
        rows = dict(sorted(places.groupby(["parts", "group"]).indices.items()))
        return cls(stacked(source.chunks(kept)), rows, control_share)

    def of(self, parts: Parts, group: str) -> Expression:
        """Return the cells of one perturbation (empty for control) in one group."""
        return self.expression[self.rows.get((parts, group), np.zeros(0, dtype=np.intp))]


def check_perturbed(sets: Mapping[str, Perturbed]) -> None:
    """Raise unless each perturbation of ``real_test`` was predicted and has control cells; none is of ``train``."""
    if not sets["real_test"].rows:
        msg = "`real_test` needs perturbed cells, but `control` has all its names."
        raise ValueError(msg)
    for parts, group in sets["real_test"].rows:
        for name, own in (("real_test", parts), ("synthetic", parts), ("control", ())):
            if (n_cells := len(sets[name].rows.get((own, group), ()))) < MIN_CELLS_PER_PERTURBATION:
                least, perturbation = MIN_CELLS_PER_PERTURBATION, SEPARATOR.join(parts)
                msg = f"`{name}` needs {least} cells of {perturbation!r} in {group!r}, but has {n_cells}."
                raise ValueError(msg)
    if "train" in sets and copied_cells(sets["real_test"].expression, sets["train"].expression) > 0.5:
        msg = "`real_test` has cells of `train`."
        raise ValueError(msg)


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
    def of(
        cls, perturbed: Mapping[Place, GeneMoments], controls: Mapping[str, GeneMoments], weight: float = 1.0
    ) -> Self:
        """Add the changes of these perturbations in their groups, each with the same weight, and their noise.

        The noise of a single cell is unknown: it varies as much as those of the other perturbations do on average.
        """
        moments = perturbed.values()
        weights = {group: weight * n for group, n in Counter(group for _, group in perturbed).items()}
        change = weight * np.sum([own.mean for own in moments], axis=0)
        change = change - np.sum([share * controls[group].mean for group, share in weights.items()], axis=0)
        variances = [own.variance for own in moments if own.n_cells > 1]
        variance = np.sum(variances, axis=0) / (len(variances) or np.nan)
        noise = np.sum([own.noise if own.n_cells > 1 else variance for own in moments], axis=0)
        return cls(change, weight**2 * noise, weights)

    def move(self, group: str, controls: Mapping[str, GeneMoments]) -> GeneMoments:
        """Shift the control cells of a group. Part of their noise is subtracted again."""
        left = Counter({group: 1.0})
        left.subtract(self.control_weights)
        noise = self.noise + np.sum([share**2 * controls[own].noise for own, share in left.items()], axis=0)
        cells = controls[group]
        return replace(cells, mean=cells.mean + self.change, noise=noise, control_share=left[group])


def perturbation_contexts(
    sets: Mapping[str, Perturbed], space: ComparisonSpace | None, draws: Draws, genes: NDArray[np.bool_]
) -> Iterator[tuple[Place, Context]]:
    """Yield the comparisons of each perturbation in each group: its real cells, and all predictions of them."""
    real = sets["real_test"]
    controls = {group: GeneMoments.of(sets["control"].of(parts, group)) for parts, group in sets["control"].rows}
    rankings = _rankings(real, controls, draws, genes)
    known = [place for place in sets["train"].rows if place[1] in controls] if "train" in sets else []
    trained = {place: GeneMoments.of(sets["train"].of(*place)) for place in known}
    mean_response = Shift.of(trained, controls, weight=1 / len(trained)) if trained else None

    def moments_of(cells: Expression, control_share: float = 0.0) -> GeneMoments:
        """Compute the moments of all cells, and draw some for distances."""
        rows = np.random.default_rng(draws.seed).permutation(len(cells))[: draws.max_cells]
        drawn = cells[np.sort(rows)]
        pcs = drawn.values.toarray() if space is None else space.project(drawn)
        return replace(GeneMoments.of(cells), control_share=control_share, pcs=pcs.astype(np.float64))

    def moments(name: str, parts: Parts, group: str) -> GeneMoments:
        return moments_of(sets[name].of(parts, group), sets[name].control_share)

    def moved(control: GeneMoments, group: str, shift: Shift) -> GeneMoments:
        """Shift the control cells of a group by a change of the genes. The projection is linear."""
        step = shift.change if space is None else space.pca.components_ @ shift.change[space.genes]
        return replace(shift.move(group, controls), pcs=control.pcs + step)

    control_of = lru_cache(maxsize=1)(partial(moments, "control", ()))  # many perturbations have the same one
    for place in tqdm(sorted(real.rows, key=lambda place: place[1]), desc="Evaluating", delay=3, leave=False):
        parts, group = place
        control, cells = control_of(group), real.of(*place)
        found = {"value": moments("synthetic", *place), "no_change": control}
        if mean_response is not None:
            found["mean_shift"] = moved(control, group, mean_response)
        singles = [((part,), group) for part in parts]
        if all(single in trained for single in singles):
            found["additive"] = moved(control, group, Shift.of({one: trained[one] for one in singles}, controls))
        for name, own in sets.items():
            if name not in SETS and len(own.rows.get(place, ())) >= MIN_CELLS_PER_PERTURBATION:
                found[name] = moments(name, *place)
        of_real, response = Effect(moments_of(cells), control), found.get("mean_shift")
        whole, *of_halves = rankings[place]
        comparisons = {
            name: [Prediction(of_real, predicted_effect(own, of_real.cells, control), response, whole)]
            for name, own in found.items()
        }
        pairs = [[moments_of(cells[half]) for half in pair] for pair in _halves_of(len(cells), draws)]
        comparisons["real"] = [
            Prediction(Effect(first, control), predicted_effect(second, first, control), response, own)
            for (first, second), own in zip(pairs, of_halves, strict=False)
        ]
        yield place, Context(comparisons)


def _halves_of(n_cells: int, draws: Draws) -> list[list[NDArray[np.intp]]]:
    """Split the cells of a perturbation in two, several times: positions of both; no splits of too few cells."""
    if n_cells < 2 * MIN_CELLS_PER_PERTURBATION:
        return []
    rng = np.random.default_rng(draws.seed)
    return [np.array_split(rng.permutation(n_cells), 2) for _ in range(draws.n_repeats)]


def _rankings(
    real: Perturbed, controls: Mapping[str, GeneMoments], draws: Draws, genes: NDArray[np.bool_]
) -> dict[Place, list[Callable[[NDArray], float]]]:
    """Return :func:`rank_score` for each perturbation in its group, and for the first halves in every split."""
    rankings = {}
    for group in {group for _, group in real.rows}:
        perturbations = [parts for parts, place in real.rows if place == group]
        directions = np.empty((1 + draws.n_repeats, len(perturbations), np.count_nonzero(genes)), dtype=np.float32)
        for row, parts in enumerate(perturbations):
            cells = real.of(parts, group)
            firsts = [cells[first] for first, _ in _halves_of(len(cells), draws)] or [cells] * draws.n_repeats
            changes = np.array([(means(one.values) - controls[group].mean)[genes] for one in (cells, *firsts)])
            directions[:, row] = normalize(changes)
            rankings[parts, group] = [partial(rank_score, of_split, row, genes) for of_split in directions]
    return rankings


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
