"""How fast, in how much memory? Steps of the package beside those of the published system, on made-up cells of a given size.

    python benchmarks/speed.py                                                  # two CPU cores
    python benchmarks/speed.py --genes 17002 --expressed 6147 --device cuda --precision bf16 --compile --profile
    python benchmarks/speed.py --systems published-scrdit SCRDIT-published-size SCRDIT --batch 16 128
    python benchmarks/speed.py --systems published-wbdit WBDIT-published-size WBDIT SCRDIT --stages training_step

A step is one optimiser step (or one batch of cells generated) with its data on the device: loading data is not part of it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from measuring import Measurement, PeakMemory, measure, profile, resident_bytes
from results import describe_machine, describe_versions, markdown_table, store_rows, today
from system import Setting, System
from systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("benchmarks.speed")

RESULTS = Path(__file__).parent / "results"


STAGES = tuple(dict.fromkeys(stage for system in SYSTEMS.values() for stage in system.stages))

#: Stages of a published system beside which a stage is set, and how they are called.
YARDSTICK_STAGES = {"generate": {"generate": "", "generate_ddpm": " DDPM", "generate_ddim": " DDIM"}}


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Measure every system's stages at every batch size."""
    PeakMemory.baseline_resident = resident_bytes()
    rows: list[dict[str, object]] = []
    for batch_size in arguments.batch:
        setting = setting_from(arguments, batch_size)
        for name in arguments.systems:
            rows += measure_system(
                name, setting, arguments, measured={(row["system"], row["stage"], row["batch"]) for row in rows}
            )
    return pd.DataFrame(rows)


def setting_from(arguments: argparse.Namespace, batch_size: int) -> Setting:
    """Take sizes and ways of computing from the command line."""
    return Setting(
        n_genes=arguments.genes,
        n_expressed=arguments.expressed,
        batch_size=batch_size,
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
    )


def measure_system(
    name: str, setting: Setting, arguments: argparse.Namespace, *, measured: set[tuple[object, ...]]
) -> list[dict[str, object]]:
    """Measure those of a system's stages that are asked for and not measured with so many cells yet."""
    stages = [stage for stage in SYSTEMS[name].stages if stage in arguments.stages]
    if not stages:
        return []
    system, rows = SYSTEMS[name](setting), []
    for stage in stages:
        n_cells = system.n_cells(stage)
        if (name, stage, n_cells) in measured:
            continue
        logger.info("%s, %s, %d cells", name, stage, n_cells)
        step = getattr(system, stage)
        system.prepare(stage)
        result = measure(step, n_cells, device=setting.device, seconds=arguments.seconds)
        rows.append(_row(name, stage, system, setting, result))
        if arguments.profile:
            logger.info("%s", profile(step, device=setting.device))
    return rows


def _row(name: str, stage: str, system: System, setting: Setting, result: Measurement) -> dict[str, object]:
    return {
        "system": name,
        "stage": stage,
        "cells_per_second": result.cells_per_second * system.share(stage),
        "peak_gib": result.peak_bytes / 2**30,
        "genes": setting.n_genes,
        "expressed": setting.n_expressed,
        "batch": system.n_cells(stage),
        "how": system.describe(stage),
        "device": setting.device,
        "machine": describe_machine(setting.device),
        "versions": describe_versions("torch", "scgen-diffusion"),
        "date": today(),
        "parameters": system.n_parameters,
    }


def tabulate(rows: pd.DataFrame) -> str:
    """Write the figures as a table, with the ratio to the published system at the same batch, where that was measured too."""
    speeds = rows.set_index(["system", "batch", "stage"])["cells_per_second"].to_dict()
    lines = [
        [
            f"{row.stage}, {row.system} ({row.how}), batch {row.batch}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.batch / row.cells_per_second:.3g}",
            _number(row.cells_per_second),
            _ratios(row, speeds),
            f"{row.peak_gib:.2f}",
        ]
        for row in rows.itertuples()
    ]
    return markdown_table(["", "M parameters", "s per batch", "cells/s", "x published", "peak GiB"], lines)


def _ratios(row: Any, speeds: dict[tuple[str, int, str], float]) -> str:
    yardstick, named = SYSTEMS[row.system].yardstick, YARDSTICK_STAGES.get(row.stage, {row.stage: ""})
    found = {name: speeds.get((yardstick, row.batch, stage)) for stage, name in named.items()}
    return ", ".join(f"{row.cells_per_second / speed:.1f}{name}" for name, speed in found.items() if speed)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2_000, help="size of the panel")
    parser.add_argument("--expressed", type=int, help="expressed genes per cell; default: 0.36 of the panel")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[128], help="cells per step; published in gene space: 16"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of the package's steps")
    parser.add_argument("--compile", action="store_true", help="compile the package's networks")
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=SYSTEMS,
        default=["published", "package"],
        help="published, package...: scLDM; ...scrdit, SCRDIT...: gene space; ...wbdit, WBDIT...: the white-box one. Name a "
        "published one first to get ratios. Sampling that would take long is extrapolated from a few evaluations of the "
        "network, and says so",
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to measure; default: all"
    )
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
