"""The two halves of a white-box (CRATE) block, each a step on the sparse rate reduction of the tokens, and its terms.

A coding rate is the number of nats that encode a set of tokens up to an error ``eps`` per token. It depends on the
scale of the tokens: doubling the tokens has the same effect as halving ``eps``. Compare layers and times with the same
``eps``, and with tokens that were normalised in the same way, such as the inputs of the operators after their
LayerNorm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear, relu, scaled_dot_product_attention

from ._transformer import check_heads, merge_heads, split_heads

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
        return self.project_out(merge_heads(scaled_dot_product_attention(x, x, x)))

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

    Attributes
    ----------
    step_size, threshold
        :math:`\eta` and :math:`\lambda`, both 0.1 as published.

    References
    ----------
    Yu et al. (2023), *White-box transformers via sparse rate reduction*.
    """

    step_size = threshold = 0.1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(width, width))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., width)``."""
        residual = tokens - linear(tokens, self.dictionary)  # saves a matrix product against D'z - D'Dz
        descended = torch.add(tokens, linear(residual, self.dictionary.t()), alpha=self.step_size)
        return relu(descended - self.step_size * self.threshold)


def coding_rate(tokens: Tensor, eps: float = 0.5) -> Tensor:
    r"""Compute the lossy coding rate of tokens.

    .. math:: R(Z) = \tfrac12 \log\det\Bigl(I + \frac{d}{n \epsilon^2} Z Z^\top\Bigr)

    Parameters
    ----------
    tokens
        ``Z``: ``n`` tokens of width ``d``, ``(..., n, d)``.
    eps
        Allowed error per token, on the scale of the tokens. CRATE: 0.5, for tokens of about unit norm. After a
        LayerNorm, tokens have the norm ``sqrt(d)``, so use ``0.5 * sqrt(d)``.

    Returns
    -------
    Tensor
        Nats, ``(...)``, in double precision, which the device must support.

    Raises
    ------
    ValueError
        If ``eps`` is not positive.

    References
    ----------
    Ma et al. (2007), *Segmentation of multivariate mixed data via lossy data coding and compression*.

    Examples
    --------
    >>> round(coding_rate(torch.eye(4)).item(), 4)  # 4 / 2 * log(1 + 4 / (4 * 0.25))
    3.2189
    """
    if not eps > 0:
        msg = f"`eps` must be positive, but found {eps}."
        raise ValueError(msg)
    tokens = tokens.double()
    n_tokens, width = tokens.shape[-2:]
    gram = tokens @ tokens.mT if n_tokens < width else tokens.mT @ tokens  # the determinant is the same
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.slogdet(identity + gram * (width / (n_tokens * eps**2))).logabsdet / 2


def subspace_coding_rate(tokens: Tensor, bases: Tensor, eps: float = 0.5) -> Tensor:
    r"""Compute the coding rate of tokens within each of several subspaces.

    .. math:: R^c_k = \tfrac12 \log\det\Bigl(I + \frac{p}{n \epsilon^2} Z U_k (Z U_k)^\top\Bigr), \quad
        R^c = \sum_k R^c_k

    Parameters
    ----------
    tokens
        ``Z``: ``n`` tokens of width ``d``, ``(..., n, d)``.
    bases
        ``U``: ``(heads, d, p)``, such as :attr:`SubspaceAttention.subspaces`.
    eps
        Allowed error per token, as in :func:`coding_rate`.

    Returns
    -------
    Tensor
        :math:`R^c_k`, ``(..., heads)``.

    Raises
    ------
    ValueError
        If ``eps`` is not positive.
    """
    all_bases = bases.double().transpose(0, 1).flatten(1)  # (d, heads * p): one product for all heads
    coordinates = (tokens.double() @ all_bases).unflatten(-1, (len(bases), -1))
    return coding_rate(coordinates.transpose(-2, -3), eps)


def sparsity(tokens: Tensor) -> Tensor:
    """Return the share of exact zeros in tokens ``(..., n, d)``, as ``(...)``."""
    return (tokens == 0).float().mean(dim=(-2, -1))
