"""Multi-head attention, with torch's fused kernels where they exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor


class SelfAttention(nn.Module):
    """Self-attention of tokens, with one matrix for queries, keys and values.

    Parameters
    ----------
    width
        Token width, a multiple of ``n_heads``.
    n_heads
        Number of heads.
    bias
        Whether the projections have a bias.
    """

    def __init__(self, width: int, n_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads = n_heads
        self.project_qkv = nn.Linear(width, 3 * width, bias=bias)
        self.project_out = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(cells, tokens, width)`` to the same shape."""
        heads = (split_heads(x, self.n_heads) for x in self.project_qkv(tokens).chunk(3, dim=-1))
        return self.project_out(merge_heads(scaled_dot_product_attention(*heads)))


class CrossAttention(nn.Module):
    """Cross-attention from queries to tokens, without biases.

    Parameters
    ----------
    width
        Width of queries and tokens, a multiple of ``n_heads``.
    n_heads
        Number of heads.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads = n_heads
        self.project_query = nn.Linear(width, width, bias=False)
        self.project_kv = nn.Linear(width, 2 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from queries ``(cells or 1, queries, width)`` to what :attr:`project_kv` makes of tokens.

        ``keys_values`` are ``(cells, tokens, 2 * width)``. ``mask (cells, tokens)`` is true for tokens that may be
        attended to. Queries shared by all cells are projected once.
        """
        key, value = (split_heads(x, self.n_heads) for x in keys_values.chunk(2, dim=-1))
        query = split_heads(self.project_query(queries), self.n_heads).expand(len(keys_values), -1, -1, -1)
        mask = None if mask is None else mask[:, None, None]
        return self.project_out(merge_heads(scaled_dot_product_attention(query, key, value, attn_mask=mask)))


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Reshape ``(cells, tokens, width)`` to ``(cells, heads, tokens, width / heads)``."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Invert :func:`split_heads`."""
    return x.transpose(1, 2).flatten(2)


def check_heads(width: int, n_heads: int) -> None:
    """Raise if the width is not a multiple of the number of heads."""
    if width % n_heads:
        msg = f"The width must be a multiple of the number of heads, but found width {width} and {n_heads} heads."
        raise ValueError(msg)
