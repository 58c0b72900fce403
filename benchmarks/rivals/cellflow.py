"""CellFlow (Klein et al. 2025), package cellflow-tools (github.com/theislab/CellFlow), for the study of perturbations.

Settings of its tutorial on cytokines, but all layers are an eighth as wide, because the tutorial's would take a month
on a core; batches have 256 cells instead of 1,024, and Adam takes each step (learning rate 5e-4) instead of every
twentieth (5e-5). Chosen on left-out B cells: 5,000 steps, and no cell type. It refuses groups without perturbed cells,
so it learns from the others alone. Its training cannot be stopped by time. JAX uses one thread.
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc

from benchmarks.rivals.worker import NO_SHIFT, Drawn, work

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from benchmarks.rivals.worker import Task

N_COMPONENTS = 100
STEPS, BATCH_SIZE, LEARNING_RATE = 5_000, 256, 5e-4
WIDTH = 256
CONDITION, CONTROL, DOSE = "condition", "control", "dose"
#: In place of a second gene.
NONE = "none"


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
    cells.obs["is_control"] = cells.obs[CONDITION] == CONTROL
    centered_pca(cells, n_comps=N_COMPONENTS, method="scanpy", keep_centered_data=False)

    parts = sorted({part for name in cells.obs[CONDITION].unique() for part in name.split("+")} - {CONTROL})
    codes = dict(zip(parts, np.eye(len(parts), dtype=np.float32), strict=True))
    cells.uns["parts"] = codes | {NONE: np.zeros(len(parts), dtype=np.float32)}
    n_parts = 1 + int(cells.obs[CONDITION].astype(str).str.count(r"\+").max())
    keys = [f"part_{number}" for number in range(n_parts)]

    def describe(condition: str) -> dict[str, str]:
        found = [] if condition == CONTROL else condition.split("+")
        return dict(zip(keys, [*found, *[NONE] * (n_parts - len(found))], strict=True))

    described = pd.DataFrame([describe(name) for name in cells.obs[CONDITION]], index=cells.obs_names)
    cells.obs[keys] = described.astype("category")
    covariates = {CONDITION: tuple(keys)}
    if has_doses := DOSE in cells.obs:
        covariates[DOSE] = (DOSE,)

    kinds = [name for name in task.train.obs if name not in (CONDITION, DOSE)]
    cells.obs["group"] = task.train.obs[kinds].astype(str).agg(" ".join, axis=1).astype("category")
    groups, is_control = cells.obs["group"], cells.obs["is_control"]
    has_both = groups.isin(groups[~is_control].unique()) & groups.isin(groups[is_control].unique())
    model = CellFlow(cells[has_both].copy(), solver="otfm")
    model.prepare_data(
        sample_rep="X_pca",
        control_key="is_control",
        perturbation_covariates=covariates,
        perturbation_covariate_reps={CONDITION: "parts"},
        split_covariates=["group"],
        max_combination_length=n_parts,
    )
    layers = {"layer_type": "mlp", "dims": [WIDTH // 2] * 2, "dropout_rate": 0.0}
    model.prepare_model(
        pooling="attention_token",
        layers_before_pool={name: layers | {"dropout_rate": 0.5} for name in covariates},
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

    def components(control: AnnData, shift: str, dose: float) -> NDArray:
        if shift == NO_SHIFT:
            return control.obsm["X_pca"]
        asked = control.obs[:1].assign(is_control=False, **describe(shift))
        if has_doses:
            asked[DOSE] = float(dose)
        [moved] = model.predict(control, covariate_data=asked, sample_rep="X_pca").values()
        return np.asarray(moved)

    requested = task.requested.assign(row=np.arange(len(task.requested)), group=groups[task.requested.index].to_numpy())
    moved = np.empty((len(requested), N_COMPONENTS))
    for (shift, _), some in requested.groupby(["shift", "group"], observed=True):
        dose = some[DOSE].iloc[0] if has_doses else 1.0
        moved[some["row"]] = components(cells[some.index].copy(), shift, dose)
    values = moved @ cells.varm["PCs"].T + cells.varm["X_mean"].ravel()
    return Drawn(values, trained, "log-normalised", {"steps": steps})


if __name__ == "__main__":
    work(draw, "cellflow-tools", "jax")
