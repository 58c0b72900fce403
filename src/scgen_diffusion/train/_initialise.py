"""What modules take from the training cells other than by gradients: starting values, scales, library sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from sklearn.decomposition import PCA

from scgen_diffusion.nn import total_counts

from ._stage_data import ROWS_AT_A_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from scgen_diffusion.module import GeneSpaceModule, ProfileModule, SCLDMModule

    from ._stage_data import TensorTable, TrainingCells

LATENTS_AT_A_TIME = 1 << 14
MOST_AXES = 64
SMALLEST_LATENT_STD = 1e-4
SMALLEST_STD = 1e-3  # along an axis that is scaled to unit variance
MAX_CELLS_FOR_AXES = 5000


# --- SCLDM ------------------------------------------------------------------------------------------------------------


def start_autoencoder(module: SCLDMModule, cells: TrainingCells, indices: np.ndarray) -> None:
    """Initialise an autoencoder at the mean expression of the cells ``indices``.

    Raises
    ------
    ValueError
        If none of these cells has a modality.
    """
    target, pooled, n_cells = torch.zeros(1).double(), torch.zeros(1).double(), 0
    for batch in cells.loader(indices, ROWS_AT_A_TIME):
        x = batch[REGISTRY_KEYS.X_KEY]
        target, pooled = target + module.modelled_values(x).sum(0), pooled + module.pooled_profile(x).sum(0)
        n_cells = n_cells + module.measured(x).sum(0)
    if len(missing := cells.var.index[(n_cells == 0).cpu().numpy()]):
        msg = (
            f"No training cell has the modality of {missing[0]!r}, so the model cannot learn it. Train on more cells "
            "(`train_size`), or leave the modality out."
        )
        raise ValueError(msg)
    module.start_from_means(*((total / n_cells).float().to(module.device) for total in (target, pooled)))


def standardise_latents(module: SCLDMModule, latents: TensorTable, rows: np.ndarray) -> None:
    """Set the module's mean and standard deviation of latents, as drawn from the posteriors of some cells."""
    parts = torch.from_numpy(rows).split(LATENTS_AT_A_TIME)
    mean = sum(latents[some]["mean"].double().sum(0) for some in parts) / len(rows)
    squares = (
        (part["mean"] - mean).square() + part["std"].double().square() for part in (latents[some] for some in parts)
    )
    variance = sum(part.sum(0) for part in squares) / len(rows)
    module.latent_mean.copy_(mean)
    module.latent_std.copy_(variance.sqrt().float().clamp(min=SMALLEST_LATENT_STD))


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
