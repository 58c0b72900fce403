"""Networks on sets of genes: an encoder that ignores the genes' order, and decoders that follow it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import embedding, linear
from torch.utils.checkpoint import checkpoint

from ._transformer import LAYER_NORM_EPS, CrossAttentionBlock, TransformerBlock

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 20}  # elements of (cells, genes, width) decoded at a time: what its cache holds
LARGE_CHUNK = 1 << 24


def expressed_genes(values: Tensor, *, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Collect the non-zero genes of dense ``values (cells, genes)``, padded to ``length``.

    The default length is the largest number of expressed genes in the batch, at least 1. The genes' numbers start at 1,
    with 0 for padding, ``(cells, length)``. Their values have the same shape.

    Raises
    ------
    ValueError
        If a cell expresses more genes than ``length``.
    """
    expressed = values != 0
    n_expressed = expressed.sum(1)
    longest = max(int(n_expressed.max()), 1)
    length = length or longest
    if longest > length:
        msg = f"A cell expresses {longest} genes, but the padded length is {length}."
        raise ValueError(msg)
    cells, genes = expressed.nonzero(as_tuple=True)
    first = n_expressed.cumsum(0) - n_expressed
    slots = torch.arange(len(cells), device=values.device) - first[cells]
    padded_genes = torch.zeros(len(values), length, dtype=torch.long, device=values.device)
    padded_values = torch.zeros(len(values), length, dtype=values.dtype, device=values.device)
    padded_genes[cells, slots] = genes + 1
    padded_values[cells, slots] = values[cells, genes]
    return padded_genes, padded_values


class AttentionPooling(nn.Module):
    r"""Learned queries attend to the expressed genes (MCAB), then to each other.

    A gene enters as its embedding times its value (``log1p`` of the count). In the published model the product is
    normalised (``value_after_norm=False``), which cancels the value except for its sign:
    :math:`\operatorname{LN}(a\,e) = \operatorname{LN}(e)` for any :math:`a > 0` if the norm's epsilon is small. So that
    encoder sees *which* genes are expressed and hardly *how much*. With ``value_after_norm=True``, embeddings are
    normalised and projected first, once per step rather than once per cell, and then a gene's key and value are scaled
    by its expression.

    Parameters
    ----------
    n_genes
        Size of the panel.
    n_tokens
        Number of latent tokens.
    width
        Token width.
    n_layers
        Self-attention blocks after the pooling.
    n_heads, n_heads_cross
        Heads of those blocks, and of the pooling.
    hidden
        Inner width of the feed-forward halves.
    value_after_norm
        Where the value enters, see above.
    mask_padding
        Whether to mask padding in the attention. The published code does not.
    """

    def __init__(
        self,
        n_genes: int,
        n_tokens: int,
        *,
        width: int,
        n_layers: int,
        n_heads: int,
        n_heads_cross: int,
        hidden: int | None = None,
        value_after_norm: bool = True,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.value_after_norm = value_after_norm
        self.mask_padding = mask_padding
        self.embed_gene = nn.Embedding(n_genes + 1, width)
        self.queries = nn.Parameter(torch.randn(n_tokens, width))
        self.pool = CrossAttentionBlock(width, n_heads_cross, hidden)
        self.blocks = nn.Sequential(*(TransformerBlock(width, n_heads, hidden) for _ in range(n_layers)))

    def forward(self, genes: Tensor, values: Tensor) -> Tensor:
        """Pool numbers of genes and their values, both ``(cells, genes)``, into tokens ``(cells, n_tokens, width)``.

        Genes without a value are masked.
        """
        if self.value_after_norm:
            keys_values = embedding(genes, self.pool.project(self.embed_gene.weight)) * values[..., None]
        else:
            keys_values = self.pool.project(self.embed_gene(genes) * values[..., None])
        mask = None
        if self.mask_padding:  # a cell without genes attends to its first token, as softmax over nothing is NaN
            mask = values != 0
            mask = torch.cat([mask[:, :1] | ~mask.any(1, keepdim=True), mask[:, 1:]], dim=1)
        return self.blocks(self.pool(self.queries[None], keys_values, mask))


class FactorPooling(nn.Module):
    r"""A weighted sum over genes, :math:`\sum_g p_g w_g` of the normalised profile ``p``, and a small network."""

    def __init__(self, n_genes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(n_genes, width)
        nn.init.normal_(self.weight.weight, std=0.05)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.register_buffer("profile_mean", torch.zeros(n_genes))

    def forward(self, profile: Tensor) -> Tensor:
        """Pool profiles ``(cells, genes)`` into ``(cells, width)``."""
        return self.network(self.weight(profile - self.profile_mean))


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
        self.blocks = nn.Sequential(*(TransformerBlock(width, n_heads, hidden) for _ in range(n_layers)))
        self.embed_gene = nn.Embedding(n_genes + 1, width)
        self.unpool = CrossAttentionBlock(width, n_heads_cross, hidden)
        self.readout = nn.Linear(width, n_outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents ``(cells, tokens, latent_width)`` into ``(cells, genes, n_outputs)``."""
        tokens = self.blocks(self.project_in(self.norm_in(z)))
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
