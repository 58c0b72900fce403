"""How far the effect of a perturbation on given cells is known: a code, numbers, and intervals of mean changes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.data import OPEN, evenly
from scgen_diffusion.diffusion import FLOW_SAMPLERS
from scgen_diffusion.perturbation import Changes, ProfileSums, variance_of_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.data import Conditions
    from scgen_diffusion.module import SCLDMModule
    from scgen_diffusion.nn import InputValues

SUPPORTED, EXTRAPOLATED, UNKNOWN = "supported", "extrapolated", "unknown"
LEAST_SUPPORTED, LEAST_KNOWN = 0.8, 0.5  # share of the variance of an effect that is explained
NUMBERS = ("explained", "misfit", "strength", "n_changed")  # columns of the table
COVERAGE = 0.9  # of intervals
MOST_CELLS = 200  # of a combination that the support is about
MOST_COMBINATIONS = 1000  # of a request; more are not judged
NO_SURPRISE = 2.0  # times the expected square of a difference between decoder and process
SMALLEST = 1e-9
DECODED_CELLS = 64  # of a combination, whose mean change is decoded


class Support(NamedTuple):
    """What is known about the effect on a combination of conditions.

    Attributes
    ----------
    explained
        Share of the variance of the effect that cells seen perturbed explain, times the likelihood of a molecule of the
        control cells relative to those of training.
    misfit
        How much worse the model explains the mean expression of the control cells than that of training cells, in nats
        per molecule; NaN for generated ones.
    strength
        Root mean square of the expected changes of genes.
    n_changed
        Number of genes whose change is not zero, by the interval of the true mean.
    expected
        Expected mean changes of genes, and the variances of their errors.
    correction
        What the decoder lacks of these changes, ``(genes,)``; None: they are not corrected.
    """

    explained: float
    misfit: float
    strength: float
    n_changed: int
    expected: Changes
    correction: Tensor | None

    @property
    def code(self) -> str:
        """The support in a word."""
        if self.explained < LEAST_KNOWN:
            return UNKNOWN
        return EXTRAPOLATED if self.explained < LEAST_SUPPORTED else SUPPORTED


@dataclass(frozen=True)
class Corrections:
    """Changes of log-normalised means that the decoder lacks, by combination.

    Parameters
    ----------
    codes
        Conditions of combinations, open where any value fits, ``(combinations, columns)``.
    changes
        Their changes, and last those of other cells, which are zero, ``(combinations + 1, genes)``.
    """

    codes: np.ndarray
    changes: Tensor

    @classmethod
    def of_supports(cls, codes: np.ndarray, supports: Sequence[Support]) -> Corrections | None:
        """Gather the changes of the combinations ``codes``; None if there are none."""
        which = [number for number, support in enumerate(supports) if support.correction is not None]
        which.sort(key=lambda number: (codes[number] == OPEN).sum())  # the first that fits a cell says most of it
        if not which:
            return None
        changes = torch.stack([supports[number].correction for number in which])
        return cls(codes[which], torch.cat([changes, torch.zeros_like(changes[:1])]))

    def of(self, codes: np.ndarray) -> Tensor:
        """Return the changes of cells with conditions ``codes (cells, columns)``, ``(cells, genes)``."""
        distinct, which = np.unique(codes, axis=0, return_inverse=True)
        fits = ((distinct[:, None] == self.codes) | (self.codes == OPEN)).all(2)
        rows = np.where(fits.any(1), fits.argmax(1), len(self.codes))
        return self.changes[rows[which.ravel()]]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Compute with one torch thread: results then do not depend on how sums are split over threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@one_torch_thread()
@torch.no_grad()
def judge(
    module: SCLDMModule,
    conditions: Conditions,
    cells: Sequence[Tensor],
    codes: np.ndarray,
    misfits: Sequence[float] | None = None,
    starts: Sequence[Tensor] | None = None,
) -> list[Support]:
    """Return what is known about the effects of perturbations on sets of control cells.

    Parameters
    ----------
    module, conditions
        The trained module and its conditions.
    cells
        Standardised latents of control cells of each set, ``(cells, size)``.
    codes
        Conditions of each set after the perturbation, ``(sets, columns)``.
    misfits
        How badly the model explains the mean expression of each set, in nats per molecule; 0 for generated cells.
    starts
        Conditions of the cells, ``(cells, columns)``, if they are generated: the decoder adds their effects.
    """
    flow: Any = module.perturbation_flow
    condition = module.condition_tensor(codes)
    misfit = np.full(len(codes), np.nan) if misfits is None else np.array(misfits) - float(flow.changes.misfit)
    worse = np.clip(np.nan_to_num(misfit), 0, None)
    in_combination = flow.perturbs.cpu().numpy() | ~conditions.are_numbers
    were_seen = flow.shift.have_groups(condition, torch.from_numpy(in_combination)).tolist()
    supports = []
    for number, x in enumerate(cells):
        told, explained = flow.known_changes(x.mean(0, keepdim=True), condition[[number]])
        expected = Changes(*(values[0] for values in told))
        correction = None
        if flow.missed is not None and explained >= LEAST_KNOWN and not were_seen[number]:
            start = None if starts is None else starts[number]
            difference = expected.mean - _decoded_change(module, x, start, condition[number])
            allowed = NO_SURPRISE * expected.variance.nansum() / difference.square().sum().clamp(min=SMALLEST)
            correction = ((1 - allowed) * difference).float() if allowed < 1 else None
        share = float(explained) * np.exp(-worse[number])
        strength = float(expected.mean.square().mean().sqrt())
        n_changed = int((expected.mean.abs() > _quantile(flow) * expected.variance.sqrt()).sum())
        supports.append(Support(share, float(misfit[number]), strength, n_changed, expected, correction))
    return supports


def _decoded_change(module: SCLDMModule, x: Tensor, start: Tensor | None, condition: Tensor) -> Tensor:
    """Return the mean change of genes that flow and decoder show of cells ``x (cells, size)``, ``(genes,)``.

    Generated cells show the effects of their conditions, too: first those of ``start (cells, columns)``.
    """
    flow: Any = module.perturbation_flow
    chosen = evenly(np.arange(len(x)), DECODED_CELLS)
    states = x[chosen].view(-1, *module.latent_shape)
    wanted = condition.expand(len(states), -1)
    moved = flow.move(states, wanted, sampler=FLOW_SAMPLERS["midpoint"])
    before = after = None
    if start is not None:
        before = start[chosen]
        after = torch.where(flow.perturbs, condition, before)
    missed, totals = flow.missed, flow.missed.depth.expand(len(states), 1)

    def decode(states: Tensor, shown: Tensor | None) -> Tensor:
        decoded = module.decode(module.unstandardise(states), totals, shown)
        return missed.log_normalised(module.likelihood.mean(**decoded)).mean(0)

    change = decode(moved, after) - decode(states, before)
    if start is not None:
        return change
    return change + missed(flow.shift.covariance_with_groups(states, wanted), len(change)).mean(0)


def _quantile(flow: Any) -> float:
    """Return half the width of intervals in standard deviations, which so many groups tell."""
    return float(stdtrit(len(flow.changes.groups) + 1, (1 + COVERAGE) / 2))


def support_columns(
    conditions: Conditions, codes: np.ndarray, n_cells: np.ndarray, supports: Sequence[Support]
) -> dict[str, Any]:
    """Return the columns of a table with a row per combination, and warn unless all are supported.

    ``codes (n, columns)`` are the conditions of the combinations; ``n_cells (n,)`` are their numbers of cells.
    Conditions are columns too, unless some combinations leave them open.
    """
    names, found = [conditions.describe(combination) for combination in codes], [one.code for one in supports]
    for code in (UNKNOWN, EXTRAPOLATED):
        if code in found:
            warn_user(
                f"The effect on {names[found.index(code)]} is {code}. The numbers behind, and those of others, are in "
                "`uns['scgen_diffusion']['support']`; see the user guide, \"Can I trust this prediction?\"."
            )
            break
    is_whole = (codes != OPEN).all(0)
    shown = [part for part in conditions.parts if part[0].source == "obs"]
    return {
        "combination": names,
        **{key.name: key.decode(codes[:, columns]) for key, columns in shown if is_whole[columns].all()},
        "n_cells": n_cells,
        "support": found,
        **{name: [getattr(one, name) for one in supports] for name in NUMBERS},
    }


def combination_codes(conditions: Conditions, perturbs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Leave open in ``codes (n, columns)`` what is no part of a combination: numbers that do not perturb."""
    return np.where(perturbs | ~conditions.are_numbers, codes, OPEN)


