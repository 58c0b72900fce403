"""The objectives of a white-box transformer: how compact and how sparse its tokens are.

A coding rate is the number of nats that encode a set of tokens up to an error ``eps`` per token. It depends on the
scale of the tokens: doubling the tokens has the same effect as halving ``eps``. Compare layers and times with the same
``eps``, and with tokens that were normalised in the same way, such as the inputs of the operators after their
LayerNorm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
    gram = _smaller_gram(tokens) * (width / (n_tokens * eps**2))
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.slogdet(identity + gram).logabsdet / 2


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
        If ``eps`` is not positive, or the bases do not have the tokens' width.
    """
    if bases.ndim != 3 or bases.shape[1] != tokens.shape[-1]:
        found = f"{tuple(bases.shape)} for tokens of width {tokens.shape[-1]}"
        msg = f"`bases` must have the shape (heads, token width, subspace width), but found {found}."
        raise ValueError(msg)
    all_bases = bases.double().transpose(0, 1).flatten(1)  # (d, heads * p): one product for all heads
    coordinates = (tokens.double() @ all_bases).unflatten(-1, (len(bases), -1))
    return coding_rate(coordinates.transpose(-2, -3), eps)


def sparsity(tokens: Tensor) -> Tensor:
    """Return the share of exact zeros in tokens ``(..., n, d)``, as ``(...)``."""
    return (tokens == 0).float().mean(dim=(-2, -1))


def _smaller_gram(tokens: Tensor) -> Tensor:
    """Return Z Z' or Z' Z, whichever is smaller: adding the identity gives them the same determinant."""
    n_tokens, width = tokens.shape[-2:]
    transposed = tokens.transpose(-1, -2)
    return tokens @ transposed if n_tokens < width else transposed @ tokens
