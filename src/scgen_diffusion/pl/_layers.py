"""Plots of what the layers do to the tokens, over diffusion time or along the sampling path."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import scanpy as sc
from anndata import AnnData
from matplotlib.lines import Line2D

from ._figures import chosen, finish, panels, written

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

LINE_STYLES = ["-", "--", ":", "-."]
LABELS = {
    "coding_rate_before": "$R$ before attention (nats)",
    "coding_rate_after": "$R$ after attention (nats)",
    "subspace_coding_rate_before": "$R^c$ before attention (nats)",
    "subspace_coding_rate_after": "$R^c$ after attention (nats)",
    "sparsity": "share of zeros in the sparse code",
    "l0_norm": "non-zero entries per token",
    "l1_norm": "$\\ell_1$ norm per token",
    "sparse_coding_loss_before": "sparse-coding loss before",
    "sparse_coding_loss_after": "sparse-coding loss after",
    "attention_step": "relative step of attention",
    "sparse_coding_step": "relative step of sparse coding",
    # what several statistics of one plot have in common
    "coding_rate_": "coding rate $R$ (nats)",
    "subspace_coding_rate_": "coding rate $R^c$ (nats)",
    "sparse_coding_loss_": "sparse-coding loss",
}


def layer_statistics(
    data: pd.DataFrame | AnnData,
    statistics: str | Sequence[str] = "subspace_coding_rate_before",
    *,
    x: str = "time",
    head: str | None = None,
    layers: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ylabel: str | None = None,
    key: str = "WBDIT",
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot statistics of the layers, one panel per layer and one line per group of cells.

    Parameters
    ----------
    data
        Table of :func:`~scgen_diffusion.interpret.layer_statistics` or
        :func:`~scgen_diffusion.interpret.sampling_statistics`, or the AnnData with it.
    statistics
        What to plot. Several are told apart by the style of their lines.
    x
        ``"time"``, ``"noise_level"``, or ``"step"`` for the sampling path.
    head
        One head, such as ``"L0H2"``, of its layer; default: all heads together.
    layers, groups
        Which of them; default: all.
    palette
        Colour of each group. Default: scanpy's colours, in the order of the table.
    ylabel
        Label of the y axis.
    key
        Name in ``uns``, for AnnData.
    axs
        Axes to draw on, one per layer.
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
    ValueError
        For statistics, layers, groups and columns that are not in the table.
    KeyError
        If the AnnData has no such table.
    """
    table = statistics_table(data, key)
    names = chosen(
        "statistics", [statistics] if isinstance(statistics, str) else statistics, table["statistic"].unique()
    )
    if len(names) > len(LINE_STYLES):
        msg = f"At most {len(LINE_STYLES)} `statistics` fit into one plot, but found {len(names)}."
        raise ValueError(msg)
    chosen("x", [x], [column for column in ("step", "time", "noise_level") if column in table])
    table = table[table["head"] == chosen("head", [head or "all"], table["head"].unique())[0]]
    layers = chosen("layers", layers, sorted(table["layer"].unique()))
    groups = chosen("groups", groups, table["group"].unique())
    colors = group_colors(table["group"].unique(), palette)
    axes = panels(len(layers), axs, size=(3.2, 3.0))
    for ax, layer in zip(axes, layers, strict=True):
        here = table[table["layer"] == layer].set_index(["group", "statistic"]).sort_index()
        for group, (name, style) in product(groups, zip(names, LINE_STYLES, strict=False)):
            rows = here.loc[[(group, name)]].sort_values(x)
            ax.plot(rows[x], rows["value"], style, color=colors[group], marker="o", markersize=3, linewidth=1.5)
        ax.set(title=f"layer {layer}", xlabel=axis_label(table, x))
        ax.spines[["top", "right"]].set_visible(False)
    shared = names[0] if len(names) == 1 else names[0][: common_start(names)]
    axes[0].set_ylabel(ylabel or LABELS.get(shared, shared.strip("_")))
    add_legends(axes[-1], {group: colors[group] for group in groups}, names)
    return finish(axes, show, save)


def coding_rate(data: pd.DataFrame | AnnData, *, subspaces: bool = True, **kwargs: object) -> list[Axes] | None:
    """Plot the coding rate of the tokens before (solid) and after (dashed) the attention of each layer.

    Parameters
    ----------
    data
        See :func:`layer_statistics`.
    subspaces
        Whether to plot the rate within the subspaces of the heads, :math:`R^c`, which attention is derived to lower; or that
        of the tokens as a whole, :math:`R`.
    **kwargs
        See :func:`layer_statistics`.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.
    """
    name = "subspace_coding_rate" if subspaces else "coding_rate"
    return layer_statistics(data, [f"{name}_before", f"{name}_after"], **kwargs)


def sparsity(data: pd.DataFrame | AnnData, **kwargs: object) -> list[Axes] | None:
    """Plot the share of exact zeros in the output of the sparse half of each layer.

    Parameters
    ----------
    data
        See :func:`layer_statistics`.
    **kwargs
        See :func:`layer_statistics`.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.
    """
    return layer_statistics(data, "sparsity", **kwargs)


def sampling_statistics(
    data: pd.DataFrame, statistics: str | Sequence[str] = "subspace_coding_rate_before", **kwargs: object
) -> list[Axes] | None:
    """Plot statistics while noise becomes cells.

    Parameters
    ----------
    data
        Table of :func:`~scgen_diffusion.interpret.sampling_statistics`.
    statistics
        What to plot.
    **kwargs
        See :func:`layer_statistics`.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.
    """
    return layer_statistics(data, statistics, x="step", **kwargs)


def statistics_table(data: pd.DataFrame | AnnData, key: str) -> pd.DataFrame:
    """Return the table itself, or that in the AnnData."""
    return written(data, key, "uns", key)["statistics"] if isinstance(data, AnnData) else data


def group_colors(groups: Sequence[str], palette: Mapping[str, str] | None) -> dict[str, str]:
    """Give every group a colour."""
    if palette is not None:
        chosen("palette", [group for group in groups if group not in palette][:1], list(palette))
        return {group: palette[group] for group in groups}
    colors = sc.pl.palettes.default_20 if len(groups) <= 20 else sc.pl.palettes.default_102
    return {group: colors[number % len(colors)] for number, group in enumerate(groups)}


def axis_label(table: pd.DataFrame, x: str) -> str:
    """Name the x axis, and tell where the data are."""
    if x == "step":
        return "step (noise → cells)"
    if x == "noise_level":
        return r"noise level $\sigma_t$"
    levels = table.sort_values("time")["noise_level"].to_numpy()
    return "diffusion time (data → noise)" if levels[-1] >= levels[0] else "diffusion time (noise → data)"


def add_legends(ax: Axes, colors: Mapping[str, str], names: Sequence[str]) -> None:
    """Say beside the last panel which colour is which group, and which style which statistic."""
    handles = [Line2D([], [], color=color, label=group) for group, color in colors.items()] if len(colors) > 1 else []
    if len(names) > 1:
        styles = zip(names, LINE_STYLES, strict=False)
        ends = common_start(names)
        handles += [Line2D([], [], color="0.3", linestyle=style, label=name[ends:]) for name, style in styles]
    if handles:
        ax.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            fontsize="small",
            handlelength=2.6,
        )


def common_start(names: Sequence[str]) -> int:
    """Return how many letters names have in common, up to an underscore."""
    first, last = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[:n].rfind("_") + 1
