"""How fast, in how much memory? Steps and calls of the package beside those of the published systems, on made-up cells of a given size.

    python benchmarks/speed.py                                                  # two CPU cores
    python benchmarks/speed.py --genes 17002 --expressed 6147 --device cuda --precision bf16 --compile --profile
    python benchmarks/speed.py --systems published-scrdit SCRDIT-published-size SCRDIT --batch 16 128
    python benchmarks/speed.py --systems published-wbdit WBDIT-published-size WBDIT SCRDIT --stages training_step
    python benchmarks/speed.py --systems calls-SCLDM --cells 20000              # whole epochs of train, generate, save, load, ...
    python benchmarks/speed.py --systems package SCRDIT --threads 1 --check     # slower than the last stored figures? Nothing is stored

A step is one optimiser step (or one batch of cells generated) with its data on the device: loading data is not part of it. A call is what a user writes, all
included. ``speed_report.py`` runs everything, draws the pictures and writes the pages; ``gpu.py`` is for a machine with a GPU.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from history import SLOWER, TOLERANCE, compare, tabulate_changes
from measuring import Measurement, PeakMemory, in_child, profile, release_memory, resident_bytes
from results import (
    describe_commit,
    describe_machine,
    describe_processor,
    describe_versions,
    markdown_table,
    read_table,
    store_rows,
    today,
)
from roofline import Rates, count_work
from system import Setting, System
from systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("benchmarks.speed")

RESULTS = Path(__file__).parent / "results"


STAGES = tuple(dict.fromkeys(stage for system in SYSTEMS.values() for stage in system.stages))

LONG_STEP = 0.3  # seconds; one such step shows where the time goes as well as three

#: Stages of a published system beside which a stage is set, and how they are called.
YARDSTICK_STAGES = {"generate": {"generate": "", "generate_ddpm": " DDPM", "generate_ddim": " DDIM"}}


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Measure every system's stages at every batch size."""
    rows: list[dict[str, object]] = []
    for batch_size in arguments.batch:
        setting = setting_from(arguments, batch_size)
        for name in arguments.systems:
            measured = {(row["system"], row["stage"], row["batch"]) for row in rows}
            rows += measure_apart(name, setting, arguments, measured)
    return pd.DataFrame(rows)


def measure_apart(
    name: str, setting: Setting, arguments: argparse.Namespace, measured: set[tuple[object, ...]] = frozenset()
) -> list[dict[str, object]]:
    """Measure a system in a process of its own, where that can be had: a CUDA context does not survive a fork."""
    if setting.device.startswith("cuda") or not arguments.apart:
        return measure_system(name, setting, arguments, measured=measured)
    return in_child(_measure_in_child, name, setting, arguments, measured)


def _measure_in_child(
    name: str, setting: Setting, arguments: argparse.Namespace, measured: set[tuple[object, ...]]
) -> list[dict[str, object]]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return measure_system(name, setting, arguments, measured=measured)


def setting_from(arguments: argparse.Namespace, batch_size: int) -> Setting:
    """Take sizes and ways of computing from the command line."""
    return Setting(
        n_genes=arguments.genes,
        n_expressed=arguments.expressed,
        batch_size=batch_size,
        device=arguments.device,
        precision=arguments.precision,
        compile=arguments.compile,
        n_cells=arguments.cells,
    )


def measure_system(
    name: str,
    setting: Setting,
    arguments: argparse.Namespace,
    *,
    measured: set[tuple[object, ...]],
    on_failure: Callable[[str, Exception], dict[str, object]] | None = None,
) -> list[dict[str, object]]:
    """Measure those of a system's stages that are asked for and not measured with so many cells yet.

    ``on_failure`` makes a row of a stage that failed; without it the error is raised.
    """
    stages = [stage for stage in SYSTEMS[name].stages if stage in arguments.stages]
    if not stages:
        return []
    PeakMemory.baseline_resident = resident_bytes()
    rates = machine_rates(setting.device) if arguments.limit else None
    system, rows = SYSTEMS[name](setting), []
    for stage in stages:
        if (name, stage, system.n_cells(stage)) in measured:
            continue
        logger.info("%s, %s, %d cells", name, stage, system.n_cells(stage))
        release_memory()
        try:
            rows.append(_measure_stage(name, stage, system, setting, arguments, rates))
        except Exception as error:
            if on_failure is None:
                raise
            rows.append(on_failure(stage, error))
    return rows


def _measure_stage(
    name: str, stage: str, system: System, setting: Setting, arguments: argparse.Namespace, rates: Rates | None
) -> dict[str, object]:
    row = _row(name, stage, system, setting, system.measure(stage, arguments.seconds))
    if rates:
        row |= limits(system, stage, name, rates)
    if arguments.profile or (arguments.limit and stage in system.counted):
        row |= _profile(system, stage, row["seconds"], shown=arguments.profile)
    return row


@cache
def machine_rates(device: str) -> Rates:
    """Measure once how fast matrices are multiplied and memory is copied."""
    rates = Rates.measure(device)
    flops = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in rates.flops_per_second.items())
    logger.info("matrix product %s; copy %.1f GB/s", flops, rates.bytes_per_second / 1e9)
    return rates


