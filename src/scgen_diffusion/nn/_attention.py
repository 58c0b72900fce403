"""Multi-head attention, with torch's fused kernels where they exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ._scaled_attention import attend_to_scaled_rows, multiply_heads

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_TABLE = 1 << 18  # queries times tokens


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
        return self.project_out(merge_heads(attend(*heads)))


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
        return self.project_out(merge_heads(attend(query, key, value, None if mask is None else mask[:, None, None])))

    def attend_scaled(self, queries: Tensor, table: Tensor, scales: Tensor) -> Tensor:
        """Attend from queries ``(1, queries, width)``, shared by all cells, to each cell's multiples of rows.

        ``table (rows, 2 * width)`` holds the keys and values of the rows, ``scales (cells, rows)`` the factors, 0 for a
        row that the cell does not have. The result equals :meth:`forward` with ``scales[..., None] * table`` where the
        factor is not 0.
        """
        query = split_heads(self.project_query(queries), self.n_heads)[0]
        key, value = (split_heads(x[None], self.n_heads)[0] for x in table.chunk(2, dim=-1))
        scores = multiply_heads(query, key.mT) / query.shape[-1] ** 0.5
        return self.project_out(merge_heads(attend_to_scaled_rows(scales, scores, value)))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend from each head's queries ``(cells, heads, queries, p)`` to its tokens ``(cells, heads, tokens, p)``.

    ``mask``, which broadcasts to ``(cells, heads, queries, tokens)``, is true for tokens that may be attended to.
    Training in bfloat16 on a CPU avoids torch's fused kernel, whose backward pass is up to twenty times slower there.
    """
    learns = query.requires_grad or key.requires_grad or value.requires_grad
    is_small = query.shape[-2] * key.shape[-2] <= LARGEST_TABLE  # else the weights would need much memory
    if not (learns and is_small and query.dtype == torch.bfloat16 and query.device.type == "cpu"):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask is None:
        return scores.softmax(-1).to(value.dtype) @ value
    absent = ~mask
    weights = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(absent, 0)
    return weights.to(value.dtype) @ value


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
