"""A donor whose treated cells are unknown: is SCLDM better than the mean shift of the other donors? Known effects.

    python -m benchmarks.studies.left_out_donors                                  # all that is missing
    python -m benchmarks.studies.left_out_donors --donors donor1015 --seeds 0     # a part of it; 4 minutes of CPU time

Cells of `kang_control_8donors` are untreated. Half of the cells of each donor and type get a known effect: a part that
all types share, a part of each type, and a strength of each donor, from half to one and a half times. The treated cells
of one donor are left out, and predicted from the donor's control cells by the transport, which learns from the other
donors and all control cells. It is told the types, as a user would, or also the donors. The mean shift is that of the
same type in the other donors, against control cells of the same donors. ``true effect`` applies the effect itself to
the control cells. Figures go to ``results/left_out_donors.csv`` and ``.md``.
"""

from __future__ import annotations

import logging
import warnings
from itertools import product
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.quality.splits import load
from benchmarks.studies.held_out import read_options, study_parser
from benchmarks.studies.matched_donors import CELL_TYPE, DATASET, DONOR, KEY, METRICS, MIN_CELLS, treat
from benchmarks.tables import describe_source, markdown_table, read_table, store_rows, stored_keys, write_text
from scgen_diffusion.metrics import evaluate

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger("benchmarks.left_out_donors")

KEYS = ("donor", "seed")
DONORS = ("donor1015", "donor1256", "donor1488", "donor1244")  # with the most cells
TREATED, CONTROL = "drug", "none"
N_SHARED, N_OWN = 100, 50  # changed genes
SPREAD = 0.7  # of log factors
STRENGTHS = (0.5, 1.5)
MAX_CELLS = 80  # of a type of each donor, for training
TOLD: dict[str, list[str]] = {"types known": [CELL_TYPE], "types and donors known": [CELL_TYPE, DONOR]}
TRUTH = "true effect"
FIGURES = {"floor": "real cells", TRUTH: TRUTH, "mean_shift": "mean shift", "no_change": "no change"}


def simulate(cells: ad.AnnData, seed: int) -> tuple[ad.AnnData, ad.AnnData, ad.AnnData]:
    """Return control cells, treated cells, and control cells with the true effect; the last two are paired."""
    rng = np.random.default_rng([seed, 7])
    n_genes = cells.n_vars

    def effect(n_changed: int) -> np.ndarray:
        found = np.zeros(n_genes)
        found[rng.choice(n_genes, n_changed, replace=False)] = rng.normal(0, SPREAD, n_changed)
        return found

    shared = effect(N_SHARED)
    of_type = {name: shared + effect(N_OWN) for name in sorted(cells.obs[CELL_TYPE].unique())}
    donors = rng.permutation(sorted(cells.obs[DONOR].unique()))
    strengths = dict(zip(donors, np.linspace(*STRENGTHS, len(donors)), strict=True))
    is_treated = rng.random(cells.n_obs) < 0.5
    control, before = cells[~is_treated].copy(), cells[is_treated]
    control.obs[KEY] = CONTROL
    treated, truth = [], []
    for name, donor in product(of_type, donors):
        factors = np.exp(strengths[donor] * of_type[name])
        for source, goal in ((before, treated), (control, truth)):
            goal.append(treat(source[(source.obs[CELL_TYPE] == name) & (source.obs[DONOR] == donor)], factors, rng))
    return control, ad.concat(treated), ad.concat(truth)


def predict(train: ad.AnnData, control: ad.AnnData, keys: list[str], seed: int) -> ad.AnnData:
    """Train on all cells, and predict the control cells under treatment."""
    import scvi

    from scgen_diffusion.model import SCLDM

    scvi.settings.seed = seed
    SCLDM.setup_anndata(train, condition_keys=[*keys, KEY], control_values={KEY: CONTROL})
    model = SCLDM(train)
    options = {"accelerator": "cpu", "enable_progress_bar": False}
    model.train_autoencoder(**options)
    model.train_transport(**options)
    with warnings.catch_warnings(action="ignore"):
        return model.predict_perturbation(control, {KEY: TREATED}, seed=seed, method="transport")


