"""Which method draws the best cells, and which goals do they reach? Models and baselines, judged on held-out cells.

    python -m benchmarks.quality                                # everything that is missing
    python -m benchmarks.quality --datasets pbmc3k --seeds 0    # a part of it
    python -m benchmarks.quality --methods SCLDM 'wide={"class": "WBDIT", "width": 256}'    # other arguments of a model
    python -m benchmarks.quality --datasets pbmc3k:300          # 300 training cells
    python -m benchmarks.quality --steps draw --cells FOLDER    # draw now, judge later with `--steps judge`

Every method trains and draws in its own process with one torch thread, so its time and peak memory are its own. Its
cells are kept in ``--cells``. They are judged by ``scgen_diffusion.metrics.evaluate``, and the figures are added to
``compare.csv`` in ``--results``. What is already stored is skipped. ``compare.md`` compares the methods, ``goals.md``
shows which goals they reach, and a picture goes to ``--picture``. Published rivals are drawn by
``python -m benchmarks.rivals`` and judged here.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import pandas as pd

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.drawing import COSTS_KEY, MODELS, VARIANTS, parse_variant
from benchmarks.quality.report import draw_comparison, summarise, summarise_goals
from benchmarks.quality.splits import DATASETS as KNOWN
from benchmarks.quality.splits import file_of, judge, load_split, parse_dataset
from benchmarks.rivals import RIVALS, is_rival
from benchmarks.tables import ROOT, read_table, store_rows, stored_keys, write_text

if TYPE_CHECKING:
    from benchmarks.quality.splits import Split

logger = logging.getLogger("benchmarks.quality")

HERE = Path(__file__).parent
DATASETS = (
    *("pbmc3k", "kang_ifnb", "paul15", "pbmc10k_citeseq", "osmfish_cortex"),
    *("worm_embryo", "perturb_norman_mcfaline"),
)
METHODS = (*MODELS, "scVI", "NB-copula", "independent-NB")
KEYS = ("dataset", "seed", "method")
COSTS = ("wall_minutes", "cpu_minutes", "peak_memory_gib")
SOURCE = ("settings", "machine", "versions", "date")


def figures(split: Split, cells: ad.AnnData, seed: int) -> pd.DataFrame:
    """Return the figures of a method's cells, including its costs."""
    spent = cells.uns[COSTS_KEY]
    costs = pd.DataFrame(
        {"metric": name, "group": "all", "value": float(spent[name]), "better": "lower"} for name in COSTS
    )
    table = pd.concat([judge(split, cells.X, seed), costs], ignore_index=True)
    return table.assign(**{name: spent.get(name, "") for name in SOURCE})


def run(arguments: argparse.Namespace) -> None:
    """Draw and judge what is missing, then write the tables and the picture.

    Raises
    ------
    ValueError
        If a method or a data set is unknown.
    """
    for name, _ in map(parse_dataset, arguments.datasets):
        if "draw" in arguments.steps and not KNOWN[name].loader:
            file_of(name)  # missing files are noticed now, not hours later
    variants = VARIANTS | dict(parse_variant(text) for text in arguments.methods if "=" in text)
    methods = [text.partition("=")[0] for text in arguments.methods]
    if unknown := sorted(name for name in methods if name not in {*variants, *BASELINES} and not is_rival(name)):
        known = [*VARIANTS, *BASELINES, *RIVALS]
        msg = f"Unknown methods {unknown}. Known: {known}, or NAME=JSON for other arguments of a model."
        raise ValueError(msg)
    results, splits = arguments.results / "compare.csv", {}
    stored = stored_keys(results, KEYS)
    for seed, dataset, method in product(arguments.seeds, arguments.datasets, methods):
        path = arguments.cells / f"{dataset}-{seed}-{method}.h5ad"
        if (dataset, seed, method) in stored:
            continue
        if "draw" in arguments.steps and not path.exists() and not is_rival(method):
            logger.info("%s, seed %d: drawing with %s", dataset, seed, method)
            command = [sys.executable, "-m", "benchmarks.quality.drawing", dataset, str(seed), method, path.resolve()]
            command += ["--variant", json.dumps(variants[method])] if method in variants else []
            subprocess.run(command, check=True, cwd=ROOT)
        if "judge" in arguments.steps and path.exists():
            logger.info("%s, seed %d: judging %s", dataset, seed, method)
            if (dataset, seed) not in splits:
                splits = {(dataset, seed): load_split(dataset, seed)}
            table = figures(splits[dataset, seed], ad.read_h5ad(path), seed)
            store_rows(results, table.assign(dataset=dataset, seed=seed, method=method), KEYS)
    if "judge" in arguments.steps:
        table = read_table(results)
        order = dict.fromkeys([*METHODS, *VARIANTS, *BASELINES, *table["method"]])
        methods = [method for method in order if method in set(table["method"])]
        write_text(results.with_suffix(".md"), summarise(table, methods))
        write_text(results.with_name("goals.md"), summarise_goals(table, methods))
        draw_comparison(table, methods, arguments.picture or results.with_suffix(".png"))


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = f"{', '.join(KNOWN)}; with `:300`, 300 training cells"
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), help=known)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    known = ", ".join([*VARIANTS, *BASELINES, *RIVALS])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"{known}, or NAME=JSON")
    parser.add_argument("--steps", nargs="+", choices=["draw", "judge"], default=["draw", "judge"])
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of the generated cells"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the tables")
    parser.add_argument("--picture", type=Path, help="default: compare.png next to the tables")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
