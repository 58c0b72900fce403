"""Feed-forward halves of transformer blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.functional import gelu, silu

if TYPE_CHECKING:
    from torch import Tensor


class SwiGLU(nn.Module):
    r"""Gated feed-forward network :math:`W_3(\operatorname{silu}(W_1 x) \odot W_2 x)` without bias.

    Parameters
    ----------
    width
        Input and output width.
    hidden
        Inner width. Default: two thirds of ``4 * width``, rounded up to a multiple of 4, as published for scLDM.

    References
    ----------
    Shazeer (2020), *GLU variants improve transformer*.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 4 * math.ceil(int(8 * width / 3) / 4)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(width, hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., width)``."""
        return self.project_out(silu(self.gate(x)) * self.value(x))


class MLP(nn.Module):
    r"""Feed-forward network :math:`W_2 \operatorname{gelu}(W_1 x + b_1) + b_2`, with the tanh approximation of GELU.

    Parameters
    ----------
    width
        Input and output width.
    hidden
        Inner width. Default: ``4 * width``, as published for DiT and scRDiT.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.project_in = nn.Linear(width, hidden)
        self.project_out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., width)``."""
        return self.project_out(gelu(self.project_in(x), approximate="tanh"))
