"""The plots of the gene-space study: small pictures for the documentation, in colours that the colour-blind can tell apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

#: Okabe and Ito's colours and a marker each, so that grey prints tell them apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
FLOOR_COLOUR = "#666666"
PANELS = {
    "auc_pcs": "AUC in PCs (0.5 is best)",
    "precision": "precision",
    "recall": "recall",
    "w2": "2-Wasserstein distance",
    "within_label_correlation": "within-label correlation",
    "share_of_zeros": "share of zeros",
}
DOT_PANELS = ("auc_pcs", "recall", "w2", "share_of_zeros")
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 4,
}
DPI = 110


def draw_plots(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw ``gene_space_<experiment>.png`` for every stored experiment of the first data set; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = table[table["dataset"] == table["dataset"].iloc[0]]
    with mpl.rc_context(STYLE):
        return [
            _save(_draw(experiment, rows), folder / f"gene_space_{experiment}.png")
            for experiment, rows in table.groupby("experiment", sort=False)
        ]


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=DPI)
    return file


def _draw(experiment: str, rows: pd.DataFrame) -> Figure:
    if experiment == "samplers":
        return draw_lines(rows, _sampler_point, "network evaluations", is_log=True)
    if experiment.startswith("zero_value"):
        return draw_lines(rows, _zero_point, "value that stands for zero")
    return draw_dots(rows)


def draw_lines(
    rows: pd.DataFrame, point: Callable[[str, dict[str, Any]], tuple[str, Any]], label: str, *, is_log: bool = False
) -> Figure:
    """Draw figures against a number, one line per series, beside the floor (dashed).

    Parameters
    ----------
    rows
        The experiment's rows.
    point
        Tells series and x of a configuration from its name and settings.
    label, is_log
        The horizontal axis.
    """
    points = {row.configuration: point(row.configuration, json.loads(row.settings)) for row in _configurations(rows)}
    series = list(dict.fromkeys(name for name, _ in points.values()))
    positions = {x: x if is_log else i for i, x in enumerate(dict.fromkeys(x for _, x in points.values()))}
    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for metric, axis in zip(PANELS, axes.flat, strict=True):
        for number, name in enumerate(series):
            members = [configuration for configuration, (of, _) in points.items() if of == name]
            _draw_line(axis, rows, metric, members, [positions[points[m][1]] for m in members], number, name)
        axis.set_title(PANELS[metric], loc="left", fontsize=8)
        _label_axis(axis, positions, label, is_log=is_log)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(series))
    return figure


def draw_dots(rows: pd.DataFrame) -> Figure:
    """Draw one row per configuration: the mean, the range over seeds, and the floor as a line."""
    names = [row.configuration for row in _configurations(rows)]
    figure = Figure(figsize=(8.0, 0.9 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(DOT_PANELS), sharey=True)
    for metric, axis in zip(DOT_PANELS, axes, strict=True):
        for place, name in enumerate(names):
            mean, low, high, floor = spread(rows, name, metric)
            axis.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.5)
            axis.plot(mean, place, "o", color=COLOURS[0])
            axis.plot([floor, floor], [place - 0.4, place + 0.4], color=FLOOR_COLOUR, linewidth=1.5)
        axis.set_title(PANELS[metric], loc="left", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.grid(axis="y", color="#eeeeee")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure


def spread(rows: pd.DataFrame, configuration: str, metric: str) -> tuple[float, float, float, float]:
    """Return mean, smallest and largest value over seeds, and the floor; NaN where there is nothing."""
    chosen = rows[(rows["configuration"] == configuration) & (rows["metric"] == metric)]
    if chosen["value"].notna().sum() == 0:
        return (np.nan,) * 4
    values = chosen["value"]
    return values.mean(), values.min(), values.max(), chosen["floor"].mean()


def _configurations(rows: pd.DataFrame) -> Iterator[Any]:
    return rows.drop_duplicates("configuration").itertuples()


def _draw_line(
    axis: Axes, rows: pd.DataFrame, metric: str, members: list[str], x: list[float], number: int, name: str
) -> None:
    mean, low, high, floor = np.array([spread(rows, member, metric) for member in members]).T
    colour = COLOURS[number % len(COLOURS)]
    axis.plot(x, mean, color=colour, marker=MARKERS[number % len(MARKERS)], linewidth=1.2, label=name)
    axis.vlines(x, low, high, color=colour, linewidth=1.2)
    several_floors = rows["judged_on"].nunique() > 1
    axis.plot(x, floor, color=colour if several_floors else FLOOR_COLOUR, linestyle="--", linewidth=0.9)


def _label_axis(axis: Axes, positions: dict[Any, float], label: str, *, is_log: bool) -> None:
    if is_log:
        axis.set_xscale("log")
    axis.set_xticks(list(positions.values()), [str(x) for x in positions])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(label)


def _sampler_point(name: str, settings: dict[str, Any]) -> tuple[str, int]:
    """Return sampler and number of evaluations."""
    sampler, _, evaluations = name.rpartition(", ")
    return sampler, int(evaluations.split()[0])


def _zero_point(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    """Return number of genes and zero value."""
    value = settings.get("architecture", {}).get("zero_value")
    return f"{settings['n_genes']} genes", "none" if value is None else f"{value:g}"
