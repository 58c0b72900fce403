"""Plots of generation, from noise to cells, in the plane of the real cells' principal components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.colors import to_rgba_array

from scgen_diffusion._arguments import check_count, is_whole_number
from scgen_diffusion.data import obs_column
from scgen_diffusion.metrics import ComparisonSpace, Expression, expression_of

from ._cells import holds_numbers, label_colors, label_order, labels_of, number_scale, subsample
from ._figures import MOST_VECTORS, SOURCES, choose, explain_colors, finish, limits_around, panels

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PathCollection
    from numpy.typing import NDArray

BACKGROUND = "#d4d4d4"
MAX_REFERENCE_CELLS = 20_000
COLUMNS = ("cell", "frame", "time")


def sampling_path(
    path: AnnData,
    *,
    reference: AnnData | None = None,
    color: str | None = None,
    values: Literal["state", "estimate"] = "state",
    n_panels: int = 5,
    layer: str | None = None,
    palette: Mapping[str, str] | Sequence[str] | None = None,
    size: float | None = None,
    axs: Sequence[Axes] | None = None,
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
        Number of panels, evenly spaced over the frames.
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
    film = film_of(path, reference, color=color, values=values, layer=layer, palette=palette)
    if not is_whole_number(n_panels) or not 2 <= n_panels <= len(film.times):
        msg = (
            f"`n_panels` must be a whole number between 2 and the {len(film.times)} frames of `path`, but found "
            f"{n_panels!r}."
        )
        raise ValueError(msg)
    axes = panels(n_panels, axs, size=(2.6, 2.9), n_columns=n_panels)
    for ax, frame in zip(axes, np.linspace(0, len(film.times) - 1, n_panels).round().astype(int), strict=True):
        film.draw(ax, film.points[frame], film.times[frame], size)
        ax.set_ylabel("")
    axes[0].set_ylabel("PC 2")
    film.explain(axes, color)
    return finish(axes, show, save)


def animate_sampling_path(
    path: AnnData,
    *,
    reference: AnnData | None = None,
    color: str | None = None,
    values: Literal["state", "estimate"] = "state",
    seconds: float = 4.0,
    fps: int = 12,
    layer: str | None = None,
    palette: Mapping[str, str] | Sequence[str] | None = None,
    size: float | None = None,
    dpi: int = 80,
    save: str | os.PathLike[str] | None = None,
) -> FuncAnimation:
    """Animate :func:`sampling_path`.

    Cells move in straight lines between frames. The finished cells stay for one second.

    Parameters
    ----------
    path, reference, color, values, layer, palette, size
        See :func:`sampling_path`.
    seconds
        Duration from noise to cells.
    fps
        Frames per second.
    dpi
        Resolution; 80 gives 512 by 336 pixels.
    save
        ``.gif`` file to write.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        In a notebook, show it with ``IPython.display.HTML(animation.to_jshtml())``. Keep a reference to it until it is
        drawn.

    Raises
    ------
    KeyError
        If `color` is not a column of ``path.obs``.
    ValueError
        If `path` does not come from ``get_sampling_path`` or has genes that `reference` lacks, if `seconds` is not
        positive or `fps` no whole number above 0, or if `save` does not end with ``.gif``.
    """
    if save is not None:
        choose("save", [Path(save).suffix.lower()], [".gif"])
    check_count("fps", fps)
    if not seconds > 0:
        msg = f"`seconds` must be positive, but found {seconds}."
        raise ValueError(msg)
    film = film_of(path, reference, color=color, values=values, layer=layer, palette=palette)
    figure, ax = plt.subplots(figsize=(6.4, 4.2), dpi=dpi, layout="constrained")
    plt.close(figure)  # otherwise a notebook also shows the last frame
    cells = film.draw(ax, film.points[-1], film.times[-1], size)
    film.explain([ax], color)
    figure.draw_without_rendering()
    places = [part.get_position() for part in figure.axes]
    figure.set_layout_engine("none")  # from here on, only the cells move
    for part, place in zip(figure.axes, places, strict=True):
        part.set_position(place)

    def show_moment(moment: float) -> tuple[PathCollection]:
        first = min(int(moment), len(film.times) - 2)
        share = moment - first  # how far on the way to the next frame
        points, times = film.points[first : first + 2], film.times[first : first + 2]
        cells.set_offsets((1 - share) * points[0] + share * points[1])
        ax.set_title(film.title((1 - share) * times[0] + share * times[1]))
        return (cells,)

    n_moving = max(2, round(seconds * fps))
    moments = np.concatenate([np.linspace(0, len(film.times) - 1, n_moving), np.full(fps, len(film.times) - 1)])
    animation = FuncAnimation(figure, show_moment, frames=moments, interval=1000 / fps, blit=False)
    if save is not None:
        animation.save(save, writer=PillowWriter(fps=fps), dpi=dpi)
    return animation


@dataclass(frozen=True)
class Film:
    """Cells on their way from noise, in the plane of two principal components.

    Attributes
    ----------
    points
        ``(frames, cells, 2)``, with the cells in random order so that none hides the others.
    times
        ``(frames,)``.
    background
        Real cells, ``(cells, 2)``; empty without a reference.
    colors
        Colours of the cells, ``(cells, 4)``.
    legend
        Colours by label.
    scale
        Scale of the colours, if they show numbers.
    """

    points: NDArray
    times: NDArray
    background: NDArray
    colors: NDArray
    legend: dict[str, str]
    scale: ScalarMappable | None

    def draw(self, ax: Axes, points: NDArray, time: float, size: float | None) -> PathCollection:
        """Draw real cells in grey, and the moving cells on top, with the same limits for all frames."""
        size = float(np.clip(4_000 / len(points), 4, 18)) if size is None else size
        many = len(self.background) > MOST_VECTORS
        ax.scatter(*self.background.T, s=0.6 * size, c=BACKGROUND, linewidths=0, rasterized=many)
        (left, bottom), (right, top) = limits_around(np.concatenate([*self.points, self.background]))
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], xlabel="PC 1", ylabel="PC 2")
        ax.set_title(self.title(time))
        return ax.scatter(*points.T, s=size, c=self.colors, linewidths=0, rasterized=len(points) > MOST_VECTORS)

    def explain(self, axes: Sequence[Axes], color: str | None) -> None:
        """Add the legend beside the axes, and the scale of numbers below them."""
        if self.legend:
            explain_colors(axes[-1], {color if color and self.scale is None else "": self.legend})
        if self.scale is not None:
            look = {"location": "bottom", "shrink": 0.5, "aspect": 30}
            axes[0].figure.colorbar(self.scale, ax=axes, label=color, **look)

    def title(self, time: float) -> str:
        """Return the title of a frame: the time, with "noise" or "cells" at the ends."""
        ends = {self.times[0]: "noise, ", self.times[-1]: "cells, "}
        return f"{ends.get(time, '')}$t = {time:.2f}$"


def film_of(
    path: AnnData,
    reference: AnnData | None,
    *,
    color: str | None,
    values: str,
    layer: str | None,
    palette: Mapping[str, str] | Sequence[str] | None,
) -> Film:
    """Project a sampling path onto the principal components of the reference, or of its own finished cells."""
    choose("values", [values], ["state", "estimate"])
    rows = rows_of_frames(path)
    matrix = path.X if values == "state" else path.layers["estimate"]
    fitted = matrix[rows[-1]]
    if reference is not None:
        missing = path.var_names.difference(reference.var_names)
        if len(missing):
            msg = f"`reference` lacks {len(missing)} of the {path.n_vars} genes of `path`, such as {list(missing[:3])}."
            raise ValueError(msg)
        real = subsample(reference, "reference", MAX_REFERENCE_CELLS, 0)
        real = (real.to_memory() if real.isbacked and real.is_view else real)[:, path.var_names]
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

    cells = path[rows[0]]
    legend, scale = {"synthetic": SOURCES["synthetic"]}, None
    if color is None:
        colors = np.broadcast_to(to_rgba_array(SOURCES["synthetic"]), (cells.n_obs, 4))
    elif holds_numbers(obs_column(cells, color, "path")):
        numbers = cells.obs[color].astype(float).to_numpy()
        legend, scale = {}, number_scale(numbers, color)
        colors = scale.to_rgba(numbers)
    else:
        labels = labels_of(cells, color, "path")
        owner = cells if reference is None or color not in reference.obs else reference
        legend = label_colors(owner, color, label_order(owner, color, labels), palette)
        colors = to_rgba_array([legend[label] for label in labels])
    return Film(
        points=np.stack([project(matrix[frame]) for frame in rows]),
        times=path.obs["time"].to_numpy(dtype=float)[rows[:, 0]],
        background=np.empty((0, 2)) if reference is None else project(fitted),
        colors=colors,
        legend=legend | ({"real cells": BACKGROUND} if reference is not None else {}),
        scale=scale,
    )


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
