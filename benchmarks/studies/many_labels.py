"""Do cells have their labels where most combinations of 20 types and 50 donors are rare or absent? In a known world.

    python -m benchmarks.studies.many_labels
    python -m benchmarks.studies.many_labels --models SCLDM NB-copula --seeds 0 1 2
    python -m benchmarks.studies.many_labels --models 'SCLDM, additive={"model": {"condition_strategy": "additive"}}'

The world is that of :mod:`benchmarks.studies.known_world` with 300 genes. Every donor has two types, of 5 to 250 cells,
and multiplies 20 genes by e in both. The classifier chooses among all 1,000 combinations. Models also draw those that
no training cell has; baselines, which draw from the cells of a combination, cannot. Adds to ``results/many_labels.csv``
and writes ``results/many_labels.md``.
"""

from __future__ import annotations

import json
import time
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.methods import IDEAL_PRIOR, KNOWN, choose_methods, draw_counts, train_model
from benchmarks.quality.splits import Split
from benchmarks.runner import options, run, start, write_summary
from benchmarks.studies.known_world import AUTOENCODER, GENERATED, GOAL, World
from benchmarks.tables import REAL, markdown_table

if TYPE_CHECKING:
    from benchmarks.quality.methods import Variant

LABELS = ("type", "donor")
N_TYPES, N_DONORS, TYPES_PER_DONOR = 20, 50, 2
SMALLEST, LARGEST = 5, 250  # training cells of a combination, evenly spread on the scale of the logarithm
N_JUDGED, N_JUDGED_ABSENT = 40, 5  # cells per combination; there are nine absent ones to each present one
N_GENES, GUIDANCE_SCALE = 300, 1.5
#: Combinations by their number of training cells: the first number of each group.
GROUPS = {"no": 0, "5 to 19": 5, "20 to 49": 20, "50 or more": 50}
SCORES = ("confirmed", *(f"right_{label}" for label in LABELS))


def draw_sizes(seed: int) -> dict[tuple[str, str], int]:
    """Draw the number of training cells of each combination; each type has as many donors as any other."""
    rng = np.random.default_rng([seed, 2])
    sizes = {(f"type {kind}", f"donor {donor}"): 0 for kind, donor in product(range(N_TYPES), range(N_DONORS))}
    n_rounds = N_DONORS * TYPES_PER_DONOR // N_TYPES
    types = np.concatenate([rng.permutation(N_TYPES) for _ in range(n_rounds)]).reshape(N_DONORS, TYPES_PER_DONOR)
    for donor, kinds in enumerate(types):
        for kind in kinds:
            sizes[f"type {kind}", f"donor {donor}"] = round(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    return sizes


def study(model: str, seed: int, variant: Variant | None) -> pd.DataFrame:
    """Train a model or a baseline (no `variant`), and judge its cells by the number of training cells."""
    sizes = draw_sizes(seed)
    n_train = np.array(list(sizes.values()))
    world, rng = World.draw(N_GENES, seed, labels=LABELS, combinations=sizes), np.random.default_rng([seed, 1])
    train = world.cells(n_train, rng)
    n_each, n_seen = np.where(n_train > 0, N_JUDGED, N_JUDGED_ABSENT), np.where(n_train > 0, N_JUDGED, 0)
    every, seen = (Split(train, world.cells(n_cells, rng), LABELS) for n_cells in (n_each, n_seen))

    started = time.process_time()
    found = {REAL: (every.held_out.X, n_each)}
    if variant is None:
        drawn = BASELINES[model](train, seen.train_labels, seen.held_out_labels, seed)
        found[GENERATED] = drawn, n_seen
    else:
        trained = train_model(every, variant, seed)
        found[GENERATED] = draw_counts(trained, every, variant, seed), n_each
        guided = {**variant, "generate": {"guidance_scale": GUIDANCE_SCALE}}
        found[f"guidance {GUIDANCE_SCALE}"] = draw_counts(trained, every, guided, seed), n_each
        if hasattr(trained, "get_reconstruction"):
            found[AUTOENCODER] = draw_counts(trained, seen, {**variant, "draw": IDEAL_PRIOR}, seed), n_seen
    minutes = (time.process_time() - started) / 60

    rows = []
    for cells, (counts, n_judged) in found.items():
        judged = world.judge(counts, n_judged)
        group = pd.cut(n_train[judged.index], [*GROUPS.values(), np.inf], right=False, labels=list(GROUPS))
        means = judged.groupby(group, observed=True)[list(SCORES)].mean()
        rows.append(means.rename_axis("n_train").reset_index().assign(cells=cells))
    return pd.concat(rows).assign(cpu_minutes=minutes, settings=json.dumps(variant) if variant else "")


def summarise(table: pd.DataFrame) -> str:
    """Write a table: how often the labels of cells are confirmed, means over seeds."""
    rows = table.assign(row=np.where(table["cells"] == REAL, REAL, table["model"] + ", " + table["cells"]))
    rows = rows.drop_duplicates(["row", "n_train", "seed"])  # all models have the same real cells
    means = rows.groupby(["row", "n_train"], sort=False)[list(SCORES)].mean()
    real = means.loc[REAL]
    lines, n_seeds = [], table["seed"].nunique()
    for row in [REAL, *(name for name in rows["row"].unique() if name != REAL)]:
        own = rows.loc[rows["row"] == row, "seed"].nunique()
        line = [row if own == n_seeds else f"{row} ({own} of the seeds)"]
        for group in GROUPS:
            if (row, group) not in means.index:
                line.append("")
                continue
            both, kind, donor = means.loc[(row, group)]
            mark = "**" if row != REAL and both >= GOAL * real.loc[group, "confirmed"] else ""
            line.append(f"{mark}{both:.2f}{mark} ({kind:.2f}, {donor:.2f})")
        lines.append(line)
    return "\n".join(
        [
            "How often a classifier that knows the world finds type and donor that a cell was drawn for (in brackets: "
            f"the type, the donor), by number of training cells of the combination. Means of {n_seeds} seeds. "
            f"**Bold**: at least {GOAL} of what real cells score. Written by "
            "`python -m benchmarks.studies.many_labels`.",
            "",
            markdown_table(["", *(f"{group} training cells" for group in GROUPS)], lines),
            "",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = options(__doc__)
    parser.add_argument("--models", nargs="+", default=["SCLDM", "SCRDIT"], help=KNOWN)
    chosen = start(parser)
    variants = choose_methods(chosen.models)
    cases = [{"model": model, "seed": seed} for seed, model in product(chosen.seeds, variants)]
    path = chosen.results / "many_labels.csv"
    run(path, cases, lambda model, seed: study(model, seed, variants[model]))
    write_summary(path, summarise)


if __name__ == "__main__":
    main()
