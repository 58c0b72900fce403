"""A donor whose treated cells are unknown: is SCLDM better than the mean shift of the other donors? Effects are known.

    python -m benchmarks.studies.left_out_donors                                  # all that is missing
    python -m benchmarks.studies.left_out_donors --donors donor1015 --seeds 0     # a part of it; 4 minutes of CPU time
    python -m benchmarks.studies.left_out_donors --rival CPA --python venv/bin/python                 # a rival

Cells of `kang_control_8donors` are untreated. Half of the cells of each donor and type get a known effect: a part that
all types share, a part of each type, and a strength of each donor, which nobody can predict. The treated cells of one
donor are left out, and predicted from the donor's control cells by the transport, which learns from the other donors,
within donors (`match_keys`). The mean shift is that of the same type in the other donors, against control cells of the
same donors. ``true effect`` applies the effect itself to the control cells, and ``mean strength`` the effect at the
mean strength of the other donors: no prediction can be better. Rivals know type and donor of each cell; the change that
they decode is added to each control cell. Figures go to ``results/left_out_donors.csv``.
"""

from __future__ import annotations

import logging
import warnings
from itertools import product
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.rivals.exchange import ask_for_predictions
from benchmarks.studies.held_out import read_options, study_parser, train_transport
from benchmarks.studies.matched_donors import CELL_TYPE, DONOR, KEY, METRICS, load_donors, treat
from benchmarks.tables import describe_source, store_rows, stored_keys
from scgen_diffusion.metrics import evaluate

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger("benchmarks.left_out_donors")

KEYS = ("donor", "seed", "model")
OURS = "SCLDM transport"
RIVALS = ("CPA", "CellFlow")
DONORS = ("donor1015", "donor1256", "donor1488", "donor1244")  # with the most cells
TREATED, CONTROL = "drug", "none"
FROM = f"{KEY}_of_control"  # says that cells are made from control cells, as `predict_perturbation` does
N_SHARED, N_OWN = 100, 50  # changed genes, among the half that has most counts
SPREAD = 1.0  # of log factors
STRENGTHS = (0.7, 1.3)
MAX_CELLS = 80  # of a type of each donor, for training
TRUTH, EXPECTED = "true effect", "mean strength"


