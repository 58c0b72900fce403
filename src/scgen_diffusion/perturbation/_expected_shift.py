"""Expected shift of latents by perturbations, learned from other cells and other perturbations."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from scgen_diffusion.nn import encodings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scgen_diffusion.nn import ConditionEncoding, ConditionSpec

SHARED = 10.0  # variance of what a perturbation does everywhere, relative to the mean square of all shifts
SPECIFIC = (1.0, 0.1, 0.3, 3.0)  # variance of what it does in similar cells only, likewise
LENGTHS = (2.8, 0.7, 1.0, 1.4, 2.0, 4.0, 5.6, 8.0)  # of similarity, in standard deviations of one kind along an axis
INTERACTION = 0.3  # variance of what a set does beyond its members, relative to one member
MOST_GROUPS = 500  # that choose variance and length
CLEAR = 0.25  # of the mean square of shifts: sampling variance of groups with enough cells to be predicted from others
RELATED = 0.1  # similarity of perturbations that tell something about each other
FARTHEST = 2.0  # square distance from the middle that a network sees, relative to the mean one of control cells
SMALLEST = 1e-6  # variance, of standardised latents
ROUNDING = {"rtol": 1e-6, "atol": 1e-4}  # of standardised numbers of float32; classes are whole numbers
AT_ONCE = 256  # perturbations compared with each other


class Suggestion(NamedTuple):
    """Weights of groups in a mean shift ``(groups,)``, its variance, and the variance before any group was seen."""

    weights: Tensor
    variance: float
    prior: float


class ExpectedShift(nn.Module):
    r"""Gaussian process of the shifts that perturbations cause, over cells and perturbations.

    In each group of cells :math:`g`, such as one cell type under one perturbation, the mean latents of perturbed and
    control cells differ by :math:`\Delta_g`, with the sampling variance :math:`v_g`. Groups with the same control cells
    share a part of it. For control latents :math:`x` and perturbations :math:`p` the process has the covariance

    .. math::

        k(x, p; x', p') = k_p(p, p') \left(a + b\, e^{-\lVert A^\top (x - x') \rVert^2 / 2 \ell^2}\right)

    A perturbation therefore does the same everywhere (:math:`a`), and more alike in cells that are alike (:math:`b`).
    The axes :math:`A` make cells as alike as their expected expression is: latents that hardly change it do not count.
    Where no similar cells were seen, the expected shift is the mean over groups. Sets of perturbations add up: their
    :math:`k_p` is the number of members that they share. It is 1 for equal classes and 0 for others, and falls with the
    distance of known embeddings. Numbers have the :math:`k_p` of Brownian motion from the control's number :math:`c`,

    .. math::

        k_p(p, p') = (\lvert p - c \rvert + \lvert p' - c \rvert - \lvert p - p' \rvert) / 2,

    so that effects lie on straight lines between those of known doses, and stay the same beyond the last one. :math:`b`
    and :math:`\ell` are those under which the measured shifts are most probable (the marginal likelihood).

    Parameters
    ----------
    conditions
        Kind of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    size
        Number of latents of a cell.
    n_groups
        Number of groups to learn from.
    control, perturbs
        Codes of unperturbed cells, and which columns perturb, ``(columns,)``; saved by the perturbation flow alone.
    """

    def __init__(
        self, conditions: Sequence[ConditionSpec], size: int, n_groups: int, control: Tensor, perturbs: Tensor
    ) -> None:
        super().__init__()
        self.encodings = encodings_of(conditions)
        self.register_buffer("control", control, persistent=False)
        self.register_buffer("perturbs", perturbs, persistent=False)
        self.register_buffer("centres", torch.zeros(n_groups, size))
        self.register_buffer("perturbations", torch.zeros(n_groups, len(control)))
        self.register_buffer("weights", torch.zeros(n_groups, size))
        self.register_buffer("variances", torch.zeros(n_groups))
        self.register_buffer("control_variances", torch.zeros(n_groups))  # their part from control cells
        self.register_buffer("control_sets", torch.arange(n_groups))  # equal for groups with the same control cells
        self.register_buffer("left_out", torch.zeros(n_groups, 2))  # `uncertainty` of each group, from all others
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("middle", torch.zeros(size))
        self.register_buffer("farthest", torch.tensor(torch.inf))  # square distance from it, along the axes
        self.register_buffer("options", torch.zeros(3))  # a, b, length
        self.register_buffer("inverse", None, persistent=False)  # of the covariance of the measured shifts, once used

    def forward(self, x: Tensor, condition: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the expected shift of control latents.

        Parameters
        ----------
        x
            Standardised latents, ``(n, tokens, n_latent)``.
        condition
            Conditions after the perturbation, ``(n, columns)``.
        weights
            Weights of the groups, such as those of :meth:`weights_without`; default: those of all groups.
        """
        weights = self.weights if weights is None else weights
        return (self.covariance_with_groups(x, condition) @ weights.double()).to(x.dtype).view_as(x)

    def place(self, x: Tensor) -> Tensor:
        """Return where latents ``(n, size)`` are along the axes, from the middle of the groups: ``(n, axes)``.

        A network knows nothing of places far from its training cells. Square distances from the middle are therefore
        drawn in, and stay below ``FARTHEST`` times the mean one of control cells.
        """
        place = (x - self.middle) @ self.axes
        return place / (1 + place.square().sum(1, keepdim=True) / self.farthest).sqrt()

    def covariance_with_groups(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the covariance of cells with all groups, ``(n, groups)``; arguments as in :meth:`forward`."""
        distinct, which = condition.unique(dim=0, return_inverse=True)
        return self._similarity(distinct, self.perturbations)[which] * self._over_cells(x.flatten(1), self.centres)

    def covariance_of(self, groups: Tensor | slice) -> Tensor:
        """Return the covariance of the shifts of some groups, without sampling noise, ``(n, n)``."""
        centres, perturbations = self.centres[groups], self.perturbations[groups]
        return self._similarity(perturbations, perturbations) * self._over_cells(centres, centres)

    @torch.no_grad()
    def uncertainty(self, cells: Sequence[Tensor], conditions: Tensor, without: Sequence[int] | None = None) -> Tensor:
        """Return the variance of the mean shift of sets of cells, and that before any group was seen, ``(sets, 2)``.

        Parameters
        ----------
        cells
            Standardised latents of control cells of each set, ``(cells, size)``.
        conditions
            Conditions of each set after the perturbation, ``(sets, columns)``.
        without
            For each set, the number of a group not to learn from.
        """
        inverse, found = self._inverse(), []
        to_groups, own = self._similarity(conditions, self.perturbations), self._own_similarity(conditions)
        for number, x in enumerate(cells):
            prior = own[number] * self._over_cells(x, x).mean()
            weights = to_groups[number] * self._over_cells(x, self.centres).mean(0)
            if without is None:
                known = weights @ inverse @ weights
            else:
                group = without[number]
                weights[group] = 0
                known = weights @ inverse @ weights - (inverse[group] @ weights).square() / inverse[group, group]
            found.append(torch.stack([(prior - known).clamp(min=0), prior]))
        return torch.stack(found)

    def weights_without(self, groups: Iterable[int]) -> Iterator[Tensor]:
        """Yield the weights of the groups as if one of them was never seen, ``(groups, size)``, for each of these."""
        inverse, weights = self._inverse(), self.weights.double()
        for group in groups:
            left = weights - inverse[:, [group]] * weights[group] / inverse[group, group]
            left[group] = 0
            yield left

    def suggest(self, groups: Tensor, x: Tensor, condition: Tensor) -> Suggestion:
        """Return what some groups, without all others, tell about the mean shift of cells ``x (cells, size)``.

        ``condition (columns,)`` is that of the cells after the perturbation.
        """
        to_groups = self._similarity(condition[None], self.perturbations[groups])[0]
        to_groups = to_groups * self._over_cells(x, self.centres[groups]).mean(0)
        weights = torch.linalg.solve(self._covariance(groups), to_groups)
        prior = float(self._own_similarity(condition[None])[0] * self._over_cells(x, x).mean())
        return Suggestion(weights, max(prior - float(to_groups @ weights), 0.0), prior)

    def departures(self, groups: Tensor, changes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how much changes of some groups differ from what the others of these suggest, both ``(n, genes)``.

        With them come the variances of such a difference, as of the shift, and their parts from sampling, ``(n,)``.
        """
        inverse = torch.linalg.inv(self._covariance(groups))
        own = inverse.diagonal()
        contrasts = inverse / own[:, None]  # a group less its expected value given the others
        return contrasts @ changes, 1 / own, self.noise_of(groups, contrasts)

    def noise_of(self, groups: Tensor, weights: Tensor) -> Tensor:
        """Return the sampling variance of sums of the measured shifts of some groups by ``weights (..., n)``."""
        return ((weights @ self._noise(groups)) * weights).sum(-1)

    def related(self, conditions: Tensor) -> Tensor:
        """Return which groups tell something about the effects of perturbations ``(n, columns)``, ``(n, groups)``."""
        similarity = self._similarity(conditions, self.perturbations)
        own, of_groups = (self._own_similarity(codes) for codes in (conditions, self.perturbations))
        return (similarity > 0) & (similarity > RELATED * (own[:, None] * of_groups).sqrt())

    def are_new(self, conditions: Tensor) -> Tensor:
        """Return which perturbations ``(n, columns)`` have a class or member that no group has, ``(n,)``."""
        new = torch.zeros(len(conditions), dtype=torch.bool, device=conditions.device)
        for (codes, are_named), (known, are_known) in self._named(conditions, self.perturbations):
            new |= (are_named & ~torch.isin(codes, known[are_known])).any(1)
        return new

    def have_groups(self, conditions: Tensor, columns: Tensor | None = None) -> Tensor:
        """Return which perturbations ``(n, columns)`` are those of a group but for rounding of numbers, ``(n,)``.

        ``columns`` marks what is compared; default: the columns that perturb.
        """
        columns = self.perturbs if columns is None else columns
        asked, known = conditions[:, None, columns], self.perturbations[:, columns]
        return asked.to(known).isclose(known, **ROUNDING).all(-1).any(1)

    def explained_by_others(self) -> float:
        """Return which share of the squared shifts is predicted by groups without any of the same classes and members.

        Groups without any, such as doses alone, do not count. At most 1, and negative if these predictions are worse
        than none. Sampling noise is subtracted.
        """
        named = [own for (own,) in self._named(self.perturbations)]
        if not named:
            return 0.0
        of_shifts = self.covariance_of(slice(None))
        inverse, weights = self._inverse(), self.weights.double()
        noise = self.variances.double()[:, None]
        shifts = (of_shifts + self._noise(slice(None))) @ weights
        codes, are_named = (torch.cat(parts, dim=1) for parts in zip(*named, strict=True))
        _, which = torch.where(are_named, codes, -1).unique(dim=0, return_inverse=True)
        errors, is_named = torch.zeros_like(weights), are_named.any(1)
        for number in which[is_named].unique():
            like = (which == number).nonzero()[:, 0]
            one = like[0]
            sharing = [(names & torch.isin(own, own[one, names[one]])).any(1) for own, names in named]
            out = torch.stack(sharing).any(0).nonzero()[:, 0]
            left = weights - inverse[:, out] @ torch.linalg.solve(inverse[out][:, out], weights[out])
            left[out] = 0
            errors[like] = shifts[like] - of_shifts[like] @ left
        size, missed = ((values.square() - noise)[is_named].sum() for values in (shifts, errors))
        return min(float(1 - missed / size), 1.0) if size > 0 else 0.0

    def _named(self, *codes: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield, for each key with classes or members that perturbs, its columns of perturbations ``(n, columns)``.

        With them comes which of these name a class or member that is not the control's.
        """
        for encoding, none, *own in self._by_key(*codes):
            if not encoding.is_numeric:
                yield [(values, (values < encoding.n) & ~torch.isin(values, none)) for values in own]

    def _inverse(self) -> Tensor:
        """Return the inverse of the covariance of the measured shifts of all groups, ``(groups, groups)``."""
        if self.inverse is None:
            covariance = self._covariance(slice(None))
            self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        return self.inverse

    def _covariance(self, groups: Tensor | slice) -> Tensor:
        """Return the covariance of the measured shifts of some groups, ``(n, n)``."""
        return self.covariance_of(groups) + self._noise(groups)

    def _noise(self, groups: Tensor | slice) -> Tensor:
        """Return the sampling covariance of the measured shifts of some groups, ``(n, n)``."""
        of_control, sets = self.control_variances[groups].double(), self.control_sets[groups]
        of_perturbed = self.variances[groups].double() - of_control
        return of_perturbed.diag() + (sets[:, None] == sets) * of_control

    @torch.no_grad()
    def fit(
        self,
        controls: Sequence[Tensor],
        centres: Tensor,
        shifts: Tensor,
        variances: Tensor,
        axes: Tensor,
        perturbations: Tensor,
        *,
        control_variances: Tensor | float = 0.0,
        control_sets: Tensor | None = None,
    ) -> None:
        """Learn from groups of cells.

        Parameters
        ----------
        controls
            Latents of control cells of each group, drawn from their posteriors, ``(cells, size)``; for the uncertainty.
        centres, shifts
            Mean latents of the control cells, and how much those of the perturbed cells differ, ``(groups, size)``.
        variances
            Sampling variance of the shifts, ``(groups,)``.
        axes
            Axes along which latents differ, ``(size, axes)``. Cells of one kind have a mean square of 1 along them.
        perturbations
            Conditions of the perturbed cells, ``(groups, columns)``.
        control_variances, control_sets
            The part of ``variances`` from control cells, and numbers that are equal for groups with the same control
            cells, ``(groups,)``. Default: no two groups have the same ones.
        """
        self.axes.copy_(axes)
        self.middle.copy_(centres.mean(0))
        between_groups = ((centres - self.middle) @ self.axes).square().sum(1).mean()
        self.farthest.copy_(FARTHEST * (between_groups + axes.shape[1]))  # the mean square along each axis is 1
        shifts, variances, centres = shifts.double(), variances.double().clamp(min=SMALLEST), centres.double()
        self.variances.copy_(variances)
        self.control_variances.copy_(torch.as_tensor(control_variances))
        self.control_sets.copy_(torch.arange(len(shifts)) if control_sets is None else control_sets)
        perturbed = self._own_similarity(perturbations) > 0  # unlike a drug at the controls' dose
        perturbed = perturbed | ~perturbed.any()
        squares = shifts[perturbed].square().mean()
        size = (squares - variances[perturbed].mean()).clamp(min=0.01 * squares + SMALLEST)
        some = torch.linspace(0, len(shifts) - 1, min(len(shifts), MOST_GROUPS), device=shifts.device).long()
        similarity = size * self._similarity(perturbations[some], perturbations[some])
        length, b = self._most_probable(shifts[some], centres[some], similarity, self._noise(some))
        self.centres.copy_(centres)
        self.perturbations.copy_(perturbations)
        self.options.copy_(torch.tensor((SHARED * float(size), b * float(size), length)))
        root = torch.linalg.cholesky(self._covariance(slice(None)))
        self.weights.copy_(torch.cholesky_solve(shifts, root))
        self.inverse = torch.cholesky_inverse(root)
        self.left_out.copy_(torch.tensor([torch.inf, 0.0]))  # not predicted from others
        clear = [g for g in some.tolist() if perturbed[g] and variances[g] < CLEAR * size]
        if clear:
            cells, conditions = [controls[g] for g in clear], perturbations[clear]
            self.left_out[clear] = self.uncertainty(cells, conditions, clear).to(self.left_out)

    def _most_probable(self, shifts: Tensor, centres: Tensor, similarity: Tensor, noise: Tensor) -> tuple[float, float]:
        """Return the length and the relative ``b`` under which the shifts ``(groups, size)`` are most probable."""

        def log_likelihood(options: tuple[float, float]) -> float:
            length, b = options
            alike = SHARED + b * self._alikeness(centres, centres, length)
            root = torch.linalg.cholesky(similarity * alike + noise)
            fit = (shifts * torch.cholesky_solve(shifts, root)).sum() / 2
            return float(-fit - shifts.shape[1] * root.diagonal().log().sum())

        lengths = [factor * self.axes.shape[1] ** 0.5 for factor in LENGTHS]
        return max(product(lengths, SPECIFIC), key=log_likelihood)

    def _over_cells(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the part of the covariance that depends on latents ``(n, size)`` and ``(m, size)``, ``(n, m)``."""
        a, b, length = self.options.double()
        return a + b * self._alikeness(x.double(), other.double(), length)

    def _alikeness(self, x: Tensor, other: Tensor, length: Tensor | float) -> Tensor:
        """Return how alike latents ``(n, size)`` and ``(m, size)`` are, from 0 to 1, ``(n, m)``."""
        axes = self.axes.double()
        return (-torch.cdist(x @ axes, other @ axes).square() / (2 * length**2)).exp()

    def _by_key(self, *codes: Tensor) -> Iterator[tuple[Any, ...]]:
        """Yield the encoding of each key that perturbs, and its columns of the control and codes ``(n, columns)``."""
        widths = [encoding.n_columns for encoding in self.encodings]
        columns = (values.split(widths, -1) for values in (self.perturbs, self.control, *codes))
        for encoding, perturb, *own in zip(self.encodings, *columns, strict=True):
            if perturb.any():
                yield encoding, *own

    def _similarity(self, condition: Tensor, other: Tensor) -> Tensor:
        """Return how alike the effects of perturbations ``(n, columns)`` and ``(m, columns)`` are, ``(n, m)``.

        It is zero for unperturbed cells. Classes and sets of several keys add up; numbers multiply, such as a dose.
        """
        discrete, numbers = None, []
        for encoding, c, p, q in self._by_key(condition, other):
            if encoding.is_numeric:
                numbers.append((p, q, c))
                continue
            alike = _same_class(encoding, p, q, c) if encoding.n_columns == 1 else _shared_members(encoding, p, q, c)
            discrete = alike if discrete is None else discrete + alike
        if not numbers:
            return discrete
        p, q, c = (torch.cat(values, -1).double() for values in zip(*numbers, strict=True))
        p, q = p - c, q - c  # Brownian motion from the control
        of_numbers = (p.norm(dim=1)[:, None] + q.norm(dim=1) - torch.cdist(p, q)) / 2
        return of_numbers if discrete is None else discrete * of_numbers

    def _own_similarity(self, codes: Tensor) -> Tensor:
        """Return how alike the effect of each perturbation and itself are, ``(n,)``."""
        parts = codes.split(AT_ONCE)  # the similarities of all with all may not fit in memory
        return torch.cat([self._similarity(part, part).diagonal() for part in parts])


def _alike_vectors(vectors: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return how near the known embeddings of two lists of numbers are, from 0 to 1; 1 at equal ones."""
    known = vectors.double().to(p.device)
    known = known - known.mean(0)
    known = known / known.square().sum(1).mean().sqrt().clamp(min=SMALLEST)
    return (-torch.cdist(known[p[:, 0].long()], known[q[:, 0].long()]).square() / 2).exp()


def _same_class(encoding: ConditionEncoding, p: Tensor, q: Tensor, control: Tensor) -> Tensor:
    """Return 1 for equal classes, less for others with known embeddings, and 0 for the control."""
    alike = (p == q.T) if encoding.vectors is None else _alike_vectors(encoding.vectors, p, q)
    return alike.double() * (p != control) * (q != control).T


def _shared_members(encoding: ConditionEncoding, p: Tensor, q: Tensor, control: Tensor) -> Tensor:
    """Count the members that sets share, without those of the control; equal sets of several share a little more."""
    n = encoding.n
    ours, theirs = _marks(n, p, control), _marks(n, q, control)
    shared, n_ours = ours @ theirs.T, ours.sum(1, keepdim=True)
    equal = (shared == n_ours) & (shared == theirs.sum(1)) & (n_ours > 1)
    if encoding.vectors is not None:
        numbers = torch.arange(n, device=p.device)[:, None]
        shared = ours @ _alike_vectors(encoding.vectors, numbers, numbers) @ theirs.T
    return shared + INTERACTION * equal


def _marks(n: int, codes: Tensor, control: Tensor) -> Tensor:
    """Mark which of ``n`` classes or members codes ``(cells, places)`` name and the control ``(places,)`` does not."""
    marks = torch.zeros(len(codes) + 1, n + 2, dtype=torch.double, device=codes.device)
    marks.scatter_(1, torch.cat([codes.long(), control.long()[None]]).clamp(0, n + 1), 1.0)
    return marks[:-1, :n] * (1 - marks[-1, :n])
