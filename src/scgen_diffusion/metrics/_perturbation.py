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

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control, ttest_ind_from_stats

from scgen_diffusion.data import OF_CONTROL

from ._cells import means, pair_of_expressions, variances
from ._comparison import UNKNOWN, Comparison
from ._genes import correlation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._cells import Cells, Expression

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
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    n_cells: int
    noise: NDArray[np.float64] = field(default=None)
    control_share: float = 0.0

    def __post_init__(self) -> None:
        if self.noise is None:
            object.__setattr__(self, "noise", self.variance / self.n_cells)

    @classmethod
    def of(cls, cells: Expression) -> Self:
        """Compute the moments of some cells."""
        n_cells = len(cells)
        return cls(means(cells.values), variances(cells.values) * n_cells / max(n_cells - 1, 1), n_cells)


class Profile(NamedTuple):
    """What metrics of perturbations need to know about some cells.

    Attributes
    ----------
    moments
        Mean and variance of all genes.
    pcs
        The cells in the space for distances, `(cells, dimensions)`.
    """

    moments: GeneMoments
    pcs: NDArray[np.float64]


class Panel(NamedTuple):
    """The real changes of all perturbations in a group, for ``perturbation_discrimination``.

    Attributes
    ----------
    directions
        Changes against control, scaled to length 1, `(perturbations, genes)`.
    row
        Place of the perturbation that is predicted.
    genes
        Which genes count: those that are no perturbation.
    """

    directions: NDArray[np.float32]
    row: int
    genes: NDArray[np.bool_]

    def score(self, change: NDArray) -> float:
        """Return the score of a predicted change, `(all genes,)`."""
        return rank_score(self.directions @ change[self.genes].astype(np.float32), self.row)


@dataclass(frozen=True)
class Prediction(Comparison):
    """Real cells of a perturbation, and a prediction of them.

    Attributes
    ----------
    control
        Unperturbed cells.
    mean_response
        Control cells with the mean change of all training perturbations.
    panel
        The real changes of all perturbations.
    """

    real: Profile
    synthetic: Profile
    control: Profile
    mean_response: Profile | None = None
    panel: Panel | None = None


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
    cells, alone or after other words and a ``-``. Names alone say nothing: different sets may have the same ones.
    """
    if predicted is control:
        return 1.0
    if not (isinstance(predicted, AnnData) and isinstance(control, AnnData)):
        return 0.0
    if not any(str(key).endswith(OF_CONTROL) for key in (*predicted.obs, *predicted.obsm)):
        return 0.0
    rows = np.linspace(0, predicted.n_obs - 1, N_NAMES_CHECKED).astype(int)
    names = [name.split("-") for name in predicted.obs_names[rows]]
    known = set(control.obs_names)
    return float(all(any("-".join(words[i:]) in known for i in range(len(words))) for words in names))


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
        return UNKNOWN
    shared = (1 - predicted.cells.control_share) * real.control.noise
    return float((real.change * predicted.change - shared).sum() / squared)


def unit_vectors(changes: NDArray) -> NDArray:
    """Scale every change `(perturbations, genes)` to length 1; zeros stay zero."""
    lengths = np.linalg.norm(changes, axis=1, keepdims=True)
    return changes / np.where(lengths > 0, lengths, 1)


def rank_score(similarities: NDArray, row: int) -> float:
    """Return the share of other rows that are less similar than this one. Ties count half; NaN without other rows."""
    if len(similarities) < 2:
        return UNKNOWN
    above, equal = similarities > similarities[row], similarities == similarities[row]
    return float(1 - (above.sum() + (equal.sum() - 1) / 2) / (len(similarities) - 1))


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
    return len(top & predicted_top) / len(top) if top else UNKNOWN


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
        return UNKNOWN
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
        return UNKNOWN
    agrees = np.sign(real.change) == np.sign(predicted.change)
    return float(agrees[real.is_significant].mean())
