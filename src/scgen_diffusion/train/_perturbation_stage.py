"""What the flow learns from control and perturbed cells: mean shifts and changes, and batches of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from scgen_diffusion.data import evenly
from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators
from scgen_diffusion.module import NegativeBinomialLikelihood
from scgen_diffusion.perturbation import MissedChanges, sampling_covariance

from ._stage_data import LatentData, read_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.module import SCLDMModule
    from scgen_diffusion.perturbation import PerturbationGroup

    from ._recipes import PerturbationFlowRecipe
    from ._stage_data import TensorTable, TrainingCells

Bar: TypeAlias = "Callable[..., Iterable[Any]]"
"""Shows the progress of a loop, as :class:`tqdm.tqdm` does: its steps, what they do, and how many they are."""
MOST_CELLS = 200  # of a group that choose the axes, or whose changes are measured and predicted
MOST_MEASURED = 500  # groups of which changes are measured and predicted
MOVED_TOGETHER = 5  # groups, or a thousand cells
MANY_ROWS = 10_000  # of which a few are drawn; otherwise all are shuffled
MOST_DECODED = 2000  # cells from which latents are related to expression
DECODED_TOGETHER = 128
RIDGE = 1e-3  # relative to the variance of standardised latents
SMALLEST = 1e-6


@torch.no_grad()
def fit_shift(module: SCLDMModule, latents: TensorTable, groups: Sequence[PerturbationGroup]) -> None:
    """Fit the perturbation flow's expected shift to the latents of groups of cells."""
    flow, generator = module.perturbation_flow, torch.Generator().manual_seed(0)
    of_group = [int(group.control[0]) for group in groups]
    sets = {first: group.control for first, group in zip(of_group, groups, strict=True)}  # equal ones are read once
    drawn = [_draw_latents(module, latents, rows, generator) for rows in sets.values()]
    before = {first: _moments(module, latents, rows) for first, rows in sets.items()}
    after = [_moments(module, latents, group.perturbed) for group in groups]
    centres, perturbed = torch.stack([before[first][0] for first in of_group]), torch.stack([mean for mean, _ in after])
    squares = torch.stack([squares for _, squares in [*before.values(), *after]]).sum(0)
    n_control, n_perturbed = torch.tensor([(len(g.control), len(g.perturbed)) for g in groups], device=squares.device).T
    n_degrees = sum(len(rows) - 1 for rows in sets.values()) + int((n_perturbed - 1).sum())
    within = (squares / max(n_degrees, 1)).mean()
    flow.add_shift(len(groups)).fit(
        centres,
        perturbed - centres,
        within / n_control + within / n_perturbed,
        axes_of_expression(module, drawn),
        torch.stack([latents[group.perturbed[:1]]["condition"][0] for group in groups]).to(squares.device),
        within / n_control,
        torch.tensor(of_group),
    )


