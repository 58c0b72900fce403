"""Are networks of the published size worth their time? SCRDIT and WBDIT, trained for longer and longer, on one panel.

    python -m benchmarks.studies.published_size --models SCRDIT     # an hour of one core; WBDIT takes half of it

The papers' networks, path, target and learning rate; batches of 64 cells, as those of 16 take twice the time. After
each of `LENGTHS`, the model draws cells with the papers' sampler, 100 steps of DDIM with new noise. They are judged as
all methods of `benchmarks.quality`, and added to its ``compare.csv`` as SCRDIT-published-30 (30 epochs) and so on.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.quality.__main__ import KEYS, figures
from benchmarks.quality.drawing import COSTS_KEY, as_drawn, build_model, generate, write_cells
from benchmarks.quality.splits import load_split
from benchmarks.tables import ROOT, store_rows
from scgen_diffusion import diffusion

logger = logging.getLogger("benchmarks.published_size")

RESULTS = ROOT / "benchmarks" / "quality" / "results"
DATASET = "osmfish_cortex"
#: Epochs after which cells are drawn.
LENGTHS = (30, 90, 180)
TRAINING = {"batch_size": 64, "precision": "bf16-mixed", "accelerator": "cpu", "enable_progress_bar": False}


def study(name: str, seed: int, folder: Path, results: Path) -> None:
    """Train a model, and judge its cells after each length."""
    started, split = (time.perf_counter(), time.process_time()), load_split(DATASET, seed)
    model = build_model(split, {"class": name, "model": {"size": "published"}}, seed)
    for n_before, n_epochs in pairwise((0, *LENGTHS)):
        model.train(max_epochs=n_epochs - n_before, **TRAINING)
        trained, method = time.process_time(), f"{name}-published-{n_epochs}"
        path = folder / f"{DATASET}-{seed}-{method}.h5ad"
        model.save(path.with_suffix(""), overwrite=True)
        drawn = generate(model, split, seed, sampler=diffusion.DDIMSampler(eta=1.0), n_steps=100)
        cells = as_drawn(split, drawn.X, started, trained, json.dumps({"epochs": n_epochs, **TRAINING}))
        write_cells(cells, path)
        table = figures(split, cells, seed).assign(dataset=DATASET, seed=seed, method=method)
        store_rows(results / "compare.csv", table, KEYS)
        logger.info("%s: %.0f minutes of training", method, cells.uns[COSTS_KEY]["train_minutes"])


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["SCRDIT", "WBDIT"], default=["SCRDIT", "WBDIT"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cells", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of models and cells")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of compare.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        for seed in arguments.seeds:
            study(name, seed, arguments.cells, arguments.results)


if __name__ == "__main__":
    main()
