"""How many steps does a sampler need? One trained model per class, with its samplers and numbers of steps.

    python -m benchmarks.studies.samplers --dataset pbmc3k
    python -m benchmarks.studies.samplers --models SCRDIT SCRDIT-profiles WBDIT-profiles --drawings 2

Adds to ``results/samplers.csv``. The error is the root mean square difference of log-normalised profiles to very many
steps from the same noise; unmasking has none, because it draws.
"""

from __future__ import annotations

import argparse
import logging
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.quality.drawing import VARIANTS, generate, held_out_conditions, train_model
from benchmarks.quality.splits import CONDITION_KEYS, judge, load, split_cells
from benchmarks.tables import describe_machine, store_rows, today

logger = logging.getLogger("benchmarks.samplers")

RESULTS = Path(__file__).parent / "results"
FLOW = [("euler", n) for n in (5, 10, 25, 50, 100)] + [
    (name, n) for name in ("midpoint", "heun") for n in (3, 5, 10, 25)
]
DIFFUSION = [("dpm_solver_3m", 12), ("dpm_solver", 20), ("dpm_solver", 100)]
#: Per model: the reference sampler with very many steps, and the others, each with its steps.
GENE_SPACE = ("SCRDIT-profiles", "WBDIT-profiles")
EXACT = {"SCLDM": ("heun", 200), **dict.fromkeys(GENE_SPACE, ("dpm_solver", 200))}
WAYS = {
    "SCLDM": FLOW,
    "SCRDIT": [("unmasking", n) for n in (8, 16, 32, 64, 128)],
    **dict.fromkeys(GENE_SPACE, DIFFUSION),
}
FIGURES = ("auc_boosting", "auc_genes", "precision", "recall", "w2", "mmd2", "within_label_correlation")
KEYS = ("dataset", "seed", "model", "sampler", "n_steps", "drawing")


def study(dataset: str, seed: int, name: str, n_drawings: int) -> pd.DataFrame:
    """Train a model once, and measure every sampler."""
    split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed)
    model = train_model(split, VARIANTS[name], seed)

    def profiles(sampler: str, n_steps: int | None) -> np.ndarray:
        request = {"condition": held_out_conditions(split), "seed": seed, "sampler": sampler, "n_steps": n_steps}
        frames = model.get_sampling_path(n_frames=2, **request)
        return frames.X[frames.obs["frame"] == 1]

    rows = []
    if name in EXACT:
        exact = profiles(*EXACT[name])
    for (sampler, n_steps), drawing in product(WAYS[name], range(n_drawings)):
        started = time.process_time()
        cells = generate(model, split, drawing, sampler=sampler, n_steps=n_steps)
        row = {"model": name, "sampler": sampler, "n_steps": n_steps or 0, "drawing": drawing}
        row |= {"cpu_seconds": time.process_time() - started, "error": np.nan}
        if name in EXACT:
            row["error"] = np.sqrt(np.mean((profiles(sampler, n_steps) - exact) ** 2))
        table = judge(split, cells.X, seed, metrics=FIGURES).set_index("metric")
        rows.append(row | table["value"].to_dict())
        logger.info("%s", rows[-1])
    floor = {"model": "real cells", "sampler": "floor", "n_steps": 0, "drawing": 0} | table["floor"].to_dict()
    return pd.DataFrame([floor, *rows]).assign(
        dataset=dataset, seed=seed, machine=describe_machine("cpu"), date=today()
    )


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=CONDITION_KEYS, default="pbmc3k")
    parser.add_argument("--models", nargs="+", choices=list(WAYS), default=["SCLDM"])
    parser.add_argument("--drawings", type=int, default=1, help="number of draws per sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of samplers.csv")
    arguments = parser.parse_args()
    path = arguments.results / "samplers.csv"
    for name in arguments.models:
        store_rows(path, study(arguments.dataset, arguments.seed, name, arguments.drawings), KEYS)


if __name__ == "__main__":
    main()
