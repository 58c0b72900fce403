"""CellFlow (Klein et al. 2025), package cellflow-tools (github.com/theislab/CellFlow), for `studies/perturbation.py`.

Its settings are those of its tutorial on cytokines: 100 principal components of log-normalised values, optimal
transport between the control and the perturbed cells of each type (`epsilon` 0.5), a flow with noise 0.5. The size is
not. The tutorial's networks (layers of 2 048 and 4 096 units) take 4.4 seconds a step on one core, so its 500 000 steps
would take a month. Here all layers are an eighth as wide, batches have 256 cells instead of 1 024, and Adam takes each
step (learning rate 5e-4) instead of every twentieth (5e-5). Two choices were made on left-out B cells, by their energy
distance: 5 000 steps (1.6; 2.0 with 15 000), and that the flow sees no cell type (1.8 if it sees the mean of the type's
control cells; it must be known for a type that was never seen perturbed).

It refuses types without perturbed cells, so it learns from the other types alone. Its training cannot be stopped by
time. JAX uses one thread.
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc

from benchmarks.rivals.worker import NO_SHIFT, Drawn, work

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from benchmarks.rivals.worker import Task

N_COMPONENTS = 100
STEPS, BATCH_SIZE, LEARNING_RATE = 5_000, 256, 5e-4
WIDTH = 256


def draw(task: Task) -> Drawn:
    """Train, and give the principal components of every requested control cell, moved or not, as profiles of genes."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import optax
    from cellflow.model import CellFlow
    from cellflow.preprocessing import centered_pca
    from cellflow.utils import match_linear

    cells = task.train.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    cells.X = cells.X.toarray()
    cells.obs["is_control"] = cells.obs["condition"] == "control"
    centered_pca(cells, n_comps=N_COMPONENTS, method="scanpy", keep_centered_data=False)
    types = cells.obs["cell_type"]
    cells.uns["conditions"] = {"stimulated": np.ones(1, dtype=np.float32)}
    cells.uns["types"] = {
        name: cells.obsm["X_pca"][(types == name) & cells.obs["is_control"]].mean(axis=0) for name in types.unique()
    }

    has_both = types.isin(types[~cells.obs["is_control"]].unique()) & types.isin(
        types[cells.obs["is_control"]].unique()
    )
    model = CellFlow(cells[has_both].copy(), solver="otfm")
    model.prepare_data(
        sample_rep="X_pca",
        control_key="is_control",
        perturbation_covariates={"condition": ("condition",)},
        perturbation_covariate_reps={"condition": "conditions"},
        split_covariates=["cell_type"],
        max_combination_length=1,
    )
    layers = {"layer_type": "mlp", "dims": [WIDTH // 2] * 2, "dropout_rate": 0.0}
    model.prepare_model(
        pooling="attention_token",
        layers_before_pool={"condition": layers | {"dropout_rate": 0.5}},
        layers_after_pool=layers,
        condition_embedding_dim=WIDTH // 8,
        cond_output_dropout=0.9,
        time_encoder_dims=[WIDTH // 2] * 3,
        hidden_dims=[WIDTH] * 3,
        decoder_dims=[2 * WIDTH] * 3,
        probability_path={"constant_noise": 0.5},
        match_fn=functools.partial(match_linear, epsilon=0.5),
        optimizer=optax.adam(LEARNING_RATE),
        seed=task.seed,
    )
    steps = max(1, round(STEPS * task.length))
    model.train(num_iterations=steps, batch_size=BATCH_SIZE, valid_freq=steps + 1)
    trained = time.process_time()

    def components(control: AnnData, shift: str) -> NDArray:
        if shift == NO_SHIFT:
            return control.obsm["X_pca"]
        asked = control.obs[:1].assign(condition="stimulated", is_control=False)
        [moved] = model.predict(control, covariate_data=asked, sample_rep="X_pca").values()
        return np.asarray(moved)

    shifts = task.requested["shift"]
    moved = [components(cells[task.requested.index[shifts == shift]].copy(), shift) for shift in shifts.unique()]
    values = np.concatenate(moved) @ cells.varm["PCs"].T + cells.varm["X_mean"].ravel()
    return Drawn(values, trained, "log-normalised", {"steps": steps})


if __name__ == "__main__":
    work(draw, "cellflow-tools", "jax")
