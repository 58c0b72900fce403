"""Initialisation of a gene-space model from the training cells: scale, axes and library sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from sklearn.decomposition import PCA

from scgen_diffusion.module import library_features, log_profile, total_counts

from ._cells import ROWS_AT_A_TIME
from ._latents import gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from scgen_diffusion.module import GeneSpaceModule

    from ._cells import TrainingCells

N_AXES = 64
MAX_CELLS_FOR_AXES = 5000


@torch.no_grad()
def start_gene_space(module: GeneSpaceModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Initialise the scale, and the axes of global tokens, from the cells ``indices``."""
    module.start_from(module.summarise(_expression(module, cells, indices)))
    if module.architecture.n_global_tokens and module.architecture.backbone in ("dit", "white_box"):
        module.start_reading(torch.from_numpy(_principal_axes(module, cells, indices)).to(module.device))


def describe_totals(module: GeneSpaceModule, cells: TrainingCells, rows: np.ndarray) -> None:
    """Store in the module the distribution of the total counts of some cells."""
    totals = gather((total_counts(x)[:, 0] for x in _expression(module, cells, rows)), len(rows))
    module.library_size.fit(totals.log(), module.condition_tensor(cells.codes[rows]).cpu())


@torch.no_grad()
def describe_predicted_profile_totals(module: GeneSpaceModule, cells: TrainingCells, rows: np.ndarray) -> None:
    """Store in the module the distribution of totals that its library-size head draws for some cells."""
    generator = torch.Generator().manual_seed(0)
    predicted = (module.library_size.predict(library_features(profile)) for profile in _profiles(module, cells, rows))
    drawn = (mean.cpu() + std.cpu() * torch.randn(len(mean), generator=generator) for mean, std in predicted)
    module.library_size.fit_predicted(gather(drawn, len(rows)), module.condition_tensor(cells.codes[rows]).cpu())


def _expression(module: GeneSpaceModule, cells: TrainingCells, indices: np.ndarray | None) -> Iterator[Tensor]:
    """Yield expression ``(cells, genes)`` on the module's device."""
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        yield batch[REGISTRY_KEYS.X_KEY].to(module.device)


def _profiles(module: GeneSpaceModule, cells: TrainingCells, indices: np.ndarray | None) -> Iterator[Tensor]:
    """Yield profiles ``(cells, genes)`` on the module's device."""
    return (log_profile(x, module.input_values) for x in _expression(module, cells, indices))


def _principal_axes(module: GeneSpaceModule, cells: TrainingCells, indices: np.ndarray) -> np.ndarray:
    """Return the first principal axes of encoded cells, ``(axes, genes)``, from a sample of at most 5 000 cells."""
    sample = np.sort(np.random.default_rng(0).permutation(indices)[:MAX_CELLS_FOR_AXES])
    data = np.concatenate([module.encode(profile).cpu().numpy() for profile in _profiles(module, cells, sample)])
    n_axes = min(N_AXES, *(size - 1 for size in data.shape))
    if n_axes < 1:
        return np.zeros((0, data.shape[1]), dtype=np.float32)
    axes = PCA(n_axes, svd_solver="randomized", random_state=0).fit(data).components_
    torch.set_num_threads(torch.get_num_threads())  # scikit-learn resets OpenMP's number of threads
    return axes.astype(np.float32)
