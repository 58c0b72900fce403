"""What the flow learns from control and perturbed cells: mean shifts and changes, and batches of pairs."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from torch.utils.data import DataLoader, Sampler

from scgen_diffusion.data import evenly
from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators
from scgen_diffusion.module import NegativeBinomialLikelihood
from scgen_diffusion.perturbation import MissedChanges, sampling_covariance

from ._latents import LatentData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.module import Posterior, SCLDMModule
    from scgen_diffusion.perturbation import PerturbationGroup

    from ._latents import LatentCache
    from ._recipes import PerturbationFlowRecipe
    from ._stage_data import TrainingCells

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
def fit_shift(module: SCLDMModule, cache: LatentCache, groups: Sequence[PerturbationGroup]) -> None:
    """Fit the perturbation flow's expected shift to the latents of groups of cells."""
    flow, generator = module.perturbation_flow, torch.Generator().manual_seed(0)
    of_group = [int(group.control[0]) for group in groups]
    sets = {first: group.control for first, group in zip(of_group, groups, strict=True)}  # equal ones are read once
    drawn = [_draw_latents(module, cache, rows, generator) for rows in sets.values()]
    before = {first: _moments(module, cache, rows) for first, rows in sets.items()}
    after = [_moments(module, cache, group.perturbed) for group in groups]
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
        torch.stack([cache[group.perturbed[:1]]["condition"][0] for group in groups]).to(squares.device),
        control_variances=within / n_control,
        control_sets=torch.tensor(of_group),
    )


def _moments(module: SCLDMModule, cache: LatentCache, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations of the cells' standardised latents, each ``(size,)``."""
    states = module.standardise(cache[rows]["mean"].to(module.device)).flatten(1)
    return states.mean(0), (states - states.mean(0)).square().sum(0)


def _draw_latents(module: SCLDMModule, cache: LatentCache, rows: np.ndarray, generator: torch.Generator) -> Tensor:
    """Draw standardised latents of at most ``MOST_CELLS`` of the cells from their posteriors, ``(cells, size)``."""
    some = cache[evenly(rows, MOST_CELLS)]
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
    """Fit the mean changes of genes to groups of several cells, see :class:`GeneChanges`."""
    flow, shift = module.perturbation_flow, module.perturbation_flow.shift
    several = [number for number, group in enumerate(groups) if min(len(group.control), len(group.perturbed)) > 1]
    chosen = evenly(np.array(several, dtype=int), MOST_MEASURED)
    if not len(chosen):
        flow.add_changes(0, len(cells.var), 1)
        return
    before, misfits, totals = {}, [], []
    of_group, after = shift.control_sets[chosen].tolist(), []
    for number, first in bar(zip(chosen, of_group, strict=True), "Measuring the changes", len(chosen)):
        if first not in before:
            x = _read(module, cells, groups[number].control)
            before[first] = _GeneMoments.of(module, x)
            misfits.append(module.draw_and_judge(x)[1])
            totals.append(float(x.sum()))
        after.append(_GeneMoments.of(module, _read(module, cells, groups[number].perturbed)))
    measured = torch.stack([own.mean - before[first].mean for own, first in zip(after, of_group, strict=True)])
    changes = flow.add_changes(*measured.shape, measured.isfinite().unique(dim=1).shape[1])
    changes.groups.copy_(torch.from_numpy(chosen))
    changes.misfit.fill_(np.average(misfits, weights=totals))
    moments = [*before.values(), *after]
    n_degrees = sum(own.n - 1 for own in moments)
    n_perturbed = torch.tensor([own.n_cells for own in after], dtype=torch.double, device=module.device)
    n_control = torch.tensor([before[first].n_cells for first in of_group], dtype=torch.double, device=module.device)
    noise = sampling_covariance(1 / n_perturbed, 1 / n_control, shift.control_sets[chosen])
    variances = sum(own.squares for own in moments) / n_degrees.clamp(min=1)
    changes.fit(measured, variances, noise, shift.kernels(changes.groups))


class _GeneMoments(NamedTuple):
    """Of some cells: their number, and of each gene the number, mean and squared deviations."""

    n_cells: int
    n: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, module: SCLDMModule, x: Tensor) -> Self:
        values = torch.where(module.measured(x), module.profiles(x, module.input_values).double(), torch.nan)
        n = values.isfinite().sum(0)
        mean = values.nanmean(0).where(n > 1, torch.nan)
        return cls(len(x), n.clamp(min=1), mean, (values - mean).square().nansum(0))


