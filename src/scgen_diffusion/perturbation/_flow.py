"""The perturbation flow: it starts at control cells instead of noise, and an expected shift."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scgen_diffusion.diffusion import TARGETS, Denoiser, LinearInterpolant, diffusion_loss
from scgen_diffusion.nn import ConditionEmbedding, TimeEmbedding, null_condition

from ._changes import GeneChanges
from ._expected_shift import ExpectedShift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.nn import ConditionEncoding

    from ._changes import Changes, MissedChanges

N_FLOWS = 4
DOUBTFUL = 0.01  # variance between flows, relative to their squared mean, at which the expected shift counts as much
SMALLEST = 1e-12


class VelocityNetwork(nn.Module):
    """Velocity of latents at a place and a time, under a condition; zero before training."""

    def __init__(self, size: int, conditions: Sequence[ConditionEncoding], width: int) -> None:
        super().__init__()
        self.embed_time = TimeEmbedding(width)
        self.embed_condition = ConditionEmbedding(conditions, width)
        self.first = nn.Linear(size, width)
        self.hidden = nn.Linear(width, width)
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, place: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        """Return the velocity ``(n, size)`` at places ``(n, size)`` and times, one for all or ``(n,)``.

        ``embedded (n, width)`` are the conditions as ``embed_condition`` returns them, once for all times.
        """
        h = silu(self.first(place) + self.embed_time(t) + embedded)
        return self.last(silu(self.hidden(h)))


class PerturbationFlow(nn.Module):
    r"""Move the latents of control cells to those of perturbed cells, by flows and by an expected shift.

    The flows go from control cells, at ``t = 0``, to perturbed cells, at ``t = 1``. Their networks learn the velocity
    from each control cell to the perturbed cell that optimal transport pairs it with, along the axes of expected
    expression. They see where latents are along these axes, but no place far from the known cells. The
    :class:`ExpectedShift` is learned from the means of groups of cells; it is steadier, but follows large effects less
    far. Both see the latent and the conditions that perturb, but not the other conditions, such as
    the cell type. Similar cells therefore respond alike, also in types that were never seen perturbed.

    The networks learn from the same pairs, and start from different random weights. They agree on cells like those that
    they learned from. If the flows move a cell by :math:`\bar u` on average, along the axes, and their variance, summed
    over the axes, is :math:`v`, then they count :math:`1 / (1 + v / (0.01 \lVert \bar u \rVert^2))`, and the expected
    shift counts the rest.

    Parameters
    ----------
    latent_shape
        Number of tokens and their width.
    conditions
        Encoding of each condition key, see :class:`~scgen_diffusion.nn.ConditionEmbedding`.
    width
        Width of the two hidden layers.

    References
    ----------
    Klein et al. (2025), *CellFlow enables generative single-cell phenotype modeling with flow matching*.
    """

    null_condition: Tensor
    control: Tensor
    perturbs: Tensor

    def __init__(
        self, latent_shape: tuple[int, int], conditions: Sequence[ConditionEncoding], *, width: int = 128
    ) -> None:
        super().__init__()
        size = latent_shape[0] * latent_shape[1]
        self.path, self.conditions, self.size = LinearInterpolant(), tuple(conditions), size
        self.changes: GeneChanges | None = None
        self.missed: MissedChanges | None = None
        self.networks = nn.ModuleList(VelocityNetwork(size, conditions, width) for _ in range(N_FLOWS))
        self.register_buffer("null_condition", null_condition(conditions), persistent=False)
        self.register_buffer("control", self.null_condition.clone())
        self.register_buffer("perturbs", torch.zeros(len(self.null_condition), dtype=torch.bool))
        self.add_shift(0)
        self.register_load_state_dict_post_hook(_renew_shift)

    def start_from(self, control: Tensor) -> None:
        """Set the codes of unperturbed cells, ``(columns,)``; infinite in columns that do not perturb."""
        self.perturbs.copy_(control.isfinite())
        self.control.copy_(torch.where(self.perturbs, control, self.null_condition))
        _renew_shift(self)

    @property
    def perturbing_keys(self) -> list[bool]:
        """Which condition keys perturb."""
        widths = [encoding.n_columns for encoding in self.conditions]
        return [bool(own.any()) for own in self.perturbs.split(widths)]

    def add_shift(self, n_groups: int) -> ExpectedShift:
        """Add or replace the expected shift, to be learned from so many groups of cells."""
        self.shift = ExpectedShift(self.conditions, self.size, n_groups, self.control, self.perturbs)
        self.shift.to(self.control.device)
        return self.shift

    def add_changes(self, n_groups: int, n_genes: int, n_patterns: int) -> GeneChanges:
        """Add or replace the process of mean changes of genes, see :class:`GeneChanges`."""
        self.changes = GeneChanges(n_groups, n_genes, n_patterns).to(self.control.device)
        return self.changes

    def known_changes(self, x: Tensor, codes: Tensor) -> tuple[Changes, Tensor]:
        """Return what the groups tell about mean changes of genes of sets of control cells.

        ``x (sets, size)`` are their mean latents, and ``codes (sets, columns)`` their conditions after the
        perturbation. With the changes ``(sets, genes)`` comes which share of the variance they explain, ``(sets,)``.
        """
        shift, changes = self.shift, self.changes
        *_, trust, scale = changes.kernel.tolist()
        prior = shift.own_similarity(codes, trust) / scale
        return changes(shift.kernel(changes.kernel, x, codes, changes.groups), prior)

    def unfit(self, own: Tensor, new: Tensor) -> Tensor:
        """Return which cells are perturbed already, or would change in other keys too, ``(n,)``.

        ``own`` and ``new`` are their conditions before and after, ``(n, columns)``. The flow does not move them.
        """
        is_control = own.double().isclose(self.control.double()) | ~self.perturbs
        stays = (own == new) | self.perturbs
        return ~(is_control & stays).all(1)

    def perturbing(self, condition: Tensor) -> Tensor:
        """Return conditions ``(n, columns)`` without those that do not perturb."""
        return torch.where(self.perturbs, condition, self.null_condition)

    def velocity(self, network: VelocityNetwork, x_t: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        """Return a network's velocity of latents ``x_t (n, tokens, n_latent)`` at times, one for all or ``(n,)``."""
        return network(self.shift.place(x_t.flatten(1)), t, embedded).view_as(x_t)

    def along_axes(self, x: Tensor) -> Tensor:
        """Return latents ``(n, tokens, n_latent)`` along the axes of expected expression, ``(n, size)``."""
        return x.flatten(1) @ self.shift.axes

    def loss(self, start: Tensor, end: Tensor, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss of pairs ``(n, tokens, n_latent)`` under the perturbed condition, ``(n,)``."""
        given, losses = self.perturbing(condition), []
        for network in self.networks:
            t = self.path.draw_times(len(start), generator, start.device)
            field = partial(self.velocity, network)
            options = {"noise": start, "t": t, "condition": network.embed_condition(given)}
            losses.append(diffusion_loss(field, self.path, TARGETS["velocity"], end, **options))
        return torch.stack(losses).mean(0)

    def move(self, start: Tensor, condition: Tensor, *, sampler: Sampler, **options: Any) -> Tensor:
        """Move standardised latents ``(n, tokens, n_latent)`` to ``t = 1`` under conditions ``(n, columns)``.

        ``options`` are those of the sampler: ``n_steps`` and ``generators``.
        """
        given = self.perturbing(condition)

        def flow(network: VelocityNetwork) -> Tensor:
            embedded = network.embed_condition(given)

            def field(x: Tensor, t: Tensor) -> Tensor:
                return self.velocity(network, x, torch.atleast_1d(t), embedded)

            return sampler(Denoiser(field, self.path, TARGETS["velocity"]), start, **options)

        moved = torch.stack([flow(network) - start for network in self.networks])
        mean = moved.mean(0)
        along = torch.stack([self.along_axes(displacement) for displacement in moved])
        variance, allowed = along.var(0).sum(1), DOUBTFUL * along.mean(0).square().sum(1)
        share = (allowed / (allowed + variance).clamp(min=SMALLEST)).view(-1, 1, 1)  # of the flows
        return start + share * mean + (1 - share) * self.shift(start, condition)


def _renew_shift(flow: PerturbationFlow, keys: object = None) -> None:
    """Give the expected shift the new control, as its own may be a copy."""
    flow.shift.control, flow.shift.perturbs = flow.control, flow.perturbs
