"""How far the effect of a perturbation on given cells is known: a code, numbers, and intervals of mean changes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.data import OPEN, evenly, mark_occurring
from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators
from scgen_diffusion.perturbation import ProfileSums, variance_of_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.data import Conditions
    from scgen_diffusion.module import SCLDMModule
    from scgen_diffusion.nn import InputValues
    from scgen_diffusion.perturbation import Suggestion

SUPPORTED, EXTRAPOLATED, UNKNOWN = "supported", "extrapolated", "unknown"
NUMBERS = ("misfit", "explained", "n_contexts", "decoded")  # columns of the table that say why
COLUMNS = ("combination", "n_cells", "strength", "support", *NUMBERS)  # beside the conditions
COVERAGE = 0.9  # of intervals
FEWEST_CELLS = 5  # that are judged by their mean expression
SMALLEST = 1e-9  # change
FEWEST_OF_INTERVAL = 2  # cells, whose spread is known
MOST_CELLS = 200  # of a combination that the support is about
MOST_COMBINATIONS = 1000  # of a request; more are not judged
STRANGE, UNLIKE = 0.1, 0.5  # misfit of control cells beyond those of training, in nats per molecule
LEAST_EXPLAINED = 0.5  # share of the variance of an effect that groups must explain to be of use
LEAST_LEFT_OUT = 2  # groups that the others explain, to learn how wrong predictions are
LEAST_ANSWER = 0.5  # share of the change that the groups suggest
DECODED_CELLS = 64  # of a combination, whose mean change is decoded


class Support(NamedTuple):
    """What is known about a combination of conditions: a code, and the numbers that it follows from.

    Attributes
    ----------
    code
        ``"supported"``, ``"extrapolated"`` or ``"unknown"``.
    misfit
        How much worse the model explains the mean expression of the control cells than that of training cells, in nats
        per molecule; NaN for generated ones.
    explained
        Share of the variance of the effect that cells seen perturbed explain.
    n_contexts
        Number of contexts, such as cell types, in which similar perturbations were seen.
    decoded
        Share of the change that cells seen perturbed suggest that the decoder shows.
    variance
        Variance of the expected shift.
    weights
        Weights of the groups with known errors in the change that they suggest, ``(groups,)``.
    lacking
        Changes ``(genes,)`` to add to what the decoder shows; None: none.
    """

    code: str
    misfit: float
    explained: float
    n_contexts: int
    decoded: float
    variance: float
    weights: Tensor
    lacking: Tensor | None


@dataclass(frozen=True)
class LackingChanges:
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
    def of_supports(cls, codes: np.ndarray, supports: Sequence[Support]) -> LackingChanges | None:
        """Gather the changes of the combinations ``codes``; None if there are none."""
        which = [number for number, support in enumerate(supports) if support.lacking is not None]
        which.sort(key=lambda number: (codes[number] == OPEN).sum())  # the first that fits a cell says most of it
        if not which:
            return None
        changes = torch.stack([supports[number].lacking for number in which])
        return cls(codes[which], torch.cat([changes, torch.zeros_like(changes[:1])]))

    def of(self, codes: np.ndarray) -> Tensor:
        """Return the changes of cells with conditions ``codes (cells, columns)``, ``(cells, genes)``."""
        distinct, which = np.unique(codes, axis=0, return_inverse=True)
        fits = ((distinct[:, None] == self.codes) | (self.codes == OPEN)).all(2)
        rows = np.where(fits.any(1), fits.argmax(1), len(self.codes))
        return self.changes[rows[which.ravel()]]


class MeanChange(NamedTuple):
    """Predicted minus control mean of each gene, and its interval, ``(genes,)``."""

    change: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


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
    learned: np.ndarray | None = None,
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
    learned
        Combinations that the autoencoder was trained on, ``(combinations, columns)``. Needed without misfits: the model
        explains the cells that it generates, but they may be unlike real ones if it never learned their class.
    """
    flow: Any = module.perturbation_flow
    shift = flow.shift
    condition = module.condition_tensor(codes)
    related = shift.related(condition).cpu().numpy()
    are_new = shift.are_new(condition).tolist()
    explained = shift.left_out[shift.left_out[:, 0] <= (1 - LEAST_EXPLAINED) * shift.left_out[:, 1], 0].tolist()
    perturbs = flow.perturbs.cpu().numpy()
    from_embeddings = shift.explained_by_others() if any(are_new) else 0.0  # share of the effects that were seen
    is_context = _context_columns(conditions, perturbs)
    perturbed = shift.perturbations.double().cpu().numpy()
    contexts, wanted_contexts = (np.where(is_context, of, OPEN) for of in (perturbed, codes))
    least = float(np.mean(explained)) if explained else 0.0  # no prediction is surer than these were on average
    came_later = np.zeros(len(codes), dtype=bool)
    if learned is not None:
        came_later = _came_later(conditions, np.concatenate([learned, perturbed]), wanted_contexts)
    corrects = flow.missed is not None
    suggestions = [shift.suggest(flow.error.groups, x, wanted) for x, wanted in zip(cells, condition, strict=True)]
    answers = [1.0] * len(codes) if corrects else _answers(module, cells, condition, suggestions)
    were_seen = shift.have_groups(condition, torch.from_numpy(perturbs | is_context)).tolist()
    supports = []
    for number, (variance, prior) in enumerate(shift.uncertainty(cells, condition).tolist()):
        seen, wanted = np.unique(contexts[related[number]], axis=0), wanted_contexts[number]
        in_own_context = bool(((seen == wanted) | (wanted == OPEN)).all(1).any())
        misfit = float("nan") if misfits is None else misfits[number] - float(flow.error.misfit)
        n_cells, is_new = len(cells[number]), are_new[number]
        is_unknown = (
            prior <= 0  # such as a drug at the dose of control cells
            or n_cells < FEWEST_OF_INTERVAL
            or misfit > (STRANGE if n_cells < FEWEST_CELLS else UNLIKE)
            or variance > (1 - LEAST_EXPLAINED) * prior
            or (is_new and from_embeddings < LEAST_EXPLAINED)
            or len(seen) == 0
            or (len(seen) == 1 and not in_own_context)  # then it is not known how effects differ between contexts
        )
        is_extrapolated = (
            misfit > STRANGE
            or came_later[number]
            or is_new
            or len(explained) < LEAST_LEFT_OUT
            or variance > max(explained)
            or answers[number] < LEAST_ANSWER
        )
        lacking = None
        if corrects and not were_seen[number]:
            start = None if starts is None else starts[number]
            lacking = _lacking(module, cells[number], start, condition[number], suggestions[number])
        supports.append(
            Support(
                code=UNKNOWN if is_unknown else EXTRAPOLATED if is_extrapolated else SUPPORTED,
                misfit=misfit,
                explained=1 - variance / prior if prior > 0 else 0.0,
                n_contexts=len(seen),
                decoded=answers[number],
                variance=max(variance, least),
                weights=suggestions[number].weights,
                lacking=lacking,
            )
        )
    return supports


