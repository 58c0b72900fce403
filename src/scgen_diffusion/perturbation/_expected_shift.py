"""Expected shift of latents by perturbations, learned from other cells and other perturbations."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._groups import sampling_covariance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scgen_diffusion.nn import ConditionEncoding

SHARED = 10.0  # variance of what a perturbation does everywhere, relative to the mean square of all shifts
SPECIFIC = (1.0, 0.1, 0.3, 3.0)  # variance of what it does in similar cells only, likewise
LENGTHS = (2.8, 0.7, 1.0, 1.4, 2.0, 4.0, 5.6, 8.0)  # of similarity, in standard deviations of one kind along an axis
SHARES = (0.0, 0.3, 0.5, 0.7, 0.9, 0.97)  # of a response that all cells have
NEAR = (1.0, 1.4, 2.0, 2.8)  # lengths of the similarity of mean cells, in the same unit
TRUST = (0.0, 0.4, 0.8)  # in embeddings; at 1, perturbations never seen could be as well known as seen ones
INTERACTION = 0.3  # variance of what a set does beyond its members, relative to one member
MOST_GROUPS = 500  # that choose variance and length
FARTHEST = 2.0  # square distance from the middle that a network sees, relative to the mean one of control cells
SMALLEST = 1e-6  # variance, of standardised latents
ROUNDING = {"rtol": 1e-6, "atol": 1e-4}  # of standardised numbers of float32; classes are whole numbers


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
        Encoding of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    size
        Number of latents of a cell.
    n_groups
        Number of groups to learn from.
    control, perturbs
        Codes of unperturbed cells, and which columns perturb, ``(columns,)``; saved by the perturbation flow alone.
    """

    def __init__(
        self, conditions: Sequence[ConditionEncoding], size: int, n_groups: int, control: Tensor, perturbs: Tensor
    ) -> None:
        super().__init__()
        self.encodings = list(conditions)
        self.register_buffer("control", control, persistent=False)
        self.register_buffer("perturbs", perturbs, persistent=False)
        self.register_buffer("centres", torch.zeros(n_groups, size))
        self.register_buffer("perturbations", torch.zeros(n_groups, len(control)))
        self.register_buffer("weights", torch.zeros(n_groups, size))
        self.register_buffer("variances", torch.zeros(n_groups))
        self.register_buffer("control_variances", torch.zeros(n_groups))  # their part from control cells
        self.register_buffer("control_sets", torch.arange(n_groups))  # equal for groups with the same control cells
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("middle", torch.zeros(size))
        self.register_buffer("farthest", torch.tensor(torch.inf))  # square distance from it, along the axes
        self.register_buffer("options", torch.zeros(3))  # a, b, length

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the expected shift of control latents.

        Parameters
        ----------
        x
            Standardised latents, ``(n, tokens, n_latent)``.
        condition
            Conditions after the perturbation, ``(n, columns)``.
        """
        return (self.covariance_with_groups(x, condition) @ self.weights.double()).to(x.dtype).view_as(x)

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
        return self.similarity(distinct, self.perturbations)[which] * self._over_cells(x.flatten(1), self.centres)

    def kernel(self, options: Tensor, x: Tensor, codes: Tensor, groups: Tensor) -> Tensor:
        """Return how alike the responses of sets of control cells and of some groups are, ``(sets, groups)``.

        Parameters
        ----------
        options
            How much all cells respond alike, the length of similarity, how far to trust embeddings, and the scale.
        x, codes
            Mean latents of the control cells, ``(sets, size)``, and their perturbations, ``(sets, columns)``.
        groups
            Numbers of the groups.
        """
        share, length, trust, scale = options.double()
        alike = share + (1 - share) * self.alikeness(x.double(), self.centres[groups].double(), length)
        return self.similarity(codes, self.perturbations[groups], float(trust)) * alike / scale

    def kernels(self, groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield options, and the :meth:`kernel` between some groups."""
        x, codes = self.centres[groups], self.perturbations[groups]
        scale = float(self.own_similarity(codes).mean())
        have_embeddings = any(encoding.vectors is not None for encoding, *_ in self._by_key())
        for share, length, trust in product(SHARES, NEAR, TRUST if have_embeddings else TRUST[-1:]):
            options = torch.tensor([share, length * self.axes.shape[1] ** 0.5, trust, max(scale, SMALLEST)])
            yield options, self.kernel(options.to(x.device), x, codes, groups)

    def have_groups(self, conditions: Tensor, columns: Tensor) -> Tensor:
        """Return which conditions ``(n, columns)`` are those of a group where marked, but for rounding, ``(n,)``."""
        asked, known = conditions[:, None, columns], self.perturbations[:, columns]
        return asked.to(known).isclose(known, **ROUNDING).all(-1).any(1)

    def covariance_of(self, groups: Tensor | slice) -> Tensor:
        """Return the covariance of the shifts of some groups, without sampling noise, ``(n, n)``."""
        centres, perturbations = self.centres[groups], self.perturbations[groups]
        return self.similarity(perturbations, perturbations) * self._over_cells(centres, centres)

    @torch.no_grad()
    def fit(
        self,
        centres: Tensor,
        shifts: Tensor,
        variances: Tensor,
        axes: Tensor,
        perturbations: Tensor,
        control_variances: Tensor,
        control_sets: Tensor,
    ) -> None:
        """Learn from groups of cells.

        Parameters
        ----------
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
            cells, ``(groups,)``.
        """
        self.axes.copy_(axes)
        self.middle.copy_(centres.mean(0))
        between_groups = ((centres - self.middle) @ self.axes).square().sum(1).mean()
        self.farthest.copy_(FARTHEST * (between_groups + axes.shape[1]))  # the mean square along each axis is 1
        shifts, variances, centres = shifts.double(), variances.double().clamp(min=SMALLEST), centres.double()
        self.variances.copy_(variances)
        self.control_variances.copy_(control_variances)
        self.control_sets.copy_(control_sets)
        perturbed = self.own_similarity(perturbations) > 0  # unlike a drug at the controls' dose
        perturbed = perturbed | ~perturbed.any()
        squares = shifts[perturbed].square().mean()
        size = (squares - variances[perturbed].mean()).clamp(min=0.01 * squares + SMALLEST)
        some = torch.linspace(0, len(shifts) - 1, min(len(shifts), MOST_GROUPS), device=shifts.device).long()
        similarity = size * self.similarity(perturbations[some], perturbations[some])
        of_control = self.control_variances.double()
        noise = sampling_covariance(self.variances.double() - of_control, of_control, self.control_sets)
        length, b = self._most_probable(shifts[some], centres[some], similarity, noise[some][:, some])
        self.centres.copy_(centres)
        self.perturbations.copy_(perturbations)
        self.options.copy_(torch.tensor((SHARED * float(size), b * float(size), length)))
        root = torch.linalg.cholesky(self.covariance_of(slice(None)) + noise)
        self.weights.copy_(torch.cholesky_solve(shifts, root))

    def _most_probable(self, shifts: Tensor, centres: Tensor, similarity: Tensor, noise: Tensor) -> tuple[float, float]:
        """Return the length and the relative ``b`` under which the shifts ``(groups, size)`` are most probable."""

        def log_likelihood(options: tuple[float, float]) -> float:
            length, b = options
            alike = SHARED + b * self.alikeness(centres, centres, length)
            root = torch.linalg.cholesky(similarity * alike + noise)
            fit = (shifts * torch.cholesky_solve(shifts, root)).sum() / 2
            return float(-fit - shifts.shape[1] * root.diagonal().log().sum())

        lengths = [factor * self.axes.shape[1] ** 0.5 for factor in LENGTHS]
        return max(product(lengths, SPECIFIC), key=log_likelihood)

    def _over_cells(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the part of the covariance that depends on latents ``(n, size)`` and ``(m, size)``, ``(n, m)``."""
        a, b, length = self.options.double()
        return a + b * self.alikeness(x.double(), other.double(), length)

    def alikeness(self, x: Tensor, other: Tensor, length: Tensor | float) -> Tensor:
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

    def similarity(self, condition: Tensor, other: Tensor, trust: float = 1.0) -> Tensor:
        """Return how alike the effects of perturbations ``(n, columns)`` and ``(m, columns)`` are, ``(n, m)``.

        It is zero for unperturbed cells. Classes and sets of several keys add up; numbers multiply, such as a dose.
        ``trust``, from 0 to 1, says how much classes and members with near embeddings are alike.
        """
        discrete, numbers = None, []
        for encoding, c, p, q in self._by_key(condition, other):
            if encoding.is_numeric:
                numbers.append((p, q, c))
                continue
            compare = _same_class if encoding.n_columns == 1 else _shared_members
            alike = compare(encoding, p, q, c, trust)
            discrete = alike if discrete is None else discrete + alike
        if not numbers:
            return discrete
        p, q, c = (torch.cat(values, -1).double() for values in zip(*numbers, strict=True))
        p, q = p - c, q - c  # Brownian motion from the control
        of_numbers = (p.norm(dim=1)[:, None] + q.norm(dim=1) - torch.cdist(p, q)) / 2
        return of_numbers if discrete is None else discrete * of_numbers

    def own_similarity(self, codes: Tensor, trust: float = 1.0) -> Tensor:
        """Return how alike the effect of each perturbation and itself are, ``(n,)``."""
        return self.similarity(codes, codes, trust).diagonal()


def _alike_vectors(vectors: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return how near the known embeddings of two lists of numbers are, from 0 to 1; 1 at equal ones."""
    known = vectors.double().to(p.device)
    known = known - known.mean(0)
    known = known / known.square().sum(1).mean().sqrt().clamp(min=SMALLEST)
    return (-torch.cdist(known[p[:, 0].long()], known[q[:, 0].long()]).square() / 2).exp()


def _same_class(encoding: ConditionEncoding, p: Tensor, q: Tensor, control: Tensor, trust: float) -> Tensor:
    """Return 1 for equal classes, less for others with known embeddings, and 0 for the control."""
    alike = (p == q.T).double()
    if encoding.vectors is not None:
        alike = alike.lerp(_alike_vectors(encoding.vectors, p, q), trust)
    return alike * (p != control) * (q != control).T


def _shared_members(encoding: ConditionEncoding, p: Tensor, q: Tensor, control: Tensor, trust: float) -> Tensor:
    """Count the members that sets share, without those of the control; equal sets of several share a little more."""
    n = encoding.n
    ours, theirs = _marks(n, p, control), _marks(n, q, control)
    shared, n_ours = ours @ theirs.T, ours.sum(1, keepdim=True)
    equal = (shared == n_ours) & (shared == theirs.sum(1)) & (n_ours > 1)
    if encoding.vectors is not None:
        numbers = torch.arange(n, device=p.device)[:, None]
        shared = shared.lerp(ours @ _alike_vectors(encoding.vectors, numbers, numbers) @ theirs.T, trust)
    return shared + INTERACTION * equal


def _marks(n: int, codes: Tensor, control: Tensor) -> Tensor:
    """Mark which of ``n`` classes or members codes ``(cells, places)`` name and the control ``(places,)`` does not."""
    marks = torch.zeros(len(codes) + 1, n + 2, dtype=torch.double, device=codes.device)
    marks.scatter_(1, torch.cat([codes.long(), control.long()[None]]).clamp(0, n + 1), 1.0)
    return marks[:-1, :n] * (1 - marks[-1, :n])
