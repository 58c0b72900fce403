"""Transformer blocks: pre-norm, cross-attending, and modulated by a condition (adaLN-zero)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ._attention import CrossAttention, SelfAttention
from ._feed_forward import SwiGLU

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

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
        """Update queries ``(cells or 1, queries, width)`` from the :meth:`project`-ed tokens of each cell."""
        updated = queries + self.attention.attend(self.norm_queries(queries), keys_values, mask)
        return updated + self.feed_forward(self.norm_feed_forward(updated))


class ModulatedBlock(nn.Module):
    r"""A residual block whose two halves are shifted, scaled and gated by the condition (adaLN-zero).

    .. math:: x \leftarrow x + g(c) \odot f\bigl((1 + \gamma(c)) \odot \operatorname{LN}(x) + \beta(c)\bigr)

    for ``f`` attention and then feed-forward. The modulation starts at zero, so that the block starts as the identity.

    Parameters
    ----------
    width
        Token and condition width.
    attention, feed_forward
        Build the two halves; the white-box transformer passes others.

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
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate_a * self.attention(modulate(self.norm_attention(tokens), shift_a, scale_a))
        return tokens + gate_f * self.feed_forward(modulate(self.norm_feed_forward(tokens), shift_f, scale_f))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift``."""
    return x * (1 + scale) + shift


def zero_modulation(width: int, n_chunks: int) -> nn.Sequential:
    """Build the network from condition to modulation, with its last layer at zero."""
    linear = nn.Linear(width, n_chunks * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)