def simulate(cells: ad.AnnData, left_out: str, seed: int) -> tuple[ad.AnnData, ad.AnnData, dict[str, ad.AnnData]]:
    """Return control cells, treated cells, and the left-out donor's control cells with the true effect."""
    rng = np.random.default_rng([seed, 7])
    many = np.argsort(-np.asarray(cells.X.mean(axis=0)).ravel())[: cells.n_vars // 2]

    def effect(n_changed: int) -> np.ndarray:
        found = np.zeros(cells.n_vars)
        found[rng.choice(many, n_changed, replace=False)] = rng.normal(0, SPREAD, n_changed)
        return found

    shared = effect(N_SHARED)
    of_type = {name: shared + effect(N_OWN) for name in sorted(cells.obs[CELL_TYPE].unique())}
    donors = rng.permutation(sorted(cells.obs[DONOR].unique()))
    strengths = dict(zip(donors, np.linspace(*STRENGTHS, len(donors)), strict=True))
    expected = np.mean([strength for donor, strength in strengths.items() if donor != left_out])
    is_treated = rng.random(cells.n_obs) < 0.5
    control, before = cells[~is_treated].copy(), cells[is_treated]
    control.obs[KEY] = CONTROL

    def affect(source: ad.AnnData, name: str, donor: str, strength: float) -> ad.AnnData:
        rows = (source.obs[CELL_TYPE] == name) & (source.obs[DONOR] == donor)
        return treat(source[rows], np.exp(strength * of_type[name]), rng)

    treated = ad.concat([affect(before, name, donor, strengths[donor]) for name, donor in product(of_type, donors)])
    ideal = {
        TRUTH: ad.concat([affect(control, name, left_out, strengths[left_out]) for name in of_type]),
        EXPECTED: ad.concat([affect(control, name, left_out, expected) for name in of_type]),
    }
    for moved in ideal.values():
        moved.obs[FROM] = CONTROL
    return control, treated, ideal


def predict(train: ad.AnnData, control: ad.AnnData, seed: int) -> ad.AnnData:
    """Train on all cells, and predict the control cells under treatment."""
    columns = {"condition_keys": [CELL_TYPE, KEY], "control_values": {KEY: CONTROL}}
    model = train_transport(train, seed, match_keys=[DONOR], **columns)
    with warnings.catch_warnings(action="ignore"):
        return model.predict_perturbation(control, {KEY: TREATED}, seed=seed, method="transport")


def predict_by_rival(rival: str, train: ad.AnnData, control: ad.AnnData, seed: int, python: str) -> ad.AnnData:
    """Train a rival on all cells, and add what it changes to the control cells."""
    train = train.copy()
    train.obs = train.obs.astype(str).replace({KEY: {CONTROL: "control"}})
    obs = control.obs.assign(**{FROM: CONTROL, KEY: TREATED})
    [changed], _ = ask_for_predictions(rival, train, control, [{"shift": TREATED}], [obs], seed, python=python)
    return changed


def measure(cells: ad.AnnData, donor: str, seed: int, rival: str | None, python: str | None) -> pd.DataFrame:
    """Leave out the treated cells of a donor; return a row per metric and type, for SCLDM or a rival."""
    control, treated, ideal = simulate(cells, donor, seed)
    rng = np.random.default_rng([seed, 8])

    def some(part: ad.AnnData) -> ad.AnnData:
        groups = part.obs.groupby([CELL_TYPE, DONOR], observed=True).indices
        return part[np.sort(np.concatenate([rng.permutation(rows)[:MAX_CELLS] for rows in groups.values()]))].copy()

    real, others, control = (
        treated[treated.obs[DONOR] == donor],
        some(treated[treated.obs[DONOR] != donor]),
        some(control),
    )
    train = ad.concat([control, others])
    train.obs = train.obs.astype("category")
    of_donor = control[control.obs[DONOR] == donor].copy()
    if rival:
        predicted, verdicts = predict_by_rival(rival, train, of_donor, seed, str(python)), None
    else:
        predicted = predict(train, of_donor, seed)
        verdicts = predicted.uns["scgen_diffusion"]["verdict"].set_index("combination")["verdict"]
    tables = []
    for name in cells.obs[CELL_TYPE].unique():

        def of_type(part: ad.AnnData, name: str = name) -> ad.AnnData:
            return part[(part.obs[CELL_TYPE] == name).to_numpy()].copy()

        table = evaluate(
            of_type(real),
            of_type(predicted),
            control=of_type(control),
            train=of_type(others),
            others={how: of_type(changed[of_donor.obs_names]) for how, changed in ideal.items()},
            perturbation_key=KEY,
            match_keys=[DONOR],
            metrics=METRICS,
            n_floor=2,
            seed=seed,
        )
        verdict = (
            "" if verdicts is None else verdicts[[f"{CELL_TYPE}={name!r}" in text for text in verdicts.index]].iloc[0]
        )
        tables.append(table.assign(cell_type=name, verdict=verdict))
    return pd.concat(tables).drop(columns=["perturbation", "group"]).assign(donor=donor, seed=seed, model=rival or OURS)


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    cells = load_donors()
    path = options.results / "left_out_donors.csv"
    for seed, donor in product(options.seeds, options.donors):
        if (donor, seed, options.rival or OURS) not in stored_keys(path, KEYS):
            table = measure(cells, donor, seed, options.rival, options.python).round(6)
            store_rows(path, table.assign(**describe_source("torch", "scvi-tools", "scgen-diffusion")), KEYS)
            logger.info("%s, seed %s: done", donor, seed)


def main() -> None:
    """Run from the command line."""
    parser = study_parser(__doc__, "left_out_donors", rivals=RIVALS)
    parser.add_argument("--donors", nargs="*", choices=DONORS, default=list(DONORS), help="donors to leave out")
    run(read_options(parser))


if __name__ == "__main__":
    main()
