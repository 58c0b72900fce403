"""Measure a system's stages: speed, memory, and the share of the machine's limit."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from benchmarks.speed.calls import CallsScldm, CallsScrdit, CallsWbdit
from benchmarks.speed.meters import (
    Measurement,
    PeakMemory,
    count_flops,
    in_child,
    matrix_rate,
    profile,
    release_memory,
    resident_bytes,
)
from benchmarks.speed.systems import (
    PackagePublishedSizes,
    PackageScrdit,
    PackageScrditPublishedSize,
    PackageSystem,
    PackageWbdit,
    PackageWbditPublishedSize,
    PublishedScrdit,
    PublishedSystem,
    PublishedWbdit,
    Setting,
    System,
)
from benchmarks.tables import describe_commit, describe_machine, describe_processor, describe_versions, today

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("benchmarks.speed")

SYSTEMS: dict[str, type[System]] = {
    "published": PublishedSystem,
    "package": PackageSystem,
    "package-published-sizes": PackagePublishedSizes,
    "calls-SCLDM": CallsScldm,
    "calls-SCRDIT": CallsScrdit,
    "calls-WBDIT": CallsWbdit,
    "published-scrdit": PublishedScrdit,
    "published-wbdit": PublishedWbdit,
    "SCRDIT": PackageScrdit,
    "SCRDIT-published-size": PackageScrditPublishedSize,
    "WBDIT": PackageWbdit,
    "WBDIT-published-size": PackageWbditPublishedSize,
}
STAGES = tuple(dict.fromkeys(stage for system in SYSTEMS.values() for stage in system.stages))
LONG_STEP = 0.3  # seconds; for longer steps, profiling one is as informative as three


def measure_system(
    name: str,
    setting: Setting,
    stages: Sequence[str] = STAGES,
    *,
    seconds: float = 2.0,
    limit: bool = True,
    show_profile: bool = False,
    threads: int | None = None,
    on_failure: Callable[[str, Exception], dict[str, object]] | None = None,
) -> list[dict[str, object]]:
    """Measure the requested stages of a system.

    Parameters
    ----------
    name, setting, stages
        A key of :data:`SYSTEMS`, sizes, and stages; stages that the system lacks are left out.
    seconds
        Approximate duration of each measurement.
    limit
        Whether to measure the limit of the device, and count the operations of the package's steps.
    show_profile
        Whether to log where the time goes.
    threads
        CPU threads of torch; None for torch's default.
    on_failure
        Function that makes a row for a failed stage; without it the error is raised.
    """
    stages = [stage for stage in SYSTEMS[name].stages if stage in stages]
    if not stages:
        return []
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = setting.precision == "tf32"
    PeakMemory.baseline_resident = resident_bytes()
    system, rows = SYSTEMS[name](setting), []
    for stage in stages:
        logger.info("%s, %s, %d cells", name, stage, system.n_cells(stage))
        release_memory()
        try:
            row = _row(name, stage, system, setting, system.measure(stage, seconds))
            eager = _with_operators(system, stage, name) if show_profile or limit else system
            if limit:
                row |= limits(eager, stage)
            if show_profile or (limit and stage in system.counted):
                n_steps = 3 if row["seconds"] < LONG_STEP else 1
                found = profile(getattr(eager, stage), device=setting.device, n_steps=n_steps)
                row |= {"matrix_share": found.matrix_share}
                if show_profile:
                    logger.info("%s", found)
        except Exception as error:
            if on_failure is None:
                raise
            row = on_failure(stage, error)
        rows.append(row)
    return rows


def measure_apart(name: str, setting: Setting, stages: Sequence[str] = STAGES, **options: object) -> list[dict]:
    """Measure a system in its own process if possible: a CUDA context does not survive a fork."""
    if setting.device.startswith("cuda"):
        return measure_system(name, setting, stages, **options)
    return in_child(_measure_in_child, name, setting, stages, options)


def _measure_in_child(name: str, setting: Setting, stages: Sequence[str], options: dict) -> list[dict]:
    return measure_system(name, setting, stages, **options)


device_rate = cache(matrix_rate)


def _with_operators(system: System, stage: str, name: str) -> System:
    """Return a system that runs the operators of a stage one by one: compiled and replayed ones cannot be counted."""
    setting = system.setting
    is_replayed = setting.device.startswith("cuda") and setting.replay
    if stage not in system.counted or not (setting.compile or is_replayed):
        return system
    eager = SYSTEMS[name](replace(setting, compile=False, replay=False))
    eager.prepare(stage)
    return eager


def limits(system: System, stage: str) -> dict[str, object]:
    """Return the device's matrix rate and, for counted stages, their FLOPs and the cells per second that they allow."""
    row: dict[str, object] = {"matrix_rate": device_rate(system.setting.device, system.precision(stage))}
    if stage not in system.counted:
        return row
    flops_per_cell = count_flops(getattr(system, stage)) / (system.n_cells(stage) * system.share(stage))
    if not flops_per_cell:  # other threads computed, as in generation on a GPU, and the counter does not see them
        return row
    return row | {"flops_per_cell": flops_per_cell, "limit": row["matrix_rate"] / flops_per_cell}


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


def quieten() -> None:
    """Hide messages that libraries print at every training."""
    logging.getLogger("scgen_diffusion").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
