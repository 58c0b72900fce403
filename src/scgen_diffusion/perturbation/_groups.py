"""Groups of control and perturbed cells whose conditions differ only by the perturbation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PerturbationGroup:
    """Row numbers of control and perturbed cells whose conditions differ only by the perturbation."""

    control: np.ndarray
    perturbed: np.ndarray


def perturbation_groups(
    rows: np.ndarray, is_control: np.ndarray, perturbation: np.ndarray, others: np.ndarray
) -> list[PerturbationGroup]:
    """List the cells of each perturbation, with the control cells that have the same values of the other conditions.

    Parameters
    ----------
    rows
        Row numbers of the cells.
    is_control
        Mask of unperturbed cells.
    perturbation, others
        Codes of the conditions that perturb, and of the others, ``(cells, columns)``.
    """
    _, number, sizes = np.unique(np.hstack([others, perturbation]), axis=0, return_inverse=True, return_counts=True)
    of_each = np.split(np.argsort(number.ravel(), kind="stable"), np.cumsum(sizes)[:-1])
    _, place = np.unique(others, axis=0, return_inverse=True)
    place = place.ravel()
    of_place = rows[is_control][np.argsort(place[is_control], kind="stable")]
    ends = np.cumsum(np.bincount(place[is_control], minlength=place.max(initial=-1) + 1))
    controls = np.split(of_place, ends[:-1])  # groups share the arrays, which may be large
    perturbed = [of_each[n] for n in np.unique(number[~is_control])]
    return [PerturbationGroup(same, rows[m]) for m in perturbed if len(same := controls[place[m[0]]])]
