"""Groups of training cells with equal conditions, and the effects of their conditions on log totals."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import lsqr
from sklearn.cluster import KMeans
from torch import Tensor

from scgen_diffusion.nn import encodings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scgen_diffusion.nn import ConditionSpec

ANY = -1
BASELINE = -2
N_CENTRES = 16  # per key of numbers
CELLS_AT_A_TIME = 1 << 16
RIDGE = 0.1  # number of cells at which an effect is halved
BASELINE_SCALE, SET_SCALE = 10.0, 0.03  # prior standard deviations relative to the effect of a value or member
EXACT = "donot_use_mm_for_euclid_dist"  # a matrix product would round distances


class Group(NamedTuple):
    """A group of cells.

    Parameters
    ----------
    kind
        All cells; all cells as the baseline that effects of conditions add to; cells with one value of a key, with one
        whole set, with one member in a set, or with one combination.
    codes
        Codes ``(columns,)``, with :data:`ANY` in columns that may differ between the cells; :data:`BASELINE` for the
        baseline.
    cells
        Indices of the cells.
    key
        Index of the key of a value, set or member.
    """

    kind: Literal["all", "baseline", "value", "set", "member", "combination"]
    codes: Tensor
    cells: Tensor
    key: int = -1


class ConditionGroups:
    """Groups of cells with equal conditions. Numbers are replaced by the index of the nearest of a few centres.

    Numbers that are one condition, such as a position, have common centres and one index, in their first column.

    Parameters
    ----------
    conditions
        Kind of each key.
    """

    def __init__(self, conditions: Sequence[ConditionSpec]) -> None:
        encodings = encodings_of(conditions)
        ends = [0, *accumulate(encoding.n_columns for encoding in encodings)]
        self.keys = [slice(start, stop) for start, stop in pairwise(ends)]
        self.n_columns = ends[-1]
        self.numbers = [self.keys[i] for i, e in enumerate(encodings) if e.is_numeric]
        self.n_numbers = sum(columns.stop - columns.start for columns in self.numbers)
        self.sets = {i: e.n for i, e in enumerate(encodings) if e.n_columns > 1 and not e.is_numeric}

    def find_centres(self, condition: Tensor) -> Tensor:
        """Choose centres of the numeric conditions ``(cells, columns)``: all values if they are few.

        Else quantiles of single numbers, and the centres of clusters of several.

        Returns
        -------
        Tensor
            ``(numeric columns, centres)``; those of single numbers ascend.
        """
        centres = [_centres(condition[:, columns].double()) for columns in self.numbers]
        return torch.cat(centres, dim=1).T.float() if centres else torch.zeros(0, N_CENTRES)

    def add_centres(self, centres: Tensor, condition: Tensor) -> Tensor:
        """Add values of new cells, ``(cells, columns)``, to the free slots of ``centres``; existing centres stay."""
        known = self._by_key(centres)
        found = [_add_new_centres(own, condition[:, at]) for own, at in zip(known, self.numbers, strict=True)]
        return torch.cat(found, dim=1).T if found else centres

    def discretise(self, condition: Tensor, centres: Tensor) -> Tensor:
        """Turn conditions ``(n, columns)`` into codes; numeric values become the index of the nearest centre."""
        codes = condition.clone()
        for own, columns in zip(self._by_key(centres), self.numbers, strict=True):
            for start in range(0, len(codes), CELLS_AT_A_TIME):
                part = slice(start, start + CELLS_AT_A_TIME)
                nearest = torch.cdist(condition[part, columns], own, compute_mode=EXACT).argmin(1)
                codes[part, columns] = 0
                codes[part, columns.start] = nearest.to(codes)
        return codes.long()

    def _by_key(self, centres: Tensor) -> list[Tensor]:
        """Return the centres of each numeric key, ``(centres, columns of the key)``."""
        return [part.T for part in centres.split([columns.stop - columns.start for columns in self.numbers])]

    @property
    def can_combine(self) -> bool:
        """Whether known values can form unseen combinations."""
        return len(self.keys) > 1 or bool(self.sets)

    def split(self, codes: Tensor) -> list[Group]:
        """Group cells by codes ``(cells, columns)``: all, and those of each value, set, member and combination."""
        everyone = torch.arange(len(codes))
        whole = codes.new_empty(self.n_columns)
        groups = [Group("all", torch.full_like(whole, ANY), everyone)]
        if self.can_combine:
            groups.append(Group("baseline", torch.full_like(whole, BASELINE), everyone))
        return [*groups, *self._parts(codes)]

    def only(self, codes: Tensor, key: int) -> Tensor:
        """Set all keys of codes ``(n, columns)`` but one to :data:`ANY`."""
        opened = torch.full_like(codes, ANY)
        opened[:, self.keys[key]] = codes[:, self.keys[key]]
        return opened

    def each_member(self, codes: Tensor, key: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each slot of a set, the codes of its member's group, and whether the slot is filled."""
        for column in range(self.keys[key].start, self.keys[key].stop):
            yield self._having(codes[:, column], key), codes[:, column] < self.sets[key]

    def _parts(self, codes: Tensor) -> Iterator[Group]:
        for key, columns in enumerate(self.keys):
            kind = "combination" if len(self.keys) == 1 else "set" if key in self.sets else "value"
            for group, cells in _distinct(self.only(codes, key)):
                yield Group(kind, group, cells, key)
            if key in self.sets:
                places = codes[:, columns]
                cells, place = (places < self.sets[key]).nonzero(as_tuple=True)
                for group, numbers in _distinct(self._having(places[cells, place], key)):
                    yield Group("member", group, cells[numbers], key)
        if len(self.keys) > 1:
            for group, cells in _distinct(codes):
                yield Group("combination", group, cells)

    def _having(self, member: Tensor, key: int) -> Tensor:
        """Return the codes of the group of all cells with a member in their set."""
        codes = torch.full((len(member), self.n_columns), ANY, device=member.device)
        codes[:, self.keys[key].start] = member
        return codes