def limits(system: System, stage: str, name: str, rates: Rates) -> dict[str, object]:
    """Return the device's rates, and for a stage that is counted its arithmetic and the cells per second that it would allow."""
    precision = system.precision(stage)
    row: dict[str, object] = {"matrix_rate": rates.flops_per_second[precision], "bandwidth": rates.bytes_per_second}
    if stage not in system.counted:
        return row
    counted = system
    if system.setting.compile:  # compiled code hides its operators
        counted = SYSTEMS[name](replace(system.setting, compile=False))
        counted.prepare(stage)
    work, n_cells = count_work(getattr(counted, stage)), system.n_cells(stage) * system.share(stage)
    return row | {
        "flops_per_cell": work.flops / n_cells,
        "least_bytes_per_cell": work.least_bytes / n_cells,
        "unfused_bytes_per_cell": work.unfused_bytes / n_cells,
        "limit": n_cells / work.limit(rates, dtype=precision),
        "unfused_limit": n_cells / work.unfused_limit(rates, dtype=precision),
    }


def _profile(system: System, stage: str, seconds: float, *, shown: bool) -> dict[str, object]:
    n_steps = 3 if seconds < LONG_STEP else 1
    found = profile(getattr(system, stage), device=system.setting.device, n_steps=n_steps)
    if shown:
        logger.info("%s", found)
    return {"matrix_share": found.matrix_share}


def _row(name: str, stage: str, system: System, setting: Setting, result: Measurement) -> dict[str, object]:
    speed = result.cells_per_second * system.share(stage)
    return {
        "system": name,
        "stage": stage,
        "cells_per_second": speed,
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
        "processor": describe_processor(setting.device),
        "threads": torch.get_num_threads(),
        "precision": system.precision(stage),
        "compile": setting.compile,
        "seconds": system.n_cells(stage) / speed,
        "commit": describe_commit(),
        "cells": setting.n_cells if name.startswith("calls-") else None,
        "steps": setting.n_steps,
        **result.further,
    }


def tabulate(rows: pd.DataFrame) -> str:
    """Write the figures as a table, with the ratio to the published system at the same batch, where that was measured too."""
    speeds = rows.set_index(["system", "batch", "stage"])["cells_per_second"].to_dict()
    lines = [
        [
            f"{row.stage}, {row.system} ({row.how}), batch {row.batch}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.seconds:.3g}",
            _number(row.cells_per_second),
            _ratios(row, speeds),
            f"{row.peak_gib:.2f}",
            _share(row, "limit"),
            _share(row, "unfused_limit"),
            f"{matrix:.0%}" if (matrix := getattr(row, "matrix_share", float("nan"))) == matrix else "",
        ]
        for row in rows.itertuples()
    ]
    header = ["", "M parameters", "s per batch", "cells/s", "x published", "peak GiB"]
    return markdown_table([*header, "of the limit", "of the unfused limit", "matrix work"], lines)


def _share(row: Any, limit: str) -> str:
    possible = getattr(row, limit, float("nan"))
    return f"{row.cells_per_second / possible:.0%}" if possible == possible else ""


def _ratios(row: Any, speeds: dict[tuple[str, int, str], float]) -> str:
    yardstick, named = SYSTEMS[row.system].yardstick, YARDSTICK_STAGES.get(row.stage, {row.stage: ""})
    found = {name: speeds.get((yardstick, row.batch, stage)) for stage, name in named.items()}
    return ", ".join(f"{row.cells_per_second / speed:.1f}{name}" for name, speed in found.items() if speed)


def _number(value: float) -> str:
    if value != value:
        return ""
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
    parser.add_argument("--cells", type=int, default=4096, help="size of the data set of calls-...")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement, about")
    parser.add_argument("--profile", action="store_true", help="say where the time goes, and what share is matrix work")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: its own choice")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed.csv")
    parser.add_argument(
        "--limit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure what the device could do, and count what the package's steps do",
    )
    parser.add_argument(
        "--apart",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure every system in a process of its own (CPU), so that memory is its own",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare with the last stored figures of the same machine and sizes, end with 1 if one is slower, and store nothing. "
        "With --threads 1 times are those of the processor, which other processes disturb less",
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of the speed that --check lets go")
    parser.add_argument("--record", action="store_true", help="store the figures with --check, too")
    parsed = parser.parse_args(arguments)
    parsed.expressed = parsed.expressed or int(0.36 * parsed.genes)
    return parsed


def check(rows: pd.DataFrame, stored: pd.DataFrame, tolerance: float) -> bool:
    """Say what changed, and whether nothing became slower."""
    changes = compare(rows, stored, tolerance)
    logger.info("%s\n", tabulate_changes(changes))
    slower = int((changes["verdict"] == SLOWER).sum())
    if slower:
        logger.info("%d of %d figures are slower by more than %.0f %%.", slower, len(changes), 100 * tolerance)
    return not slower


def quieten() -> None:
    """Hide what libraries say at every training."""
    logging.getLogger("scgen_diffusion").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quieten()
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    path, rows = arguments.results / "speed.csv", run(arguments)
    stored = read_table(path)
    if arguments.record or not arguments.check:
        store_rows(path, rows)
    logger.info("%s\n\n%s", tabulate(rows), describe_machine(arguments.device))
    if arguments.check and not check(rows, stored, arguments.tolerance):
        sys.exit(1)


if __name__ == "__main__":
    main()
