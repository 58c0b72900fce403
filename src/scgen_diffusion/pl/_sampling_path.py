"""Noise becoming cells, in the plane of the principal components of real cells: still and animated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation

from ._figures import finish, panels
from ._film import Film, film_of
from ._film_files import check_suffix, save_film
from ._pairs import SOURCES, legend_beside

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from numpy.typing import NDArray

BACKGROUND = "#d4d4d4"


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
        draw_frame(ax, film, film.points[frame], size)
        ax.set_title(title_of(film, film.times[frame]))
        ax.set_ylabel("")
    axes[0].set_ylabel("PC 2")
    explain(axes[-1], film, color)
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
        File to write: ``.gif``, or ``.html`` with buttons, which needs nothing beside itself. Either has about 1 MB.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        In a notebook, ``IPython.display.HTML(animation.to_jshtml())`` shows it. Keep it until it is drawn.

    Raises
    ------
    KeyError
        If `color` is no column.
    ValueError
        If `path` is not of ``get_sampling_path``, has other genes than `reference`, or `save` ends otherwise.
    """
    check_suffix(save)
    if not (seconds > 0 and fps > 0):
        msg = f"`seconds` and `fps` must be positive, but found {seconds} and {fps}."
        raise ValueError(msg)
    film = film_of(path, reference, color=color, values=values, layer=layer, palette=palette)
    figure, ax = plt.subplots(figsize=(6.4, 4.2), dpi=dpi, layout="constrained")
    plt.close(figure)  # or a notebook would show the last picture beside the film
    cells = draw_frame(ax, film, film.points[-1], size)
    explain(ax, film, color)
    ax.set_title(title_of(film, film.times[-1]))
    hold_still(ax)

    def show_moment(moment: float) -> tuple[PathCollection]:
        points, time = film.at(moment)
        cells.set_offsets(points)
        ax.set_title(title_of(film, time))
        return (cells,)

    n_moving = max(2, round(seconds * fps))
    moments = np.concatenate([np.linspace(0, len(film.times) - 1, n_moving), np.full(fps, len(film.times) - 1)])
    animation = FuncAnimation(figure, show_moment, frames=moments, interval=1000 / fps, blit=False)
    if save is not None:
        save_film(animation, save, fps=fps, dpi=dpi)
    return animation


def draw_frame(ax: Axes, film: Film, points: NDArray, size: float | None) -> PathCollection:
    """Draw real cells in grey, and the cells on their way on top."""
    size = float(np.clip(4_000 / len(points), 4, 18)) if size is None else size
    ax.scatter(*film.background.T, s=0.6 * size, c=BACKGROUND, linewidths=0, rasterized=len(film.background) > 2_000)
    (left, bottom), (right, top) = film.limits
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], xlabel="PC 1", ylabel="PC 2")
    return ax.scatter(*points.T, s=size, c=film.colors, linewidths=0, rasterized=len(points) > 2_000)


def hold_still(ax: Axes) -> None:
    """Keep the axis where it is, with room for its legend: nothing may move but the cells."""
    ax.figure.draw_without_rendering()
    place = ax.get_position()
    ax.figure.set_layout_engine("none")
    ax.set_position(place)


def title_of(film: Film, time: float) -> str:
    """Say when, and at the ends what."""
    ends = {film.times[0]: "noise, ", film.times[-1]: "cells, "}
    return f"{ends.get(time, '')}$t = {time:.2f}$"


def explain(ax: Axes, film: Film, color: str | None) -> None:
    """Say beside the axis which colour is what."""
    labels = film.labels or {"synthetic": SOURCES["synthetic"]}
    real = {"real cells": BACKGROUND} if len(film.background) else {}
    legend_beside(ax, {color or "": labels | real})
