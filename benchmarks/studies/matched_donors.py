"""What do matched controls change? A known effect on real cells of eight donors, judged with and without their donors.

    python -m benchmarks.studies.matched_donors            # half a minute of CPU time per seed

Cells of `kang_control_8donors` are untreated. Every cell is treated by chance, from 10 % of the cells of one donor to
90 % of those of another, and treated cells get a known effect on 100 genes. The prediction is this very effect on the
control cells of the same type. So every error beyond noise comes from donors. The summary goes to
``results/matched_donors.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.quality.splits import load
from benchmarks.tables import markdown_table, write_text
from scgen_diffusion.metrics import evaluate

HERE = Path(__file__).parent
DATASET, CELL_TYPE, DONOR, KEY = "kang_control_8donors", "cell_type", "donor", "condition"
MIN_CELLS, N_CHANGED = 400, 100
PLAYERS = ("value", "mean_shift", "floor", "no_change")
METRICS = (
    "energy_distance",
    "mean_change_error",
    "mean_change_debiased_error",
    "mean_change_slope",
    "mean_change_correlation",
    "de_overlap_top_100",
)
MATCHES = {"all control cells": None, "own donor": [DONOR]}


def load_donors() -> ad.AnnData:
    """Return the cells of all donors, of types with many cells."""
    cells = load(DATASET)
    cells.layers.clear()
    cells.obs = cells.obs[[CELL_TYPE, DONOR]].astype(str)
    n_cells = cells.obs[CELL_TYPE].value_counts()
    return cells[cells.obs[CELL_TYPE].isin(n_cells.index[n_cells >= MIN_CELLS])].copy()


def treat(cells: ad.AnnData, factors: np.ndarray, rng: np.random.Generator) -> ad.AnnData:
    """Multiply the expected counts of every gene by its factor."""
    counts = cells.X.toarray().astype(np.int64)
    kept, added = rng.binomial(counts, np.minimum(factors, 1)), rng.poisson(counts * np.maximum(factors - 1, 0))
    return ad.AnnData(sp.csr_matrix(kept + added, dtype=np.float32), cells.obs.assign(**{KEY: "drug"}), cells.var)


def measure(cells: ad.AnnData, seed: int) -> pd.DataFrame:
    """Return the tables of all types, each predicted with and without matched donors."""
    rng = np.random.default_rng(seed)
    factors = np.ones(cells.n_vars)
    factors[rng.choice(cells.n_vars, N_CHANGED, replace=False)] = np.exp(rng.normal(0, 0.7, N_CHANGED))
    donors = cells.obs[DONOR].unique()
    chances = pd.Series(np.linspace(0.1, 0.9, len(donors)), index=rng.permutation(donors))
    is_treated = rng.random(cells.n_obs) < chances[cells.obs[DONOR]].to_numpy()
    control = cells[~is_treated].copy()
    control.obs[KEY] = "none"
    n_control = control.obs.groupby([CELL_TYPE, DONOR]).size()
    known = n_control.index[n_control >= 2]  # other donors of a type cannot be matched
    treated = treat(cells[is_treated], factors, rng)
    treated = treated[pd.MultiIndex.from_frame(treated.obs[[CELL_TYPE, DONOR]]).isin(known)]
    tables = []
    for name in cells.obs[CELL_TYPE].unique():
        is_type = treated.obs[CELL_TYPE] == name
        predicted = treat(control[control.obs[CELL_TYPE] == name], factors, np.random.default_rng([seed, 1]))
        predicted.obs[f"{KEY}_of_control"] = "none"
        for match, keys in MATCHES.items():
            table = evaluate(
                treated[is_type].copy(),
                predicted,
                control=control,
                train=treated[~is_type].copy(),
                perturbation_key=KEY,
                groupby=CELL_TYPE,
                match_keys=keys,
                metrics=METRICS,
                max_cells=600,
                n_floor=2,
                seed=seed,
            )
            tables.append(table.assign(match=match, seed=seed))
    return pd.concat(tables)


def summarise(table: pd.DataFrame) -> str:
    """Write one row per metric and choice of control cells: means over types and seeds."""
    means = table.groupby(["metric", "match"], sort=False)[list(PLAYERS)].mean()
    lines = [[f"`{metric}`", match, *(f"{value:.4f}" for value in row)] for (metric, match), row in means.iterrows()]
    header = ["figure", "control cells", "the true effect", "mean shift", "real cells", "no change"]
    n_types, n_seeds = table["group"].nunique(), table["seed"].nunique()
    return "\n".join(
        [
            f"A known effect on real cells of eight donors, who have other shares among treated and control cells: "
            f"means over {n_types} cell types of `{DATASET}` and {n_seeds} seeds. "
            "Written by `python -m benchmarks.studies.matched_donors`.",
            "",
            markdown_table(header, lines),
            "",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    cells = load_donors()
    table = pd.concat([measure(cells, seed) for seed in arguments.seeds])
    write_text(arguments.results / "matched_donors.md", summarise(table))


if __name__ == "__main__":
    main()