def _answers(
    module: SCLDMModule, cells: Sequence[Tensor], condition: Tensor, suggestions: Sequence[Suggestion]
) -> list[float]:
    """Return which share of the change that the groups suggest for each set of cells is decoded: the slope over genes.

    The latent may be moved rightly, and the decoder, which never saw such cells perturbed, hardly show it.
    """
    flow: Any = module.perturbation_flow
    shift, groups = flow.shift, flow.error.groups

    def decoded_change(x: Tensor, condition: Tensor) -> Tensor:
        states = x.view(-1, *module.latent_shape)
        return module.profiles_of(states + shift(states, condition)) - module.profiles_of(states)

    of_groups = decoded_change(shift.centres[groups], shift.perturbations[groups]).double()
    found = []
    for x, wanted, suggestion in zip(cells, condition, suggestions, strict=True):
        change = decoded_change(x.mean(0, keepdim=True), wanted[None])
        suggested = suggestion.weights @ of_groups
        found.append(float(change[0].double() @ suggested / suggested.square().sum().clamp(min=SMALLEST)))
    return found


def _lacking(
    module: SCLDMModule, x: Tensor, start: Tensor | None, condition: Tensor, suggestion: Suggestion
) -> Tensor | None:
    """Return changes ``(genes,)`` to add to what the decoder shows; None: none.

    The latent may be moved rightly, and a decoder that never saw such cells perturbed show something else than the
    change that the groups suggest. See :meth:`ChangeError.share`.
    """
    flow: Any = module.perturbation_flow
    missed, error = flow.missed, flow.error
    if suggestion.variance > (1 - LEAST_EXPLAINED) * suggestion.prior:  # the groups with known errors suggest nothing
        return None
    chosen = evenly(np.arange(len(x)), DECODED_CELLS)
    states = x[chosen].view(-1, *module.latent_shape)
    wanted = condition.expand(len(states), -1)
    moved = flow.move(states, wanted, sampler=FLOW_SAMPLERS["midpoint"])
    totals = missed.depth.expand(len(states), 1)

    before = after = None
    if start is not None:  # generated cells show the effects of their conditions too
        before = start[chosen]
        after = torch.where(flow.perturbs, condition, before)

    def decode(states: Tensor, shown: Tensor | None) -> Tensor:
        decoded = module.decode(module.unstandardise(states), totals, shown)
        return missed.log_normalised(module.likelihood.mean(**decoded)).mean(0)

    change = decode(moved, after) - decode(states, before)
    if start is None:
        change = change + missed(flow.shift.covariance_with_groups(states, wanted), len(change)).mean(0)
    suggested = suggestion.weights @ error.changes.double()
    sampling = float(flow.shift.noise_of(error.groups, suggestion.weights))
    departure = torch.where(error.are_known, change - suggested, 0)
    share = error.share(max(suggestion.variance - sampling, 0.0), sampling, departure)
    return ((share - 1) * departure).float() if share < 1 else None


