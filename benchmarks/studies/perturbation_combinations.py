"""Can combinations of two perturbations be predicted from single ones? SCLDM and the additive baseline, on K562 cells.

    python -m benchmarks.studies.perturbation_combinations               # missing seeds, then the summary
    python -m benchmarks.studies.perturbation_combinations --rival CPA --python venv/bin/python  # a rival

All combinations of `norman_mcfaline_devel` whose two parts were measured alone are left out together, and predicted
from control cells. Figures from ``scgen_diffusion.metrics.evaluate`` go to ``results/perturbation_combinations.csv``
and ``.md``. They measure real and predicted changes against the same control cells, whose noise is then in both, and in
adding twice. So the same once more with half of the control cells: the other half is unseen, and real changes are
measured against either half (``perturbation_combinations_controls.csv``). Two or three minutes of CPU time per seed.
Rivals predict from all control cells. As in the study of left-out types, the change that a rival decodes is added to
each control cell, and its profiles are judged as they are, too.
"""

from __future__ import annotations

import logging
from itertools import product
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.quality.splits import log_normalise
from benchmarks.rivals.exchange import ask_for_predictions
from benchmarks.studies.held_out import OLD_TEST, read_options, study_parser, train_transport
from benchmarks.tables import (
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    stored_keys,
    write_text,
)
from scgen_diffusion import datasets, metrics

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger("benchmarks.perturbation_combinations")

KEY, CONTROL, CELL_TYPE, LINE = "condition", "control", "cell_type", "k562"
COLUMNS = {"set_condition_keys": [KEY], "control_values": {KEY: CONTROL}}
KEYS = ("seed", "method", "perturbation")
SEEN, UNSEEN = "same control cells", "unseen control cells"
OURS = ("scldm_transport", "scldm_transport_new_counts")
RIVALS = ("CPA", "CellFlow")
METHODS = (
    "floor",
    "no_change",
    "mean_shift",
    "additive",
    "cpa",
    "cpa_profiles",
    "cellflow",
    "cellflow_profiles",
    *OURS,
)


def split_combinations(adata: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData]:
    """Return training cells, and the cells of combinations whose parts are in the training cells as singles."""
    names = set(adata.obs[KEY])
    out = [name for name in names if "+" in name and set(name.split("+")) <= names]
    is_out = adata.obs[KEY].isin(out).to_numpy()
    return _minimal(adata[~is_out]), _minimal(adata[is_out])


def _minimal(adata: ad.AnnData) -> ad.AnnData:
    counts = sp.csr_matrix(adata.layers["counts"] if "counts" in adata.layers else adata.X, dtype="float32")
    return ad.AnnData(counts, obs=adata.obs[[KEY]].astype(str).astype("category"), var=adata.var[[]].copy())


def predict(train: ad.AnnData, combinations: list[str], seed: int) -> dict[str, ad.AnnData]:
    """Train SCLDM, and predict every combination from all control cells, with their own and with new residuals."""
    model = train_transport(train, seed, **COLUMNS)
    control = train[train.obs[KEY] == CONTROL].copy()

    def predict_all(residuals: str) -> ad.AnnData:
        asked = ({KEY: name} for name in combinations)
        return ad.concat(
            [model.predict_perturbation(control, request, residuals=residuals, seed=seed) for request in asked],
            index_unique="-",
        )

    return {"scldm_transport": predict_all("own"), "scldm_transport_new_counts": predict_all("new")}


def predict_by_rival(
    rival: str, train: ad.AnnData, combinations: list[str], seed: int, python: str
) -> dict[str, ad.AnnData]:
    """Train a rival. Add to every control cell the change that it decodes for each combination; also its profiles."""
    train = train.copy()
    train.obs = train.obs.astype(str).assign(**{CELL_TYPE: LINE})
    control = train[train.obs[KEY] == CONTROL].copy()
    asked, obs = (
        [{"shift": name} for name in combinations],
        [control.obs.assign(**{KEY: name}) for name in combinations],
    )
    predicted = ask_for_predictions(rival, train, control, asked, obs, seed, python=python)
    changed, profiles = (ad.concat(cells, index_unique="-") for cells in predicted)
    for cells in (changed, profiles):
        cells.uns["log1p"] = {}  # which `concat` drops
    return {rival.lower(): changed, f"{rival.lower()}_profiles": profiles}


def judge(train: ad.AnnData, real: ad.AnnData, predicted: dict[str, ad.AnnData], seed: int) -> pd.DataFrame:
    """Return the figures of all methods and references, one row per metric, combination and method."""
    control = train[train.obs[KEY] == CONTROL]
    table = metrics.evaluate(
        real,
        next(iter(predicted.values())),
        control=control,
        perturbation_key=KEY,
        train=train,
        others=predicted,
        seed=seed,
    )
    names = ["metric", "perturbation", "better"]
    methods = [name for name in METHODS if name in table]
    long = table.drop(columns="value").melt(names, methods, var_name="method", value_name="value")
    return long.assign(seed=seed, **describe_source("torch", "scvi-tools", "scgen-diffusion"))


