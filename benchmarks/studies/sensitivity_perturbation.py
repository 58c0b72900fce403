"""Which metric of perturbations detects what? Real stimulated cells are corrupted and judged as if predicted.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.sensitivity_perturbation
    python -m benchmarks.studies.sensitivity_perturbation --report

For each of the largest cell types of ``kang_ifnb``, one half of the stimulated cells plays the prediction of the other
half. Results are in ``results/sensitivity_perturbation.csv``; the table for the docs is
``results/sensitivity_perturbation.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.quality.splits import load
from benchmarks.studies.corruptions import (
    average_cells,
    counts_of,
    draw_from_means,
    shuffle_genes,
    thin_counts,
    with_counts,
)
from benchmarks.tables import markdown_table, read_table, write_text
from scgen_diffusion.metrics import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

RESULTS = Path(__file__).parent / "results"
KEY, CONTROL, TYPE = "condition", "control", "cell_type"
CELL_TYPES = ("CD14 Mono", "CD4 Naive T", "CD16 Mono", "B")
SEEDS = (0, 1, 2)

#: Functions of stimulated cells, at most as many control cells, and a random generator.
CORRUPTIONS: dict[str, Callable[[AnnData, AnnData, np.random.Generator], AnnData]] = {
    "half untouched": lambda cells, control, rng: half_untouched(cells, control, rng),
    "means only": lambda cells, control, rng: draw_from_means(cells, rng),
    "averages of 3": lambda cells, control, rng: average_cells(cells, rng, n_cells=3),
    "totals halved": lambda cells, control, rng: thin_counts(cells, rng, share=0.5),
    "genes shuffled": lambda cells, control, rng: shuffle_genes(cells, rng, within_label=True),
}
COLUMNS = {"floor": "floor", "value": "other real cells", **{name: name for name in CORRUPTIONS}}
COLUMNS |= {"mean_shift": "mean shift", "no_change": "no change"}


def half_untouched(cells: AnnData, control: AnnData, rng: np.random.Generator) -> AnnData:
    """Replace every second cell by a control cell: half of the cells do not respond."""
    counts = counts_of(cells)
    rows = np.arange(0, len(counts), 2)
    counts[rows] = counts_of(control)[rng.integers(0, control.n_obs, len(rows))]
    return with_counts(cells, counts)


def judge(adata: AnnData, cell_type: str, seed: int) -> pd.DataFrame:
    """Return the table of one cell type and split."""
    rng = np.random.default_rng(seed)
    control = adata[adata.obs[KEY] == CONTROL]
    stimulated, is_own = adata[adata.obs[KEY] != CONTROL], lambda cells: (cells.obs[TYPE] == cell_type).to_numpy()
    order = rng.permutation(np.flatnonzero(is_own(stimulated)))
    real, other = (stimulated[np.sort(half)].copy() for half in np.array_split(order, 2))
    untouched = control[is_own(control)]
    table = evaluate(
        real,
        other,
        control=control,
        train=stimulated[~is_own(stimulated)],
        perturbation_key=KEY,
        groupby=TYPE,
        others={name: spoil(other, untouched, rng) for name, spoil in CORRUPTIONS.items()},
        seed=seed,
    )
    return table.assign(seed=seed)


def report(rows: pd.DataFrame) -> str:
    """Write the table for the docs."""
    means = rows.groupby("metric", sort=False)[list(COLUMNS)].mean()
    better = rows.drop_duplicates("metric").set_index("metric")["better"].map({"lower": "↓", "higher": "↑"})
    body = [
        [f"`{metric}` {better[metric]}", *(f"{value:.3f}" for value in means.loc[metric])] for metric in means.index
    ]
    cell_types, seeds = rows["group"].nunique(), rows["seed"].nunique()
    text = (
        "One half of the stimulated cells of a type was judged against the other half as if it were predicted, "
        f"unchanged and corrupted (`kang_ifnb`, means over {cell_types} cell types and {seeds} splits). *Half "
        "untouched*: every second cell is a control cell. *Means only*: Poisson draws from the mean profile. *Averages "
        "of 3*: cells averaged with two others. *Totals halved*: half of the counts. *Genes shuffled*: every gene's "
        "values shuffled among the cells. The floor compares halves of halves, so it is slightly worse than other real "
        "cells."
    )
    return "\n\n".join([text, markdown_table(["metric", *COLUMNS.values()], body)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or write its report again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the table of stored results")
    path = RESULTS / "sensitivity_perturbation.csv"
    if not parser.parse_args(arguments).report:
        adata = load("kang_ifnb")
        tables = [judge(adata, cell_type, seed) for cell_type in CELL_TYPES for seed in SEEDS]
        write_text(path, pd.concat(tables).to_csv(index=False, float_format="%.6g"))
    write_text(path.with_suffix(".md"), report(read_table(path)))


if __name__ == "__main__":
    main()
