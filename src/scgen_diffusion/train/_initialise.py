"""What modules take from the training cells other than by gradients: starting values, scales, library sizes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from sklearn.decomposition import PCA

from scgen_diffusion.data import evenly
from scgen_diffusion.module import FEW_CELLS, expected_log_shares
from scgen_diffusion.nn import classes_are_given, encodings_of, total_counts

from ._latents import ENCODED_AT_A_TIME
from ._stage_data import ROWS_AT_A_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.diffusion import Sampler
    from scgen_diffusion.module import GeneSpaceModule, ProfileModule, SCLDMModule
    from scgen_diffusion.nn import ConditionEffects

    from ._latents import LatentCache
    from ._perturbation_stage import Bar
    from ._stage_data import TrainingCells

LATENTS_AT_A_TIME = 1 << 14
MOST_COMBINATIONS = 1000  # of conditions whose mean profiles the effects start from, or that training lacks
MOST_COMPARED = 64  # combinations with training cells that show what those without seem to lack
RARE_SHARE = 0.01  # of all cells, below which a combination is rare; up to `FEW_CELLS` always are
MOST_CHECKED = 1000  # cells of a combination
N_PASSES = 2  # over new cells; how far a gene's counts are noise is only known when some are expected
MOST_AXES = 64
SMALLEST_STD = 1e-3  # along an axis that is scaled to unit variance
MAX_CELLS_FOR_AXES = 5000


# --- SCLDM ------------------------------------------------------------------------------------------------------------


def start_autoencoder(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Initialise an autoencoder at the mean expression of ``indices``, and its effects at those of conditions.

    Raises
    ------
    ValueError
        If none of these cells has a modality.
    """
    target, pooled, n_cells, n_read = torch.zeros(1).double(), torch.zeros(1).double(), 0, 0
    combinations = _combinations(module, cells, indices)
    if combinations is not None:
        codes, which, sizes = combinations
        counts = torch.zeros(len(codes), len(cells.var), dtype=torch.double)
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        x = batch[REGISTRY_KEYS.X_KEY]
        target, pooled = target + module.modelled_values(x).sum(0), pooled + module.pooled_profile(x).sum(0)
        n_cells = n_cells + module.measured(x).sum(0)
        if combinations is not None:
            counts.index_add_(0, torch.from_numpy(which[n_read : n_read + len(x)]), x.double())
            n_read += len(x)
    if len(missing := cells.var.index[(n_cells == 0).cpu().numpy()]):
        msg = (
            f"No training cell has the modality of {missing[0]!r}, so the model cannot learn it. Train on more cells "
            "(`train_size`), or leave the modality out."
        )
        raise ValueError(msg)
    module.start_from_means(*((total / n_cells).float().to(module.device) for total in (target, pooled)))
    if combinations is not None:
        condition = module.condition_tensor(codes)
        module.start_effects(condition, counts.to(module.device), torch.from_numpy(sizes).to(module.device))


