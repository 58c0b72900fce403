"""Given cells carried over to other conditions, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scgen_diffusion.diffusion import Generators, ResolvedGuidance
from scgen_diffusion.module import total_counts

from ._rows import check_finite, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from scgen_diffusion.diffusion import Inversion

    from ._request import SamplingOptions
    from ._rows import Rows


@dataclass(frozen=True)
class Counterfactual:
    """Given cells, what they shall become, and how; checked and resolved.

    Parameters
    ----------
    rows
        Numbers of the cells, ``(cells,)``, on which their random numbers depend.
    own, codes
        Codes of their own conditions, and of those asked for, ``(cells, columns)``.
    sampling
        The sampler, its steps, and guidance on the way to the new condition.
    inversion
        The way to noise and back; None for the trained transport, which goes to the new condition directly.
    given
        Numbers of the condition keys that the model is told of.
    strength
        How much of the way is gone, from 0 (none) to 1 (all).
    sample
        Whether cells are drawn; or else expected values are returned.
    residuals
        Whether drawn cells keep what the model does not explain of them (``"own"``), or draw it anew (``"new"``).
    library_size
        Name of a distribution, one total per cell, or None for the cells' own.
    seed
        Seed of all draws.
    """

    rows: np.ndarray
    own: np.ndarray
    codes: np.ndarray
    sampling: SamplingOptions
    inversion: Inversion | None
    given: Sequence[int]
    strength: float
    sample: bool
    residuals: str
    library_size: Any
    seed: int


class ControlBlock(NamedTuple):
    """Given cells that the network sees together: expression ``(block, genes)``, their positions in the request, and how many are wanted.

    The last block is filled up with repeated cells.
    """

    x: Tensor
    positions: np.ndarray
    n_wanted: int


def blocks_of(batches: Iterable[Tensor], size: int) -> Iterator[ControlBlock]:
    """Cut batches ``(cells, genes)``, all but the last of whole blocks, into blocks."""
    start = 0
    for x in batches:
        for first in range(0, len(x), size):
            picked = np.minimum(np.arange(first, first + size), len(x) - 1)
            yield ControlBlock(x[picked], start + picked, min(len(x) - first, size))
        start += len(x)


def carry_over(module: Any, request: Counterfactual, block: ControlBlock) -> Rows:
    """Predict the cells of a block."""
    positions, sampling = block.positions, request.sampling
    own, new = (module.condition_tensor(codes[positions]) for codes in (request.own, request.codes))
    generators = Generators(request.seed, request.rows[positions].tolist(), module.device)

    def move(states: Tensor) -> Tensor:
        n_steps, strength = sampling.n_steps, request.strength
        if request.inversion is None:  # the transport moves those that become perturbed
            moved = module.transport.move(states, new, sampler=sampling.sampler, n_steps=n_steps, strength=strength)
            return torch.where((own == new).all(1)[:, None, None], states, moved)
        told_own, told_new = (module.condition_columns.keep(condition, request.given) for condition in (own, new))
        return request.inversion(
            module.denoiser(told_own, ResolvedGuidance(sampling.guidance.plain)),
            module.denoiser(told_new, sampling.guidance),
            states,
            strength=strength,
            n_steps=n_steps,
            generators=generators,
        )

    def draw_totals(features: Tensor) -> Tensor:
        sizes = request.library_size
        if sizes is None:
            return total_counts(block.x)[:, 0]
        chosen = sizes[positions] if isinstance(sizes, np.ndarray) else sizes
        return module.draw_totals(chosen, new, features, generators)

    values = module.predict_cells(
        block.x,
        move,
        draw_totals,
        generators,
        output=sampling.output,
        sample=request.sample,
        residuals=request.residuals,
        n_wanted=block.n_wanted,
    )
    rows = rows_of(values, sparse=request.sample and module.has_zeros(sampling.output))
    check_finite(rows)
    return rows
