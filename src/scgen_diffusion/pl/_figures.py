"""What the plots share: panels, names that must exist, and the end of a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from scgen_diffusion.data import known_names

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

N_COLUMNS = 4
MOST_FOR_ONE_TWO_FIVE = 50  # from end to end: numbers would run into each other


def panels(n: int, axs: Sequence[Axes] | None, *, size: tuple[float, float]) -> list[Axes]:
    """Return the given axes, or new ones side by side with a common y axis.

    Raises
    ------
    ValueError
        If there are not as many axes as panels.
    """
    if axs is None:
        _, grid = plt.subplots(1, n, figsize=(n * size[0], size[1]), sharey=True, squeeze=False, layout="constrained")
        return list(grid[0])
    if len(axs) != n:
        msg = f"`axs` must hold one axis per panel, {n}, but found {len(axs)}."
        raise ValueError(msg)
    return list(axs)


def own_panels(n: int, axs: Sequence[Axes] | None, *, size: tuple[float, float]) -> list[Axes]:
    """Return the given axes, or new ones in rows, each with y axes of its own."""
    if axs is not None:
        return panels(n, axs, size=size)
    n_columns, n_rows = min(n, N_COLUMNS), -(-n // N_COLUMNS)
    shape = (n_columns * size[0], n_rows * size[1])
    _, grid = plt.subplots(n_rows, n_columns, figsize=shape, squeeze=False, layout="constrained")
    for ax in grid.flat[n:]:
        ax.remove()
    return list(grid.flat[:n])


def one_axis(ax: Axes | None, *, size: tuple[float, float]) -> Axes:
    """Return the given axis, or a new one."""
    return panels(1, None, size=size)[0] if ax is None else ax


def plain_numbers(axis: Axis) -> None:
    """Write 500 instead of a power of ten along a logarithmic axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MOST_FOR_ONE_TWO_FIVE * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def finish(axes: Axes | list[Axes], show: bool | None, save: str | os.PathLike[str] | None) -> Axes | list[Axes] | None:
    """Save and show as asked, and return the axes if they are not shown."""
    first = axes[0] if isinstance(axes, list) else axes
    if save is not None:
        first.figure.savefig(save, bbox_inches="tight", dpi=150)
    if sc.settings.autoshow if show is None else show:
        plt.show()
        return None
    return axes


def chosen(name: str, wanted: Sequence | None, known: Sequence) -> list:
    """Return what is wanted, or all that is known.

    Raises
    ------
    ValueError
        For what is not known.
    """
    if wanted is None:
        return list(known)
    for value in wanted:
        if value not in known:
            msg = f"`{name}` has the unknown value {value!r}. {known_names(value, list(known))}"
            raise ValueError(msg)
    return list(wanted)


def written(adata: AnnData, key: str, where: str, name: str) -> object:
    """Return what :func:`scgen_diffusion.interpret.write` wrote.

    Raises
    ------
    KeyError
        If it is not there.
    """
    mapping = getattr(adata, where)
    if name not in mapping:
        msg = f"There is no {name!r} in `adata.{where}`; call interpret.write(model, adata, key={key!r}) with a trained WBDIT first."
        raise KeyError(msg)
    return mapping[name]
