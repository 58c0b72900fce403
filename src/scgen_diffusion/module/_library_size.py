"""Total counts of generated cells: distributions of log totals per condition, and given the latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from scgen_diffusion.diffusion import expand_like
from scgen_diffusion.nn import classes_are_given

from ._condition_groups import ANY, BASELINE, N_CENTRES, ConditionGroups, remove_other_effects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scgen_diffusion.nn import ConditionSpec

    from ._condition_groups import Group

LibrarySizeKind = Literal["empirical", "normal", "latent"]
LIBRARY_SIZE_KINDS: tuple[str, ...] = get_args(LibrarySizeKind)
N_QUANTILES = 257
HEAD_WIDTH = 64  # of the network that reads the latent
ENOUGH_CELLS = 30  # of a combination: fewer tell less of its totals than its parts do
HASH_BASE = -7046029254386353131  # an odd number whose 64 bits look random
BOUNDS = (0.0, 0.025, 0.975, 1.0)  # levels of a condition's totals
SMALLEST_STD = 0.01  # of log totals, in the units of the head
MARGIN = 1.4  # of log totals beyond the observed ones, a factor of four
TABLES = ("codes", "quantiles", "means", "stds")  # one row per group


class LibrarySizeModel(nn.Module):
    r"""Distributions of the logarithm of a cell's total counts.

    A table stores quantiles, mean and standard deviation for groups of training cells: all cells, and the cells of each
    combination that occurs. Numeric values belong to the nearest of a few centres. Unseen combinations are extrapolated
    by main effects, quantile by quantile: :math:`q = q_0 + \sum_k (q_k - q_0)`. Here :math:`q_k` belongs to all cells
    with the value of key :math:`k`, without the effects of their other keys, and :math:`q_0` to all cells without any
    effects. Effects are fitted jointly, so that correlated keys are not counted twice. The effect of an unseen set is
    the sum over its members. With several keys, a combination of :math:`n < 30` cells lies between: its own quantiles
    have weight :math:`n / 30`, and the rest is what main effects tell.

    There are three ways to draw:

    - ``"empirical"``: from the group's quantiles;
    - ``"normal"``: from a normal distribution with the group's mean and standard deviation (published for scLDM);
    - ``"latent"``: a small network predicts mean and standard deviation from the latent. The draw is then mapped to the
      same quantile of the group's totals, so totals correlate with expression and keep the group's distribution.

    Parameters
    ----------
    conditions
        Kind of each condition key.
    n_latent
        Number of latent dimensions over all tokens.
    """

    shape: tuple[int, ...] = ()
    """Shape of a cell's totals; one number."""

    codes: Tensor
    centres: Tensor
    quantiles: Tensor
    predicted_quantiles: Tensor
    extremes: Tensor
    means: Tensor
    stds: Tensor
    n_kept: Tensor
    head_mean: Tensor
    head_std: Tensor

    def __init__(self, conditions: Sequence[ConditionSpec], n_latent: int) -> None:
        super().__init__()
        self.conditions = tuple(conditions)
        self.groups = ConditionGroups(conditions)
        self.register_buffer("codes", torch.full((0, self.groups.n_columns), ANY))
        self.register_buffer("centres", torch.zeros(self.groups.n_numbers, N_CENTRES))
        self.register_buffer("quantiles", torch.zeros(0, N_QUANTILES))
        self.register_buffer("predicted_quantiles", torch.zeros(0, N_QUANTILES))
        self.register_buffer("extremes", torch.zeros(2))  # least and largest log total of all training cells
        self.register_buffer("means", torch.zeros(0))
        self.register_buffer("stds", torch.zeros(0))
        self.register_buffer("n_kept", torch.tensor(0))  # number of groups of a reference, the first, that always stay
        # of the first log totals, by which the head standardises: later cells must not move what it has learned
        self.register_buffer("head_mean", torch.zeros(()))
        self.register_buffer("head_std", torch.zeros(()))  # zero: not known yet
        self.head = nn.Sequential(nn.Linear(n_latent, HEAD_WIDTH), nn.SiLU(), nn.Linear(HEAD_WIDTH, 2))

    @property
    def is_fitted(self) -> bool:
        """Whether there are groups to draw from."""
        return len(self.codes) > 0

    def fit(self, log_totals: Tensor, condition: Tensor) -> None:
        """Summarise log totals ``(cells,)`` by groups of conditions ``(cells, columns)``.

        In fine-tuning (``n_kept`` above 0), the first ``n_kept`` groups stay, and so do those that no cell belongs to.
        Cells without a label are left out, if others have one: generated cells have all, drawn from the cells that do.
        Only :meth:`limits` are those of all cells.
        """
        seen = torch.cat([log_totals.cpu(), self.extremes.cpu()]) if self.n_kept else log_totals
        log_totals, condition = self._labeled(log_totals, condition)
        if not len(log_totals):  # no cell has this modality
            return
        groups, centres = self.groups, self.centres.cpu()
        centres = groups.add_centres(centres, condition) if self.n_kept else groups.find_centres(condition)
        self.centres = centres.to(self.means.device)
        found = groups.split(self._discretise(condition))
        stay = self._staying(found)
        kept = {name: getattr(self, name)[stay].cpu() for name in TABLES}
        predicted, self.codes = self.predicted_quantiles[stay], self.codes[stay]
        codes, n_cells, totals = self._new_groups(found, log_totals, kept["means"])
        new = [_summarise(values) for values in totals]
        tables = {name: torch.cat([kept[name], *(one[name] for one in new)]) for name in ("means", "stds", "quantiles")}
        self.set_groups(torch.cat([kept["codes"], codes]), **tables)
        for name in tables:
            setattr(self, name, self._steady(getattr(self, name), n_cells))
        self.extremes = torch.stack([seen.min(), seen.max()]).to(self.means)
        self.predicted_quantiles = torch.cat([predicted, self.quantiles[len(predicted) :]])

    def fit_predicted(self, drawn: Tensor, condition: Tensor, n_draws: int = 1) -> None:
        """Summarise log totals ``(cells * n_draws,)`` drawn from :meth:`predict` for the training cells."""
        drawn, condition = self._labeled(drawn, condition)
        if not len(drawn):
            return
        found = self.groups.split(self._discretise(condition))
        kept = self.predicted_quantiles[self._staying(found)].cpu()  # the first
        _, n_drawn, totals = self._new_groups(found, drawn, kept.mean(1))
        table = torch.cat([kept, *(_summarise(values)["quantiles"] for values in totals)])
        self.predicted_quantiles = self._steady(table.to(self.means.device), n_drawn / n_draws)

    def _labeled(self, log_totals: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        log_totals, condition = log_totals.cpu(), condition.cpu()
        given = classes_are_given(condition, self.conditions)
        # maybe only cells without labels have this modality; a fine-tuned model has the groups of its reference
        return (log_totals[given], condition[given]) if given.any() or self.n_kept else (log_totals, condition)

    def set_groups(self, codes: Tensor, *, means: Tensor, stds: Tensor, quantiles: Tensor | None = None) -> None:
        """Set the table of groups; default quantiles are those of normal distributions."""
        if quantiles is None:
            levels = torch.linspace(0, 1, N_QUANTILES, device=means.device).clamp(1 / N_QUANTILES, 1 - 1 / N_QUANTILES)
            quantiles = means[:, None] + stds[:, None] * torch.special.ndtri(levels)
        device = self.means.device
        self.codes, self.quantiles = codes.to(device), quantiles.float().to(device)
        self.predicted_quantiles = self.quantiles
        self.means, self.stds = means.float().to(device), stds.float().to(device)
        of_cells = (self.codes >= 0).all(1)  # unlike parts of a condition
        of_cells[0] = True
        least, largest = self.quantiles[of_cells][:, [0, -1]].unbind(1)
        self.extremes = torch.stack([least.min(), largest.max()])
        if not self.head_std:
            self.head_mean, self.head_std = self.means[0].clone(), self.stds[0].clamp(min=SMALLEST_STD)

    def draw(
        self, kind: LibrarySizeKind, condition: Tensor, z: Tensor, uniform: Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Draw totals.

        Parameters
        ----------
        kind
            Name of the distribution.
        condition
            ``(n, columns)``.
        z
            Latents, ``(n, tokens, width)``; only ``"latent"`` uses them.
        uniform
            Random numbers in ``[0, 1)``, ``(n,)``.
        start
            Conditions of the latents, ``(n, columns)``, if the flow moves the cells afterwards: they keep their
            level, as moved latents that fall a little short would be among the least of their new group.

        Returns
        -------
        Tensor
            Total counts, at least 1, ``(n,)``.
        """
        noise = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
        codes = self._known_to(condition) if kind == "latent" else self._discretise(condition)
        if kind == "normal":
            log_total = self._look_up(self.means, codes) + self._look_up(self.stds, codes).clamp(min=0) * noise
        else:
            levels = uniform
            if kind == "latent":
                levels = self._level(codes if start is None else self._known_to(start), z, noise)
            log_total = _interpolate(self._look_up(self.quantiles, codes), levels)
        return log_total.exp().round().clamp(min=1)

    def bounds(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return the least, a low, a high and the largest total ``(n,)`` of cells with conditions ``(n, columns)``."""
        quantiles = self._look_up(self.quantiles, self._discretise(condition))
        levels = (quantiles.new_full((len(quantiles),), level) for level in BOUNDS)
        return tuple(_interpolate(quantiles, level).exp().round() for level in levels)

    def limits(self) -> Tensor:
        """Return the least and the largest total of all training cells, ``(1, 2)``, or of their distributions."""
        return self.extremes[None].exp().round()

    def expected(self, condition: Tensor) -> Tensor:
        """Return the mean log total ``(n,)`` of cells with conditions ``(n, columns)``, as far as these are given."""
        return self._look_up(self.means, self._known_to(condition))

    def _discretise(self, condition: Tensor) -> Tensor:
        return self.groups.discretise(condition, self.centres.to(condition.device))

    def _known_to(self, condition: Tensor) -> Tensor:
        """Return codes for what a latent tells of totals: of all cells where a part of the condition is left out."""
        is_whole = classes_are_given(condition, self.conditions) & condition.isfinite().all(1)
        return torch.where(is_whole[:, None], self._discretise(condition), ANY)

    def _level(self, codes: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Return the level of each latent's draw among the draws of its group, ``(n,)``."""
        mean, std = self.predict(z)
        table = self._look_up(self.predicted_quantiles, codes).contiguous()
        drawn = (mean + std * noise)[:, None].contiguous()
        above = torch.searchsorted(table, drawn)[:, 0].clamp(1, N_QUANTILES - 1)
        low, high = table.gather(1, above[:, None] - 1)[:, 0], table.gather(1, above[:, None])[:, 0]
        within = ((drawn[:, 0] - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        return (above - 1 + within) / (N_QUANTILES - 1)

    def predict(self, z: Tensor, log_totals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict mean and standard deviation of the log total from latents ``(n, tokens, width)``, each ``(n,)``.

        Only models of several modalities read known log totals.
        """
        mean, log_std = self.head(z.flatten(1)).float().unbind(1)  # bfloat16 has too few digits for log totals
        return self.head_mean + self._unit * mean, self._unit * log_std.clamp(-5, 2).exp()

    def standardise(self, log_totals: Tensor) -> Tensor:
        """Return log totals in the units of the head."""
        return (log_totals - self.head_mean) / self._unit

    @property
    def _unit(self) -> Tensor:
        return self.head_std.where(self.head_std > 0, 1)

    def loss(self, z: Tensor, log_totals: Tensor) -> Tensor:
        """Return the negative log-likelihood of log totals under the predicted normal distribution, ``(n,)``."""
        mean, std = self.predict(z)
        return ((log_totals - mean) / std).square() / 2 + std.log()

    def _staying(self, groups: Sequence[Group]) -> Tensor:
        """Mark the stored groups that stay when cells with some groups are summarised."""
        found, n_kept = {tuple(group.codes.tolist()) for group in groups}, int(self.n_kept)
        stay = [n < n_kept or (n_kept > 0 and tuple(codes) not in found) for n, codes in enumerate(self.codes.tolist())]
        return torch.tensor(stay, dtype=torch.bool, device=self.codes.device)

    def _new_groups(
        self, groups: Sequence[Group], log_totals: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """Return codes, sizes and log totals of the groups that are not kept; ``kept`` are the means of the others."""
        of_kept = {tuple(codes) for codes in self.codes[: len(kept)].tolist()}
        new = [group for group in groups if tuple(group.codes.tolist()) not in of_kept]
        new = [group for group in new if not of_kept or group.kind != "baseline"]
        codes = torch.cat([self.codes[:0].cpu(), *(group.codes[None] for group in new)])
        values, sizes = log_totals.double(), torch.tensor([len(group.cells) for group in new])
        if not self.groups.can_combine:
            return codes, sizes, (values[group.cells] for group in new)
        combinations = [group for group in groups if group.kind == "combination"]
        known, baseline = torch.zeros(len(combinations), len(self.groups.keys), dtype=torch.double), None
        if of_kept:
            table = kept.to(self.codes.device).double()
            requested = torch.stack([group.codes for group in combinations]).to(table.device)
            effects = [self._effect(table, requested, key) for key in range(len(self.groups.keys))]
            known, baseline = torch.stack(effects, dim=1).cpu(), self._baseline(table).cpu()
        return codes, sizes, remove_other_effects(values, new, combinations, known, baseline)

    def _steady(self, table: Tensor, n_cells: Tensor) -> Tensor:
        """Move combinations of few cells among the last groups, which have ``n_cells``, to what their parts tell."""
        n_cells = torch.cat([n_cells.new_full((len(table) - len(n_cells),), ENOUGH_CELLS), n_cells]).to(table)
        few = (self.codes >= 0).all(1) & (n_cells < ENOUGH_CELLS)
        if len(self.groups.keys) == 1 or not few.any():
            return table
        additive, weights = self._additive(table, self.codes[few]), n_cells[few] / ENOUGH_CELLS
        steady = table.clone()
        steady[few] = additive.lerp(table[few], expand_like(weights, additive))
        return steady

    def _look_up(self, table: Tensor, codes: Tensor) -> Tensor:
        """Look up rows of a table ``(groups, ...)``: exact if the combination occurs, else additive."""
        exact, occurs = self._rows_of(table, codes)
        return exact if occurs.all() else torch.where(occurs, exact, self._additive(table, codes))

    def _additive(self, table: Tensor, codes: Tensor) -> Tensor:
        """Add up the effects of all keys, at most ``MARGIN`` beyond what was observed: sets would grow without end."""
        baseline = self._baseline(table).expand(len(codes), *table.shape[1:])
        total = baseline + sum(self._effect(table, codes, key) for key in range(len(self.groups.keys)))
        total = total.clamp(table.min() - MARGIN, table.max() + MARGIN)
        return total if total.ndim == 1 else total.sort(dim=1).values

    def _effect(self, table: Tensor, codes: Tensor, key: int) -> Tensor:
        """Return the effect of a key's value; for an unseen set, the sum over its members."""
        of_value, occurs = self._difference(table, self.groups.only(codes, key))
        if key not in self.groups.sets:
            return of_value
        members = self.groups.each_member(codes, key)
        effects = [self._difference(table, having)[0] * expand_like(is_one, of_value) for having, is_one in members]
        return torch.where(occurs, of_value, sum(effects))

    def _difference(self, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        rows, occurs = self._rows_of(table, codes)
        return torch.where(occurs, rows - self._baseline(table), 0), occurs

    def _baseline(self, table: Tensor) -> Tensor:
        """Return the baseline row; tables without one, such as published ones, use the row of all cells."""
        row, occurs = self._rows_of(table, torch.full_like(self.codes[:1], BASELINE))
        return torch.where(occurs, row, table[:1])[0]

    def _rows_of(self, table: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the groups with these codes, and a broadcastable mask of groups that exist.

        The table may end before the last group.
        """
        known = self.codes[: len(table)]
        hashes, order = _hash(known).sort(stable=True)
        places = order[torch.searchsorted(hashes, _hash(codes)).clamp(max=len(known) - 1)]
        occurs = (known[places] == codes).all(1)
        rows = table[places]
        return rows, expand_like(occurs, rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of groups is known only from the file.
        for name in (*TABLES, "predicted_quantiles", "centres"):
            if (saved := state_dict.get(prefix + name)) is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, torch.empty_like(saved, device=self.means.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MultimodalLibrarySize(nn.Module):
    """One :class:`LibrarySizeModel` per modality. Totals are ``(cells, modalities)``, NaN for what a cell lacks.

    ``"latent"`` predicts a modality's total from the latent *and* the totals of the modalities before it, because a
    cell that lost half of its content lost it in all modalities. The other distributions draw the totals independently.

    Parameters
    ----------
    n_modalities
        Number of modalities.
    conditions
        Kind of each condition key.
    n_latent
        Number of latent dimensions over all tokens.
    """

    def __init__(self, n_modalities: int, conditions: Sequence[ConditionSpec], n_latent: int) -> None:
        super().__init__()
        self.shape = (n_modalities,)
        self.parts = nn.ModuleList(LibrarySizeModel(conditions, n_latent + before) for before in range(n_modalities))

    @property
    def is_fitted(self) -> bool:
        """Whether there are groups to draw from."""
        return all(part.is_fitted for part in self.parts)

    @property
    def can_predict(self) -> bool:
        """Whether :meth:`predict` is trained: :meth:`fit_predicted` has replaced what :meth:`fit` sets."""
        return not any(torch.equal(part.predicted_quantiles, part.quantiles) for part in self.parts)

    def fit(self, log_totals: Tensor, condition: Tensor) -> None:
        """Summarise log totals ``(cells, modalities)`` by the groups of conditions ``(cells, columns)``."""
        for part, totals in zip(self.parts, log_totals.unbind(1), strict=True):
            part.fit(totals[~totals.isnan()], condition[~totals.isnan()])

    def fit_predicted(self, drawn: Tensor, condition: Tensor, n_draws: int = 1) -> None:
        """Summarise log totals ``(cells * n_draws, modalities)`` drawn from :meth:`predict` for the training cells."""
        for part, totals in zip(self.parts, drawn.unbind(1), strict=True):
            part.fit_predicted(totals[~totals.isnan()], condition[~totals.isnan()], n_draws)

    def draw(
        self,
        kind: LibrarySizeKind,
        condition: Tensor,
        z: Tensor,
        uniform: Tensor,
        given: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Draw totals ``(n, modalities)`` from ``uniform (n, modalities)``; see :meth:`LibrarySizeModel.draw`.

        Totals that are ``given (n, modalities)`` stay, except NaN, and those of later modalities follow them.
        """
        conditions = [condition] if start is None else [condition, start]
        totals = uniform.new_zeros(len(conditions), len(z), 0)  # of the cells, and of their starts, which levels need
        for number, (part, level) in enumerate(zip(self.parts, uniform.unbind(1), strict=True)):
            features = self._features(z, totals[-1].clamp(min=1).log())
            total = torch.stack([part.draw(kind, own, features, level, start) for own in conditions])
            if given is not None:
                expected = torch.stack([part.expected(own) for own in conditions])
                wanted = given[:, number] * (expected - expected[0]).exp()  # as far from what its start expects
                total = torch.where(wanted.isnan(), total, wanted)
            totals = torch.cat([totals, total[..., None]], dim=2)
        return totals[0]

    def predict(self, z: Tensor, log_totals: Tensor) -> tuple[Tensor, Tensor]:
        """Predict mean and deviation of each log total from latents and earlier totals, ``(n, modalities)``."""
        before = [self._features(z, log_totals[:, :number]) for number in range(len(self.parts))]
        means, stds = zip(*(part.predict(known) for part, known in zip(self.parts, before, strict=True)), strict=True)
        return torch.stack(means, dim=1), torch.stack(stds, dim=1)

    def loss(self, z: Tensor, log_totals: Tensor) -> Tensor:
        """Return the negative log-likelihood of the log totals that are not NaN, ``(n,)``."""
        losses = [
            torch.where(totals.isnan(), 0, part.loss(self._features(z, log_totals[:, :number]), totals.nan_to_num()))
            for number, (part, totals) in enumerate(zip(self.parts, log_totals.unbind(1), strict=True))
        ]
        return torch.stack(losses).sum(0)

    def limits(self) -> Tensor:
        """Return the least and the largest total of all training cells in each modality, ``(modalities, 2)``."""
        return torch.cat([part.limits() for part in self.parts])

    def typical(self) -> Tensor:
        """Return the typical total of each modality, ``(modalities,)``."""
        return torch.stack([part.means[0] for part in self.parts]).exp()

    def _features(self, z: Tensor, log_totals: Tensor) -> Tensor:
        """Append the standardised earlier totals to the latents; missing ones count as average."""
        known = [
            part.standardise(totals).nan_to_num()
            for part, totals in zip(self.parts, log_totals.unbind(1), strict=False)
        ]
        return torch.cat([z.flatten(1), *(column[:, None] for column in known)], dim=1)


def _hash(codes: Tensor) -> Tensor:
    """Return a whole number for each of some codes ``(n, columns)``; different ones hardly ever share it."""
    factors = torch.full((codes.shape[1],), HASH_BASE, device=codes.device).cumprod(0)  # sums wrap around on purpose
    return (codes * factors).sum(1)


def _summarise(values: Tensor) -> dict[str, Tensor]:
    """Return mean, standard deviation and quantiles of a group's values, by the names of their tables."""
    levels = torch.linspace(0, 1, N_QUANTILES, dtype=values.dtype)
    quantiles = _interpolate(values.sort().values[None], levels)
    summary = {"means": values.mean(), "stds": values.std(correction=0), "quantiles": quantiles}
    return {name: value[None].float() for name, value in summary.items()}


def _interpolate(quantiles: Tensor, levels: Tensor) -> Tensor:
    """Evaluate quantile functions ``(n or 1, grid)`` at levels ``(n,)``."""
    quantiles = quantiles.expand(len(levels), -1)
    position = levels * (quantiles.shape[1] - 1)
    below = position.floor().long().clamp(0, quantiles.shape[1] - 1)  # NaN gives NaN, not an invalid index
    above = (below + 1).clamp(max=quantiles.shape[1] - 1)
    low, high = quantiles.gather(1, below[:, None])[:, 0], quantiles.gather(1, above[:, None])[:, 0]
    return low + (position - below) * (high - low)
