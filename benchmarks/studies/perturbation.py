"""How well are perturbed cells of a type predicted that was never seen perturbed? SCLDM's ways and baselines on `kang_ifnb`.

    python -m benchmarks.studies.perturbation                                          # everything that is not there yet
    python -m benchmarks.studies.perturbation --types B --seeds 0 --methods latent_arithmetic    # part of it
    python -m benchmarks.studies.perturbation --methods                                # only the summary and the pictures

The interferon-stimulated cells of one type at a time are left out; from its control cells, and from the control and stimulated cells of all other types,
they are predicted. Predictions are kept in ``--cells``, judged by ``scgen_diffusion.metrics.evaluate_perturbation``, and the figures added to
``results/perturbation.csv``; what is there already is skipped. The summary goes to ``results/perturbation.md``, what the
user guide shows of it to ``results/perturbation_headline.md``, pictures to ``docs/_static``.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import torch

from benchmarks.quality.drawing import write_cells
from benchmarks.quality.splits import load
from benchmarks.studies.perturbation_cases import CELL_TYPE, CONDITION, CONTROL, Case, judged_types, leave_out
from benchmarks.studies.perturbation_methods import BASELINES, METHODS, SCLDM_METHODS, Trained, stored_path
from benchmarks.studies.perturbation_report import (
    CHANGES_BY,
    CHANGES_OF,
    draw_changes,
    draw_scores,
    headline,
    summarise,
)
from benchmarks.tables import ROOT, describe_machine, describe_versions, read_table, store_rows, today, write_text
from scgen_diffusion import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

logger = logging.getLogger("benchmarks.perturbation")

HERE = Path(__file__).parent
DATASET = "kang_ifnb"
KEYS = ("cell_type", "seed", "method")
#: Figures that every judgement has beside those of the methods.
REFERENCES = ("floor", "no_change", "mean_shift")


def predict(trained: Trained, method: str) -> ad.AnnData:
    """Return a method's cells, predicted now if they are not stored yet."""
    path = stored_path(trained.folder, trained.case.cell_type, trained.seed, method)
    if not path.exists():
        logger.info("%s, seed %d: %s predicts", trained.case.cell_type, trained.seed, method)
        started = time.process_time()
        is_baseline = method in BASELINES
        cells = BASELINES[method](trained.case, trained.seed) if is_baseline else SCLDM_METHODS[method](trained)
        cells.uns["cpu_minutes"] = (time.process_time() - started) / 60
        write_cells(cells, path)
    return ad.read_h5ad(path)


def judge(case: Case, predicted: dict[str, ad.AnnData], seed: int) -> pd.DataFrame:
    """Return the figures of all predictions and references, one row per metric and method."""
    controls = case.train[case.train.obs[CONDITION] == CONTROL]
    table = metrics.evaluate_perturbation(
        case.real,
        next(iter(predicted.values())),
        control=controls,
        perturbation_key=CONDITION,
        train=case.train,
        others=predicted,
        groupby=CELL_TYPE,
        seed=seed,
    )
    columns = [*REFERENCES, *predicted]
    long = table.drop(columns="value").melt(
        id_vars=["metric", "better"], value_vars=columns, var_name="method", value_name="value"
    )
    return long.assign(
        cell_type=case.cell_type, seed=seed, n_control=case.control.n_obs, n_real=case.real.n_obs, **_source()
    )


def _source() -> dict[str, str]:
    versions = describe_versions("torch", "scvi-tools", "scgen-diffusion")
    return {"machine": describe_machine(), "versions": versions, "date": today()}


def pending(path: Path, types: list[str], seeds: list[int], methods: list[str]) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the methods of each cell type and seed that have no stored figures, seed by seed."""
    table = read_table(path)
    stored = set() if table.empty else set(table[list(KEYS)].itertuples(index=False, name=None))
    for seed in seeds:
        for cell_type in types:
            missing = [method for method in methods if (cell_type, seed, method) not in stored]
            if missing:
                yield cell_type, seed, missing


def run(arguments: argparse.Namespace) -> None:
    """Predict and judge what is not stored, then write the summary and the pictures."""
    adata = load(DATASET)
    path = arguments.results / "perturbation.csv"
    for cell_type, seed, methods in pending(
        path, arguments.types or judged_types(adata), arguments.seeds, arguments.methods
    ):
        case = leave_out(adata, cell_type)
        trained = Trained(case, seed, arguments.cells)
        predicted = {method: predict(trained, method) for method in methods}
        logger.info("%s, seed %d: judging %s", cell_type, seed, ", ".join(methods))
        store_rows(path, judge(case, predicted, seed), KEYS)
    table = read_table(path)
    write_text(arguments.results / "perturbation.md", summarise(table))
    write_text(arguments.results / "perturbation_headline.md", headline(table))
    draw_scores(table, arguments.pictures / "perturbation_scores.png")
    if shown := _stored_cases(adata, arguments.cells):
        draw_changes(shown, arguments.pictures / "perturbation_changes.png")


def _stored_cases(adata: ad.AnnData, cells: Path) -> dict[str, tuple[Case, dict[str, ad.AnnData]]]:
    """Return the cases of the second picture with their first seed's predictions, those that are stored."""
    paths = {name: {method: stored_path(cells, name, 0, method) for method in CHANGES_BY} for name in CHANGES_OF}
    return {
        name: (leave_out(adata, name), {method: ad.read_h5ad(path) for method, path in of_type.items()})
        for name, of_type in paths.items()
        if all(path.exists() for path in of_type.values())
    }


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("lightning.pytorch", "lightning", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", help="cell types to leave out; default: all with enough stimulated cells")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of predictions and autoencoders"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "_static")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    run(arguments)


if __name__ == "__main__":
    main()