def _came_later(conditions: Conditions, learned: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mark the codes ``(n, columns)`` with a class or member that no ``learned`` codes have, ``(n,)``."""
    came_later = np.zeros(len(codes), dtype=bool)
    for (_, columns), known in zip(conditions.parts, mark_occurring(conditions.by_key, learned), strict=True):
        came_later |= np.isin(codes[:, columns], np.flatnonzero(~known)).any(1)  # neither open nor empty
    return came_later


def support_columns(
    conditions: Conditions, codes: np.ndarray, n_cells: np.ndarray, supports: Sequence[Support]
) -> dict[str, Any]:
    """Return the columns of a table with a row per combination, and warn unless all are supported.

    ``codes (n, columns)`` are the conditions of the combinations; ``n_cells (n,)`` are their numbers of cells.
    Conditions are columns too, unless some combinations leave them open, or the table has another column of this name.
    """
    names, found = [conditions.describe(combination) for combination in codes], [one.code for one in supports]
    for code in (UNKNOWN, EXTRAPOLATED):
        if code in found:
            n_more = len(found) - found.count(SUPPORTED) - 1
            more = f", and {n_more} more are not supported" if n_more else ""
            warn_user(
                f"The effect on {names[found.index(code)]} is {code}{more}. The numbers behind are in "
                "`uns['scgen_diffusion']['support']`; see the user guide, \"Can I trust this prediction?\"."
            )
            break
    is_whole = (codes != OPEN).all(0)
    shown = [part for part in conditions.parts if part[0].source == "obs" and part[0].name not in COLUMNS]
    return {
        "combination": names,
        **{key.name: key.decode(codes[:, columns]) for key, columns in shown if is_whole[columns].all()},
        "n_cells": n_cells,
        "support": found,
        **{name: [getattr(one, name) for one in supports] for name in NUMBERS},
    }


def _context_columns(conditions: Conditions, perturbs: np.ndarray) -> np.ndarray:
    """Mark columns of classes and sets that do not perturb, ``(columns,)``; nearly all cells differ in numbers."""
    is_context = ~perturbs
    for key, columns in conditions.parts:
        is_context[columns] &= not key.is_numeric
    return is_context


def combination_codes(conditions: Conditions, perturbs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Leave open in ``codes (n, columns)`` what is no part of a combination: numbers that do not perturb."""
    return np.where(perturbs | _context_columns(conditions, perturbs), codes, OPEN)


def limit_combinations(codes: np.ndarray) -> np.ndarray:
    """Return the first ``MOST_COMBINATIONS`` of ``codes (combinations, columns)``, and warn if there are more."""
    if n_more := max(len(codes) - MOST_COMBINATIONS, 0):
        warn_user(
            f"Only the first {MOST_COMBINATIONS:,} combinations are judged: {n_more:,} more have neither a support nor "
            "mean changes, and are predicted by the decoder alone. Ask for fewer at a time if you need them."
        )
    return codes[:MOST_COMBINATIONS]


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
        self.codes = limit_combinations(codes)
        self.group = np.full(len(new), -1)
        self.group[changed] = np.where(number.ravel() < len(self.codes), number.ravel(), -1)

    @property
    def names(self) -> list[str]:
        """The new conditions of each group in words."""
        return [self.conditions.describe(codes) for codes in self.codes]

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
            x = read(evenly(np.flatnonzero(self.group == number), MOST_CELLS))
            z = module.inference(x)["posterior"].draw(
                Generators(0, range(len(x)), module.device).normal(*module.latent_shape)
            )
            cells.append(module.standardise(z).flatten(1))
            misfits.append(module.misfit(*module.observed_and_expected(x, z)))
        return judge(module, self.conditions, cells, self.codes, misfits)

    @torch.inference_mode()
    def changes(self, sums: np.ndarray, supports: Sequence[Support]) -> list[MeanChange]:
        """Return the mean changes of each group from its sums ``(groups, 5, genes)`` of :func:`sum_profiles`."""
        flow: Any = self.module.perturbation_flow
        error, found = flow.error, []
        for number, support in enumerate(supports):
            n, control, predicted, squares, _ = torch.from_numpy(sums[number])
            change = (predicted - control) / n
            noise = 2 * variance_of_sums(n, predicted, squares) / n  # of these cells, and of as many measured ones
            suggested = (support.weights @ error.changes.to(support.weights)).cpu()
            shown = change if support.lacking is None else change - support.lacking.cpu()  # by the decoder alone
            half = error.half_width(support.variance, change, shown - suggested, noise, COVERAGE)
            found.append(MeanChange(*(values.numpy() for values in (change, change - half, change + half))))
        return found


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
    difference = after - before * measured
    summed = (measured, before, after, after.square(), difference.square())
    sums = [zeros.index_add(0, index, values) for values in summed]
    return ProfileSums(numbers, torch.stack(sums, dim=1).cpu().numpy())
