"""Can the cells of an hour of treatment be predicted from those of another hour? SCLDM, rivals, and simple scaling.

    python -m benchmarks.studies.hours --folder ../shared/data     # five minutes of CPU time per hour and seed
    python -m benchmarks.studies.hours --folder ../shared/data --rival CPA --python venv/bin/python    # a rival

A549 cells without dexamethasone and after 1 and 3 hours of it (`a549_scicar.h5mu`, RNA); the hours are a number. The
cells of one of the two hours are left out. So 1 hour lies between what is known, and 3 hours beyond. Simple ways take
the mean change at the other hour, as it is or in proportion to the hours. Figures are those of
``scgen_diffusion.metrics.evaluate``. They go to ``results/hours.csv``.
"""

from __future__ import annotations

import logging
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.quality.splits import log_normalise
from benchmarks.rivals.exchange import as_log_cells, ask_for_predictions
from benchmarks.studies.held_out import read_options, study_parser
from benchmarks.tables import describe_source, store_rows, stored_keys
from scgen_diffusion import metrics
from scgen_diffusion.model import SCLDM

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger("benchmarks.hours")

KEYS = ("left_out", "seed", "method")
HOURS, CONDITION, CONTROL, TREATED = "hours", "condition", "control", "dexamethasone"
KNOWN = {1.0: 3.0, 3.0: 1.0}  # the hour left out, and the other one
RIVALS = ("CPA", "CellFlow")
TRANSPORT, GENERATE = "SCLDM transport", "SCLDM generate"
OTHER_HOUR, PROPORTIONAL = "change at the other hour", "change in proportion to the hours"
REFERENCES = {"floor": "real cells", "no_change": "no change", "mean_shift": OTHER_HOUR}
METRICS = ("energy_distance", "mean_change_debiased_error", "mean_change_correlation", "mean_change_slope")


def load(folder: Path) -> ad.AnnData:
    """Return the RNA counts of all cells, with their hours and their condition."""
    mdata = mudata.read_h5mu(folder / "a549_scicar.h5mu")
    rna, hours = mdata["rna"], mdata.obs["time_h"].astype(str).str.removesuffix("h").astype(float)
    obs = pd.DataFrame({HOURS: hours[rna.obs_names], "cell_type": "a549"})
    counts = sp.csr_matrix(rna.X, dtype=np.float32)
    obs[CONDITION] = np.where(obs[HOURS] == 0, CONTROL, TREATED)
    return ad.AnnData(counts, obs=obs, var=rna.var[[]])


def mean_change(cells: ad.AnnData, hour: float) -> np.ndarray:
    """Return the mean change of each gene between the control cells and those of an hour."""
    of_hour, control = (log_normalise(cells[cells.obs[HOURS] == value].X).mean(0) for value in (hour, 0))
    return of_hour - control


def shift(control: ad.AnnData, change: np.ndarray, hour: float) -> ad.AnnData:
    """Add changes to control cells. Negative values become zero."""
    return as_log_cells(log_normalise(control.X) + change, as_treated(control, hour), control.var)


def as_treated(control: ad.AnnData, hour: float) -> pd.DataFrame:
    """Return the table of the control cells, with another condition and hour, and the hour that they come from."""
    return control.obs.assign(**{f"{HOURS}_of_control": control.obs[HOURS], CONDITION: TREATED, HOURS: hour})


def predict_by_rival(rival: str, train: ad.AnnData, hour: float, seed: int, python: str) -> dict[str, ad.AnnData]:
    """Train a rival with the hours as doses, and add what it changes to the control cells."""
    control = train[train.obs[HOURS] == 0].copy()
    given = ad.AnnData(train.X, obs=train.obs.rename(columns={HOURS: "dose"}), var=train.var)
    asked, obs = [{"shift": TREATED, "dose": hour}], [as_treated(control, hour)]
    [changed], [profiles] = ask_for_predictions(rival, given, control, asked, obs, seed, python=python)
    return {rival: changed, f"{rival}, profiles": profiles}


def predict(train: ad.AnnData, hour: float, seed: int) -> dict[str, ad.AnnData]:
    """Return the cells of SCLDM, in both ways, and of scaling in proportion."""
    import scvi

    scvi.settings.seed = seed
    control = train[train.obs[HOURS] == 0].copy()
    SCLDM.setup_anndata(train, continuous_condition_keys=[HOURS], control_values={HOURS: 0.0})
    model = SCLDM(train)
    model.train(accelerator="cpu", enable_progress_bar=False)
    with warnings.catch_warnings(action="ignore"):  # of verdicts
        moved = model.predict_perturbation(control, {HOURS: hour}, method="transport", seed=seed)
        drawn = model.generate(control.n_obs, {HOURS: hour}, seed=seed)
    scaled = hour / KNOWN[hour] * mean_change(train, KNOWN[hour])
    return {
        TRANSPORT: ad.AnnData(moved.X, obs=as_treated(control, hour), var=train.var),
        GENERATE: ad.AnnData(drawn.X, obs=as_treated(control, hour), var=train.var),
        PROPORTIONAL: shift(control, scaled, hour),
    }


def judge(train: ad.AnnData, real: ad.AnnData, predicted: dict[str, ad.AnnData], seed: int) -> pd.DataFrame:
    """Return the figures of predictions and references, one row per method and one column per metric."""
    table = metrics.evaluate(
        real,
        next(iter(predicted.values())),
        control=train[train.obs[HOURS] == 0],
        perturbation_key=CONDITION,
        train=train,
        others=predicted,
        metrics=METRICS,
        seed=seed,
    )
    found = table.set_index("metric")[[*REFERENCES, *predicted]].rename(columns=REFERENCES).T
    return found.round(6).rename_axis("method").reset_index()


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    cells, path = load(options.folder), options.results / "hours.csv"
    for hour, seed in product(KNOWN, options.seeds):
        if (hour, seed, options.rival or TRANSPORT) in stored_keys(path, KEYS):
            continue
        is_out = (cells.obs[HOURS] == hour).to_numpy()
        train, real = cells[~is_out].copy(), cells[is_out].copy()
        if options.rival:
            predicted = predict_by_rival(options.rival, train, hour, seed, options.python)
        else:
            predicted = predict(train, hour, seed)
        rows = judge(train, real, predicted, seed).assign(left_out=hour, seed=seed)
        store_rows(path, rows.assign(**describe_source("torch", "scvi-tools", "scgen-diffusion")), KEYS)
        logger.info("%g h, seed %d: done", hour, seed)


def main() -> None:
    """Run from the command line."""
    parser = study_parser(__doc__, "hours", rivals=RIVALS)
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of a549_scicar.h5mu")
    run(read_options(parser))


if __name__ == "__main__":
    main()
