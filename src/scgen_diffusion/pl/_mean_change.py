"""What a perturbation does to every gene, as predicted and in real cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from scgen_diffusion.data import known_names
from scgen_diffusion.metrics import correlation, gene_changes

from ._figures import chosen, finish, own_panels
from ._pairs import SOURCES, check_is_anndata, labels_of, without_frame

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: Grey for all genes, as of real cells; the top genes in the blue of Okabe and Ito.
OTHER_COLOR, TOP_COLOR = SOURCES["real"], "#0072B2"
MARGIN = 0.06  # of the range, around the points
NAME_MARGIN = 0.34  # of the range, for a column of names
LINE_HEIGHT = 0.062  # of the range, between names


def mean_change(
    real: AnnData,
    predicted: AnnData,
    control: AnnData,
    *,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    n_top: int = 100,
    n_names: int = 10,
    layer: str | None = None,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot every gene's mean change against control, predicted against real, and name the genes that really change most.

    Genes on the dashed diagonal change as much as they should; below it (for a rise) the effect is too small. Each panel says Pearson's correlation over all genes and
    over the top ones, which are in blue: those with the largest Welch *t* in real cells.

    Parameters
    ----------
    real, predicted, control
        Perturbed cells, real and predicted, and real unperturbed ones, with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. They are not changed.
    groupby
        Column of `obs`, such as the cell type: one panel per group, against the control cells of the group. Default: one panel of all cells.
    groups
        Which of them; default: all of `real`.
    n_top
        How many genes are the top ones.
    n_names
        How many of them are named.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    axs
        Axes to draw on, one per group.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.

    Raises
    ------
    KeyError
        If `groupby` is no column of all three.
    ValueError
        For unknown groups, and groups without predicted or control cells.

    See Also
    --------
    scgen_diffusion.metrics.gene_changes : The figures as a table.
    scgen_diffusion.metrics.mean_change_correlation : The correlations.
    """
    sets = {"real": real, "predicted": predicted, "control": control}
    for name, cells in sets.items():
        check_is_anndata(cells, name)
    panels = {"": sets} if groupby is None else sets_of_groups(sets, groupby, groups)
    axes = own_panels(len(panels), axs, size=(3.9, 3.7))
    for ax, (title, cells) in zip(axes, panels.items(), strict=True):
        draw_changes(ax, gene_changes(**cells, layer=layer), n_top, n_names)
        ax.set_title(title)
    return finish(axes, show, save)


def sets_of_groups(
    sets: dict[str, AnnData], groupby: str, groups: Sequence[str] | None
) -> dict[str, dict[str, AnnData]]:
    """Return the cells of every group."""
    labels = {name: labels_of(cells, groupby, name).to_numpy() for name, cells in sets.items()}
    groups = chosen("groups", groups, sorted(set(labels["real"])))
    for name, found in labels.items():
        if missing := [group for group in groups if group not in found]:
            msg = f"`{name}` has no cells of the group {missing[0]!r}. {known_names(missing[0], sorted(set(found)))}"
            raise ValueError(msg)
    return {group: {name: cells[labels[name] == group] for name, cells in sets.items()} for group in groups}


def draw_changes(ax: Axes, table: pd.DataFrame, n_top: int, n_names: int) -> None:
    """Draw the genes of one group, the top ones over all others."""
    top = table.iloc[:n_top]
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--", zorder=1)
    rasterized = len(table) > 2_000  # or a vector graphic would hold every point
    ax.scatter(
        table["real"], table["predicted"], s=5, color=OTHER_COLOR, alpha=0.4, linewidths=0, rasterized=rasterized
    )
    ax.scatter(top["real"], top["predicted"], s=12, color=TOP_COLOR, linewidths=0)
    side = "right" if table["real"].max() >= -table["real"].min() else "left"
    set_limits(ax, table, side)
    name_genes(ax, top.iloc[:n_names], side)
    of_all, of_top = (correlation(part["real"].to_numpy(), part["predicted"].to_numpy()) for part in (table, top))
    text = f"r = {of_all:.2f} (all genes)\nr = {of_top:.2f} (top {len(top)})"
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize="small")
    ax.set(xlabel="real mean change", ylabel="predicted mean change")
    without_frame(ax)


def set_limits(ax: Axes, table: pd.DataFrame, side: Literal["left", "right"]) -> None:
    """Give both axes the room of the points, and the x axis that of the names."""
    low, high = (np.array([table["real"].agg(end), table["predicted"].agg(end)]) for end in ("min", "max"))
    spread = np.maximum(high - low, 1e-6)
    room = {"left": MARGIN, "right": MARGIN, side: NAME_MARGIN}
    ax.set_xlim(low[0] - room["left"] * spread[0], high[0] + room["right"] * spread[0])
    ax.set_ylim(low[1] - MARGIN * spread[1], high[1] + 3 * MARGIN * spread[1])


def name_genes(ax: Axes, genes: pd.DataFrame, side: Literal["left", "right"]) -> None:
    """Write names in a column at one side, with a line to each point."""
    x = ax.get_xlim()[side == "right"]
    bottom, top = ax.get_ylim()
    genes = genes.sort_values("predicted")
    heights = spread_out(genes["predicted"].to_numpy(), LINE_HEIGHT * (top - bottom), bottom, top)
    for height, (name, gene) in zip(heights, genes.iterrows(), strict=True):
        ax.annotate(
            name,
            (gene["real"], gene["predicted"]),
            (x, height),
            ha=side,
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )


def spread_out(heights: NDArray, gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move ascending heights apart until each is a gap above the last one, and all are within bounds if they fit."""
    heights = np.array(heights, dtype=np.float64)
    steps = gap * np.arange(len(heights))
    heights = np.maximum.accumulate(heights - steps) + steps
    ceiling = high - gap / 2 - steps[::-1]
    return np.maximum(np.minimum(heights, ceiling), low + gap / 2 + steps)
