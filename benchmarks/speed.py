"""How fast, in how much memory? Steps of the package beside those of the published system, on made-up cells of a given size.

    python benchmarks/speed.py                                                  # two CPU cores
    python benchmarks/speed.py --genes 17002 --expressed 6147 --device cuda --precision bf16 --compile --profile

A step is one optimiser step (or one batch of cells generated) with its data on the device: loading data is not part of it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from measuring import Measurement, PeakMemory, measure, profile, resident_bytes
from results import describe_machine, describe_versions, markdown_table, store_rows, today
from systems import STAGES, SYSTEMS, Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("benchmarks.speed")

RESULTS = Path(__file__).parent / "results"


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Measure every system's stages."""
    setting = Setting(
        n_genes=arguments.genes,
        n_expressed=arguments.expressed,
        batch_size=arguments.batch,
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
    )
    rows = []
    PeakMemory.baseline_resident = resident_bytes()
    for name in arguments.systems:
        system = SYSTEMS[name](setting)
        for stage in arguments.stages:
            step = getattr(system, stage)
            logger.info("%s, %s", name, stage)
            result = measure(step, setting.batch_size, device=setting.device, seconds=arguments.seconds)
            rows.append(_row(name, stage, system.describe(stage), setting, result))
            if arguments.profile:
                logger.info("%s", profile(step, device=setting.device))
        del system
    return pd.DataFrame(rows)


def _row(name: str, stage: str, how: str, setting: Setting, result: Measurement) -> dict[str, object]:
    return {
        "system": name,
        "stage": stage,
        "cells_per_second": result.cells_per_second,
        "peak_gib": result.peak_bytes / 2**30,
        "genes": setting.n_genes,
        "expressed": setting.n_expressed,
        "batch": setting.batch_size,
        "how": how,
        "device": setting.device,
        "machine": describe_machine(setting.device),
        "versions": describe_versions("torch", "scgen-diffusion"),
        "date": today(),
    }


def tabulate(rows: pd.DataFrame) -> str:
    """Write the figures as a table, with the ratio to the published system where that was measured too."""
    published = rows[rows["system"] == "published"].set_index("stage")["cells_per_second"].to_dict()
    lines = []
    for row in rows.itertuples():
        ratio = f"{row.cells_per_second / published[row.stage]:.1f}" if row.stage in published else ""
        lines.append(
            [f"{row.stage}, {row.system} ({row.how})", f"{row.cells_per_second:,.0f}", ratio, f"{row.peak_gib:.2f}"]
        )
    return markdown_table(["", "cells/s", "x published", "peak GiB"], lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=2_000, help="size of the panel")
    parser.add_argument("--expressed", type=int, help="expressed genes per cell; default: 0.36 of the panel")
    parser.add_argument("--batch", type=int, default=128, help="cells per step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of the package's steps")
    parser.add_argument("--compile", action="store_true", help="compile the package's networks")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["published", "package"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement, about")
    parser.add_argument("--profile", action="store_true", help="say where the time goes, and what share is matrix work")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: its own choice")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed.csv")
    parsed = parser.parse_args(arguments)
    parsed.expressed = parsed.expressed or int(0.36 * parsed.genes)
    return parsed


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = run(arguments)
    store_rows(arguments.results / "speed.csv", rows)
    logger.info("%s\n\n%s", tabulate(rows), describe_machine(arguments.device))


if __name__ == "__main__":
    main()
