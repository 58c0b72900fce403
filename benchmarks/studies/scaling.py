"""How costs scale: with the batch, the panel, the latent tokens, the sampler's steps, and the size of the data set.

    python -m benchmarks.studies.scaling                          # results/scaling.csv, docs/_static/speed_*.png
    python -m benchmarks.studies.scaling --plots-only

One of these varies at a time, from 2 000 genes, 720 expressed, batches of 128 (512 for the prior), and the models'
defaults. CPU time of one thread, unless ``--threads`` says otherwise.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import LogLocator

from benchmarks.speed.measure import measure_apart, quieten
from benchmarks.speed.systems import Setting
from benchmarks.tables import ROOT, read_table, store_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("benchmarks.scaling")

RESULTS = Path(__file__).parent / "results"
PLOTS = ROOT / "docs" / "_static"
BASE = Setting(n_genes=2000, n_expressed=720)
EXPRESSED = 0.36  # share of the panel
KEYS = ("sweep", "value", "system", "stage", "commit", "threads", "processor")

STEPS = {
    "package": ("autoencoder_step", "prior_step", "generate"),
    "SCRDIT": ("training_step", "generate"),
    "WBDIT": ("training_step", "generate"),
}
CALLS = {"calls-SCLDM": ("setup", "loading", "loading_backed", "latent_representation")}
LABELS = {
    ("package", "autoencoder_step"): "SCLDM, autoencoder",
    ("package", "prior_step"): "SCLDM, prior",
    ("package", "generate"): "SCLDM, generate",
    ("SCRDIT", "training_step"): "SCRDIT, train",
    ("SCRDIT", "generate"): "SCRDIT, generate",
    ("WBDIT", "training_step"): "WBDIT, train",
    ("WBDIT", "generate"): "WBDIT, generate",
    ("calls-SCLDM", "setup"): "setup_anndata",
    ("calls-SCLDM", "loading"): "read, memory",
    ("calls-SCLDM", "loading_backed"): "read, backed h5ad",
    ("calls-SCLDM", "latent_representation"): "latents",
}
COLOURS = dict(zip(LABELS, [*(f"C{number}" for number in range(10)), "black"], strict=True))


@dataclass(frozen=True)
class Sweep:
    """One size that is varied.

    Parameters
    ----------
    values
        Its values.
    change
        Function that applies a value to the setting.
    title, unit
        Title and y axis of the plot.
    systems
        Systems and their stages.
    """

    values: tuple[int, ...]
    change: Callable[[Setting, int], Setting]
    title: str
    unit: str = "ms per cell"
    systems: dict[str, tuple[str, ...]] = field(default_factory=lambda: STEPS)


def _with_genes(setting: Setting, n: int) -> Setting:
    return replace(setting, n_genes=n, n_expressed=int(EXPRESSED * n))


SWEEPS = {
    "batch": Sweep(
        (16, 32, 64, 128, 256, 512),
        lambda setting, n: replace(setting, batch_size=n),
        "cells of a batch",
        systems={name: stages[:2] if name == "package" else stages[:1] for name, stages in STEPS.items()},
    ),
    "genes": Sweep((500, 1000, 2000, 4000, 8000), _with_genes, "genes"),
    "tokens": Sweep(
        (2, 4, 8, 16, 32),
        lambda setting, n: replace(setting, architecture={"n_latent_tokens": n}),
        "latent tokens of SCLDM",
        systems={"package": STEPS["package"]},
    ),
    "steps": Sweep(
        (2, 5, 10, 20, 40),
        lambda setting, n: replace(setting, n_steps=n),
        "steps of the sampler",
        systems={"package": ("generate",), "SCRDIT": ("generate",), "WBDIT": ("generate",)},
    ),
    "cells": Sweep(
        (1_000, 4_000, 16_000, 48_000),
        lambda setting, n: replace(setting, n_cells=n),
        "cells of the data set",
        unit="seconds",
        systems=CALLS,
    ),
}


def run(arguments: argparse.Namespace) -> None:
    """Measure the requested sweeps, one value at a time, and store each at once."""
    for name in arguments.sweeps:
        sweep = SWEEPS[name]
        for value in sweep.values[: arguments.largest]:
            for system, stages in sweep.systems.items():
                rows = measure_value(sweep, value, system, stages, arguments)
                store_rows(arguments.results / "scaling.csv", pd.DataFrame(rows).assign(sweep=name, value=value), KEYS)


def measure_value(
    sweep: Sweep, value: int, system: str, stages: Iterable[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure the stages of one system with the size set to a value."""
    logger.info("%s: %s", sweep.title, value)
    options = {"seconds": arguments.seconds, "threads": arguments.threads, "limit": False}
    return measure_apart(system, sweep.change(BASE, value), stages, **options)


def draw(table: pd.DataFrame, folder: Path) -> None:
    """Draw cost per cell and peak memory against the sizes, from the latest measurements."""
    latest = table.drop_duplicates(["sweep", "value", "system", "stage"], keep="last")
    names = [name for name in SWEEPS if name in set(latest["sweep"])]
    with_memory = [name for name in names if name != "steps"]  # which need no more memory
    _draw_figure(latest, names, folder / "speed_scaling.png", lambda name, rows: _cost(SWEEPS[name], rows))
    _draw_figure(latest, with_memory, folder / "speed_memory.png", lambda _, rows: rows["peak_gib"], "GiB")


def _cost(sweep: Sweep, rows: pd.DataFrame) -> pd.Series:
    """Return milliseconds per cell, or the seconds of a call."""
    if sweep.unit != "seconds":
        return 1000 / rows["cells_per_second"]
    return rows["batch"] / rows["cells_per_second"]


def _draw_figure(
    table: pd.DataFrame,
    names: list[str],
    path: Path,
    height: Callable[[str, pd.DataFrame], pd.Series],
    unit: str | None = None,
) -> None:
    n_columns = -(-len(names) // 2)
    figure, axes = plt.subplots(2, n_columns, figsize=(3.9 * n_columns, 6.4), squeeze=False, layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        rows = table[table["sweep"] == name]
        for key, of_stage in rows.groupby(["system", "stage"], sort=False):
            of_stage = of_stage.sort_values("value")
            ax.plot(
                of_stage["value"],
                height(name, of_stage),
                marker="o",
                ms=3.5,
                lw=1.3,
                label=LABELS[key],
                color=COLOURS[key],
            )
        ax.set(title=SWEEPS[name].title, ylabel=unit or SWEEPS[name].unit, xscale="log", yscale="log")
        ax.set_xticks(sorted(set(rows["value"])), [f"{value:g}" for value in sorted(set(rows["value"]))])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.margins(y=0.1)
        ax.grid(color="0.92")
    for ax in list(axes.flat)[len(names) :]:
        ax.remove()
    lines = {label: line for ax in figure.axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quieten()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--largest", type=int, help="measure only this many values of each, smallest first")
    parser.add_argument("--seconds", type=float, default=1.0, help="approximate duration of each measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    parser.add_argument("--plots-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.plots_only:
        run(arguments)
    draw(read_table(arguments.results / "scaling.csv"), arguments.plots)


if __name__ == "__main__":
    main()
