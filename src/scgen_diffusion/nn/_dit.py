"""The diffusion transformer (DiT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ._attention import SelfAttention
from ._blocks import ModulatedBlock, modulate, zero_modulation
from ._embeddings import ConditionEmbedding, TimeEmbedding, position_embedding
from ._feed_forward import SwiGLU

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class DiT(nn.Module):
    """A transformer over noisy tokens, modulated by time and conditions.

    Parameters
    ----------
    n_tokens
        Number of tokens of a sample.
    token_width
        Width of a token, of the input and of the prediction.
    n_classes
        Number of classes of each condition key.
    width
        Inner width. Published for scLDM: 256.
    n_layers
        Number of blocks. Published: 8.
    n_heads
        Heads per block. Published: 8.
    hidden
        Inner width of the feed-forward halves.

    References
    ----------
    Peebles and Xie (2023), *Scalable diffusion models with transformers*.

    Examples
    --------
    >>> import torch
    >>> network = DiT(n_tokens=4, token_width=8, n_classes=(3,), width=16, n_layers=1, n_heads=2)
    >>> network(torch.randn(5, 4, 8), torch.rand(5), torch.zeros(5, 1, dtype=torch.long)).shape
    torch.Size([5, 4, 8])
    """

    def __init__(
        self,
        n_tokens: int,
        token_width: int,
        n_classes: Sequence[int] = (),
        *,
        width: int = 256,
        n_layers: int = 8,
        n_heads: int = 8,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.project_in = nn.Linear(token_width, width)
        self.register_buffer("positions", position_embedding(n_tokens, width))
        self.embed_time = TimeEmbedding(width)
        self.embed_condition = ConditionEmbedding(n_classes, width)
        self.blocks = nn.ModuleList(
            ModulatedBlock(width, lambda: SelfAttention(width, n_heads, bias=True), lambda: SwiGLU(width, hidden))
            for _ in range(n_layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = zero_modulation(width, 2)
        self.project_out = nn.Linear(width, token_width)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict from tokens ``(n, tokens, token_width)``, times ``(n,)`` and class indices ``(n, keys)``."""
        tokens = self.project_in(x_t) + self.positions
        context = self.embed_time(t) + self.embed_condition(condition)
        for block in self.blocks:
            tokens = block(tokens, context)
        shift, scale = self.modulation_out(context)[:, None].chunk(2, dim=-1)
        return self.project_out(modulate(self.norm_out(tokens), shift, scale))