@torch.no_grad()
def fit_missed(module: SCLDMModule, cells: TrainingCells, groups: Sequence[PerturbationGroup], bar: Bar) -> None:
    """Learn which mean changes of groups the trained flow and decoder miss. Only for one modality of counts."""
    if not isinstance(module.likelihood, NegativeBinomialLikelihood):
        return
    flow, shift = module.perturbation_flow, module.perturbation_flow.shift
    chosen = evenly(np.arange(len(groups)), MOST_MEASURED)
    errors, squares, numbers, depths = [], [], [], []
    move = partial(flow.move, sampler=FLOW_SAMPLERS["midpoint"])
    read_controls = _controls_of(module, cells, groups)
    parts = np.array_split(chosen, -(-len(chosen) // MOVED_TOGETHER))  # a flow takes many small steps
    for some in bar(parts, "Learning what is missed"):
        controls, posterior = read_controls(*shift.control_sets[some].tolist())
        sizes = [len(x) for x in controls]
        condition = shift.perturbations[some].repeat_interleave(torch.tensor(sizes, device=module.device), 0)
        predicted = _predict(module, controls, posterior, partial(move, condition=condition))
        for number, x, moved in zip(some, controls, predicted.split(sizes), strict=True):
            real = _read(module, cells, groups[number].perturbed)
            before, after, observed = (module.profiles(values, "counts").double() for values in (x, moved, real))
            errors.append(observed.mean(0) - after.mean(0))
            squares.append(sum((values - values.mean(0)).square().sum(0) for values in (observed, before)))
            numbers.append((len(real), len(x)))
            depths.append(float(real.sum(1).mean()))
    n_perturbed, n_control = torch.tensor(numbers, dtype=torch.double, device=module.device).T
    noise = sampling_covariance(1 / n_perturbed, 1 / n_control, shift.control_sets[chosen])
    variances = torch.stack(squares).sum(0) / (n_perturbed + n_control - 2).sum().clamp(min=1)
    covariance = shift.covariance_of(torch.from_numpy(chosen))
    learned = MissedChanges.learn(
        torch.from_numpy(chosen), torch.stack(errors), variances, covariance, noise, float(np.mean(depths))
    )
    flow.missed = learned.to(module.device)


def _read(module: SCLDMModule, cells: TrainingCells, rows: np.ndarray) -> Tensor:
    """Return expression of at most ``MOST_CELLS`` of the cells, ``(cells, genes)``."""
    batch = next(iter(cells.loader(evenly(rows, MOST_CELLS), MOST_CELLS)))
    return batch[REGISTRY_KEYS.X_KEY].to(module.device)


def _controls_of(
    module: SCLDMModule, cells: TrainingCells, groups: Sequence[PerturbationGroup]
) -> Callable[..., tuple[list[Tensor], Posterior]]:
    """Return a function that reads sets of control cells, and encodes them together.

    It remembers the last ones, because groups with the same control cells follow each other.
    """
    control = {int(group.control[0]): group.control for group in groups}  # by the numbers of `control_sets`

    @lru_cache(maxsize=1)
    def read(*sets: int) -> tuple[list[Tensor], Posterior]:
        x = {number: _read(module, cells, control[number]) for number in sets}
        controls = [x[number] for number in sets]
        return controls, module.inference(torch.cat(controls))["posterior"]

    return read


def _predict(
    module: SCLDMModule, controls: Sequence[Tensor], posterior: Posterior, move: Callable[[Tensor], Tensor]
) -> Tensor:
    """Draw the latents of sets of control cells ``(cells, genes)``, move them, and draw the cells anew."""
    x = torch.cat(list(controls))
    draws = np.concatenate([np.arange(len(of_set)) for of_set in controls])  # of each set, as if it were alone
    generators = Generators(0, draws, module.device)
    z = posterior.draw(generators.normal(*module.latent_shape))
    moved = module.unstandardise(move(module.standardise(z)))
    decoded = module.generative(moved, module.decoding_totals(x, moved, generators).reshape(len(x), -1))
    return module.counterfactual_cells(x, z, decoded, generators)


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
    cache
        Latents of all cells.
    groups, recipe, n_steps
        See :class:`GroupBatches`.
    """

    def __init__(
        self, cache: LatentCache, groups: Sequence[PerturbationGroup], recipe: PerturbationFlowRecipe, n_steps: int
    ) -> None:
        none = np.array([], dtype=int)
        super().__init__(cache, none, none, recipe.batch_size)
        self.groups, self.recipe, self.n_steps = groups, recipe, n_steps

    def train_dataloader(self) -> DataLoader:
        """Return the loader of randomly drawn groups and cells."""
        plan = self.trainer.lightning_module
        batches = GroupBatches(self.groups, self.recipe, self.n_steps, seed=plan.seed, **self.process)
        batches.set_epoch(plan.n_epochs_done)
        return DataLoader(self.cache, sampler=batches, batch_size=None)
