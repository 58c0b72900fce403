"""What is known about the effect of a perturbation on given cells: a verdict, and intervals of mean changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.data import OPEN
from scgen_diffusion.diffusion import Generators
from scgen_diffusion.module import TARGET_SUM, log_profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.data import Conditions
    from scgen_diffusion.module import SCLDMModule

    from ._counterfactual import Counterfactual
    from ._rows import Rows

SUPPORTED, EXTRAPOLATED, UNKNOWN = "supported", "extrapolated", "unknown"
COVERAGE = 0.9  # of intervals
MOST_CELLS = 200  # of a combination that the verdict is about
MOST_COMBINATIONS = 1000  # of a request; more are not judged
STRANGE, UNLIKE = 0.1, 0.5  # misfit of control cells beyond those of training, in nats per molecule
LEAST_EXPLAINED = 0.5  # share of the variance of an effect that groups must explain to be of use
LEAST_LEFT_OUT = 2  # groups that the others explain, to learn how wrong predictions are


class Verdict(NamedTuple):
    """What is known about a combination: the verdict, its reason, what to do about it, and the variance of the shift."""

    label: str
    reason: str
    advice: str = ""
    variance: float = float("nan")


NOT_MEASURED = Verdict(
    UNKNOWN,
    "the transport was trained by a version that did not measure its errors",
    "Call train_transport() again.",
)


class MeanChange(NamedTuple):
    """Predicted minus control mean of each gene, and its interval, ``(genes,)``."""

    change: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def judge(
    module: SCLDMModule,
    conditions: Conditions,
    cells: Sequence[Tensor],
    codes: np.ndarray,
    misfits: Sequence[float] | None = None,
) -> list[Verdict]:
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
    """
    transport: Any = module.transport
    shift, given = transport.shift, (transport.control, transport.perturbs)
    if shift is None or not shift.is_measured:
        return [NOT_MEASURED] * len(cells)
    condition = module.condition_tensor(codes)
    uncertainty = shift.uncertainty(cells, condition, *given).tolist()
    related = shift.related(condition, *given).cpu().numpy()
    is_context = _context_columns(conditions, transport.perturbs.cpu().numpy())
    contexts = np.where(is_context, shift.perturbations.double().cpu().numpy(), OPEN)
    explained = shift.left_out[shift.left_out[:, 0] <= (1 - LEAST_EXPLAINED) * shift.left_out[:, 1], 0]
    usual = 0.0 if transport.error is None else float(transport.error.misfit)
    least = float(explained.mean()) if len(explained) else 0.0  # no prediction is surer than these were on average
    verdicts = []
    for number, (variance, prior) in enumerate(uncertainty):
        seen = np.unique(contexts[related[number]], axis=0)
        wanted = np.where(is_context, codes[number], OPEN)
        own = ((seen == wanted) | (wanted == OPEN)).all(1).any()
        misfit = 0.0 if misfits is None else misfits[number]
        strange = f"the model explains their mean expression with an error of {misfit:.2f} nats per molecule, "
        strange += f"and that of training cells with {usual:.2f}"
        if misfit > usual + UNLIKE:
            found = (
                UNKNOWN,
                f"the control cells are unlike all training cells ({strange})",
                "Check that their genes, counts and species are those of training, or train with such control cells.",
            )
        elif variance > (1 - LEAST_EXPLAINED) * prior:
            found = (
                UNKNOWN,
                "the perturbation, or a part of it, is unlike those seen in training",
                "Train with cells of this perturbation or of similar ones.",
            )
        elif len(seen) == 1 and not own:
            found = (
                UNKNOWN,
                f"the perturbation was seen in one context only ({conditions.describe(seen[0])}), so it is not known how "
                "effects differ between contexts",
                "Train with perturbed and control cells of a second context.",
            )
        elif misfit > usual + STRANGE:
            found = (
                EXTRAPOLATED,
                f"the control cells differ from the training cells ({strange})",
                "Train with such control cells; perturbed ones are not needed.",
            )
        elif len(explained) < LEAST_LEFT_OUT:
            found = (
                EXTRAPOLATED,
                "no groups of training cells can be predicted from the others, so predictions could not be checked",
                "Compare with simple baselines on a perturbation that you leave out, and trust large changes only.",
            )
        elif variance > explained.max():
            found = (
                EXTRAPOLATED,
                "the control cells are less like the cells seen perturbed than these are like each other",
                "Trust the direction of a change more than its size, or train with perturbed cells of a similar kind.",
            )
        else:
            where = "in such cells" if own else f"in {len(seen)} other contexts, and the control cells are like these"
            found = SUPPORTED, f"the perturbation, or what it consists of, was seen {where}", ""
        verdicts.append(Verdict(*found, max(variance, least)))
    return verdicts


