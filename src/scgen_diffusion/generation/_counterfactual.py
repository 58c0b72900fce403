"""Predictions of given cells under other conditions, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scgen_diffusion.diffusion import Generators, Guidance

from ._rows import check_finite, rows_of
from ._support import sum_profiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from scgen_diffusion.data import Rows
    from scgen_diffusion.diffusion import Inversion
    from scgen_diffusion.perturbation import ProfileSums

    from ._request import SamplingOptions
    from ._support import LackingChanges


@dataclass
class Counterfactual:
    """A checked request to predict given cells under new conditions.

    Parameters
    ----------
    own, codes
        Codes of their own and of their new conditions, ``(cells, columns)``.
    sampling
        Sampler, steps, and guidance on the way to the new condition.
    inversion
        The inversion; None to use the trained perturbation flow.
    keep_residuals
        Whether cells keep their own residuals or draw new ones.
    library_size
        Name of a distribution, totals ``(cells, ...)`` with NaN for the cells' own, or None for the cells' own.
    seed
        Seed of all draws.
    group
        Number of the group of each cell whose mean changes are wanted, -1 for none, ``(cells,)``. None: no sums.
    lacking
        Changes that the decoder lacks; None: none.
    """

    own: np.ndarray
    codes: np.ndarray
    sampling: SamplingOptions
    inversion: Inversion | None
    keep_residuals: bool
    library_size: Any
    seed: int
    group: np.ndarray | None = None
    lacking: LackingChanges | None = None


class ControlBlock(NamedTuple):
    """A block of given cells: expression ``(block, genes)``, positions in the request, and number of wanted cells.

    The last block is padded with repeated cells.
    """

    x: Tensor
    positions: np.ndarray
    n_wanted: int


def blocks_of(batches: Iterable[Tensor], size: int, start: int) -> Iterator[ControlBlock]:
    """Cut batches ``(cells, genes)``, the first from ``start`` on, into blocks; only the last may be cut short."""
    for x in batches:
        for first in range(0, len(x), size):
            picked = np.minimum(np.arange(first, first + size), len(x) - 1)
            yield ControlBlock(x[picked], start + picked, min(len(x) - first, size))
        start += len(x)


def predict_block(
    module: Any, request: Counterfactual, without_ignored: Callable[..., Tensor], block: ControlBlock
) -> tuple[Rows, ProfileSums | None]:
    """Return the cells of a block ``(cells, genes)``, and sums of their profiles if they are wanted.

    ``without_ignored`` is :meth:`CellGenerator.without_ignored`.
    """
    positions, sampling = block.positions, request.sampling
    generators = Generators(request.seed, positions.tolist(), module.device)
    own = module.condition_tensor(request.own[positions])
    new = without_ignored(request.codes[positions], sampling.guidance, request.library_size, generators)
    by_perturbation_flow: dict[str, Any] = {}
    if request.inversion is None:
        lacking = None if request.lacking is None else request.lacking.of(request.codes[positions])
        by_perturbation_flow["perturbed"] = (own, new, lacking)

    def predict(generators: Generators) -> Tensor:
        given: Tensor | None = None

        def move(states: Tensor) -> Tensor:
            nonlocal given
            options: dict[str, Any] = {"n_steps": sampling.n_steps, "generators": generators}
            if request.inversion is None:  # the perturbation flow moves the cells that become perturbed
                given = module.unstandardise(states)
                return module.perturbed_latents(states, own, new, sampling.sampler, **options)
            return request.inversion(
                module.denoiser(own, Guidance.of(module.strategy, [1.0] * len(module.conditions))),
                module.denoiser(new, sampling.guidance),
                states,
                **options,
            )

        def draw_totals(features: Tensor) -> Tensor:
            sizes = request.library_size
            if isinstance(sizes, str):  # moved cells keep their level, as generated ones do
                known, start = (features, None) if given is None else (given, own)
                return module.draw_totals(sizes, new, known, generators, start)
            measured = module.decoding_totals(block.x, features, generators)
            measured = measured.view(len(measured), *module.library_size.shape)
            if sizes is None:
                return measured
            wanted = torch.from_numpy(sizes[positions]).to(measured)
            return torch.where(wanted.isnan(), measured, wanted)

        return module.predict_cells(
            block.x,
            move,
            draw_totals,
            generators,
            output=sampling.output,
            keep_residuals=request.keep_residuals,
            n_wanted=block.n_wanted,
            **by_perturbation_flow,
        )[: block.n_wanted]

    values = module.redraw_empty(predict, generators)
    rows = rows_of(values, sparse=module.has_zeros(sampling.output))
    check_finite(rows)
    if request.group is None:
        return rows, None
    wanted = request.group[positions[: block.n_wanted]]
    return rows, sum_profiles(module, wanted, block.x[: block.n_wanted], values, sampling.output)
