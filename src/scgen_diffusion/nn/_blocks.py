"""Parts of transformers: embeddings of positions and times, feed-forward networks, and blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, silu

from ._attention import CrossAttention, SelfAttention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Modulation = tuple[Tensor, Tensor, Tensor]


LAYER_NORM_EPS = 1e-8  # as published for scLDM
N_FREQUENCIES = 128  # of times


def sines_and_cosines(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    r"""Return sines and cosines of :math:`x\,\omega_i` with ``n`` frequencies :math:`\omega_i = 10000^{-i/n}`.

    Each is ``(len(x), n)``.
    """
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(n, device=x.device) / n)
    angles = x[:, None].float() * frequencies
    return angles.sin(), angles.cos()


def position_embedding(n_positions: int, width: int) -> Tensor:
    """Return the fixed sine-cosine embedding of ``n_positions``, ``(positions, width)``, sines first."""
    if width % 2:
        msg = f"The width of a sine-cosine embedding must be even, but found {width}."
        raise ValueError(msg)
    return torch.cat(sines_and_cosines(torch.arange(n_positions), width // 2), dim=1)


def patch_position_embedding(n_patches: int, width: int) -> Tensor:
    """Return the fixed embedding of patches that was published for scRDiT, ``(patches, width)``.

    It was written for images. Its first half embeds the column, which is always 0 (sines 0, cosines 1). Its second half
    embeds the row, here the number of the patch, as in :func:`position_embedding`.
    """
    if width % 4:
        msg = f"The width of a patch position embedding must be a multiple of 4, but found {width}."
        raise ValueError(msg)
    columns = position_embedding(1, width // 2).expand(n_patches, -1)
    return torch.cat([columns, position_embedding(n_patches, width // 2)], dim=1)


class TimeEmbedding(nn.Module):
    """Embed the diffusion time: cosines and sines of ``t``, then Linear-SiLU-Linear.

    Parameters
    ----------
    width
        Width of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2 * N_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``(n,)`` as ``(n, width)``."""
        sines, cosines = sines_and_cosines(t, N_FREQUENCIES)
        return self.network(torch.cat([cosines, sines], dim=1))


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
        updated = queries + self.attention(self.norm_queries(queries), keys_values, mask)
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
