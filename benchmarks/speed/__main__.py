"""How fast, in how much memory? Steps and calls of the package and of the published systems, on simulated cells.

    python -m benchmarks.speed                                  # everything on this processor; 20 minutes on two cores
    python -m benchmarks.speed --write-only                     # only write the tables from the stored results
    python -m benchmarks.speed --systems package SCRDIT --threads 1
    python -m benchmarks.speed --systems published-scrdit SCRDIT-published-size SCRDIT --batch 16 128
    python -m benchmarks.speed --systems calls-SCLDM --cells 20000
    python -m benchmarks.speed --systems package --genes 17002 --expressed 6147 --device cuda --precision bf16

A step is one optimiser step (or the generation of one batch of cells) with its data on the device, without loading
data. A call is what a user writes, with everything included. Rows are added to ``results/speed.csv``. Without
``--systems``, ``results/speed.md`` and the text between the marks ``<!-- speed... -->`` in
``docs/user_guide/speed.md`` and ``README.md`` are written too. On a machine with a GPU, use
``python -m benchmarks.speed.gpu``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
import torch

from benchmarks.speed.measure import STAGES, SYSTEMS, measure_apart, quieten
from benchmarks.speed.report import write
from benchmarks.speed.systems import Setting
from benchmarks.tables import store_rows

logger = logging.getLogger("benchmarks.speed")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRAIN = "--seconds 1 --threads 2 --stages training_step --batch"
SAMPLE = "--seconds 1 --threads 2 --stages generate generate_ddim"
#: What a run without ``--systems`` measures; the last line, with one thread, gives CPU time.
EVERYTHING = (
    "--systems published package-published-sizes package --threads 2 --seconds 2",
    "--systems package --threads 2 --seconds 1 --batch 256 --stages prior_step",
    "--systems package --threads 2 --seconds 1 --batch 512 --stages transport_step",
    f"--systems published-scrdit SCRDIT-published-size {TRAIN} 16",
    f"--systems published-wbdit WBDIT-published-size {TRAIN} 16",
    f"--systems SCRDIT WBDIT {TRAIN} 16 128",
    f"--systems published-scrdit SCRDIT published-wbdit WBDIT {SAMPLE}",
    "--systems calls-SCLDM calls-SCRDIT calls-WBDIT --threads 2 --seconds 1",
    "--systems package SCRDIT WBDIT --threads 1 --seconds 1",
)


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """Measure every system's stages at every batch size."""
    rows: list[dict[str, object]] = []
    for batch_size in arguments.batch:
        setting = Setting(
            n_genes=arguments.genes,
            n_expressed=arguments.expressed or int(0.36 * arguments.genes),
            batch_size=batch_size,
            device=arguments.device,
            precision=arguments.precision,
            compile=arguments.compile,
            n_cells=arguments.cells,
        )
        for name in arguments.systems:
            options = {"seconds": arguments.seconds, "limit": arguments.limit, "threads": arguments.threads}
            rows += measure_apart(name, setting, arguments.stages, show_profile=arguments.profile, **options)
    return pd.DataFrame(rows)


def parse() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: everything, and write the pages")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--genes", type=int, default=2_000, help="size of the panel")
    parser.add_argument("--expressed", type=int, help="expressed genes per cell; default: 0.36 of the panel")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[128], help="cells per step; published for gene space: 16"
    )
    parser.add_argument("--cells", type=int, default=4096, help="size of the data set of calls-...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=["float32", "bf16"], default="float32", help="precision of the package's steps"
    )
    parser.add_argument("--compile", action="store_true", help="compile the package's networks")
    parser.add_argument("--seconds", type=float, default=10.0, help="approximate duration of each measurement")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; with 1, times are CPU times")
    parser.add_argument("--limit", action=argparse.BooleanOptionalAction, default=True, help="count FLOPs of steps")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--write-only", action="store_true", help="only write the pages from the stored results")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs")
    return parser


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quieten()
    parser = parse()
    arguments = parser.parse_args()
    parts = [arguments] if arguments.systems else [parser.parse_args(part.split()) for part in EVERYTHING]
    for part in [] if arguments.write_only else parts:
        rows = measure(part)
        store_rows(arguments.results / "speed.csv", rows)
        shown = ["system", "stage", "batch", "how", "cells_per_second", "seconds", "peak_gib", "parameters"]
        logger.info("%s\n", rows[shown].to_string(index=False, float_format="{:.4g}".format))
    if not arguments.systems:
        write(arguments.results, arguments.root)


if __name__ == "__main__":
    main()
