"""CPA (Lotfollahi et al. 2023) of the package cpa-tools (github.com/theislab/cpa), for the study of perturbations.

Settings of its tutorials (``cpa.json``): for one perturbation, that on the question of `studies/perturbation.py`; for
sets of genes, that on Norman et al. 2019. Early stopping looks at all genes instead of marker genes. Batches are
smaller, which gives an epoch about as many steps as the tutorial's, on fewer cells. A control cell is predicted as
CPA's documentation has it: its counts, with the label of the other condition. These cells belong to the split that is
not trained on, in place of the left-out cells of the tutorial.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np

from benchmarks.rivals.worker import NO_SHIFT, Drawn, work

if TYPE_CHECKING:
    from benchmarks.rivals.worker import Task

CONDITION, CONTROL, DOSE = "condition", "control", "dose"
SPLIT = "split"
MAX_EPOCHS, PATIENCE, EPOCHS_BETWEEN_LOOKS = 2_000, 5, 5
#: Of both tutorials: the batch, the share of the training cells for early stopping, and options of model and plan.
SETTINGS = json.loads(Path(__file__).with_suffix(".json").read_text())


def draw(task: Task) -> Drawn:
    """Train, and return the log-normalised mean of every requested control cell, perturbed or not."""
    from cpa import CPA

    train, requested = task.train, task.requested
    kinds = [name for name in train.obs if name not in (CONDITION, DOSE)]  # cell type, and donor if there is one
    is_given = requested["shift"].to_numpy() == NO_SHIFT
    counterfactual = train[requested.index[~is_given]].copy()
    counterfactual.obs[CONDITION] = requested["shift"].to_numpy()[~is_given]
    if has_doses := DOSE in train.obs:
        counterfactual.obs[DOSE] = requested[DOSE].to_numpy()[~is_given]
    n_parts = 1 + int(train.obs[CONDITION].astype(str).str.count(r"\+").max())
    settings = SETTINGS["one" if n_parts == 1 else "sets"]

    generator, n_judged = np.random.default_rng(task.seed), round(settings["judged"] * train.n_obs)
    n_judged += (train.n_obs - n_judged) % settings["batch_size"] == 1  # batch normalisation needs a second cell
    train.obs[SPLIT] = np.where(generator.permutation(train.n_obs) < n_judged, "valid", "train")
    counterfactual.obs[SPLIT] = "ood"
    cells = ad.concat({"given": train, "counterfactual": counterfactual}, index_unique="-")
    cells.obs_names_make_unique()
    cells.obs = cells.obs.astype(str)  # doses, too: those of the parts of a set are joined in text

    CPA.pert_smiles_map = {}  # version 0.8.1 looks for the molecules' structures even if it does not use them
    CPA.setup_anndata(
        cells,
        perturbation_key=CONDITION,
        control_group=CONTROL,
        dosage_key=DOSE if has_doses else None,
        categorical_covariate_keys=kinds,
        max_comb_len=n_parts,
    )
    splits = {"split_key": SPLIT, "train_split": "train", "valid_split": "valid", "test_split": "ood"}
    model = CPA(cells, **splits, **settings["model"], seed=task.seed)
    model.train(
        max_epochs=max(1, round(MAX_EPOCHS * task.length)),
        max_time=timedelta(minutes=task.minutes),
        batch_size=settings["batch_size"],
        plan_kwargs=settings["plan"],
        early_stopping_patience=PATIENCE,
        check_val_every_n_epoch=EPOCHS_BETWEEN_LOOKS,
        save_path=False,
        use_gpu=False,
        enable_progress_bar=False,
    )
    trained = time.process_time()

    model.predict(cells, batch_size=settings["batch_size"])
    rows = np.where(is_given, train.obs_names.get_indexer(requested.index), train.n_obs + np.cumsum(~is_given) - 1)
    counts = cells.obsm["CPA_pred"][rows].astype(float)  # their sum is that of the cell's own counts
    values = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return Drawn(values, trained, "log-normalised", {"epochs": model.trainer.current_epoch})


if __name__ == "__main__":
    work(draw, "cpa-tools", "scvi-tools", "pytorch-lightning")
