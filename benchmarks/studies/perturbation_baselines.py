"""Predictions that SCLDM has to beat, beside those that ``metrics.evaluate_perturbation`` has: linear model, and arithmetic in latents.

Every baseline is called ``predict(case, seed)`` and returns one cell per control cell of the case's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.quality.splits import log_normalise
from benchmarks.studies.perturbation_cases import CELL_TYPE, CONDITION, CONTROL, PERTURBED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.studies.perturbation_cases import Case


def linear_additive(case: Case, seed: int) -> ad.AnnData:
    """Move control cells by the perturbation's effect in a linear model of expression, one effect per cell type plus one of the perturbation.

    A cell counts as a cell, so that large types weigh more than in the mean shift. Values below zero become zero.
    """
    is_perturbed = (case.train.obs[CONDITION] == PERTURBED).to_numpy()
    design = np.column_stack([pd.get_dummies(case.train.obs[CELL_TYPE]), is_perturbed]).astype(float)
    effect = np.linalg.lstsq(design, log_normalise(case.train.layers["counts"]), rcond=None)[0][-1]
    moved = log_normalise(case.control.layers["counts"]) + effect
    return ad.AnnData(
        sp.csr_matrix(np.maximum(moved, 0)), obs=predicted_obs(case), var=case.train.var.copy(), uns={"log1p": {}}
    )


def scvi_arithmetic(case: Case, seed: int, max_epochs: int | None = None) -> ad.AnnData:
    """Move control cells in scVI's latent space by the mean change of the other types, and draw counts with the cells' own totals.

    References
    ----------
    Lotfollahi et al. 2019, scGen predicts single-cell perturbation responses. Nat Methods 16:715 (the arithmetic).
    Lopez et al. 2018, Deep generative modeling for single-cell transcriptomics. Nat Methods 15:1053 (the latent space).
    """
    import scvi
    import torch

    scvi.settings.seed = seed
    train, control = case.train.copy(), case.control
    scvi.model.SCVI.setup_anndata(train, layer="counts")
    model = scvi.model.SCVI(train, gene_likelihood="nb")
    model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    latents = model.get_latent_representation()
    moved = (latents[case.rows(case.cell_type, CONTROL)] + mean_latent_change(case, latents)).astype(np.float32)
    totals = control.layers["counts"].sum(axis=1)
    with torch.inference_mode():
        px = model.module.generative(
            z=torch.from_numpy(moved),
            library=torch.from_numpy(np.log(np.asarray(totals, dtype=np.float32).reshape(-1, 1))),
            batch_index=torch.zeros(len(moved), 1, dtype=torch.long),
        )["px"]
    rng = np.random.default_rng(seed)
    mean, theta = px.mu.numpy().astype(float), px.theta.numpy().astype(float)
    return as_cells(case, rng.poisson(rng.gamma(np.broadcast_to(theta, mean.shape), mean / theta)))


def mean_latent_change(case: Case, latents: NDArray) -> NDArray:
    """Return the mean change of latents ``(cells, ...)`` of the training cells, the mean over the other types."""
    changes = [
        latents[case.rows(name, PERTURBED)].mean(axis=0) - latents[case.rows(name, CONTROL)].mean(axis=0)
        for name in case.other_types
    ]
    return np.mean(changes, axis=0)


def as_cells(case: Case, counts: NDArray | sp.csr_matrix) -> ad.AnnData:
    """Return predicted counts, one row per control cell, as cells."""
    return ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=predicted_obs(case), var=case.train.var.copy())


def predicted_obs(case: Case) -> pd.DataFrame:
    """Return the control cells' table, perturbed."""
    return case.control.obs.assign(**{CONDITION: PERTURBED})
