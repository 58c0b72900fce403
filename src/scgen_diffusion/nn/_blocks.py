"""Transformer blocks: pre-norm, cross-attention, and modulated by a condition (adaLN-zero)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ._attention import CrossAttention, SelfAttention
from ._feed_forward import SwiGLU

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Modulation = tuple[Tensor, Tensor, Tensor]

LAYER_NORM_EPS = 1e-8  # as published for scLDM


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and SwiGLU, each with a residual.

    Parameters
    ----------
    width
        Token width.
    n_heads
        Number of heads.
    hidden
        Inner width of the feed-forward half.
    """

    def __init__(self, width: int, n_heads: int, hidden: int | None = None) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(width, n_heads)
        self.norm_feed_forward = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward = SwiGLU(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(cells, tokens, width)`` to the same shape."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        return tokens + self.feed_forward(self.norm_feed_forward(tokens))


class CrossAttentionBlock(nn.Module):
    r"""Multi-head cross-attention block (MCAB).

    .. math:: y = q + \operatorname{Attn}(\operatorname{LN}_q(q), \operatorname{LN}(x)), \quad
        y + \operatorname{SwiGLU}(\operatorname{LN}(y))

    Invariant to the order of the tokens ``x`` and equivariant to that of the queries ``q``.

    Parameters
    ----------
    width
        Width of queries and tokens.
    n_heads
        Number of heads.
    hidden
        Inner width of the feed-forward half.
    """

    def __init__(self, width: int, n_heads: int, hidden: int | None = None) -> None:
        super().__init__()
        self.norm_queries = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm_tokens = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = CrossAttention(width, n_heads)
        self.norm_feed_forward = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward = SwiGLU(width, hidden)

    def project(self, tokens: Tensor) -> Tensor:
        """Normalise tokens ``(..., width)`` and project them to keys and values ``(..., 2 * width)``."""
        return self.attention.project_kv(self.norm_tokens(tokens))

    def forward(self, queries: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Update queries ``(cells or 1, queries, width)`` from each cell's tokens, as returned by :meth:`project`."""
        return self._update(queries, self.attention(self.norm_queries(queries), keys_values, mask))

    def pool_scaled(self, queries: Tensor, table: Tensor, scales: Tensor) -> Tensor:
        """Update queries ``(1, queries, width)`` from each cell's multiples ``(cells, rows)`` of projected rows."""
        return self._update(queries, self.attention.attend_scaled(self.norm_queries(queries), table, scales))

    def _update(self, queries: Tensor, attended: Tensor) -> Tensor:
        updated = queries + attended
        return updated + self.feed_forward(self.norm_feed_forward(updated))


class HalfTrace(NamedTuple):
    """The intermediate values of one half of a :class:`ModulatedBlock`, each ``(cells, tokens, width)``.

    - ``tokens_in``: the input tokens.
    - ``modulated``: the tokens after normalisation, scale and shift, which are the input of the operator (attention or
      feed-forward).
    - ``output``: the output of the operator, before the gate.
    - ``tokens_out``: ``tokens_in + gate * output``.
    """

    tokens_in: Tensor
    modulated: Tensor
    output: Tensor
    tokens_out: Tensor


class BlockTrace(NamedTuple):
    """The intermediate values of both halves of a :class:`ModulatedBlock`."""

    attention: HalfTrace
    feed_forward: HalfTrace


class ModulatedBlock(nn.Module):
    r"""A residual block whose two halves are shifted, scaled and gated by the condition (adaLN-zero).

    .. math:: x \leftarrow x + g(c) \odot f\bigl((1 + \gamma(c)) \odot \operatorname{LN}(x) + \beta(c)\bigr)

    where ``f`` is attention first and feed-forward second. The modulation starts at zero, so the block starts as the
    identity.

    Parameters
    ----------
    width
        Token and condition width.
    attention, feed_forward
        Functions that build the two halves; the white-box transformer passes its own.

    References
    ----------
    Peebles and Xie (2023), *Scalable diffusion models with transformers*.
    """

    def __init__(self, width: int, attention: Callable[[], nn.Module], feed_forward: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = attention()
        self.norm_feed_forward = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.feed_forward = feed_forward()
        self.modulation = zero_modulation(width, 6)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens ``(cells, tokens, width)`` under ``condition (cells, width)`` to the same shape."""
        return self.trace(tokens, condition).feed_forward.tokens_out

    def trace(self, tokens: Tensor, condition: Tensor) -> BlockTrace:
        """Do the same as :meth:`forward`, and return the intermediate values."""
        chunks = self.modulation(condition)[:, None].chunk(6, dim=-1)
        first = gated_step(self.norm_attention, self.attention, tokens, chunks[:3])
        return BlockTrace(first, gated_step(self.norm_feed_forward, self.feed_forward, first.tokens_out, chunks[3:]))


def gated_step(norm: nn.Module, operator: nn.Module, tokens: Tensor, modulation: Modulation) -> HalfTrace:
    """Compute ``tokens + gate * operator(modulate(norm(tokens), shift, scale))``, with intermediate values."""
    shift, scale, gate = modulation
    modulated = modulate(norm(tokens), shift, scale)
    output = operator(modulated)
    return HalfTrace(tokens, modulated, output, tokens + gate * output)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift``."""
    return x * (1 + scale) + shift


def zero_modulation(width: int, n_chunks: int) -> nn.Sequential:
    """Build the network that maps the condition to the modulation, with zeros in its last layer."""
    linear = nn.Linear(width, n_chunks * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


@torch.no_grad()
def set_first_rows(linear: nn.Linear, rows: Tensor) -> None:
    """Let the first outputs of a layer be coordinates along ``rows (k, inputs)``; more than it has are cut."""
    k = min(len(rows), linear.out_features)
    linear.weight[:k] = rows[:k]
    linear.bias[:k] = 0
