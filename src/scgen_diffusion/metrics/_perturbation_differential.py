"""Differential genes: are those of predicted cells the right ones, and do they change in the right direction.

Names elsewhere: :func:`de_overlap` is ``overlap_at_N`` of cell-eval, :func:`de_direction` its ``de_direction_match``; these take a Wilcoxon test, here it is
Welch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from ._perturbation_effects import Effect, Ranking, real_and_predicted_effect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._expression import Cells

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
