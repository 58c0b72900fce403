"""Permutation-equivariant decoders: from latent tokens to one or two numbers per gene."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ._blocks import LAYER_NORM_EPS, CrossAttentionBlock, TransformerBlock

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 20}  # what its cache holds
LARGE_CHUNK = 1 << 24


class GeneQueryDecoder(nn.Module):
    """Query the latent tokens with every gene's embedding (MCAB), and read the gene's numbers from the result.

    The gene queries are projected once per step, not once per cell. If decoding all genes at once needs more than
    :data:`CHUNK_ELEMENTS` numbers per tensor, they are decoded in chunks that are recomputed in the backward pass.

    Parameters
    ----------
    n_genes
        Size of the panel.
    latent_width, width
        Width of a latent token, and inner width of the decoder.
    n_outputs
        Numbers per gene.
    n_layers, n_heads
        Self-attention blocks on the latent tokens, and their heads.
    n_heads_cross
        Heads of the gene queries.
    hidden
        Inner width of the feed-forward halves.
    """

    def __init__(
        self,
        n_genes: int,
        latent_width: int,
        *,
        width: int,
        n_outputs: int,
        n_layers: int,
        n_heads: int,
        n_heads_cross: int,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(latent_width, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.project_in = nn.Linear(latent_width, width, bias=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, n_heads, hidden) for _ in range(n_layers))
        self.embed_gene = nn.Embedding(n_genes + 1, width)
        self.unpool = CrossAttentionBlock(width, n_heads_cross, hidden)
        self.readout = nn.Linear(width, n_outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents ``(cells, tokens, latent_width)`` into ``(cells, genes, n_outputs)``."""
        tokens = self.project_in(self.norm_in(z))
        for block in self.blocks:
            tokens = block(tokens)
        queries = self.embed_gene.weight[1:]  # row 0 is padding
        keys_values = self.unpool.project(tokens)
        n_elements = CHUNK_ELEMENTS.get(z.device.type, LARGE_CHUNK)
        chunk = max(n_elements // (len(z) * queries.shape[1]), 1)
        if chunk >= len(queries):
            return self._decode(keys_values, queries)
        decode = self._decode
        if torch.is_grad_enabled():
            decode = partial(checkpoint, self._decode, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([decode(keys_values, genes) for genes in queries.split(chunk)], dim=1)

    def _decode(self, keys_values: Tensor, queries: Tensor) -> Tensor:
        return self.readout(self.unpool(queries[None], keys_values))


class GeneFactorDecoder(nn.Module):
    r"""Score each gene by its own loadings, :math:`\ell_g = b_g + u_g \cdot c(z)`.

    ``c(z)`` is a small network of all latent tokens plus a linear map of them. Since ``u_g`` and ``b_g`` belong to the
    gene, this decoder is permutation-equivariant like gene queries, but takes a single matrix product.

    Parameters
    ----------
    n_genes
        Size of the panel.
    n_latent
        Number of latent dimensions, over all tokens.
    width
        Width of the network's hidden layers.
    n_factors
        Length of ``c(z)`` and of each gene's loadings.
    n_outputs
        Numbers per gene.
    """

    def __init__(self, n_genes: int, n_latent: int, *, width: int, n_factors: int, n_outputs: int = 1) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.linear = nn.Linear(n_latent, n_factors, bias=False)
        self.network = nn.Sequential(
            nn.Linear(n_latent, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, n_factors)
        )
        self.loadings = nn.Linear(n_factors, n_genes * n_outputs)
        nn.init.normal_(self.loadings.weight, std=0.05)
        nn.init.zeros_(self.loadings.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents ``(cells, tokens, latent_width)`` into ``(cells, genes, n_outputs)``."""
        z = z.flatten(1)
        scores = linear(self.network(z) + self.linear(z), self.loadings.weight)
        bias = self.loadings.bias  # added outside the product: under autocast, bfloat16 would round it away
        return (scores.to(bias.dtype) + bias).unflatten(1, (-1, self.n_outputs))
