"""Is an effect predicted in a type never seen perturbed, where all types respond alike? Asked of simulated cells.

    python -m benchmarks.studies.alike_types
    python -m benchmarks.studies.alike_types --types 3 --shared 1.0 --seeds 0

Types differ in a third of the genes. A treatment multiplies the expression of sixty of the 600 genes: in all types alike
(a share of 1), or as much elsewhere in a part of them. The treated cells of one type are left out and predicted by
SCLDM's transport, as it is and by the decoder alone, and by the mean change of the other types; ``generate`` makes them
from control cells that it generates, with the same two. Errors are squared over genes, relative to the effect, without
sampling noise. Figures go to ``results/alike_types.csv``, a table to ``results/alike_types.md``. Six minutes of one core
for each training.
"""

from __future__ import annotations

import logging
import warnings
from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarks.quality.splits import log_normalise
from benchmarks.studies.held_out import CPU, read_options, study_parser, train_transport
from benchmarks.studies.perturbation_trust import figures, predict
from benchmarks.tables import describe_source, markdown_table, read_table, store_rows, stored_keys, write_text
from scgen_diffusion.metrics import effects, mean_change_debiased_error

logger = logging.getLogger("benchmarks.alike_types")

KEYS = ("types", "shared", "seed", "method")
TYPE, DRUG, CONTROL, TREATED = "cell_type", "drug", "control", "treated"
N_GENES, N_SHIFTED, N_CELLS, N_JUDGED = 600, 60, 100, 500
TYPE_SPREAD, CELL_SPREAD, INVERSE_DISPERSION, DEPTH = 1.0, 0.5, 3.0, 2000
TRANSPORT, DECODER, OTHERS = "transport", "decoder alone", "mean change of other types"
GENERATED, GENERATED_BY_DECODER = "generate", "generate, decoder alone"
METHODS = (TRANSPORT, DECODER, GENERATED, GENERATED_BY_DECODER, OTHERS)


