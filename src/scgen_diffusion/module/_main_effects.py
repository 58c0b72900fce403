"""Main effects of conditions on log totals, separated from the effects of the cells' other conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import lsqr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ._condition_groups import Group

RIDGE = 0.1  # number of cells at which an effect is halved
BASELINE_SCALE, SET_SCALE = 10.0, 0.03  # prior standard deviations relative to the effect of a value or member


def remove_other_effects(
    log_totals: Tensor, groups: Sequence[Group], combinations: Sequence[Group], known: Tensor, baseline: Tensor | None
) -> Iterator[Tensor]:
    r"""Yield the log totals of each group's cells, corrected for the effects of the cells' other conditions.

    The model for the mean of a combination is :math:`\mu + \sum_k e_k`, with one effect per value of a key, per member
    of a set, and per set for what goes beyond its members. All effects are fitted at once, by ridge regression weighted
    by the number of cells.

    Parameters
    ----------
    log_totals
        ``(cells,)``.
    groups
        Groups whose totals to yield and whose effects to fit.
    combinations
        All combinations; together they contain every cell once.
    known
        Known effects of each combination, ``(combinations, keys)``; zero for those to fit.
    baseline
        The mean :math:`\mu` that known effects add to; None to fit it.
    """
    n_cells = torch.tensor([len(combination.cells) for combination in combinations])
    number = torch.empty(len(log_totals), dtype=torch.long, device=log_totals.device)
    number[torch.cat([combination.cells for combination in combinations])] = (
        torch.arange(len(combinations)).repeat_interleave(n_cells).to(number)
    )
    means = log_totals.new_zeros(len(combinations)).index_add_(0, number, log_totals).cpu() / n_cells
    single = [group for group in groups if group.kind in ("value", "set", "member")]
    having = [number[group.cells].unique().cpu() for group in single]
    scales = [BASELINE_SCALE if baseline is None else 0.0, *(SET_SCALE if g.kind == "set" else 1.0 for g in single)]
    rest = means - (log_totals.mean().cpu() if baseline is None else baseline) - known.sum(1)
    fitted, effects = _fit(having, rest, n_cells, scales), known.clone()
    for group, rows, effect in zip(single, having, fitted, strict=True):
        effects[rows, group.key] += effect
    own_of_member = {id(group): effect for group, effect in zip(single, fitted, strict=True) if group.kind == "member"}
    total = effects.sum(1)
    for group in groups:
        values = log_totals[group.cells]
        match group.kind:
            case "all" | "combination":
                yield values
                continue
            case "value" | "set":
                others = total - effects[:, group.key]
            case "member":
                others = total - own_of_member[id(group)]
            case _:
                others = total
        yield values - others.to(values)[number[group.cells]]


def _fit(having: Sequence[Tensor], means: Tensor, n_cells: Tensor, scales: Sequence[float]) -> list[float]:
    """Fit a baseline and effects to the means ``(combinations,)``; ``having`` lists the combinations of each effect."""
    rows = np.concatenate([np.arange(len(means)), *(column.numpy() for column in having)])
    columns = np.repeat(np.arange(1 + len(having)), [len(means), *map(len, having)])
    weights, scale = np.sqrt(n_cells.numpy()), np.asarray(scales)
    design = sp.csr_matrix((weights[rows] * scale[columns], (rows, columns)), shape=(len(means), len(scale)))
    solution = lsqr(design, weights * means.numpy(), damp=RIDGE**0.5, atol=1e-10, btol=1e-10, conlim=0)[0]
    return (solution * scale)[1:].tolist()
