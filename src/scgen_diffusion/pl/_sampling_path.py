"""Plots of generation, from noise to cells, in the plane of the real cells' principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp
from matplotlib.colors import to_rgba_array
from mudata import MuData

from scgen_diffusion._arguments import check_count
from scgen_diffusion.data import check_is_anndata, make_indexable, obs_column
from scgen_diffusion.metrics import ComparisonSpace, Expression, expression_of

from ._cells import holds_numbers, label_colors, label_order, labels_of, number_scale, numbers_of, subsample
from ._figures import MOST_VECTORS, SOURCES, choose, explain_colors, finish, limits_around, panels

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from numpy.typing import NDArray

BACKGROUND = "#d4d4d4"
MAX_REFERENCE_CELLS = 20_000
COLUMNS = ("cell", "frame", "time")
MOST_PANELS = 5


def sampling_path(
    path: AnnData,
    *,
    reference: AnnData | None = None,
    color: str | None = None,
    values: Literal["state", "estimate"] = "state",
    n_panels: int | None = None,
    layer: str | None = None,
    palette: Mapping[str, str] | Sequence[str] | None = None,
    size: float | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot how noise turns into cells, as a row of panels.

    All panels show the first two principal components of real cells, which are grey in the background.

    Parameters
    ----------
    path
        Result of a model's ``get_sampling_path``, such as :meth:`~scgen_diffusion.model.SCLDM.get_sampling_path`.
    reference
        Real cells with the same genes: counts, or `log1p` values with ``uns["log1p"]`` set. Without them, the principal
        components are those of the finished cells.
    color
        Column of ``path.obs``, such as a condition. Default: none.
    values
        ``"state"``: the cells at that time. ``"estimate"``: the finished cells as the model estimates them at that
        time.
    n_panels
        Number of panels, evenly spaced over the frames. Default: as many as there are frames, at most 5.
    layer
        Layer of `reference` with the counts. Default: ``"counts"`` if there is one, else `X`.
    palette
        Colour of each label, or colours in label order. Default: ``reference.uns[f"{color}_colors"]``, else scanpy's.
    size
        Size of the points.
    axs
        Axes to draw on, one per panel.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.

    Raises
    ------
    KeyError
        If `color` is not a column of ``path.obs``.
    ValueError
        If `path` does not come from ``get_sampling_path``, has fewer frames than panels, or has genes that `reference`
        lacks, or `n_panels` is no whole number above 1.
    """
    check_is_anndata(path, "path", " Of several modalities, give one: `path['rna']`." * isinstance(path, MuData))
    choose("values", [values], ["state", "estimate"])
    rows = rows_of_frames(path)
    n_panels = min(len(rows), MOST_PANELS) if n_panels is None else check_count("n_panels", n_panels, 2, len(rows))
    matrix = path.X if values == "state" else path.layers["estimate"]
    points, background = project_frames([matrix[frame] for frame in rows], path, reference, layer)
    cells = path[rows[0]]
    colors, legend, scale = colors_of(cells, reference, color, palette)
    axes = panels(n_panels, axs, size=(2.6, 2.9), n_columns=n_panels)
    size = float(np.clip(4_000 / cells.n_obs, 4, 18)) if size is None else size
    (left, bottom), (right, top) = limits_around(np.concatenate([*points, background]))
    times = path.obs["time"].to_numpy(dtype=float)[rows[:, 0]]
    ends = {times[0]: "noise, ", times[-1]: "cells, "}
    for ax, frame in zip(axes, np.linspace(0, len(times) - 1, n_panels).round().astype(int), strict=True):
        many = len(background) > MOST_VECTORS
        ax.scatter(*background.T, s=0.6 * size, c=BACKGROUND, linewidths=0, rasterized=many)
        ax.scatter(*points[frame].T, s=size, c=colors, linewidths=0, rasterized=cells.n_obs > MOST_VECTORS)
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], xlabel="PC 1")
        ax.set_title(f"{ends.get(times[frame], '')}$t = {times[frame]:.2f}$")
    axes[0].set_ylabel("PC 2")
    legend = legend | ({} if reference is None else {"real cells": BACKGROUND})
    if legend:
        explain_colors(axes[-1], (color if color and scale is None else "", legend))
    if scale is not None:
        axes[0].figure.colorbar(scale, ax=axes, label=color, location="bottom", shrink=0.5, aspect=30)
    return finish(axes, show, save)