def measure(cells: ad.AnnData, donor: str, seed: int) -> pd.DataFrame:
    """Leave out the treated cells of a donor; return a row per metric, type and choice of known labels."""
    control, treated, truth = simulate(cells, seed)
    rng = np.random.default_rng([seed, 8])

    def some(part: ad.AnnData) -> ad.AnnData:
        places = pd.Series(range(part.n_obs)).groupby([part.obs[CELL_TYPE].to_numpy(), part.obs[DONOR].to_numpy()])
        rows = [rng.permutation(found)[:MAX_CELLS] for found in places.groups.values()]
        return part[np.sort(np.concatenate(rows))].copy()

    others = some(treated[treated.obs[DONOR] != donor])
    control = some(control)
    train = ad.concat([control, others])
    train.obs = train.obs.astype("category")
    own = control[control.obs[DONOR] == donor].copy()
    true = truth[own.obs_names].copy()
    tables = []
    for told, keys in TOLD.items():
        predicted = predict(train.copy(), own, keys, seed)
        for name in cells.obs[CELL_TYPE].unique():
            of_type, learned, real, exact = (
                part[part.obs[CELL_TYPE] == name].copy()
                for part in (predicted, others, treated[treated.obs[DONOR] == donor], true)
            )
            table = evaluate(
                real,
                of_type,
                control=control[control.obs[CELL_TYPE] == name].copy(),
                train=learned,
                others={TRUTH: exact},
                perturbation_key=KEY,
                match_keys=[DONOR],
                metrics=METRICS,
                n_floor=2,
                seed=seed,
            )
            verdict = predicted.uns["scgen_diffusion"]["verdict"]
            found = verdict.loc[verdict["combination"].str.contains(f"{CELL_TYPE}={name!r}", regex=False), "verdict"]
            tables.append(table.assign(told=told, cell_type=name, verdict=found.iloc[0]))
    return pd.concat(tables).drop(columns=["perturbation", "group"]).assign(donor=donor, seed=seed)


def summarise(table: pd.DataFrame) -> str:
    """Write one row per metric: means over donors, types and seeds; and the energy distance of each donor."""
    n_types, n_cases = table["cell_type"].nunique(), len(table[[*KEYS]].drop_duplicates())
    players = [*FIGURES.values(), *(f"SCLDM, {told}" for told in TOLD)]

    def means(by: str, rows: pd.DataFrame) -> list[list[str]]:
        shared, own = rows.groupby(by, sort=False)[list(FIGURES)].mean(), rows.groupby([by, "told"])["value"].mean()
        return [
            [f"`{name}`", *(f"{value:.3f}" for value in [*shared.loc[name], *(own[name, told] for told in TOLD)])]
            for name in shared.index
        ]

    verdicts = table.drop_duplicates(["donor", "seed", "cell_type", "told"])["verdict"].value_counts()
    source = table.iloc[-1]
    return "\n".join(
        [
            f"The treated cells of one donor of `{DATASET}` are left out; effects are known. Means over {n_types} cell "
            f"types and {n_cases} left-out donors. Verdicts: {', '.join(f'{n} {name}' for name, n in verdicts.items())}. "
            "Written by `python -m benchmarks.studies.left_out_donors`.",
            "",
            markdown_table(["figure", *players], means("metric", table)),
            "",
            "**`energy_distance` by donor** (lower is better)",
            "",
            markdown_table(["left out", *players], means("donor", table[table["metric"] == "energy_distance"])),
            "",
            f"Measured with {source['versions']}, on {source['machine']}.",
            "",
        ]
    )


def run(options: argparse.Namespace) -> None:
    """Measure what is missing, and write the summary."""
    cells = load(DATASET)
    cells.layers.clear()
    cells.obs = cells.obs[[CELL_TYPE, DONOR]].astype(str)
    n_cells = cells.obs[CELL_TYPE].value_counts()
    cells = cells[cells.obs[CELL_TYPE].isin(n_cells.index[n_cells >= MIN_CELLS])].copy()
    path = options.results / "left_out_donors.csv"
    for seed, donor in product(options.seeds, options.donors):
        if (donor, seed) not in stored_keys(path, KEYS):
            table = measure(cells, donor, seed).round(6)
            store_rows(path, table.assign(**describe_source("torch", "scvi-tools", "scgen-diffusion")), KEYS)
            logger.info("%s, seed %s: done", donor, seed)
    write_text(options.results / "left_out_donors.md", summarise(read_table(path)))


def main() -> None:
    """Run from the command line."""
    parser = study_parser(__doc__, "left_out_donors")
    parser.add_argument("--donors", nargs="*", choices=DONORS, default=list(DONORS), help="donors to leave out")
    run(read_options(parser))


if __name__ == "__main__":
    main()