class PerturbedGroups:
    """Groups of given cells that become perturbed alike, and what is known about each.

    Parameters
    ----------
    module, conditions
        The trained module and its conditions.
    own, new
        Codes of the conditions of the cells and of their predictions, ``(cells, columns)``.

    Attributes
    ----------
    codes
        Conditions of the groups, ``(groups, columns)``, at most ``MOST_COMBINATIONS``.
    group
        Number of the group of each cell, ``(cells,)``; -1 for cells of no group, such as those that stay unperturbed.
    """

    def __init__(self, module: SCLDMModule, conditions: Conditions, own: np.ndarray, new: np.ndarray) -> None:
        self.module, self.conditions = module, conditions
        flow: Any = module.perturbation_flow
        perturbs = flow.perturbs.cpu().numpy()
        shown = combination_codes(conditions, perturbs, new)
        changed = (own != new).any(1)
        codes, number = np.unique(shown[changed], axis=0, return_inverse=True)
        if (n_more := len(codes) - MOST_COMBINATIONS) > 0:
            warn_user(
                f"Only the first {MOST_COMBINATIONS:,} combinations are judged: {n_more:,} more have neither a support "
                "nor mean changes. Ask for fewer at a time if you need them."
            )
        self.codes = codes[:MOST_COMBINATIONS]
        self.group = np.full(len(new), -1)
        self.group[changed] = np.where(number.ravel() < len(self.codes), number.ravel(), -1)

    @property
    def n_cells(self) -> np.ndarray:
        """Number of cells of each group, ``(groups,)``."""
        return np.bincount(self.group[self.group >= 0], minlength=len(self.codes))

    @one_torch_thread()
    @torch.inference_mode()
    def supports(self, read: Callable[[np.ndarray], Tensor]) -> list[Support]:
        """Return the support of each group; ``read`` returns the expression of cells at some positions."""
        module, cells, misfits = self.module, [], []
        for number in range(len(self.codes)):
            z, misfit = module.draw_and_judge(read(evenly(np.flatnonzero(self.group == number), MOST_CELLS)))
            cells.append(module.standardise(z).flatten(1))
            misfits.append(misfit)
        return judge(module, self.conditions, cells, self.codes, misfits)

    @torch.inference_mode()
    def changes(self, sums: np.ndarray, supports: Sequence[Support]) -> dict[str, np.ndarray]:
        """Return mean changes and their intervals from the sums ``(groups, 4, genes)`` of :func:`sum_profiles`.

        Each has the genes of all groups, one group after another.
        """
        flow: Any = self.module.perturbation_flow
        found = []
        for number, support in enumerate(supports):
            n, control, predicted, squares = torch.from_numpy(sums[number])
            change = (predicted - control) / n
            noise = 2 * variance_of_sums(n, predicted, squares) / n  # of these cells, and of as many measured ones
            mean, variance = (values.cpu() for values in support.expected)
            half = _quantile(flow) * (variance + (change - mean).square() / 2 + noise).sqrt()
            found.append(torch.stack([change, change - half, change + half]))
        return dict(zip(("change", "lower", "upper"), torch.cat(found, dim=1).numpy(), strict=True))


def sum_profiles(
    module: SCLDMModule, group: np.ndarray, x: Tensor, predicted: Tensor, output: InputValues
) -> ProfileSums:
    """Sum profiles of control cells ``x`` and of predictions, both ``(cells, genes)``, by ``group (cells,)``."""
    moved = np.flatnonzero(group >= 0)
    numbers, which = np.unique(group[moved], return_inverse=True)
    x, predicted, index = x[moved], predicted[moved], torch.from_numpy(which).to(x.device)
    measured = module.measured(x).double()
    before = module.profiles(x, module.input_values).double()
    after = module.profiles(predicted, output).double() * measured
    zeros = measured.new_zeros(len(numbers), x.shape[1])
    summed = (measured, before, after, after.square())
    sums = [zeros.index_add(0, index, values) for values in summed]
    return ProfileSums(numbers, torch.stack(sums, dim=1).cpu().numpy())
