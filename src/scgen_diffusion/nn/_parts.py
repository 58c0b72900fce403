"""Large batches in parts: without gradients, the largest networks need no more memory than a few cells do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

LARGEST_ACTIVATION = 2**26
"""Numbers in a network's largest intermediate tensor without gradients: 256 MiB of float32."""


def parts_of(numbers_per_cell: int, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Divide inputs ``(cells, ...)`` so that each part's largest activation fits; without gradients only.

    The default networks are so small that a block of generated cells is one part.
    """
    n_parts = 1 if torch.is_grad_enabled() else max(-(-len(inputs[0]) * numbers_per_cell // LARGEST_ACTIVATION), 1)
    return zip(*(each.chunk(n_parts) for each in inputs), strict=True)
