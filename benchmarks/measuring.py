"""Clocks, memory meters and profiles."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

if TYPE_CHECKING:
    from collections.abc import Callable

N_WARM_UP = 3
SAMPLING_SECONDS = 0.005

#: Operators that are matrix products, or attention, which is little else.
MATRIX_OPERATORS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm", "mkldnn_linear")
ATTENTION_OPERATORS = ("attention",)


@dataclass(frozen=True)
class Measurement:
    """What a step costs."""

    cells_per_second: float
    peak_bytes: int


class PeakMemory:
    """The most memory in use inside a ``with`` block, beyond what was in use before the process had any tensors.

    On a GPU that is what torch's allocator handed out; on a CPU the process's resident memory, looked at every 5 ms.
    """

    baseline_resident = 0

    def __init__(self, device: str) -> None:
        self.is_cuda = device.startswith("cuda")
        self.peak_bytes = 0
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start to look."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        if self.is_cuda:
            self.peak_bytes = torch.cuda.max_memory_allocated()
            return
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, resident_bytes() - PeakMemory.baseline_resident)
            if self._stop.wait(SAMPLING_SECONDS):
                return


def clock(device: str) -> float:
    """Read a clock, in seconds: CPU time where one thread computes, so that other processes do not count; else the time of day."""
    on_one_thread = not device.startswith("cuda") and torch.get_num_threads() == 1
    return time.process_time() if on_one_thread else time.perf_counter()


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(step: Callable[[], None], n_cells: int, *, device: str, seconds: float) -> Measurement:
    """Run ``step``, which handles ``n_cells`` cells, for about so many seconds after a warm-up."""
    durations = []
    while len(durations) < N_WARM_UP and sum(durations) < 2 * seconds:
        durations.append(_seconds(step, 1, device))
    n_steps = max(round(seconds / durations[-1]), 1)
    with PeakMemory(device) as memory:
        duration = _seconds(step, n_steps, device)
    return Measurement(n_steps * n_cells / duration, memory.peak_bytes)


def _seconds(step: Callable[[], None], n_steps: int, device: str) -> float:
    synchronise(device)
    started = clock(device)
    for _ in range(n_steps):
        step()
    synchronise(device)
    return clock(device) - started


def profile(step: Callable[[], None], *, device: str, n_steps: int = 3, n_rows: int = 12) -> str:
    """Return the operators that take most time, and the share of matrix work."""
    is_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with torch_profile(activities=activities) as profiler:
        _seconds(step, n_steps, device)
    times = {}
    for event in profiler.key_averages():
        times[event.key] = times.get(event.key, 0.0) + (
            event.self_device_time_total if is_cuda else event.self_cpu_time_total
        )
    # on a GPU, kernels are listed beside the operators that launched them: count the operators, or all would count twice
    times = {
        name: value for name, value in times.items() if value > 0 and (not is_cuda or "::" in name and "<" not in name)
    }
    total = sum(times.values())
    lines = [
        f"  {value / total:6.1%}  {name}" for name, value in sorted(times.items(), key=lambda item: -item[1])[:n_rows]
    ]
    matrix = sum(value for name, value in times.items() if _is_matrix_work(name))
    return "\n".join([*lines, f"  {matrix / total:6.1%}  matrix work in all"])


def _is_matrix_work(operator: str) -> bool:
    return operator.endswith(MATRIX_OPERATORS) or any(part in operator for part in ATTENTION_OPERATORS)