def _moments(module: SCLDMModule, latents: TensorTable, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations of the cells' standardised latents, each ``(size,)``."""
    states = module.standardise(latents[rows]["mean"].to(module.device)).flatten(1)
    return states.mean(0), (states - states.mean(0)).square().sum(0)


def _draw_latents(module: SCLDMModule, latents: TensorTable, rows: np.ndarray, generator: torch.Generator) -> Tensor:
    """Draw standardised latents of at most ``MOST_CELLS`` of the cells from their posteriors, ``(cells, size)``."""
    some = latents[evenly(rows, MOST_CELLS)]
    drawn = some["mean"].cpu() + some["std"].cpu() * torch.randn(some["mean"].shape, generator=generator)
    return module.standardise(drawn.to(module.device)).flatten(1)


def axes_of_expression(module: SCLDMModule, controls: Sequence[Tensor]) -> Tensor:
    """Return axes of standardised latents in which cells differ as their expected expression does, ``(size, size)``.

    Latents are mapped to log-normalised expression by ridge regression. Its Gram matrix is that of the axes.

    Parameters
    ----------
    module
        A module with a trained autoencoder.
    controls
        Standardised latents of each set of control cells, ``(cells, size)``.
    """
    chosen = torch.from_numpy(evenly(np.arange(sum(map(len, controls))), MOST_DECODED))
    states, deviations = torch.cat(list(controls))[chosen], torch.cat([z - z.mean(0) for z in controls])[chosen]
    deviations, z = deviations.double(), states.double() - states.double().mean(0)
    cross = torch.zeros(1, dtype=torch.double, device=z.device)
    for some in torch.arange(len(z)).split(DECODED_TOGETHER):
        latents = module.unstandardise(states[some].view(-1, *module.latent_shape))
        cross = cross + z[some].T @ module.expected_profiles(latents).double()  # (size, genes)
    ridge = RIDGE * len(z) * torch.eye(z.shape[1], dtype=torch.double, device=z.device)
    effects = torch.linalg.solve(z.T @ z + ridge, cross)
    gram = effects @ effects.T
    smallest = RIDGE * (gram.trace() / len(gram) + SMALLEST)
    axes = torch.linalg.cholesky(gram + smallest * torch.eye(len(gram), device=gram.device))
    return axes / (deviations @ axes).square().mean().sqrt().clamp(min=SMALLEST)


@torch.no_grad()
def fit_changes(module: SCLDMModule, cells: TrainingCells, groups: Sequence[PerturbationGroup], bar: Bar) -> None:
    """Fit the mean changes of genes in groups, and learn which of them the trained flow and decoder miss.

    What is missed is learned for one modality of counts only; see :class:`GeneChanges` and :class:`MissedChanges`.
    """
    flow, shift = module.perturbation_flow, module.perturbation_flow.shift
    chosen = evenly(np.arange(len(groups)), MOST_MEASURED)
    before: dict[int, _GeneMoments] = {}
    after, misfits, totals, errors, depths = [], [], [], [], []
    parts = np.array_split(chosen, -(-len(chosen) // MOVED_TOGETHER))  # a flow takes many small steps
    for some in bar(parts, "Measuring the changes"):
        sets = shift.control_sets[some].tolist()
        rows = {first: groups[number].control for first, number in zip(sets, some, strict=True)}
        control = {first: read_expression(module, cells, evenly(own, MOST_CELLS)) for first, own in rows.items()}
        for first, x in control.items():
            if first not in before:
                before[first] = _GeneMoments.of(module, x)
                misfits.append(module.draw_and_judge(x)[1])
                totals.append(float(x.sum()))
        perturbed = [read_expression(module, cells, evenly(groups[n].perturbed, MOST_CELLS)) for n in some]
        measured = [_GeneMoments.of(module, x) for x in perturbed]
        after += measured
        if isinstance(module.likelihood, NegativeBinomialLikelihood):
            predicted = _predict(module, [control[first] for first in sets], shift.perturbations[some])
            profiles = (module.profiles(x, "counts").double() for x in predicted)
            errors += [own.mean - moved.mean(0) for own, moved in zip(measured, profiles, strict=True)]
            depths += [float(x.sum(1).mean()) for x in perturbed]
    pairs = [(own, before[first]) for own, first in zip(after, shift.control_sets[chosen].tolist(), strict=True)]
    n_perturbed, n_control = torch.tensor(
        [(own.n_cells, control.n_cells) for own, control in pairs], dtype=torch.double, device=module.device
    ).T
    noise = sampling_covariance(1 / n_perturbed, 1 / n_control, shift.control_sets[chosen])
    seen = torch.stack([(own.mean - c.mean).where((own.n > 1) & (c.n > 1), torch.nan) for own, c in pairs])
    changes = flow.add_changes(*seen.shape, seen.isfinite().unique(dim=1).shape[1])
    changes.groups.copy_(torch.from_numpy(chosen))
    changes.misfit.fill_(np.average(misfits, weights=totals))
    moments = [*before.values(), *after]
    variances = sum(own.squares for own in moments) / sum(own.n - 1 for own in moments).clamp(min=1)
    changes.fit(seen, variances, noise, shift.kernels(changes.groups))
    if errors:
        squares = torch.stack([own.squares + control.squares for own, control in pairs]).sum(0)
        variances = squares / (n_perturbed + n_control - 2).sum().clamp(min=1)
        covariance, depth = shift.covariance_of(changes.groups), float(np.mean(depths))
        flow.missed = MissedChanges.learn(changes.groups, torch.stack(errors), variances, covariance, noise, depth).to(
            module.device
        )


class _GeneMoments(NamedTuple):
    """Of some cells: their number, and of each gene the number, mean and squared deviations."""

    n_cells: int
    n: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, module: SCLDMModule, x: Tensor) -> Self:
        values = torch.where(module.measured(x), module.profiles(x, module.input_values).double(), torch.nan)
        mean = values.nanmean(0)
        return cls(len(x), values.isfinite().sum(0).clamp(min=1), mean, (values - mean).square().nansum(0))


def _predict(module: SCLDMModule, controls: Sequence[Tensor], perturbations: Tensor) -> Sequence[Tensor]:
    """Draw the latents of sets of control cells ``(cells, genes)``, move them, and draw the cells anew."""
    x, sizes = torch.cat(list(controls)), [len(of_set) for of_set in controls]
    draws = np.concatenate([np.arange(n) for n in sizes])  # of each set, as if it were alone
    generators = Generators(0, draws, module.device)
    z = module.inference(x)["posterior"].draw(generators.normal(*module.latent_shape))
    condition = perturbations.repeat_interleave(torch.tensor(sizes, device=module.device), 0)
    states = module.perturbation_flow.move(module.standardise(z), condition, sampler=FLOW_SAMPLERS["midpoint"])
    moved = module.unstandardise(states)
    decoded = module.generative(moved, module.decoding_totals(x, moved, generators).reshape(len(x), -1))
    return module.counterfactual_cells(x, z, decoded, generators).split(sizes)


class GroupBatches(Sampler[np.ndarray]):
    """Batches of row numbers ``(2, pairs)``: control and perturbed cells of random groups, not yet paired.

    The probability of a group is proportional to the square root of its size: a group of a hundred cells is more
    informative than one of ten, but not ten times as much. Draws depend on seed, epoch and process.

    Parameters
    ----------
    groups
        Rows of control and perturbed cells.
    recipe
        Sets the number of pairs in a step of all processes together, and of pairs in a group.
    n_steps
        Batches per epoch.
    seed
        Seed of the draws.
    rank, n_processes
        Index of this process, and number of processes.
    """

    def __init__(
        self,
        groups: Sequence[PerturbationGroup],
        recipe: PerturbationFlowRecipe,
        n_steps: int,
        *,
        seed: int,
        rank: int = 0,
        n_processes: int = 1,
    ) -> None:
        self.groups, self.n_paired, self.n_steps, self.seed, self.rank = groups, recipe.n_paired, n_steps, seed, rank
        self.n_groups = max(recipe.batch_size // (recipe.n_paired * n_processes), 1)
        weights = np.sqrt([len(group.control) + len(group.perturbed) for group in groups])
        self.probabilities = weights / weights.sum()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch, self.rank])
        for _ in range(self.n_steps):
            chosen = rng.choice(len(self.groups), self.n_groups, p=self.probabilities)
            yield np.hstack([self._draw(self.groups[number], rng) for number in chosen])

    def _draw(self, group: PerturbationGroup, rng: np.random.Generator) -> np.ndarray:
        """Draw rows of both kinds; rows repeat only after all were drawn."""

        def draw(rows: np.ndarray) -> np.ndarray:
            if len(rows) > max(MANY_ROWS, self.n_paired):
                return rng.choice(rows, self.n_paired, replace=False)
            shuffled = [rng.permutation(rows) for _ in range(-(-self.n_paired // len(rows)))]
            return np.concatenate(shuffled)[: self.n_paired]

        return np.stack([draw(group.control), draw(group.perturbed)])


class PairData(LatentData):
    """Loader of latents of control and perturbed cells of the same groups; there are too few groups for validation.

    Parameters
    ----------
    latents
        Latents of all cells.
    groups, n_steps
        See :class:`GroupBatches`.
    """

    def __init__(self, latents: TensorTable, groups: Sequence[PerturbationGroup], n_steps: int) -> None:
        none = np.array([], dtype=int)
        super().__init__(latents, none, none)
        self.groups, self.n_steps = groups, n_steps

    def train_dataloader(self) -> DataLoader:
        """Return the loader of randomly drawn groups and cells."""
        plan = self.trainer.lightning_module
        batches = GroupBatches(self.groups, plan.recipe, self.n_steps, seed=plan.seed, **self.process)
        batches.set_epoch(plan.n_epochs_done)
        return DataLoader(self.source, sampler=batches, batch_size=None)
