"""Do intervals of predicted changes hold what is measured, and do verdicts tell good predictions from bad ones?

    python -m benchmarks.studies.perturbation_trust                        # everything that is missing
    python -m benchmarks.studies.perturbation_trust --types B --seeds 0    # a part of it

On `kang_ifnb`, the stimulated cells of one type at a time are left out and predicted, as in
`benchmarks.studies.perturbation`, which shares the stored autoencoders. The same once more without any effect: control
and stimulated cells of each type are mixed. Three requests are absurd on purpose: a transport that saw one other type
perturbed, control cells whose genes are shuffled (and the stimulated cells, alike), and control cells of another
experiment, of which only the verdict is known. On K562 cells, the pairs of genes of
`benchmarks.studies.perturbation_combinations` are predicted. Figures go to ``results/perturbation_trust.csv``. Twenty
minutes of CPU time, and a minute per autoencoder.
"""

from __future__ import annotations

import logging
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.quality.splits import load, log_normalise
from benchmarks.studies import perturbation as kang
from benchmarks.studies import perturbation_combinations as norman
from benchmarks.studies.held_out import read_options, study_parser, train_transport
from benchmarks.tables import ROOT, describe_source, store_rows, stored_keys
from scgen_diffusion import datasets

if TYPE_CHECKING:
    import argparse

    from scgen_diffusion.model import SCLDM

logger = logging.getLogger("benchmarks.perturbation_trust")

KEYS = ("case", "name", "seed")
LEFT_OUT, PAIRS, NO_EFFECT, ONE_CONTEXT, SHUFFLED, ELSEWHERE = (
    "type left out",
    "pair of genes left out",
    "no effect",
    "only one other type seen perturbed",
    "shuffled genes",
    "control cells of another experiment",
)
N_TOP = 100  # genes that change most in the prediction
#: Types of `pbmc3k` by those of `kang_ifnb`.
ELSEWHERE_TYPES = {
    "B": "B",
    "CD14 Mono": "CD14+ Mono",
    "CD16 Mono": "FCGR3A+ Mono",
    "CD4 Memory T": "Memory CD4 T",
    "CD4 Naive T": "Naive CD4 T",
    "CD8 T": "CD8 T",
    "NK": "NK",
}


def predict(model: SCLDM, control: ad.AnnData, condition: dict[str, str], seed: int) -> ad.AnnData:
    """Predict without the warnings, which the study expects."""
    with warnings.catch_warnings(action="ignore"):
        return model.predict_perturbation(control, condition, seed=seed, method="transport")


def figures(predicted: ad.AnnData, control: sp.spmatrix, real: sp.spmatrix | None) -> dict[str, object]:
    """Return verdict, coverage of the intervals, and the error relative to the effect, without sampling noise.

    A gene is found if its interval excludes zero, and rightly so if its measured change has the predicted sign.
    """
    record = predicted.uns["scgen_diffusion"]
    found: dict[str, object] = dict(record["verdict"].loc[0, ["verdict", "reason"]])
    if real is None:
        return found
    before, after, drawn = (log_normalise(counts) for counts in (control, real, predicted.X))
    change, table = after.mean(axis=0) - before.mean(axis=0), record["mean_change"]
    error = change - table["change"].to_numpy()
    noise = [cells.var(axis=0, ddof=1) / len(cells) for cells in (before, after, drawn)]
    effect = (change**2 - noise[0] - noise[1]).sum()
    found["error"] = (error**2 - noise[1] - noise[2]).sum() / effect
    is_inside = (change >= table["lower"] - 1e-6) & (change <= table["upper"] + 1e-6)
    top = np.argsort(-np.abs(table["change"].to_numpy()))[:N_TOP]
    if table["lower"].notna().all():
        found |= {"coverage": is_inside.mean(), "coverage_top": is_inside.to_numpy()[top].mean()}
        found["half_width_top"] = (table["upper"] - table["change"]).to_numpy()[top].mean()
        is_found = ((table["lower"] > 0) | (table["upper"] < 0)).to_numpy()
        is_right = np.sign(change) == np.sign(table["change"].to_numpy())
        found |= {"found": is_found.sum(), "found_rightly": (is_found & is_right).sum()}
    return found | {"change_top": np.abs(table["change"].to_numpy()[top]).mean()}


