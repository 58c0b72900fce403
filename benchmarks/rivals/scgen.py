"""scGen (Lotfollahi et al. 2019) of the package pertpy (github.com/scverse/pertpy), for `studies/perturbation.py`.

Settings of its tutorial, which are the defaults of its class; it learns log-normalised values of the study's genes. The
shift in the latent space is what `predict` computes between all stimulated and all control cells, with equally many
cells of each type. `predict` draws from generators without a seed; they are replaced by one with ours. JAX uses one
thread.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc

from benchmarks.rivals.worker import NO_SHIFT, Drawn, work

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from benchmarks.rivals.worker import Task

MAX_EPOCHS, BATCH_SIZE, PATIENCE = 100, 32, 25


def draw(task: Task) -> Drawn:
    """Train, and decode every requested control cell, with the shift that its row asks for."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import scvi
    from pertpy.tools import Scgen

    scvi.settings.seed = task.seed
    cells = task.train.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    Scgen.setup_anndata(cells, batch_key="condition", labels_key="cell_type")
    model = Scgen(cells)
    model.train(
        max_epochs=max(1, round(MAX_EPOCHS * task.length)),
        max_time=timedelta(minutes=task.minutes),
        batch_size=BATCH_SIZE,
        early_stopping=True,
        early_stopping_patience=PATIENCE,
        enable_progress_bar=False,
    )
    trained = time.process_time()

    generator = np.random.default_rng(task.seed)
    np.random.default_rng = lambda *_: generator

    def decode(control: AnnData, shift: str) -> NDArray:
        if shift == NO_SHIFT:
            return np.asarray(model.module.as_bound().generative(model.get_latent_representation(control))["px"])
        keys = {"ctrl_key": "control", "stim_key": shift}
        return model.predict(**keys, adata_to_predict=control, restrict_arithmetic_to="all")[0].X

    blocks = [
        (shift, task.requested.index[task.requested["shift"] == shift]) for shift in task.requested["shift"].unique()
    ]
    values = np.concatenate([decode(cells[rows].copy(), shift) for shift, rows in blocks])
    return Drawn(values, trained, "log-normalised", {"epochs": len(model.history["elbo_validation"])})


if __name__ == "__main__":
    work(draw, "pertpy", "scvi-tools", "jax")