def project_frames(
    frames: Sequence[NDArray | sp.csr_matrix], path: AnnData, reference: AnnData | None, layer: str | None
) -> tuple[list[NDArray], NDArray]:
    """Return the first two principal components of the cells in each frame and of the reference, ``(cells, 2)``.

    Without a reference, they are fitted to the last frame.
    """
    fitted = frames[-1]
    if reference is not None:
        missing = path.var_names.difference(reference.var_names)
        if len(missing):
            msg = f"`reference` lacks {len(missing)} of the {path.n_vars} genes of `path`, such as {list(missing[:3])}."
            raise ValueError(msg)
        real = subsample(reference, "reference", MAX_REFERENCE_CELLS, 0)
        real = make_indexable(real)[:, path.var_names]
        # Normalise counts over the genes of the path, as models do. Logarithms were normalised over all genes.
        expression = expression_of(real, layer=layer, name="reference")
        if expression.library_sizes is None:
            expression = expression_of(real, layer=layer, name="reference", scale=sp.csr_matrix.log1p)
        fitted = expression.values
    if min(fitted.shape) < 3:
        msg = (
            "Principal components need at least 3 cells and 3 genes, "
            f"but found {fitted.shape}; pass a larger `reference`."
        )
        raise ValueError(msg)
    space = ComparisonSpace.fit(Expression(sp.csr_matrix(fitted), None), n_components=2)

    def project(log_values: NDArray | sp.csr_matrix) -> NDArray:  # not normalised: noise has no total
        of_genes = log_values[:, space.genes]
        return space.pca.transform(of_genes.toarray() if sp.issparse(of_genes) else np.asarray(of_genes))

    return [project(frame) for frame in frames], np.empty((0, 2)) if reference is None else project(fitted)


def colors_of(
    cells: AnnData, reference: AnnData | None, color: str | None, palette: Mapping[str, str] | Sequence[str] | None
) -> tuple[NDArray, dict[str, str], ScalarMappable | None]:
    """Return the colours of the cells ``(cells, 4)``, colours by label, and the scale if the colours show numbers."""
    if color is None:
        colors = np.broadcast_to(to_rgba_array(SOURCES["synthetic"]), (cells.n_obs, 4))
        return colors, {"synthetic": SOURCES["synthetic"]}, None
    if holds_numbers(obs_column(cells, color, "path")):
        numbers = numbers_of(cells.obs[color])
        scale = number_scale(numbers, color)
        return scale.to_rgba(numbers), {}, scale
    labels = labels_of(cells, color, "path")
    owner = cells if reference is None or color not in reference.obs else reference
    order = label_order(owner, color, labels)
    colored = order
    if owner is reference and palette is None:  # colours as in an embedding of the reference
        colored = label_order(owner, color, labels, labels_of(owner, color, "reference"))
    found = label_colors(owner, color, colored, palette)
    legend = {label: found[label] for label in order}
    return to_rgba_array([legend[label] for label in labels]), legend, None


def rows_of_frames(path: AnnData) -> NDArray[np.intp]:
    """Return the rows of each frame, ``(frames, cells)``, with the cells in the same random order.

    Raises
    ------
    ValueError
        If `obs` lacks a column, or the frames have different cells.
    """
    lacking = [name for name in COLUMNS if name not in path.obs]
    if lacking:
        msg = f"`path` must come from a model's get_sampling_path, but its `obs` has no column {lacking[0]!r}."
        raise ValueError(msg)
    frames, frame_of = np.unique(path.obs["frame"], return_inverse=True)
    cells, cell_of = np.unique(path.obs["cell"].astype(str), return_inverse=True)
    table = np.full((len(frames), len(cells)), -1)
    table[frame_of, cell_of] = np.arange(path.n_obs)
    if len(frames) < 2 or path.n_obs != table.size or (table < 0).any():
        msg = (
            f"`path` must have the same cells in at least two frames, but found {path.n_obs} rows of {len(cells)} "
            f"cells in {len(frames)} frames."
        )
        raise ValueError(msg)
    return table[:, np.random.default_rng(0).permutation(len(cells))]
