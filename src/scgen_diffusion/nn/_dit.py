"""The diffusion transformer (DiT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ._attention import SelfAttention
from ._blocks import ModulatedBlock, SwiGLU, TimeEmbedding, modulate, position_embedding, zero_modulation
from ._condition_embedding import ConditionEmbedding, ConditionSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ._blocks import BlockTrace


class DiT(nn.Module):
    """A transformer over noisy tokens, modulated by time and conditions.

    Parameters
    ----------
    n_tokens
        Number of tokens per sample.
    token_width
        Width of a token, of the input and of the prediction.
    conditions
        Kind of each condition key, see :class:`ConditionEmbedding`.
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
    >>> network = DiT(
    ...     n_tokens=4, token_width=8, conditions=(3,), width=16, n_layers=1, n_heads=2
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
        conditions: Sequence[ConditionSpec] = (),
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
