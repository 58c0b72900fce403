"""Random numbers of a batch that several processes share: each draws the numbers of all rows, and keeps those of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class SharedGenerator(torch.Generator):
    """A random generator that several processes have in the same state, because each draws what all of them need.

    So what is drawn for a row depends neither on the number of processes nor on the one that has the row, and one state is kept for all.

    Attributes
    ----------
    rows
        Which rows of a batch this process has; None for all.
    n_rows
        Rows of the whole batch.
    own
        A generator of this process alone, for draws whose number depends on the data, so that the others cannot follow them.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import SharedGenerator, draw_normal
    >>> whole = draw_normal((4, 2), SharedGenerator().manual_seed(0))
    >>> generator = SharedGenerator().manual_seed(0)
    >>> generator.rows, generator.n_rows = slice(2, 4), 4
    >>> bool((draw_normal((2, 2), generator) == whole[2:]).all())
    True
    """

    rows: slice | None = None
    n_rows: int = 0
    own: torch.Generator | None = None


def draw_normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Draw standard normal numbers for the rows of a batch, ``(n, ...)``."""
    return _rows_of(lambda size: torch.randn(size, generator=generator, device=device), shape, generator)


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Draw numbers uniform in ``[0, 1)`` for the rows of a batch, ``(n, ...)``."""
    return _rows_of(lambda size: torch.rand(size, generator=generator, device=device), shape, generator)


def draw_integers(
    high: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw whole numbers from 0 to ``high - 1`` for the rows of a batch, ``(n, ...)``."""
    return _rows_of(lambda size: torch.randint(high, size, generator=generator, device=device), shape, generator)


def own_generator(generator: torch.Generator | None) -> torch.Generator | None:
    """Return what to draw from when the number of draws depends on the data."""
    own = getattr(generator, "own", None)
    return generator if own is None else own


def _rows_of(draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    rows = getattr(generator, "rows", None)
    return draw(shape) if rows is None else draw((generator.n_rows, *shape[1:]))[rows]
