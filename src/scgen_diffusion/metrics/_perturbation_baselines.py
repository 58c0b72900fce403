"""Predictions of perturbed cells that need no model: what every model has to beat.

Simple baselines have matched or beaten deep models of perturbation effects in several studies, so no figure of a model should
stand without theirs.

All functions work on log-normalised values. A baseline moves control cells as they are, so it keeps their spread and their gene-gene
structure; values may fall below zero.

References
----------
Ahlmann-Eltze, Huber and Anders 2025, Deep-learning-based gene perturbation effect prediction does not yet outperform simple linear
baselines. Nat Methods 22:1657.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Mapping

    from numpy.typing import ArrayLike, NDArray

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
