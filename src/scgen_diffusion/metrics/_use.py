"""Usefulness: what classifiers learn from synthetic cells about real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score

from ._cells import as_points, text_labels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

N_RESAMPLES = 500
INTERVAL = (0.025, 0.975)


def tstr_f1(train_values: NDArray, train_labels: ArrayLike, test_values: NDArray, test_labels: ArrayLike) -> float:
    r"""Measure whether a cell-type classifier trained on synthetic cells works on real ones (macro F1).

    .. math:: \frac{1}{K} \sum_k \frac{2\, \text{TP}_k}{2\, \text{TP}_k + \text{FP}_k + \text{FN}_k}

    over the :math:`K` labels of the test cells, for logistic regression (``C=0.1``). From 0 to 1; higher is better. A
    label without training cells counts as 0.

    *Catches* labels that are missing, swapped, blurred into each other, or far from the real ones. *Misses* what does
    not move the boundary between labels: too little spread within a label (which may even help), moderately wrong
    shares of labels, zeros, total counts, and memorisation (copies score best).

    Parameters
    ----------
    train_values, train_labels
        Cells to learn from, `(cells, features)` and `(cells,)`: synthetic cells with the labels they were generated
        for.
    test_values, test_labels
        Real cells that no model has seen, in the same features, such as principal components.

    Returns
    -------
    Macro F1; NaN if the training cells have fewer than two labels.

    References
    ----------
    Esteban et al. 2017, Real-valued (medical) time series generation with recurrent conditional GANs ("TSTR").
    """
    train_values, test_values = as_points(train_values=train_values, test_values=test_values)
    train_labels, test_labels = text_labels(train_labels, "train_labels"), text_labels(test_labels, "test_labels")
    if len(np.unique(train_labels)) < 2:
        return np.nan
    predicted = _fit(train_values, train_labels).predict(test_values)
    return float(f1_score(test_labels, predicted, labels=np.unique(test_labels), average="macro", zero_division=0))


def trts_accuracy(
    real_values: NDArray, real_labels: ArrayLike, synthetic_values: NDArray, requested_labels: ArrayLike
) -> float:
    r"""Measure whether synthetic cells match the label they were generated for, by a classifier trained on real cells.

    .. math:: \frac{1}{K} \sum_k \frac{|\{i : \hat l_i = l_i = k\}|}{|\{i : l_i = k\}|}

    where cell :math:`i` was generated for label :math:`l_i` and classified as :math:`\hat l_i`, averaged over the
    :math:`K` requested labels that real cells have. From 0 to 1; higher is better, up to the real value: pass held-out
    real cells as `synthetic_values` to get it. Above the real value, cells are more typical than real ones.

    *Catches* conditions that are ignored or mixed up, also label by label. *Misses* diversity: one perfect cell
    repeated a hundred times scores 1, and so does exaggerated guidance. It says nothing about labels that were not
    requested.

    Parameters
    ----------
    real_values, real_labels
        Real cells to learn from, `(cells, features)` and `(cells,)`.
    synthetic_values, requested_labels
        Cells to judge, in the same features, and the label that each was generated for.

    Returns
    -------
    Accuracy, averaged over labels; NaN if real cells have fewer than two labels, or none of the requested ones.

    References
    ----------
    Ravuri and Vinyals 2019, Classification accuracy score for conditional generative models (for its counterpart).
    """
    real_values, synthetic_values = as_points(real_values=real_values, synthetic_values=synthetic_values)
    real_labels, requested = text_labels(real_labels, "real_labels"), text_labels(requested_labels, "requested_labels")
    known = np.isin(requested, real_labels)
    if len(np.unique(real_labels)) < 2 or not known.any():
        return np.nan
    predicted, requested = _fit(real_values, real_labels).predict(synthetic_values[known]), requested[known]
    return float(recall_score(requested, predicted, labels=np.unique(requested), average="macro"))


def augmentation_gain(
    train_values: NDArray,
    train_labels: ArrayLike,
    synthetic_values: NDArray,
    synthetic_labels: ArrayLike,
    test_values: NDArray,
    test_labels: ArrayLike,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Measure whether synthetic cells, added to the training cells, improve a cell-type classifier, label by label.

    .. math:: \text{gain}_k = F_1^{\text{real + synthetic}}(k) - F_1^{\text{real}}(k), \qquad
        F_1(k) = \frac{2\, \text{TP}_k}{2\, \text{TP}_k + \text{FP}_k + \text{FN}_k}

    on held-out real cells. From -1 to 1; higher is better, and 0 means that nothing was gained. The interval is a
    bootstrap of the test cells (500 draws, both classifiers on the same draw). It does not include the randomness of
    training and generation; use several seeds for that.

    *Catches* whether synthetic cells of rare labels help or harm. *Misses* the quality of the cells if the real cells
    already suffice: a gain near 0 is then no fault. More weight for a rare label raises its F1, too. So compare with
    `f1_repeated`, the F1 of real cells repeated as often: what synthetic cells do beyond that is their merit.

    Parameters
    ----------
    train_values, train_labels
        Real cells to learn from, `(cells, features)` and `(cells,)`.
    synthetic_values, synthetic_labels
        Cells to add, in the same features.
    test_values, test_labels
        Real cells that neither the classifier nor the generating model has seen.
    seed
        Seed of the bootstrap.

    Returns
    -------
    A row per label of the test cells, and a last row `macro` with their mean: `f1_real`; `f1_repeated`, with
    training cells of a label weighted as if they were repeated as often as it has synthetic ones;
    `f1_augmented`; `gain`, and its 95 % interval, `low` and `high`; `n_train`, `n_synthetic` and `n_test`.

    References
    ----------
    Marouf et al. 2020, Realistic in silico generation and augmentation of single-cell RNA-seq data using generative
    adversarial networks.
    """
    train_values, synthetic_values, test_values = as_points(
        train_values=train_values, synthetic_values=synthetic_values, test_values=test_values
    )
    train_labels, test_labels = text_labels(train_labels, "train_labels"), text_labels(test_labels, "test_labels")
    synthetic_labels = text_labels(synthetic_labels, "synthetic_labels")
    both = np.concatenate([train_values, synthetic_values]), np.concatenate([train_labels, synthetic_labels])
    sizes, added = (pd.Series(labels).value_counts() for labels in (train_labels, synthetic_labels))
    as_often = pd.Series(train_labels).map(1 + added.reindex(sizes.index, fill_value=0) / sizes)

    names = np.unique(test_labels)
    n_test = len(test_labels)
    draws = np.random.default_rng(seed).multinomial(n_test, np.full(n_test, 1 / n_test), N_RESAMPLES)
    weights = np.vstack([np.ones(n_test, int), draws])  # the cells as they are, then resampled
    fits = _fit(train_values, train_labels), _fit(train_values, train_labels, as_often), _fit(*both)
    f1_real, f1_repeated, f1_both = (
        _weighted_f1(test_labels, fit.predict(test_values), names, weights) for fit in fits
    )
    low, high = np.nanquantile((f1_both - f1_real)[1:], INTERVAL, axis=0)
    sizes = {
        f"n_{side}": [*(np.sum(labels == name) for name in names), np.isin(labels, names).sum()]
        for side, labels in (("train", train_labels), ("synthetic", synthetic_labels), ("test", test_labels))
    }
    scores = {"f1_real": f1_real[0], "f1_repeated": f1_repeated[0], "f1_augmented": f1_both[0]}
    scores |= {"gain": f1_both[0] - f1_real[0], "low": low, "high": high}
    index = pd.Index([*names, "macro"], name="label", dtype=object)
    return pd.DataFrame({**scores, **sizes}, index=index)


def _fit(values: NDArray, labels: NDArray, weights: pd.Series | None = None) -> LogisticRegression:
    return LogisticRegression(max_iter=2_000, C=0.1).fit(values.astype(np.float64), labels, weights)


def _weighted_f1(labels: NDArray, predicted: NDArray, names: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Return F1 per label and its mean, `(rows, names + 1)`, for cells weighted by each row; NaN for absent labels."""
    is_label, is_predicted = labels[:, None] == names, predicted[:, None] == names
    hits, n_true, n_predicted = (weights @ table for table in (is_label & is_predicted, is_label, is_predicted))
    scores = np.where(n_true > 0, 2 * hits / np.maximum(n_true + n_predicted, 1), np.nan)
    return np.column_stack([scores, np.nanmean(scores, axis=1)])