def simulate(n_types: int, shared: float, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return training cells of types under both conditions, and many treated cells of the last type, which are new."""
    rng = np.random.default_rng([seed, n_types])
    shape = (n_types, N_GENES)
    types = rng.normal(0, 1.2, N_GENES) + TYPE_SPREAD * rng.normal(size=shape) * (rng.random(shape) < 1 / 3)
    effect = np.zeros(shape)
    effect[:, rng.choice(N_GENES, N_SHIFTED, replace=False)] = rng.choice([-1, 1], N_SHIFTED) * rng.uniform(
        0.5, 1.5, N_SHIFTED
    )
    own = rng.random(shape) > shared
    effect = np.where(own, rng.permuted(effect, axis=1), effect)
    programmes = rng.normal(0, CELL_SPREAD, (n_types, 2, N_GENES))

    def cells(kind: int, drug: str, n_cells: int) -> ad.AnnData:
        logs = types[kind] + (drug == TREATED) * effect[kind] + rng.normal(0, 0.4, (n_cells, 2)) @ programmes[kind]
        shares = np.exp(logs)
        mean = shares / shares.sum(1, keepdims=True) * rng.lognormal(np.log(DEPTH), 0.3, (n_cells, 1))
        counts = sp.csr_matrix(rng.poisson(rng.gamma(INVERSE_DISPERSION, mean / INVERSE_DISPERSION)).astype("float32"))
        names = [f"{kind} {drug} {number}" for number in range(n_cells)]
        return ad.AnnData(counts, obs=pd.DataFrame({TYPE: f"type {kind}", DRUG: drug}, index=names))

    train = [cells(kind, drug, N_CELLS) for kind, drug in product(range(n_types), (CONTROL, TREATED))]
    return ad.concat(train[:-1]), cells(n_types - 1, TREATED, N_JUDGED)


def study(n_types: int, shared: float, seed: int) -> pd.DataFrame:
    """Train without the treated cells of the last type, predict them, and return the figures of all methods."""
    train, real = simulate(n_types, shared, seed)
    keys = {"condition_keys": [TYPE, DRUG], "control_values": {DRUG: CONTROL}}
    model = train_transport(train, seed, **keys)
    left_out = real.obs[TYPE].iloc[0]
    control = train[(train.obs[TYPE] == left_out) & (train.obs[DRUG] == CONTROL)].copy()
    model.train_prior(**CPU)

    def generated() -> dict[str, float]:
        with warnings.catch_warnings(action="ignore"):
            drawn = model.generate(N_JUDGED, {TYPE: left_out, DRUG: TREATED}, seed=seed)
        one, other = effects(real, drawn, control), effects(real, control, control)
        return {"error": mean_change_debiased_error(*one) / mean_change_debiased_error(*other)}

    rows = {
        TRANSPORT: figures(predict(model, control, {DRUG: TREATED}, seed), control.X, real.X),
        GENERATED: generated(),
    }
    model.module.transport.error.departure.fill_(torch.inf)
    rows[DECODER] = figures(predict(model, control, {DRUG: TREATED}, seed), control.X, real.X)
    rows[GENERATED_BY_DECODER] = generated()
    rows[OTHERS] = {"error": error_of_others(train, control, real)}
    return pd.DataFrame(
        [{"types": n_types, "shared": shared, "seed": seed, "method": m} | row for m, row in rows.items()]
    )


def error_of_others(train: ad.AnnData, control: ad.AnnData, real: ad.AnnData) -> float:
    """Return the error of the mean change of the types that were seen treated."""
    groups = {key: log_normalise(train[rows].X) for key, rows in train.obs.groupby([TYPE, DRUG]).indices.items()}
    before, after = log_normalise(control.X), log_normalise(real.X)
    types = [kind for kind, drug in groups if drug == TREATED]
    changes = [groups[kind, TREATED].mean(0) - groups[kind, CONTROL].mean(0) for kind in types]
    noise = [groups[kind, drug].var(axis=0, ddof=1) / N_CELLS for kind in types for drug in (CONTROL, TREATED)]
    own = before.var(axis=0, ddof=1) / len(before) + after.var(axis=0, ddof=1) / len(after)
    change = after.mean(0) - before.mean(0)
    squares = (change - np.mean(changes, axis=0)) ** 2 - own - np.sum(noise, axis=0) / len(types) ** 2
    return squares.sum() / (change**2 - own).sum()


def summarise(table: pd.DataFrame) -> str:
    """Write a row per world, means over seeds."""
    means = table.pivot_table(index=["types", "shared"], columns="method", values=["error", "coverage"])
    header = ["types", "genes that respond alike", *(f"error, {m}" for m in METHODS), "coverage"]
    rows = [
        [
            str(n),
            f"{shared:.0%}",
            *(f"{row['error', m]:.2f}" for m in METHODS),
            f"{row['coverage', TRANSPORT]:.2f}",
        ]
        for (n, shared), row in means.iterrows()
    ]
    intro = (
        "Squared errors of predicted mean changes, relative to the effect, in a simulated type never seen treated; means over "
        f"{table['seed'].nunique()} seeds. Written by `python -m benchmarks.studies.alike_types`."
    )
    return f"{intro}\n\n{markdown_table(header, rows)}\n"


def main() -> None:
    """Run what is missing, and write the table."""
    parser = study_parser(__doc__ or "", "alike_types")
    parser.add_argument("--types", nargs="+", type=int, default=[3, 8])
    parser.add_argument("--shared", nargs="+", type=float, default=[1.0, 0.7])
    arguments = read_options(parser)
    path = arguments.results / "alike_types.csv"
    stored = stored_keys(path, KEYS)
    for n_types, shared, seed in product(arguments.types, arguments.shared, arguments.seeds):
        if any((n_types, shared, seed, method) not in stored for method in METHODS):
            rows = study(n_types, shared, seed).assign(**describe_source("torch", "scvi-tools", "scgen-diffusion"))
            store_rows(path, rows.round(6), KEYS)
            logger.info("%s types, %s shared, seed %s:\n%s", n_types, shared, seed, rows[["method", "error"]])
    write_text(path.with_suffix(".md"), summarise(read_table(path)))


if __name__ == "__main__":
    main()
