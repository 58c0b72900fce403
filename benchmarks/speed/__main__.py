"""How fast, in how much memory? The package's calls on simulated cells.

    python -m benchmarks.speed                                  # everything on this processor; 20 minutes on two cores
    python -m benchmarks.speed --systems package SCRDIT --threads 1
    python -m benchmarks.speed --systems SCRDIT-published-size SCRDIT --batch 16 128
    python -m benchmarks.speed --systems package --genes 17002 --expressed 6147 --device cuda --precision bf16

Rows are added to ``results/speed.csv``; ``python -m benchmarks.pages`` writes the tables. For a GPU, see
``python -m benchmarks.speed.gpu``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.runner import options, start
from benchmarks.speed.measure import measure_apart
from benchmarks.speed.systems import STAGES, SYSTEMS, Setting
from benchmarks.tables import store_rows

if TYPE_CHECKING:
    import argparse

RESULTS = Path(__file__).parent / "results"
TRAIN = "--seconds 1 --threads 2 --stages training_step --batch"
SAMPLE = "--seconds 1 --threads 2 --stages generate"
#: What a run without ``--systems`` measures; the last line, with one thread, gives CPU time.
EVERYTHING = (
    "--systems package-published-sizes package --threads 2 --seconds 2",
    "--systems package --threads 2 --seconds 1 --batch 256 --stages prior_step",
    "--systems package --threads 2 --seconds 1 --batch 512 --stages perturbation_flow_step",
    f"--systems SCRDIT-published-size WBDIT-published-size {TRAIN} 16",
    f"--systems SCMDM SCRDIT WBDIT {TRAIN} 16 128",
    f"--systems SCMDM SCRDIT WBDIT {SAMPLE}",
    "--systems calls-SCLDM calls-SCMDM calls-SCRDIT calls-WBDIT --threads 2 --seconds 1",
    "--systems package SCMDM SCRDIT WBDIT --threads 1 --seconds 1",
)


def measure(chosen: argparse.Namespace) -> None:
    """Measure every system's stages at every batch size, and store the rows."""
    for batch_size in chosen.batch:
        how = {"device": chosen.device, "precision": chosen.precision, "compile": chosen.compile}
        expressed = chosen.expressed or int(0.36 * chosen.genes)
        setting = Setting(chosen.genes, expressed, batch_size, **how, n_cells=chosen.cells)
        for name in chosen.systems:
            rows = measure_apart(name, setting, chosen.stages, chosen.seconds, chosen.threads)
            if rows:
                store_rows(chosen.results / "speed.csv", pd.DataFrame(rows))


def main() -> None:
    parser = options(__doc__, results=RESULTS)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: everything")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--genes", type=int, default=2_000, help="size of the panel")
    parser.add_argument("--expressed", type=int, help="expressed genes per cell; default: 0.36 of the panel")
    parser.add_argument("--batch", type=int, nargs="+", default=[128], help="cells per step; published: 16")
    parser.add_argument("--cells", type=int, default=4_096, help="size of the data set")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "tf32", "bf16"], default="float32", help="of the package")
    parser.add_argument("--compile", action="store_true", help="compile the package's networks")
    parser.add_argument("--seconds", type=float, default=10.0, help="approximate duration of each measurement")
    chosen = start(parser)
    for part in [chosen] if chosen.systems else [parser.parse_args(line.split()) for line in EVERYTHING]:
        part.results = chosen.results
        measure(part)


if __name__ == "__main__":
    main()
