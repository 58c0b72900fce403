"""Clocks, memory meters, profiles, and FLOP counts of steps."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

N_WARM_UP = 3
SAMPLING_SECONDS = 0.005
N_ROWS = 12  # rows of a profile to list

#: Operators that are matrix products, or attention, which is mostly matrix products.
MATRIX_OPERATORS = (
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_grouped_mm",
    "aten::mv",
    "aten::dot",
    "mkldnn_linear",
)
ATTENTION_OPERATORS = ("attention",)


@dataclass(frozen=True)
class Measurement:
    """The cost of a step.

    Parameters
    ----------
    cells_per_second, peak_bytes
        Speed, and peak memory.
    further
        Figures that only some stages have, by column.
    """

    cells_per_second: float
    peak_bytes: int
    further: dict[str, object] = field(default_factory=dict)


class PeakMemory:
    """The peak memory inside a ``with`` block, beyond what was in use before the process had any tensors.

    On a GPU, this is what torch's allocator has reserved, which includes the memory of recorded steps. On a CPU, it is
    the resident memory of the process without pages of files, sampled every 5 ms.
    """

    baseline_resident = 0

    def __init__(self, device: str) -> None:
        self.is_cuda = device.startswith("cuda")
        self.peak_bytes = 0
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start measuring."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        if self.is_cuda:
            self.peak_bytes = torch.cuda.max_memory_reserved()
            return
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, resident_bytes() - PeakMemory.baseline_resident)
            if self._stop.wait(SAMPLING_SECONDS):
                return


def clock(device: str) -> float:
    """Read a clock, in seconds: CPU time with one thread, so that other processes do not count; else wall time."""
    on_one_thread = not device.startswith("cuda") and torch.get_num_threads() == 1
    return time.process_time() if on_one_thread else time.perf_counter()


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux), without libraries and mapped files."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def release_memory() -> None:
    """Return freed memory to the system, so that the next measurement does not count it."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        return


def in_child(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a forked process, which has its own memory, threads and global state, and return the result.

    A fork starts at once, while a fresh process imports for ten seconds. But it may hang if this process has used its
    own threads before, so torch must not compute anything in here. Not for GPUs.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *args).result()


def synchronise(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(step: Callable[[], None], n_cells: int, *, device: str, seconds: float) -> Measurement:
    """Run ``step``, which handles ``n_cells`` cells, for about ``seconds`` after a warm-up."""
    durations: list[float] = []
    while len(durations) < N_WARM_UP and sum(durations[1:]) < 2 * seconds:  # the first may compile for a minute
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


@dataclass(frozen=True)
class Profile:
    """Seconds that each operator took in a step, without the operators that it called.

    On a GPU, its own time: if a step takes much longer, the GPU waits for the host.
    """

    seconds: dict[str, float]

    @property
    def matrix_share(self) -> float:
        """Share of the time spent on matrix products and attention."""
        matrix = sum(value for name, value in self.seconds.items() if _is_matrix_work(name))
        return matrix / max(sum(self.seconds.values()), 1e-12)

    def __str__(self) -> str:
        """List the operators that take most time, the share of matrix work, and the time of all."""
        total = sum(self.seconds.values())
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])[:N_ROWS]
        lines = [f"  {value / total:6.1%}  {name}" for name, value in longest]
        return "\n".join([*lines, f"  {self.matrix_share:6.1%}  matrix work in all", f"  {1e3 * total:.2f} ms in all"])


def profile(step: Callable[[], None], *, device: str, n_steps: int = 3) -> Profile:
    """Run ``step`` a few times under torch's profiler."""
    is_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with torch_profile(activities=activities) as profiler:
        _seconds(step, n_steps, device)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + spent * 1e-6 / n_steps
    # on a GPU, kernels are listed beside the operators that launched them: count only the operators
    return Profile(
        {
            name: value
            for name, value in times.items()
            if value > 0 and (not is_cuda or "::" in name and "<" not in name)
        }
    )


def _is_matrix_work(operator: str) -> bool:
    return operator.endswith(MATRIX_OPERATORS) or any(part in operator for part in ATTENTION_OPERATORS)


# --- arithmetic -----------------------------------------------------------------------------------------------

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
#: Size of the square matrices whose product is timed: well beyond the last cache.
MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}
N_REPEATS = 5


aten = torch.ops.aten
#: FLOP formulas for attention on a CPU, by shapes; torch's counter does not have them.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def count_flops(step: Callable[[], object]) -> int:
    """Run ``step`` once, eagerly, and count the FLOPs of matrix products, convolutions and attention.

    A multiply-add counts as two.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # otherwise generation uses other threads, which the counter does not see
    try:
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step()
    finally:
        torch.set_num_threads(n_threads)
    return counter.get_total_flops()


def matrix_rate(device: str, precision: str) -> float:
    """Return the FLOPs per second of large matrix products on a device, the best of several runs.

    It uses torch's current number of threads.
    """
    side, generator = (
        MATRIX_SIDES[torch.device(device).type],
        torch.Generator().manual_seed(0),
    )  # some devices are faster with zeros
    a, b = (torch.randn(side, side, generator=generator).to(device, DTYPES[precision]) for _ in range(2))
    _seconds(lambda: a @ b, 1, device)
    return 2 * side**3 / min(_seconds(lambda: a @ b, 1, device) for _ in range(N_REPEATS))
