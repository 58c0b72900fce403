"""Whether a protein goes with its transcript, in real and in synthetic cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgen_diffusion.metrics import cross_modality_correlation

from ._figures import finish, one_axis
from ._pairs import SOURCES, legend_beside, without_frame

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from mudata import MuData

MOST_PAIRS = 60  # whose names can be read


def modality_correlation(
    real: MuData,
    synthetic: MuData,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    modalities: tuple[str, str] | None = None,
    groupby: str | Sequence[str] | None = None,
    scales: Mapping[str, str] | None = None,
    layers: Mapping[str, str] | None = None,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot the correlation of every pair of features of two modalities, such as a transcript and its protein, in real and in synthetic cells.

    The grey bar around the real correlation reaches as far as two halves of the real cells differ on average: a synthetic point within it is as near as can be told. The title says how
    similar the correlations of all features of both modalities are, and how similar those of two sets of real cells.

    Parameters
    ----------
    real, synthetic
        Cells with both modalities, with the same features. They are not changed.
    pairs
        Pairs of a feature of the first and one of the second modality; default: those of the same name. At most 60.
    modalities
        Names of the first and second modality; default: the two that there are.
    groupby
        Column of `obs`, or several. Correlations are then those within groups: each group's mean is taken away. Default: among all cells, where differences
        between cell types make most of the correlations.
    scales, layers
        See :func:`~scgen_diffusion.metrics.evaluate_modalities`.
    seed
        Decides the halves.
    ax
        Axis to draw on.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, if it is not shown.

    Raises
    ------
    KeyError
        If a modality, a feature or a column is absent.
    ValueError
        If there are no pairs, or too many.

    See Also
    --------
    scgen_diffusion.metrics.cross_modality_correlation : The figures for it.
    """
    found = cross_modality_correlation(
        real, synthetic, pairs, modalities=modalities, groupby=groupby, scales=scales, layers=layers, seed=seed
    )
    if not 0 < len(found.pairs) <= MOST_PAIRS:
        msg = f"`pairs` must have 1 to {MOST_PAIRS} pairs, but found {len(found.pairs)}. If none are given, they are the features of the same name in both."
        raise ValueError(msg)
    table = found.pairs.sort_values("real", ignore_index=True)
    ax = one_axis(ax, size=(4.6, 1.3 + 0.24 * len(table)))
    draw_pairs(ax, table)
    names = list(modalities or real.mod)
    ax.set_yticks(range(len(table)), pair_names(table), fontsize="small")
    ax.set_xlabel(f"correlation of {names[0]} and {names[1]}" + ("" if groupby is None else f"\nwithin {groupby}"))
    figures = found.summary.loc["cross_correlation_similarity"]
    title = f"all features: similarity {figures['value']:.2f}\n(real against real cells: {figures['floor']:.2f})"
    ax.set_title(title, fontsize="medium")
    legend_beside(ax, {"": SOURCES})
    return finish(ax, show, save)


def draw_pairs(ax: Axes, table: pd.DataFrame) -> None:
    """Draw a row per pair: real with what halves differ by, synthetic, and a line between."""
    rows = np.arange(len(table))
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.hlines(rows, table["real"], table["synthetic"], color="0.75", linewidth=1, zorder=1)
    low, high = table["real"] - table["floor"], table["real"] + table["floor"]
    ax.hlines(rows, low, high, color=SOURCES["real"], alpha=0.3, linewidth=7, zorder=1)
    for name, color in SOURCES.items():
        ax.scatter(table[name], rows, s=26, color=color, linewidths=0, zorder=3)
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.tick_params(axis="y", length=0)
    without_frame(ax)


def pair_names(table: pd.DataFrame) -> list[str]:
    """Name pairs by both features, or by one where they are called the same."""
    return [
        first if first.casefold() == second.casefold() else f"{first} – {second}"
        for first, second in zip(table["first"], table["second"], strict=True)
    ]
