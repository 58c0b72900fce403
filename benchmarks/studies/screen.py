"""The picture of a screen: real cells, in which eight drugs change known genes, some of them in few types only.

python -m benchmarks.studies.screen  # docs/_static/screen.png, in two minutes of one core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch

import scgen_diffusion as scgd
from benchmarks.quality.splits import load

PICTURE = Path(__file__).parents[2] / "docs" / "_static" / "screen.png"
SHARE = 2  # every second cell
RARE = ["CD16 Mono", "DC"]
CONTROL, DRUGS = "none", [f"drug {number}" for number in range(8)]
N_KEPT = 1_500  # genes expressed most
N_GENES, N_CHANGED = 300, 60  # of these, and of these changed by a drug
ONLY_IN = {"drug 2": ["NK"], "drug 6": ["B"]}
LEAVING_OUT = {"CD8 T": DRUGS[3:], "NK": DRUGS[3:]}


def main() -> None:
    """Plant the effects, train, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    picture = parser.parse_args().picture
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    rng = np.random.default_rng(0)

    cells = load("pbmc10k_citeseq")[::SHARE]
    cells = cells[~cells.obs["cell_type"].isin(RARE)]
    order = np.argsort(-np.asarray(cells.layers["counts"].sum(0)).ravel())[:N_KEPT]
    adata = ad.AnnData(cells.layers["counts"][:, order], obs=cells.obs[["cell_type"]], var=cells.var.iloc[order][[]])
    adata.obs["drug"] = rng.choice([CONTROL, *DRUGS], adata.n_obs)
    genes = adata.var_names[:N_GENES]
    truth = pd.DataFrame(0.0, index=genes, columns=DRUGS)
    for number, drug in enumerate(DRUGS):  # the first does nothing, the last most
        truth.loc[rng.choice(genes, N_CHANGED, replace=False), drug] = rng.normal(scale=number / 4, size=N_CHANGED)
    adata = scgd.data.plant_fold_changes(adata, truth, groupby="drug", seed=0)
    drug, cell_type = adata.obs["drug"], adata.obs["cell_type"]
    is_hidden = np.zeros(adata.n_obs, dtype=bool)
    for name, types in ONLY_IN.items():
        is_hidden |= (drug == name) & ~cell_type.isin(types)
    for name, drugs in LEAVING_OUT.items():
        is_hidden |= (cell_type == name) & drug.isin(drugs)
    train = adata[~is_hidden].copy()
    train.obs["cell_type"] = pd.Categorical(train.obs["cell_type"].astype(str))

    keys = {"condition_keys": ["cell_type", "drug"], "control_values": {"drug": CONTROL}}
    scgd.model.SCLDM.setup_anndata(train, **keys)
    model = scgd.model.SCLDM(train)
    model.train_autoencoder(plan_kwargs={"max_rounds": 1})
    model.train_transport()
    control = train[train.obs["drug"] == CONTROL].copy()
    verdicts = []
    for name in DRUGS:
        predicted = model.predict_perturbation(control, {"drug": name}, seed=0)
        verdicts.append(predicted.uns["scgen_diffusion"]["verdict"])
    screen = pd.concat(verdicts, ignore_index=True)
    scgd.pl.perturbation_strengths(screen, perturbation_key="drug", groupby="cell_type", show=False, save=picture)


if __name__ == "__main__":
    main()
