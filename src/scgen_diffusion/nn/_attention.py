"""Multi-head attention, with torch's fused kernels where they exist."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torch import Tensor


CHUNK_ELEMENTS = {"cpu": 1 << 17}  # elements of (heads, cells, queries, rows) at a time: what a core's cache holds
LARGE_CHUNK = 1 << 26  # on other devices: 256 MiB
LOWEST = -3e38  # logit of a row that a cell does not have


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

    def attend_scaled(self, queries: Tensor, table: Tensor, scales: Tensor) -> Tensor:
        """Attend from queries ``(1, queries, width)``, shared by all cells, to each cell's multiples of rows.

        ``table (rows, 2 * width)`` holds the keys and values of the rows, ``scales (cells, rows)`` the factors, 0 for a
        row that the cell does not have. The result equals :meth:`forward` with ``scales[..., None] * table`` where the
        factor is not 0.
        """
        query = split_heads(self.project_query(queries), self.n_heads)[0]
        key, value = (split_heads(x[None], self.n_heads)[0] for x in table.chunk(2, dim=-1))
        scores = query @ key.mT / query.shape[-1] ** 0.5
        return self.project_out(merge_heads(attend_to_scaled_rows(scales, scores, value)))


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


def attend_to_scaled_rows(scales: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    r"""Attend to the rows of a table, whose keys and values are multiplied by a number per cell.

    .. math:: o_{chq} = \sum_g w_{chqg}\, a_{cg}\, v_{hg}, \qquad
        w_{chqg} = \frac{\exp(a_{cg}\, s_{hqg})}{\sum_{g': a_{cg'} \ne 0} \exp(a_{cg'}\, s_{hqg'})}

    Because :math:`q \cdot (a k) = a\,(q \cdot k)`, queries and keys are multiplied once per step rather than once per
    cell, and no tensor of size ``(cells, rows, width)`` is created. Many cells are processed in chunks, whose weights
    are recomputed in the backward pass. Shapes do not depend on the data, so a GPU does not have to wait for it.

    Parameters
    ----------
    scales
        :math:`a`, ``(cells, rows)``; 0 for a row that the cell does not have.
    scores
        :math:`s`: queries times keys, ``(heads, queries, rows)``.
    values
        :math:`v`, ``(heads, rows, p)``.

    Returns
    -------
    Tensor
        ``(cells, heads, queries, p)``; zero for a cell without rows.
    """
    device_type, n_cells = scales.device.type, len(scales)
    if not torch.compiler.is_compiling():  # else the number of chunks would depend on the number of cells
        n_cells = max(CHUNK_ELEMENTS.get(device_type, LARGE_CHUNK) // scores.numel(), 1)
    attend = _attend_to_scaled_rows
    if n_cells < len(scales) and torch.is_grad_enabled():
        attend = partial(checkpoint, attend, use_reentrant=False, preserve_rng_state=False)
    # sums over thousands of rows are taken in float32
    with nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False):
        scores, values = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (scores, values))
        return torch.cat([attend(part, scores, values) for part in scales.split(n_cells)])


def _attend_to_scaled_rows(scales: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    scales = scales[:, None, None]
    logits = (scales * scores).masked_fill(scales == 0, LOWEST)  # not -inf, of which a softmax would be NaN
    return (logits.softmax(-1) * scales) @ values