def measure_type(cell_type: str, seed: int, folder: Path) -> pd.DataFrame:
    """Return the figures of all cases of a type of `kang_ifnb`."""
    case = kang.leave_out(load(kang.DATASET), cell_type)
    trained, condition = kang.Trained(case, seed, folder), {kang.CONDITION: kang.PERTURBED}
    model, control, real = trained.with_transport, case.control, case.real.layers["counts"]
    rows = {LEFT_OUT: figures(predict(model, control, condition, seed), control.X, real)}

    mixed = kang.leave_out(mix_conditions(load(kang.DATASET), seed), cell_type)
    model_of_mixed = kang.Trained(mixed, seed, folder / "mixed").with_transport
    drawn = predict(model_of_mixed, mixed.control, condition, seed)
    rows[NO_EFFECT] = figures(drawn, mixed.control.X, mixed.real.layers["counts"])
    del rows[NO_EFFECT]["error"]  # relative to an effect that is not there

    order = np.random.default_rng(seed).permutation(control.n_vars)
    shuffled = control.copy()
    shuffled.X = shuffled.layers["counts"] = control.layers["counts"][:, order].copy()
    rows[SHUFFLED] = figures(predict(model, shuffled, condition, seed), shuffled.X, real[:, order])

    if cell_type in ELSEWHERE_TYPES:
        cells = load("pbmc3k")
        cells = cells[cells.obs["cell_type"] == ELSEWHERE_TYPES[cell_type]]
        place = cells.var_names.get_indexer(control.var_names)
        counts = sp.csc_matrix(cells.layers["counts"])[:, np.maximum(place, 0)].multiply(place >= 0).tocsr()
        obs = pd.DataFrame({kang.CELL_TYPE: cell_type, kang.CONDITION: kang.CONTROL}, index=cells.obs_names)
        others = ad.AnnData(counts, obs=obs.astype("category"), var=control.var.copy(), layers={"counts": counts})
        rows[ELSEWHERE] = figures(predict(model, others, condition, seed), others.X, None)

    one = kang_with_one_context(case)
    model = kang.Trained(one, seed, folder).with_transport
    rows[ONE_CONTEXT] = figures(predict(model, control, condition, seed), control.X, real)
    return pd.DataFrame([{"case": name, "name": cell_type, "seed": seed, **found} for name, found in rows.items()])


def mix_conditions(adata: ad.AnnData, seed: int) -> ad.AnnData:
    """Shuffle the conditions within each type, so that they say nothing about a cell."""
    rng = np.random.default_rng([seed, 4])
    conditions = adata.obs[kang.CONDITION].astype(str)
    adata.obs[kang.CONDITION] = conditions.groupby(adata.obs[kang.CELL_TYPE], observed=True).transform(rng.permutation)
    return adata


def kang_with_one_context(case: kang.Case) -> kang.Case:
    """Remove the perturbed cells of all types but the largest. The stored autoencoder has seen them."""
    obs = case.train.obs
    largest = obs.loc[obs[kang.CONDITION] == kang.PERTURBED, kang.CELL_TYPE].value_counts().index[0]
    keep = (obs[kang.CONDITION] == kang.CONTROL) | (obs[kang.CELL_TYPE] == largest)
    return kang.Case(case.cell_type, case.train[keep].copy(), case.real)


def measure_pairs(seed: int) -> pd.DataFrame:
    """Return the figures of all left-out pairs of genes."""
    adata = datasets.norman_mcfaline_devel()
    train, real = norman.split_combinations(adata[adata.obs[norman.CELL_TYPE] == norman.LINE])
    model = train_transport(train, seed, **norman.COLUMNS)
    control = train[train.obs[norman.KEY] == norman.CONTROL].copy()
    rows = [
        {"case": PAIRS, "name": pair, "seed": seed}
        | figures(predict(model, control, {norman.KEY: pair}, seed), control.X, real[real.obs[norman.KEY] == pair].X)
        for pair in sorted(real.obs[norman.KEY].unique())
    ]
    return pd.DataFrame(rows)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not stored."""
    path = arguments.results / "perturbation_trust.csv"
    done = stored_keys(path, KEYS)
    source = describe_source("torch", "scvi-tools", "scgen-diffusion")
    types = kang.judged_types(load(kang.DATASET)) if arguments.types is None else arguments.types
    for seed, cell_type in product(arguments.seeds, types):
        if (LEFT_OUT, cell_type, seed) not in done:
            logger.info("%s, seed %d", cell_type, seed)
            store_rows(path, measure_type(cell_type, seed, arguments.cells).assign(**source), KEYS)
    for seed in arguments.seeds if arguments.types is None else ():
        if not any(case == PAIRS and number == seed for case, _, number in done):
            logger.info("pairs, seed %d", seed)
            store_rows(path, measure_pairs(seed).assign(**source), KEYS)


def main() -> None:
    """Run from the command line."""
    for name in ("lightning.pytorch", "lightning", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parser = study_parser(__doc__, "perturbation_trust")
    parser.add_argument(
        "--types", nargs="*", help="cell types to leave out, without pairs of genes; default: all, and pairs"
    )
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of the stored autoencoders"
    )
    run(read_options(parser))


if __name__ == "__main__":
    main()
