"""The two halves of a white-box (CRATE) block, each a step on the sparse rate reduction of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear, relu

from ._attention import attend, check_heads, merge_heads, split_heads

if TYPE_CHECKING:
    from torch import Tensor


class SubspaceAttention(nn.Module):
    r"""Multi-head subspace self-attention (MSSA), where one projection per head gives query, key and value.

    .. math:: W \bigl[\operatorname{softmax}\bigl(Z U_k (Z U_k)^\top / \sqrt{p}\bigr) Z U_k\bigr]_{k = 1 \dots K} + b

    with the tokens as the rows of ``Z`` and ``p = width / n_heads``. It compresses the tokens towards the subspaces
    spanned by the :math:`U_k`, a step that lowers their coding rate :math:`R^c(Z; U)`, see
    :func:`subspace_coding_rate`.

    Parameters
    ----------
    width
        Token width, a multiple of ``n_heads``.
    n_heads
        Number of heads, that is, of subspaces.

    References
    ----------
    Yu et al. (2023), *White-box transformers via sparse rate reduction*.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads = n_heads
        self.project = nn.Linear(width, width, bias=False)
        self.project_out = nn.Linear(width, width)

    @property
    def subspaces(self) -> Tensor:
        """The basis :math:`U_k` of each head, ``(heads, width, width / heads)``; learned and not orthonormal."""
        return self.project.weight.unflatten(0, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(cells, tokens, width)`` to the same shape."""
        x = self.coordinates(tokens)
        return self.project_out(merge_heads(attend(x, x, x)))

    def coordinates(self, tokens: Tensor) -> Tensor:
        r"""Return :math:`U_k^\top z` of each token, ``(cells, heads, tokens, width / heads)``."""
        return split_heads(self.project(tokens), self.n_heads)


class SparseCoding(nn.Module):
    r"""One step of iterative shrinkage-thresholding (ISTA) towards a sparse, non-negative code of the tokens.

    .. math:: \operatorname{relu}\bigl(z + \eta\, D^\top (z - D z) - \eta \lambda\bigr)

    This is a step that starts at ``z`` and lowers :math:`\tfrac12 \lVert z - D a \rVert^2 + \lambda \lVert a \rVert_1`
    with :math:`a \ge 0`, for each token ``z``.

    Parameters
    ----------
    width
        Token width; the dictionary ``D`` is square.
    step_size
        :math:`\eta`. Published: 0.1.
    threshold
        :math:`\lambda`. Published: 0.1.

    References
    ----------
    Yu et al. (2023), *White-box transformers via sparse rate reduction*.
    """

    def __init__(self, width: int, *, step_size: float = 0.1, threshold: float = 0.1) -> None:
        super().__init__()
        self.step_size = step_size
        self.threshold = threshold
        self.dictionary = nn.Parameter(torch.empty(width, width))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., width)``."""
        residual = tokens - linear(tokens, self.dictionary)  # saves a matrix product against D'z - D'Dz
        descended = torch.add(tokens, linear(residual, self.dictionary.t()), alpha=self.step_size)
        return relu(descended - self.step_size * self.threshold)

    def extra_repr(self) -> str:
        """Show the size and the two constants."""
        return f"{len(self.dictionary)}, step_size={self.step_size}, threshold={self.threshold}"
