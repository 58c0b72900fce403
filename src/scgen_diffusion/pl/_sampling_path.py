"""Noise becoming cells, in the plane of the principal components of real cells: still and animated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.colors import to_rgba_array

from scgen_diffusion.metrics import ComparisonSpace, Expression, expression_of

from ._cells import label_colors, label_order, labels_of, subsample
from ._figures import MOST_VECTORS, SOURCES, choose, explain_colors, finish, limits_around, panels

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
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
    """Plot cells on their way from noise, in a row of panels.

    The plane is that of the first two principal components of real cells, grey in the back, and the same in all panels.

    Parameters
    ----------
    path
        Of ``get_sampling_path`` of a model, such as :meth:`~scgen_diffusion.model.SCLDM.get_sampling_path`.
    reference
        Real cells with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. Default: none, and the plane
        is that of the finished cells.
    color
        Column of ``path.obs``, such as a condition. Default: none.
    values
        ``"state"``: where the cells are. ``"estimate"``: what the model takes the finished cells to be at that moment.
    n_panels
        Number of moments, evenly chosen from the frames.
    layer
        Layer of `reference` with the counts. Default: ``"counts"`` if there is one, else `X`.
    palette
        Colour of each label, or colours in their order. Default: ``reference.uns[f"{color}_colors"]``, else scanpy's.
    size
        Size of the points.
    axs
        Axes to draw on, one per panel.
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
        If `color` is no column.
    ValueError
        If `path` is not of ``get_sampling_path``, has fewer frames than panels, or other genes than `reference`.
    """
    film = film_of(path, reference, color=color, values=values, layer=layer, palette=palette)
    if not 2 <= n_panels <= len(film.times):
        msg = f"`n_panels` must be between 2 and the {len(film.times)} frames of `path`, but found {n_panels}."
        raise ValueError(msg)
    axes = panels(n_panels, axs, size=(2.6, 2.9))
    for ax, frame in zip(axes, np.linspace(0, len(film.times) - 1, n_panels).round().astype(int), strict=True):
        film.draw(ax, film.points[frame], film.times[frame], size)
        ax.set_ylabel("")
    axes[0].set_ylabel("PC 2")
    explain_colors(axes[-1], {color or "": film.legend})
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

    From one frame of the path to the next, cells move in straight lines. The finished cells stay for a second.

    Parameters
    ----------
    path, reference, color, values, layer, palette, size
        See :func:`sampling_path`.
    seconds
        How long the way from noise to cells takes.
    fps
        Pictures per second.
    dpi
        Resolution; 80 makes pictures of 512 by 336 pixels.
    save
        ``.gif`` file to write, of about 1 MB.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        ``animation.to_jshtml()`` is a page with buttons, which ``IPython.display.HTML`` shows in a notebook. Keep it until it
        is drawn.

    Raises
    ------
    KeyError
        If `color` is no column.
    ValueError
        If `path` is not of ``get_sampling_path``, has other genes than `reference`, or `save` ends otherwise.
    """
    if save is not None:
        choose("save", [Path(save).suffix.lower()], [".gif"])
    if not (seconds > 0 and fps > 0):
        msg = f"`seconds` and `fps` must be positive, but found {seconds} and {fps}."
        raise ValueError(msg)
    film = film_of(path, reference, color=color, values=values, layer=layer, palette=palette)
    figure, ax = plt.subplots(figsize=(6.4, 4.2), dpi=dpi, layout="constrained")
    plt.close(figure)  # or a notebook would show the last picture beside the film
    cells = film.draw(ax, film.points[-1], film.times[-1], size)
    explain_colors(ax, {color or "": film.legend})
    figure.draw_without_rendering()
    place = ax.get_position()
    figure.set_layout_engine("none")  # from here on nothing moves but the cells
    ax.set_position(place)

    def show_moment(moment: float) -> tuple[PathCollection]:
        first = min(int(moment), len(film.times) - 2)
        share = moment - first  # of the way to the next frame
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
    """Cells on their way in the plane.

    Attributes
    ----------
    points
        ``(frames, cells, 2)``, cells in random order, so that none hides the others.
    times
        ``(frames,)``.
    background
        Real cells, ``(cells, 2)``; none without a reference.
    colors
        Of the cells, ``(cells, 4)``.
    legend
        What the colours mean.
    """

    points: NDArray
    times: NDArray
    background: NDArray
    colors: NDArray
    legend: dict[str, str]

    def draw(self, ax: Axes, points: NDArray, time: float, size: float | None) -> PathCollection:
        """Draw real cells in grey, and the cells on their way on top; the limits are those of all frames."""
        size = float(np.clip(4_000 / len(points), 4, 18)) if size is None else size
        many = len(self.background) > MOST_VECTORS
        ax.scatter(*self.background.T, s=0.6 * size, c=BACKGROUND, linewidths=0, rasterized=many)
        (left, bottom), (right, top) = limits_around(np.concatenate([*self.points, self.background]))
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], xlabel="PC 1", ylabel="PC 2")
        ax.set_title(self.title(time))
        return ax.scatter(*points.T, s=size, c=self.colors, linewidths=0, rasterized=len(points) > MOST_VECTORS)

    def title(self, time: float) -> str:
        """Say when, and at the ends what."""
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
    """Bring a sampling path to the plane of the reference's, or else its own cells', principal components."""
    choose("values", [values], ["state", "estimate"])
    rows = rows_of_frames(path)
    matrix = path.X if values == "state" else path.layers["estimate"]
    fitted = matrix[rows[-1]]
    if reference is not None:
        missing = path.var_names.difference(reference.var_names)
        if len(missing):
            msg = f"`reference` lacks {len(missing)} of the {path.n_vars} genes of `path`, such as {list(missing[:3])}."
            raise ValueError(msg)
        # The genes of the path, over which models normalise; logarithms as they are.
        real = subsample(reference, "reference", MAX_REFERENCE_CELLS, 0)[:, path.var_names]
        expression = expression_of(real, layer=layer, name="reference")
        fitted = real.X if expression.library_sizes is None else expression.values
    if min(fitted.shape) < 3:
        msg = f"Principal components need at least 3 cells and 3 genes, but found {fitted.shape}; give a larger `reference`."
        raise ValueError(msg)
    space = ComparisonSpace.fit(Expression(sp.csr_matrix(fitted), None), n_components=2)

    def project(log_values: NDArray | sp.csr_matrix) -> NDArray:  # as they are: noise has no total to be scaled to
        of_genes = log_values[:, space.genes]
        return space.pca.transform(of_genes.toarray() if sp.issparse(of_genes) else np.asarray(of_genes))

    cells = path[rows[0]]
    colors, legend = np.broadcast_to(to_rgba_array(SOURCES["synthetic"]), (cells.n_obs, 4)), {}
    if color is not None:
        labels = labels_of(cells, color, "path")
        owner = cells if reference is None or color not in reference.obs else reference
        legend = label_colors(owner, color, label_order(owner, color, labels), palette)
        colors = to_rgba_array([legend[label] for label in labels])
    return Film(
        points=np.stack([project(matrix[frame]) for frame in rows]),
        times=path.obs["time"].to_numpy(dtype=float)[rows[:, 0]],
        background=np.empty((0, 2)) if reference is None else project(fitted),
        colors=colors,
        legend=(legend or {"synthetic": SOURCES["synthetic"]})
        | ({"real cells": BACKGROUND} if reference is not None else {}),
    )


def rows_of_frames(path: AnnData) -> NDArray[np.intp]:
    """Return the rows of each frame, ``(frames, cells)``, the cells in the same random order.

    Raises
    ------
    ValueError
        If that is not told in `obs`, or frames have different cells.
    """
    lacking = [name for name in COLUMNS if name not in path.obs]
    if lacking:
        msg = f"`path` must be of a model's get_sampling_path, but its `obs` has no column {lacking[0]!r}."
        raise ValueError(msg)
    frames, frame_of = np.unique(path.obs["frame"], return_inverse=True)
    cells, cell_of = np.unique(path.obs["cell"].astype(str), return_inverse=True)
    table = np.full((len(frames), len(cells)), -1)
    table[frame_of, cell_of] = np.arange(path.n_obs)
    if len(frames) < 2 or path.n_obs != table.size or (table < 0).any():
        msg = (
            f"`path` must have the same cells in at least two frames, but found {path.n_obs} rows of {len(cells)} cells in "
            f"{len(frames)} frames."
        )
        raise ValueError(msg)
    return table[:, np.random.default_rng(0).permutation(len(cells))]
