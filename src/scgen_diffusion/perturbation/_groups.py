"""Groups of control and perturbed cells whose conditions differ only by the perturbation, and sums over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


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


class ProfileSums(NamedTuple):
    """Sums over cells of some groups: their numbers ``(groups,)``, and for each gene ``(groups, 4, genes)``.

    The four are the number of cells whose gene was measured, the log-normalised expression of the control cells and of
    their predictions, and the square of the latter.
    """

    numbers: np.ndarray
    values: np.ndarray


def add_sums(parts: Iterable[ProfileSums]) -> ProfileSums:
    """Add up the sums of parts of the cells; only the groups that occur."""
    total: dict[int, np.ndarray] = {}
    for part in parts:
        for number, values in zip(np.asarray(part.numbers).tolist(), part.values, strict=True):
            total[number] = total[number] + values if number in total else values
    numbers = sorted(total)
    return ProfileSums(np.array(numbers, dtype=int), np.array([total[number] for number in numbers]))


def sampling_covariance(of_perturbed: Tensor, of_control: Tensor, sets: Tensor) -> Tensor:
    """Return the sampling covariance of changes, ``(groups, groups)``; groups of one set have the same control cells.

    ``of_perturbed`` and ``of_control`` are the variances of the two means of each group, ``(groups,)``.
    """
    return of_perturbed.diag() + (sets[:, None] == sets) * of_control


def variance_of_sums(n: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """Return the variance of each gene over ``n`` cells from its sums, each ``(genes,)``; NaN for one cell.

    One more cell expresses the gene as the others do: of a few cells, a gene without molecules need not be silent.
    """
    once = squares / total  # of a cell that expresses the gene
    once = torch.where(once.isnan(), once.nanmedian(), once).nan_to_num()
    mean = (total + once) / (n + 1)
    variance = ((squares + once.square()) / (n + 1) - mean.square()).clamp(min=0)
    return torch.where(n > 1, variance * n / (n - 1), torch.nan)
