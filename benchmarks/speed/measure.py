"""Measure the stages of a system: speed and peak memory, one row each."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

import torch

from benchmarks.runner import in_fresh_process, quieten
from benchmarks.speed.systems import STAGES, SYSTEMS, Setting, clock
from benchmarks.tables import describe_processor, describe_source

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("benchmarks.speed")

#: Size of the square matrices whose product is timed: well beyond the last cache.
MATRIX_SIDES = {"cpu": 2_048, "cuda": 8_192}


class PeakMemory:
    """The peak memory inside a ``with`` block, beyond a baseline.

    On a GPU, this is what torch's allocator has reserved. On a CPU, it is the resident memory of the process without
    pages of files, sampled every 5 ms.
    """

    def __init__(self, setting: Setting, baseline: int) -> None:
        self.is_cuda, self.baseline, self.peak = setting.is_cuda, baseline, 0
        self._stop, self._thread = Event(), Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_cuda:
            self.peak = torch.cuda.max_memory_reserved()
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, resident_bytes() - self.baseline)
            if self._stop.wait(0.005):
                return


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux), without libraries and mapped files."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@cache
def matrix_rate(device: str, precision: str) -> float:
    """Return the FLOPs per second of large matrix products on a device, the best of several runs."""
    side, dtype = MATRIX_SIDES[torch.device(device).type], torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        started = clock(device)
        a @ b
        seconds.append(clock(device) - started)
    return 2 * side**3 / min(seconds[1:])


def measure_system(
    name: str, setting: Setting, stages: Sequence[str] = STAGES, seconds: float = 2.0, threads: int | None = None
) -> list[dict[str, object]]:
    """Measure the requested stages of a system, those that it has; one that fails has its error in `how`."""
    quieten()
    if threads:
        torch.set_num_threads(threads)
    build, own = SYSTEMS[name]
    stages, baseline, rows = [stage for stage in own if stage in stages], resident_bytes(), []
    system = build(setting) if stages else None
    for stage in stages:
        n_cells = system.n_cells(stage)
        logger.info("%s, %s, %d cells", name, stage, n_cells)
        row = {
            "system": name,
            "stage": stage,
            "genes": setting.n_genes,
            "expressed": setting.n_expressed,
            "batch": n_cells,
            "how": system.describe(stage),
            "device": setting.device,
            **describe_source("torch", "scgen-diffusion", device=setting.device),
            "parameters": sum(p.numel() for n in system.networks for p in n.parameters() if p.requires_grad),
            "processor": describe_processor(setting.device),
            "threads": torch.get_num_threads(),
            "precision": system.precision(stage),
            "compile": setting.compile,
            "cells": setting.n_cells if name.startswith("calls-") else None,
            "steps": setting.n_steps,
        }
        try:  # one failure must not cost the other figures of a borrowed machine
            with PeakMemory(setting, baseline) as memory:
                found = system.measure(stage, seconds)
        except Exception as error:
            logger.exception("%s, %s failed", name, stage)
            rows.append(row | {"how": f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]})
            continue
        row |= {"cells_per_second": found.cells_per_second, "peak_gib": memory.peak / 2**30}
        row |= {
            "seconds": n_cells / found.cells_per_second,
            "matrix_rate": matrix_rate(setting.device, row["precision"]),
        }
        rows.append(row | found.further)
    return rows


def measure_apart(name: str, setting: Setting, *options: object) -> list[dict[str, object]]:
    """Measure a system in its own process, or in this one on a GPU."""
    if setting.is_cuda:
        return measure_system(name, setting, *options)
    return in_fresh_process(measure_system, name, setting, *options)
