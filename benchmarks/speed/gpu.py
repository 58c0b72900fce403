"""Figures of a GPU in ten minutes: the package's calls in several ways, and whether its latents are those of the CPU.

    python -m benchmarks.speed.gpu                         # needs CUDA; results/speed_gpu.csv
    python -m benchmarks.speed.gpu --device cpu --tiny     # a small test of the script

The package does not have to be installed: ``PYTHONPATH=src`` is enough. A stage that fails is recorded with its error,
and the rest continues. Sizes are those of the published scLDM's panel: 17,002 genes, 6,147 expressed, batches of 128.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.runner import options, start
from benchmarks.speed.measure import measure_system
from benchmarks.speed.systems import SYSTEMS, Package, Setting
from benchmarks.tables import store_rows

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger("benchmarks.gpu")

FULL = Setting(n_genes=17_002, n_expressed=6_147, device="cuda", n_cells=32_768)
TINY = Setting(n_genes=60, n_expressed=20, batch_size=8, n_cells=64, n_steps=2)
#: Precision, whether networks are compiled, and the stages to measure, by system. What takes minutes to compile is last.
STEPS = ("autoencoder_step", "prior_step", "training_step")
GENE_SPACE = ("SCMDM", "SCRDIT", "WBDIT")
WAYS = (
    ("float32", False, ("package", *GENE_SPACE), STEPS),
    ("float32", False, ("calls-SCLDM",), ("generate_anndata", "latent_representation")),
    ("float32", False, GENE_SPACE, ("generate",)),
    ("tf32", False, ("package", *GENE_SPACE), STEPS),
    ("bf16", False, ("SCRDIT-published-size", "WBDIT-published-size"), STEPS),
    ("float32", True, ("package", *GENE_SPACE), STEPS),
)
KEYS = ("system", "stage", "batch", "precision", "compile", "replay", "processor")
#: Largest relative difference that passes: sums over thousands of genes in another order turn 1e-7 into this.
TOLERANCE = 1e-3


def difference(setting: Setting) -> float:
    """Return the relative difference between latents of a trained SCLDM on the CPU and on the device, without draws."""
    small = {"n_genes": min(setting.n_genes, 2_000), "n_cells": min(setting.n_cells, 2_048)}
    trained = Package(replace(setting, device="cpu", **small), "SCLDM")
    trained.train("autoencoder", 1, 64)
    other = copy.deepcopy(trained.model)
    other.to_device(0 if setting.is_cuda else "cpu")
    expected, got = (model.get_latent_representation() for model in (trained.model, other))
    return float(np.linalg.norm(expected - got) / np.linalg.norm(expected))


def run(chosen: argparse.Namespace) -> bool:
    """Measure and compare; return whether the device and the CPU compute the same."""
    setting = replace(TINY if chosen.tiny else FULL, device=chosen.device)
    ends, found = time.monotonic() + 60 * chosen.minutes, difference(setting)
    for precision, compile, systems, stages in WAYS:
        for system in systems:
            if time.monotonic() > ends or (chosen.systems and system not in chosen.systems):
                logger.info("left out: %s, %s", system, precision)
                continue
            way = replace(setting, precision=precision, compile=compile)
            rows = pd.DataFrame(measure_system(system, way, stages, chosen.seconds, None))
            if not rows.empty:
                store_rows(chosen.results / "speed_gpu.csv", rows.assign(replay=True), KEYS)
    logger.info("relative difference of latents between the device and the CPU: %.1e", found)
    return found <= TOLERANCE


def main() -> None:
    parser = options(__doc__, results=Path(__file__).parent / "results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="what to measure; default: everything")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test the script")
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate duration of each measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which nothing new is started")
    if not run(start(parser)):
        parser.exit(1, "The device and the CPU do not compute the same.\n")


if __name__ == "__main__":
    main()
