"""Are the default sampler's 12 evaluations of the gene-space models as good as 20 and 100 of DPM-Solver++(2M)? One model each, two drawings.

    python -m benchmarks.studies.gene_space_samplers --dataset pbmc3k

Writes ``results/gene_space_samplers.csv`` and ``results/gene_space_samplers.md``.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.quality.drawing import generate, train_model
from benchmarks.quality.judge import Judge
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells
from benchmarks.tables import describe_machine, markdown_table, read_table, store_rows, today, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("benchmarks.gene_space_samplers")

RESULTS = Path(__file__).parent / "results"
MODELS = ("SCRDIT", "WBDIT")
WAYS = (("dpm_solver_3m", 12), ("dpm_solver", 20), ("dpm_solver", 100))
DRAWINGS = (0, 1)
FIGURES = ("auc_pcs", "auc_genes", "precision", "recall", "w2", "within_label_correlation")
KEYS = ("dataset", "seed", "model", "sampler", "n_steps", "drawing")


def study(split: Split, dataset: str, seed: int, models: list[str]) -> pd.DataFrame:
    """Train each model once, and measure every way twice."""
    judge = Judge.of(split, seed)
    floor = {"model": "real cells", "sampler": "floor", "n_steps": 0, "drawing": 0, **judge.floor()}
    rows = [floor, *(row for model in models for row in _measure(split, judge, model, seed))]
    table = pd.DataFrame(rows)[[*KEYS[2:], *FIGURES, "cpu_seconds"]]
    return table.assign(dataset=dataset, seed=seed, machine=describe_machine("cpu"), date=today())


def _measure(split: Split, judge: Judge, name: str, seed: int) -> Iterator[dict[str, object]]:
    model, _ = train_model(split, name, seed)
    for sampler, n_steps in WAYS:
        for drawing in DRAWINGS:
            started = time.process_time()
            cells = generate(model, split, drawing, sampler=sampler, n_steps=n_steps)
            row = {"model": name, "sampler": sampler, "n_steps": n_steps, "drawing": drawing}
            row |= {"cpu_seconds": time.process_time() - started}
            row |= judge.measure(cells.X.toarray(), split.held_out_labels)
            logger.info("%s", row)
            yield row


def summarise(table: pd.DataFrame) -> str:
    """Write the table for the documentation."""
    header = ["data", "model", "sampler", "evaluations", *FIGURES, "CPU s"]
    lines = [
        [row.dataset, row.model, row.sampler, f"{row.n_steps}"]
        + [f"{getattr(row, figure):.3g}" for figure in (*FIGURES, "cpu_seconds")]
        for row in table.itertuples()
    ]
    return f"{markdown_table(header, lines)}\n\n{table['machine'].iloc[-1]}\n"


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=CONDITION_KEYS, default="pbmc3k")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    split = split_cells(load(arguments.dataset), CONDITION_KEYS[arguments.dataset], seed=arguments.seed)
    table = study(split, arguments.dataset, arguments.seed, arguments.models)
    path = arguments.results / "gene_space_samplers.csv"
    store_rows(path, table, keys=KEYS)
    write_text(arguments.results / "gene_space_samplers.md", summarise(read_table(path)))


if __name__ == "__main__":
    main()