def judge_by_control_cells(train: ad.AnnData, real: ad.AnnData, seed: int) -> pd.DataFrame:
    """Compare mean changes predicted from half of the control cells with real ones against either half.

    One row per combination, method and half: the correlation over genes, and the root mean squared error.
    """
    rng = np.random.default_rng(seed)
    rows = {name: np.flatnonzero(train.obs[KEY] == name) for name in train.obs[KEY].unique()}
    seen, unseen = np.array_split(rng.permutation(rows[CONTROL]), 2)
    names = sorted(real.obs[KEY].unique())
    cells = predict(train[np.setdiff1d(np.arange(train.n_obs), unseen)], names, seed)["scldm_transport"]
    profiles = log_normalise(train.X)
    control, singles = profiles[seen].mean(0), {name: profiles[rows[name]].mean(0) for name in rows if name != CONTROL}
    found = []
    for name in names:
        of_real = log_normalise(real[real.obs[KEY] == name].X)
        one_half, other_half = np.array_split(rng.permutation(of_real), 2)
        predicted = {
            "no_change": 0 * control,
            "mean_shift": np.mean([*singles.values()], axis=0) - control,
            "additive": sum(singles[part] - control for part in name.split("+")),
            "scldm_transport": log_normalise(cells[cells.obs[KEY] == name].X).mean(0) - control,
            "floor": one_half.mean(0) - control,
        }
        for half, reference in {SEEN: seen, UNSEEN: unseen}.items():
            before = profiles[reference].mean(0)
            for method, change in predicted.items():
                observed = (other_half if method == "floor" else of_real).mean(0) - before
                error = np.sqrt(np.mean((change - observed) ** 2))
                correlation = np.corrcoef(change, observed)[0, 1] if change.any() else np.nan
                figures = {"correlation": correlation, "error": error}
                found.append({"seed": seed, "perturbation": name, "method": method, "half": half, **figures})
    return pd.DataFrame(found).assign(**describe_source("torch", "scvi-tools", "scgen-diffusion"))


def summarise_by_control_cells(table: pd.DataFrame) -> str:
    """Write one row per method: its correlation and error, with real changes against either half."""
    means = table.groupby(["method", "half"])[["correlation", "error"]].mean().unstack("half")
    columns = list(product(("correlation", "error"), (SEEN, UNSEEN)))
    lines = [
        [method.replace("_", " "), *("" if pd.isna(value) else f"{value:.3f}" for value in means.loc[method, columns])]
        for method in METHODS
        if method in means.index
    ]
    text = (
        "**Whose control cells?** Changes predicted from half of the control cells, and real ones against the same half "
        "or the other one, which no method has seen. Correlation and root mean squared error over genes. The floor is "
        "one half of the real cells, predicted by the other."
    )
    return f"{text}\n\n{markdown_table(['method', *(f'{figure}, {half}' for figure, half in columns)], lines)}\n"


def summarise(table: pd.DataFrame) -> str:
    """Write one row per metric: means over combinations and seeds, and how often SCLDM beats adding."""
    table = table[~table["metric"].str.match(OLD_TEST)]
    means = table.groupby(["metric", "better", "perturbation", "method"], sort=False)["value"].mean().unstack("method")
    lines = []
    for (metric, better), rows in means.groupby(level=["metric", "better"], sort=False):
        ours, theirs = rows["scldm_transport"], rows["additive"]
        if better == "floor":
            ours, theirs = (ours - rows["floor"]).abs(), (theirs - rows["floor"]).abs()
        gain = (ours - theirs) * (1 if better == "higher" else -1)
        values = [f"{rows[method].mean():.3f}" for method in METHODS]
        lines.append([f"`{metric}`", better, *values, f"{int((gain > 0).sum())} of {len(rows)}"])
    header = ["figure", "better", *(name.replace("_", " ") for name in METHODS), "transport better than additive"]
    names = sorted(table["perturbation"].unique())
    return "\n".join(
        [
            f"Means over {len(names)} combinations ({', '.join(names)}) and {table['seed'].nunique()} seeds, K562 "
            "cells of `norman_mcfaline_devel`, 500 genes. Written by `python -m "
            "benchmarks.studies.perturbation_combinations`.",
            "",
            markdown_table(header, lines),
            "",
        ]
    )


def run(arguments: argparse.Namespace) -> None:
    """Judge the seeds that are not stored, then write the summary."""
    adata = datasets.norman_mcfaline_devel()
    train, real = split_combinations(adata[adata.obs[CELL_TYPE] == LINE])
    path = arguments.results / "perturbation_combinations.csv"
    names = sorted(real.obs[KEY].unique())
    for seed in arguments.seeds:
        stored = {(number, method) for number, method, _ in stored_keys(path, KEYS)}
        if arguments.rival:
            if (seed, arguments.rival.lower()) not in stored:
                predicted = predict_by_rival(arguments.rival, train, names, seed, arguments.python)
                store_rows(path, judge(train, real, predicted, seed), KEYS)
        elif (seed, OURS[0]) not in stored:
            logger.info("seed %d", seed)
            store_rows(path, judge(train, real, predict(train, names, seed), seed), KEYS)
    path_by_cells = arguments.results / "perturbation_combinations_controls.csv"
    stored = read_table(path_by_cells)
    for seed in [] if arguments.rival else arguments.seeds:
        if stored.empty or seed not in set(stored["seed"]):
            logger.info("seed %d, half of the control cells", seed)
            store_rows(path_by_cells, judge_by_control_cells(train, real, seed), (*KEYS, "half"))
    text = f"{summarise(read_table(path))}\n{summarise_by_control_cells(read_table(path_by_cells))}"
    write_text(arguments.results / "perturbation_combinations.md", text)


def main() -> None:
    """Run from the command line."""
    parser = study_parser(__doc__, "perturbation_combinations", rivals=RIVALS)
    parser.set_defaults(seeds=[0, 1, 2])
    run(read_options(parser))


if __name__ == "__main__":
    main()