def _combinations(
    module: SCLDMModule, cells: TrainingCells, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the distinct classes and sets of the cells ``indices``, which of them each cell has, and how many have it.

    None without condition effects, or if there are more than ``MOST_COMBINATIONS``.
    """
    if module.condition_effects is None:
        return None
    codes, which, sizes = _distinct_conditions(module.condition_effects, module.condition_tensor(cells.codes[indices]))
    return (codes, which, sizes) if len(codes) <= MOST_COMBINATIONS else None


def _distinct_conditions(effects: ConditionEffects, condition: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    discrete = effects.without_numbers(condition).cpu().numpy()
    codes, which, sizes = np.unique(discrete, axis=0, return_inverse=True, return_counts=True)
    return codes, which.ravel(), sizes


def correct_effects(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Correct the condition effects of a trained autoencoder on genes that rare combinations of conditions have.

    Other combinations have learned them, and cells without a label are no combination.
    """
    combinations = _combinations(module, cells, indices)
    if combinations is None:
        return
    codes, which, sizes = combinations
    condition = module.condition_tensor(codes)
    given = classes_are_given(condition, module.conditions).cpu().numpy()
    rare = np.flatnonzero(given & ((sizes <= FEW_CELLS) | (sizes <= RARE_SHARE * len(indices))))
    of_each = np.split(np.argsort(which, kind="stable"), np.cumsum(sizes)[:-1])
    checked = [evenly(of_each[number], MOST_CHECKED) for number in rare]
    parts = np.cumsum([len(rows) for rows in checked]) // ENCODED_AT_A_TIME

    lacking = torch.zeros(len(codes), len(cells.var), 2, device=module.device)
    for part in np.unique(parts):
        some = np.flatnonzero(parts == part)
        rows = [checked[number] for number in some]
        chosen = indices[np.concatenate(rows)]
        x = next(iter(cells.loader(chosen, len(chosen))))[REGISTRY_KEYS.X_KEY].to(module.device)
        lacking[rare[some]] = module.lacking_effects(x.split([len(own) for own in rows]), condition[rare[some]])
    module.condition_effects.add(condition, lacking, torch.from_numpy(sizes).to(module.device))


@torch.no_grad()
def learn_later_effects(
    module: SCLDMModule, cells: TrainingCells, indices: np.ndarray, new: Sequence[Tensor], bar: Bar
) -> None:
    """Learn condition effects of new classes and members from the cells that have them and no label missing.

    Parameters
    ----------
    module
        Module with a trained autoencoder, which keeps its weights.
    cells
        Training cells.
    indices
        Which of them to learn from.
    new
        Mask of the new classes or members of each key, ``(values,)`` each.
    bar
        Shows the progress.
    """
    effects = module.condition_effects
    if effects is None or effects.later is None:
        return
    later = effects.later
    codes, which, _ = _distinct_conditions(effects, module.condition_tensor(cells.codes[indices]))
    condition = module.condition_tensor(codes)
    have_labels = classes_are_given(condition, module.conditions)[:, None]
    values = zip(later.keys.tolist(), later.codes.tolist(), strict=True)
    is_new = np.array([bool(new[key][code]) for key, code in values])
    given = (later.are_given(condition) & have_labels).cpu().numpy() & is_new
    groups, group_of = np.unique(given, axis=0, return_inverse=True)
    group_of_cell = group_of.ravel()[which]
    later.effects[is_new] = 0.0
    learned = np.flatnonzero(groups.any(1))
    if not len(learned):
        return
    of_groups = groups[learned], np.bincount(group_of_cell)[learned]
    given_of_groups, n_cells = (torch.from_numpy(each).to(module.device) for each in of_groups)
    module.eval()
    for _ in range(N_PASSES):
        lacking = []
        for group in bar(learned, "Learning new effects"):
            rows = evenly(np.flatnonzero(group_of_cell == group), MOST_CHECKED)
            batch = next(iter(cells.loader(indices[rows], len(rows))))
            condition, x = module.condition_of(batch), batch[REGISTRY_KEYS.X_KEY]
            lacking.append(module.lacking_means(condition.to(module.device), x.to(module.device)))
        later.add(given_of_groups, n_cells, torch.stack(lacking))


def add_absent_effects(
    module: SCLDMModule, cells: TrainingCells, indices: np.ndarray, sampler: Sampler, bar: Bar
) -> None:
    """Give a trained module the effects that generated cells of combinations without training cells lack.

    It has none yet. It gets none for more than ``MOST_COMBINATIONS`` combinations, or unless several keys all have
    classes.
    """
    combinations = _combinations(module, cells, indices)
    are_classes = all(one.n_columns == 1 and not one.is_numeric for one in encodings_of(module.conditions))
    if combinations is None or not are_classes or len(module.conditions) < 2:
        return
    codes, which, sizes = combinations
    is_given = classes_are_given(module.condition_tensor(codes), module.conditions).cpu().numpy()
    seen = codes[is_given]
    n_possible = np.prod([len(np.unique(column)) for column in seen.T], dtype=float)
    if not 0 < n_possible - len(seen) <= MOST_COMBINATIONS:
        return
    every = np.stack(np.meshgrid(*map(np.unique, seen.T), indexing="ij"), -1).reshape(-1, seen.shape[1])
    absent = np.array(sorted({*map(tuple, every)} - {*map(tuple, seen)}))
    counts = _sum_counts(cells, indices, which, len(codes))[torch.from_numpy(is_given)]
    asked = np.concatenate([absent, seen[evenly(np.argsort(sizes[is_given]), MOST_COMPARED)]])
    sums = (torch.from_numpy(values) for values in (sizes[is_given], seen, asked))
    log_shares = expected_log_shares(counts, *sums).to(module.device)
    module.eval()
    split = (len(absent), len(asked) - len(absent))
    pairs = zip(module.condition_tensor(asked).split(split), log_shares.split(split), strict=True)
    module.add_absent_effects(*pairs, sampler, partial(bar, desc="Comparing new combinations"))


def _sum_counts(cells: TrainingCells, indices: np.ndarray, which: np.ndarray, n: int) -> Tensor:
    """Sum the counts of the cells ``indices`` of each of ``n`` combinations, ``(n, genes)``."""
    counts, n_read = torch.zeros(n, len(cells.var), dtype=torch.double), 0
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        x = batch[REGISTRY_KEYS.X_KEY].double()
        counts.index_add_(0, torch.from_numpy(which[n_read : n_read + len(x)]), x)
        n_read += len(x)
    return counts


def standardise_latents(module: SCLDMModule, cache: LatentCache, rows: np.ndarray) -> None:
    """Set the module's mean and standard deviation of latents, as drawn from the posteriors of some cells."""
    mean = sum(part["mean"].double().sum(0) for part in cache.parts(rows, LATENTS_AT_A_TIME)) / len(rows)
    squares = (
        (part["mean"] - mean).square() + part["std"].double().square() for part in cache.parts(rows, LATENTS_AT_A_TIME)
    )
    variance = sum(part.sum(0) for part in squares) / len(rows)
    module.standardise_latents(mean.float(), variance.sqrt().float())


# --- models over all genes --------------------------------------------------------------------------------------------


@torch.no_grad()
def start_gene_space(module: GeneSpaceModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Initialise a module, and the axes along which its network reads all genes, from the cells ``indices``."""
    module.start_from(_expression(module, cells, indices))
    a, is_mlp = module.architecture, module.architecture.backbone == "mlp"
    if is_mlp or (a.n_global_tokens and a.backbone != "unet"):
        sample = np.sort(np.random.default_rng(0).permutation(indices)[:MAX_CELLS_FOR_AXES])
        values = map(module.whole_cells, _expression(module, cells, sample))
        module.start_reading(_principal_axes(values, whiten=is_mlp).to(module.device))


@torch.no_grad()
def include_cells(module: ProfileModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Let the smallest value that a module knows be that of the cells ``indices``, if they have smaller ones."""
    module.include(_expression(module, cells, indices))


def describe_totals(module: GeneSpaceModule, cells: TrainingCells, rows: np.ndarray) -> None:
    """Store in the module the range and the scale of the total counts of some cells."""
    totals, n_read = torch.empty(len(rows)), 0  # a list of small parts, made between large batches, fragments memory
    for x in _expression(module, cells, rows):
        totals[n_read : n_read + len(x)] = total_counts(x)[:, 0]
        n_read += len(x)
    module.library_size.fit(totals.log())


def _expression(module: GeneSpaceModule, cells: TrainingCells, indices: np.ndarray) -> Iterator[Tensor]:
    """Yield expression ``(cells, genes)`` on the module's device."""
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        yield batch[REGISTRY_KEYS.X_KEY].to(module.device)


def _principal_axes(values: Iterable[Tensor], *, whiten: bool) -> Tensor:
    """Return the first principal axes of batches of values ``(cells, genes)``, ``(axes, genes)``.

    With ``whiten`` they are scaled, so that the coordinates have unit variance: a network then learns weak programmes
    as easily as strong ones.
    """
    data = torch.cat([batch.cpu() for batch in values]).numpy()
    n_axes = min(MOST_AXES, *(size - 1 for size in data.shape))
    if n_axes < 1:
        return torch.zeros(0, data.shape[1])
    pca = PCA(n_axes, svd_solver="randomized", random_state=0).fit(data)
    torch.set_num_threads(torch.get_num_threads())  # scikit-learn resets OpenMP's number of threads
    axes = torch.from_numpy(pca.components_)
    if whiten:
        std = torch.from_numpy(pca.explained_variance_).sqrt()
        axes = (axes / std[:, None])[std > SMALLEST_STD]
    return axes.float()
