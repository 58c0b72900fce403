"""Embeddings: what representations of cells are worth for labelling new cells and cells of new donors."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ._labels import labels_of
from ._representation import representation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sklearn.base import ClassifierMixin

#: Positions of training cells and of test cells.
Split: TypeAlias = "tuple[NDArray[np.intp], NDArray[np.intp]]"

N_FOLDS = 5
N_NEIGHBOURS = 15


def evaluate_embeddings(
    adata: AnnData, use_reps: Sequence[str], label_key: str, *, donor_key: str | None = None, seed: int = 0
) -> pd.DataFrame:
    r"""Return how well labels of held-out cells, and of held-out donors, can be told from embeddings.

    .. math:: \text{accuracy} = \frac{1}{n} \sum_i [\hat l_i = l_i], \qquad \text{macro } F_1 =
        \frac{1}{K} \sum_k \frac{2\, \text{TP}_k}{2\, \text{TP}_k + \text{FP}_k + \text{FN}_k}

    over all test cells of a split, each labelled by a classifier that has not seen it. Both from 0 to 1; higher is better. Compare
    embeddings with each other, `X_pca` among them: what is good enough depends on the labels.

    - `linear_probe`: logistic regression on standardised features; what the embedding says along straight lines.
    - `knn`: the vote of the 15 nearest neighbours; whether neighbours in the embedding are alike.
    - `label_transfer`: the same vote, with one donor as the reference for all the others, every donor in turn.

    The split `cells` is five stratified folds; `donors` holds out one donor after the other (for `label_transfer`, all but one).

    *Catches* embeddings that lose types, above all rare ones (macro F1), and embeddings whose neighbours are of one donor rather than of one type.
    *Misses* what the labels do not name: states, gradients, how well cells can be generated. Labels that were clustered from one of the
    embeddings favour it. Embeddings learned with the test cells, even without their labels, have seen them: learn them on other cells
    where the claim is about new ones.

    Parameters
    ----------
    adata
        Cells with embeddings in `obsm`, each `(cells, features)`.
    use_reps
        Names of the embeddings, such as `["X_scldm", "X_pca", "X_scVI"]`.
    label_key
        Column of `obs` with the labels to tell. Labels of fewer than five cells are left out.
    donor_key
        Column of `obs` with the donors (or batches); None tests on held-out cells only.
    seed
        Decides the folds.

    Returns
    -------
    A row for each `embedding`, `task`, `split` and `score` (`accuracy`, `macro_f1`), with its `value`, and `n_cells`, the number of
    test cells.

    Raises
    ------
    KeyError
        If `obsm` or `obs` lacks a name.
    ValueError
        If a cell has no label or donor, if there are less than two labels to tell or donors to hold out, or if an embedding is not finite.

    References
    ----------
    Alain and Bengio 2016, Understanding intermediate layers using linear classifier probes. Luecken et al. 2022, Benchmarking
    atlas-level data integration in single-cell genomics.
    """
    if not isinstance(adata, AnnData):
        msg = f"`adata` must be an AnnData with embeddings in `obsm`, but is {type(adata).__name__}."
        raise TypeError(msg)
    if not len(use_reps):
        msg = "`use_reps` is empty; name entries of `adata.obsm`."
        raise ValueError(msg)
    if isinstance(use_reps, str):
        msg = f"`use_reps` must be a list of names, but is the string {use_reps!r}. Did you mean [{use_reps!r}]?"
        raise TypeError(msg)
    labels = labels_of(adata, label_key)
    kept = _of_common_labels(labels, label_key)
    labels = labels[kept]
    features = {name: representation(adata, name, "adata")[kept] for name in use_reps}
    splits = _splits(labels, None if donor_key is None else _donors_of(adata, donor_key)[kept], seed)
    rows = [
        {"embedding": name, "task": task, "split": split, **score}
        for name in use_reps
        for (task, split), pairs in splits.items()
        for score in _scores(features[name], labels, task, pairs)
    ]
    return pd.DataFrame(rows, columns=["embedding", "task", "split", "score", "value", "n_cells"])


def _of_common_labels(labels: NDArray, key: str) -> NDArray[np.bool_]:
    names, sizes = np.unique(labels, return_counts=True)
    common = names[sizes >= N_FOLDS]
    if len(common) < 2:
        msg = f"`label_key` {key!r} must have two labels or more with at least {N_FOLDS} cells, but has {len(common)}."
        raise ValueError(msg)
    return np.isin(labels, common)


def _donors_of(adata: AnnData, key: str) -> NDArray[np.str_]:
    donors = labels_of(adata, key)
    if len(np.unique(donors)) < 2:
        msg = f"`donor_key` {key!r} must name two donors or more, but all cells are of {str(donors[0])!r}."
        raise ValueError(msg)
    return donors


def _splits(labels: NDArray, donors: NDArray | None, seed: int) -> dict[tuple[str, str], list[Split]]:
    """Return the train and test cells of every task and split."""
    folds = list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(labels, labels))
    splits = {("linear_probe", "cells"): folds, ("knn", "cells"): folds}
    if donors is None:
        return splits
    others_to_one = [(np.flatnonzero(donors != donor), np.flatnonzero(donors == donor)) for donor in np.unique(donors)]
    one_to_others = [(test, train) for train, test in others_to_one]
    return splits | {
        ("linear_probe", "donors"): others_to_one,
        ("knn", "donors"): others_to_one,
        ("label_transfer", "donors"): one_to_others,
    }


def _scores(values: NDArray, labels: NDArray, task: str, splits: list[Split]) -> list[dict[str, object]]:
    predicted = np.concatenate([_predict(task, values[train], labels[train], values[test]) for train, test in splits])
    truth = np.concatenate([labels[test] for _, test in splits])
    macro_f1 = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    return [
        {"score": "accuracy", "value": float(accuracy_score(truth, predicted)), "n_cells": len(truth)},
        {"score": "macro_f1", "value": float(macro_f1), "n_cells": len(truth)},
    ]


def _predict(task: str, values: NDArray, labels: NDArray, test_values: NDArray) -> NDArray:
    if len(names := np.unique(labels)) < 2:
        return np.repeat(names, len(test_values))  # a donor with cells of one label
    return _classifier(task, len(values)).fit(values, labels).predict(test_values)


def _classifier(task: str, n_cells: int) -> ClassifierMixin:
    if task == "linear_probe":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    return KNeighborsClassifier(min(N_NEIGHBOURS, n_cells))
