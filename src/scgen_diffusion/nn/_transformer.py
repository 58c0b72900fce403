"""Transformers: attention, feed-forward networks, embeddings of positions and times, blocks, and the DiT."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from ._condition_embedding import ConditionEmbedding, ConditionEncoding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Modulation = tuple[Tensor, Tensor, Tensor]


LAYER_NORM_EPS = 1e-8  # as published for scLDM
N_FREQUENCIES = 128  # of times


# --- attention --------------------------------------------------------------------------------------------------------


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
    """Cross-attention from queries to tokens, both of one width, without biases."""

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


# --- embeddings and blocks --------------------------------------------------------------------------------------------


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
    """Pre-norm self-attention and SwiGLU of inner width ``hidden``, each with a residual."""

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

    Invariant to the order of the tokens ``x`` and equivariant to that of the queries ``q``. The SwiGLU has the inner
    width ``hidden``.
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


# --- the diffusion transformer ----------------------------------------------------------------------------------------


class DiT(nn.Module):
    """A transformer over noisy tokens, modulated by time and conditions.

    Parameters
    ----------
    n_tokens
        Number of tokens per sample.
    token_width
        Width of a token, of the input and of the prediction.
    conditions
        Encoding of each condition key, see :class:`ConditionEmbedding`.
    width
        Inner width. Published for scLDM: 256.
    n_layers
        Number of blocks. Published: 8.
    n_heads
        Heads per block. Published: 8.
    hidden
        Inner width of the feed-forward halves.
    attention, feed_forward
        Functions that build the two halves of a block. Default: multi-head self-attention with bias, and SwiGLU.
    positions
        Fixed position embedding ``(n_tokens, width)``. Default: sines, then cosines.
    output_width
        Width of the prediction. Default: ``token_width``.

    Raises
    ------
    ValueError
        If the width is not a multiple of the number of heads.

    References
    ----------
    Peebles and Xie (2023), *Scalable diffusion models with transformers*.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.nn import Classes
    >>> network = DiT(
    ...     n_tokens=4,
    ...     token_width=8,
    ...     conditions=[Classes(3)],
    ...     width=16,
    ...     n_layers=1,
    ...     n_heads=2,
    ... )
    >>> network(
    ...     torch.randn(5, 4, 8), torch.rand(5), torch.zeros(5, 1, dtype=torch.long)
    ... ).shape
    torch.Size([5, 4, 8])
    """

    def __init__(
        self,
        n_tokens: int,
        token_width: int,
        conditions: Sequence[ConditionEncoding] = (),
        *,
        width: int = 256,
        n_layers: int = 8,
        n_heads: int = 8,
        hidden: int | None = None,
        attention: Callable[[], nn.Module] | None = None,
        feed_forward: Callable[[], nn.Module] | None = None,
        positions: Tensor | None = None,
        output_width: int | None = None,
    ) -> None:
        super().__init__()
        attention = attention or (lambda: SelfAttention(width, n_heads, bias=True))
        feed_forward = feed_forward or (lambda: SwiGLU(width, hidden))
        positions = position_embedding(n_tokens, width) if positions is None else positions
        self.project_in = nn.Linear(token_width, width)
        self.register_buffer("positions", positions)
        self.embed_time = TimeEmbedding(width)
        self.embed_condition = ConditionEmbedding(conditions, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, attention, feed_forward) for _ in range(n_layers))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = zero_modulation(width, 2)
        self.project_out = nn.Linear(width, output_width or token_width)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict from tokens ``(n, tokens, token_width)``, times ``(n,)`` and conditions ``(n, columns)``."""
        return self.project_out(self.transform(self.project_in(x_t), self.embed_context(t, condition)))

    def transform(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Apply all blocks and the last norm to tokens ``(n, tokens, width)``, given ``context (n, width)``."""
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens, context)
        shift, scale = self.modulation_out(context)[:, None].chunk(2, dim=-1)
        return modulate(self.norm_out(tokens), shift, scale)

    def trace(self, tokens: Tensor, context: Tensor) -> list[BlockTrace]:
        """Return the intermediate values of every block, for the arguments of :meth:`transform`."""
        tokens = tokens + self.positions
        traces = []
        for block in self.blocks:
            traces.append(block.trace(tokens, context))
            tokens = traces[-1].feed_forward.tokens_out
        return traces

    def embed_context(self, t: Tensor, condition: Tensor) -> Tensor:
        """Embed times ``(n,)`` and conditions ``(n, columns)`` as one vector per sample, ``(n, width)``."""
        return self.embed_time(t) + self.embed_condition(condition)
