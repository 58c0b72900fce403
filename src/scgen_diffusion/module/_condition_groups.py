"""Groups of training cells with equal conditions, and the group that a request belongs to."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
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
        everyone = torch.arange(len(codes), device=codes.device)
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


def _distinct(codes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the distinct codes in lexicographic order, each with the indices of its rows.

    ``unique(dim=0)`` does the same, but makes a tensor of about 300 bytes for each row.
    """
    number, n_numbers = torch.zeros(len(codes), dtype=torch.long, device=codes.device), 1
    for column in codes.unbind(1) if len(codes) else ():
        low, high = int(column.min()), int(column.max())
        if low == high:
            continue
        n_digits = high - low + 1
        number = _renumber(number.mul_(n_digits).add_(column).sub_(low), n_numbers * n_digits)
        n_numbers = int(number.max()) + 1
    groups = codes.new_empty(int(number.max()) + 1 if len(codes) else 0, codes.shape[1])
    groups[number] = codes
    rows = number.argsort(stable=True).split(number.bincount(minlength=len(groups)).tolist())
    return zip(groups, rows, strict=True)


def _renumber(numbers: Tensor, size: int) -> Tensor:
    """Renumber values below ``size`` without gaps, in order.

    ``unique`` does the same by sorting, which takes several times the memory.
    """
    if size > max(len(numbers), CELLS_AT_A_TIME):
        return numbers.unique(return_inverse=True)[1]
    occurs = numbers.bincount(minlength=size) > 0
    return (occurs.cumsum(0) - 1)[numbers]


def _centres(values: Tensor) -> Tensor:
    """Choose centres of values ``(cells, columns)``; the last one fills free slots."""
    distinct = values.unique(dim=0)
    if len(distinct) > N_CENTRES and values.shape[1] == 1:
        order = (torch.arange(N_CENTRES, dtype=torch.float64) + 0.5) / N_CENTRES * (len(values) - 1)
        return values.sort(dim=0).values[order.round().long().to(values.device)]
    if len(distinct) > N_CENTRES:
        some = values[torch.linspace(0, len(values) - 1, min(len(values), CELLS_AT_A_TIME)).long().to(values.device)]
        clusters = KMeans(N_CENTRES, n_init=1, random_state=0).fit(some.cpu().numpy())
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