def _distinct(codes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the distinct codes in lexicographic order, each with the indices of its rows.

    ``unique(dim=0)`` does the same, but makes a tensor of about 300 bytes for each row.
    """
    frame = pd.DataFrame(codes.numpy())
    number = torch.from_numpy(frame.groupby([*frame], sort=True).ngroup().to_numpy())
    return [(codes[rows[0]], rows) for rows in number.argsort(stable=True).split(number.bincount().tolist())]


def _centres(values: Tensor) -> Tensor:
    """Choose centres of values ``(cells, columns)``; the last one fills free slots."""
    distinct = values.unique(dim=0)
    if len(distinct) > N_CENTRES and values.shape[1] == 1:
        order = (torch.arange(N_CENTRES, dtype=torch.float64) + 0.5) / N_CENTRES * (len(values) - 1)
        return values.sort(dim=0).values[order.round().long()]
    if len(distinct) > N_CENTRES:
        some = values[torch.linspace(0, len(values) - 1, min(len(values), CELLS_AT_A_TIME)).long()]
        clusters = KMeans(N_CENTRES, n_init=1, random_state=0).fit(some.numpy())
        return torch.from_numpy(clusters.cluster_centers_).to(values)
    return torch.cat([distinct, distinct[-1:].expand(N_CENTRES - len(distinct), -1)])


def _add_new_centres(centres: Tensor, values: Tensor) -> Tensor:
    used = centres[: int((centres != centres[-1]).any(1).sum()) + 1]  # the last is repeated to the end
    distinct = values.to(used).unique(dim=0)
    new = distinct[~(distinct[:, None] == used).all(2).any(1)]
    n_free = len(centres) - len(used)
    if len(new) > n_free:
        new = new[torch.linspace(0, len(new) - 1, n_free).round().long()]
    filled = torch.cat([used, new.to(used)])
    return torch.cat([filled, filled[-1:].expand(len(centres) - len(filled), -1)])


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
    number = torch.empty(len(log_totals), dtype=torch.long)
    for place, combination in enumerate(combinations):
        number[combination.cells] = place
    means = log_totals.new_zeros(len(combinations)).index_add_(0, number, log_totals) / n_cells
    single = [group for group in groups if group.kind in ("value", "set", "member")]
    having = [number[group.cells].unique() for group in single]
    scales = [BASELINE_SCALE if baseline is None else 0.0, *(SET_SCALE if g.kind == "set" else 1.0 for g in single)]
    rest = means - (log_totals.mean() if baseline is None else baseline) - known.sum(1)
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
        yield values - others[number[group.cells]]


def _fit(having: Sequence[Tensor], means: Tensor, n_cells: Tensor, scales: Sequence[float]) -> list[float]:
    """Fit a baseline and effects to the means ``(combinations,)``; ``having`` lists the combinations of each effect."""
    rows = np.concatenate([np.arange(len(means)), *(column.numpy() for column in having)])
    columns = np.repeat(np.arange(1 + len(having)), [len(means), *map(len, having)])
    weights, scale = np.sqrt(n_cells.numpy()), np.asarray(scales)
    design = sp.csr_matrix((weights[rows] * scale[columns], (rows, columns)), shape=(len(means), len(scale)))
    solution = lsqr(design, weights * means.numpy(), damp=RIDGE**0.5, atol=1e-10, btol=1e-10, conlim=0)[0]
    return (solution * scale)[1:].tolist()