def describe_verdicts(names: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Return the columns of a table with a row per combination, and warn unless all are supported."""
    if doubtful := [(name, found) for name, found in zip(names, verdicts, strict=True) if found.label != SUPPORTED]:
        name, found = min(doubtful, key=lambda one: one[1].label == EXTRAPOLATED)
        more = f" {len(doubtful) - 1} more combinations are not supported either." if len(doubtful) > 1 else ""
        warn_user(
            f"The effect on {name} is {found.label}: {found.reason}. {found.advice}{more} See "
            "`uns['scgen_diffusion']['verdict']`, and the user guide, \"Can I trust this prediction?\"."
        )
    return {
        "combination": list(names),
        "verdict": [found.label for found in verdicts],
        "reason": [found.reason for found in verdicts],
    }


def _context_columns(conditions: Conditions, perturbs: np.ndarray) -> np.ndarray:
    """Mark the columns of classes and sets that do not perturb, ``(columns,)``; nearly every cell has its own numbers."""
    is_context = ~perturbs
    for key in conditions.by_key:
        is_context[conditions.columns(key.name)] &= not key.is_numeric
    return is_context


class PerturbedGroups:
    """Groups of given cells that become perturbed alike, and what is known about each.

    Parameters
    ----------
    module, conditions
        The trained module and its conditions.
    request
        The request. :meth:`reading` must see all of its cells once.
    n_genes
        Number of genes.
    """

    def __init__(self, module: SCLDMModule, conditions: Conditions, request: Counterfactual, n_genes: int) -> None:
        self.module, self.conditions, self.request = module, conditions, request
        transport: Any = module.transport
        perturbs = transport.perturbs.cpu().numpy()
        shown = np.where(perturbs | _context_columns(conditions, perturbs), request.codes, OPEN)
        changed = (request.own != request.codes).any(1)
        codes, number = np.unique(shown[changed], axis=0, return_inverse=True)
        self.codes = codes if len(codes) <= MOST_COMBINATIONS else codes[:0]
        self.group = np.full(len(request.codes), -1)  # of each cell
        if len(self.codes):
            self.group[changed] = number.ravel()
        self._control = torch.zeros(len(self.codes), n_genes, dtype=torch.double, device=module.device)
        self._observed, self._expected = self._control.clone(), self._control.clone()
        self._states: list[list[Tensor]] = [[] for _ in self.codes]

    @property
    def names(self) -> list[str]:
        """The new conditions of each group in words."""
        return [self.conditions.describe(codes) for codes in self.codes]

    @torch.inference_mode()
    def reading(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the batches of control cells ``(cells, genes)`` unchanged, and keep what verdicts and changes need."""
        start = 0
        for x in batches:
            group = self.group[start : start + len(x)]
            start += len(x)
            moved = np.flatnonzero(group >= 0)
            if len(moved):
                profiles = log_profile(x[moved], self.module.input_values).double()
                self._control.index_add_(0, torch.from_numpy(group[moved]).to(x.device), profiles)
            for number in np.unique(group[moved]):
                n_missing = MOST_CELLS - sum(map(len, self._states[number]))
                self._encode(number, x[np.flatnonzero(group == number)[:n_missing]])
            yield x

    def _encode(self, number: int, x: Tensor) -> None:
        if not len(x):
            return
        module = self.module
        posterior = module.inference(x)["posterior"]
        z = posterior.draw(Generators(0, range(len(x)), module.device).normal(*module.latent_shape))
        self._states[number].append(module.standardise(z).flatten(1))
        observed, expected = module.observed_and_expected(x, z)
        self._observed[number] += observed
        self._expected[number] += expected

    @torch.inference_mode()
    def verdicts(self) -> list[Verdict]:
        """Return the verdict of each group."""
        cells = [torch.cat(states) for states in self._states]
        misfits = [self.module.misfit(*both) for both in zip(self._observed, self._expected, strict=True)]
        return judge(self.module, self.conditions, cells, self.codes, misfits)

    @torch.inference_mode()
    def changes(self, predicted: Rows, verdicts: Sequence[Verdict]) -> list[MeanChange]:
        """Return the mean changes of each group of predicted cells ``(cells, genes)``; none for expected values."""
        if not self.request.sample or self.request.strength < 1:
            return []
        found = []
        for number, verdict in enumerate(verdicts):
            cells = predicted[self.group == number]
            mean, variance = _moments(cells, is_log=self.request.sampling.output == "log1p")
            change = mean - self._control[number].cpu() / cells.shape[0]
            noise = 2 * variance / cells.shape[0]  # of these cells, and of as many measured ones
            half = self._half_width(number, verdict.variance, change, noise)
            found.append(MeanChange(*(values.numpy() for values in (change, change - half, change + half))))
        return found

    def _half_width(self, number: int, variance: float, change: Tensor, noise: Tensor) -> Tensor:
        transport: Any = self.module.transport
        if transport.error is None:
            return torch.full_like(change, torch.nan)
        states, condition = torch.cat(self._states[number]), self.module.condition_tensor(self.codes[number])
        given = states, condition, transport.control, transport.perturbs
        weights = transport.shift.weights_of(transport.error.groups, *given)
        return transport.error.half_width(variance, change, weights, noise, COVERAGE)


def _moments(x: Rows, *, is_log: bool) -> tuple[Tensor, Tensor]:
    """Return mean and variance of log-normalised expression over cells ``(cells, genes)``; of one cell it is NaN."""
    x = sp.csr_matrix(x, dtype=np.float64)
    if not is_log:
        totals = np.maximum(np.asarray(x.sum(1)).ravel(), 1)
        x = x.multiply(TARGET_SUM / totals[:, None]).tocsr().log1p()
    mean, squares = (torch.from_numpy(np.asarray(values.mean(0)).ravel()) for values in (x, x.multiply(x)))
    n = x.shape[0]
    return mean, (squares - mean.square()).clamp(min=0) * (n / (n - 1) if n > 1 else torch.nan)
