"""Two poolings of a cell's genes, both invariant to the order of the genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import embedding, pad

from ._blocks import CrossAttentionBlock, TransformerBlock

if TYPE_CHECKING:
    from torch import Tensor


class GeneSet(NamedTuple):
    """The expressed genes of each cell, padded to a common length.

    Attributes
    ----------
    genes
        Gene numbers from 1, 0 where padded, ``(cells, tokens)``.
    values
        Their values, 0 where padded, ``(cells, tokens)``.
    """

    genes: Tensor
    values: Tensor

    @property
    def mask(self) -> Tensor:
        """Tell genes (true) from padding (false), ``(cells, tokens)``."""
        return self.genes > 0


def expressed_genes(values: Tensor, *, length: int | None = None) -> GeneSet:
    """Collect the non-zero genes of dense ``values (cells, genes)``, padded to ``length``.

    The default length is the largest number of expressed genes in the batch, at least 1.

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
    return GeneSet(padded_genes, padded_values)


class AttentionPooling(nn.Module):
    r"""Learned queries attend to the expressed genes (MCAB), then exchange information.

    A gene enters as its embedding times its value (``log1p`` of the count). Published, the product is normalised
    (``value_after_norm=False``), which cancels the value but for its sign: :math:`\operatorname{LN}(a\,e) =
    \operatorname{LN}(e)` for any :math:`a > 0` as long as the norm's epsilon is small, so that the encoder sees *which*
    genes are expressed and hardly *how much*. With ``value_after_norm=True`` the embeddings are normalised and projected
    first, once per step and not once per cell, and a gene's key and value are scaled by its expression.

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
        Whether padding is kept out of the attention. The published code lets it take part.
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
        self.blocks = nn.ModuleList(TransformerBlock(width, n_heads, hidden) for _ in range(n_layers))

    def forward(self, gene_set: GeneSet) -> Tensor:
        """Pool each cell's genes into tokens ``(cells, n_tokens, width)``."""
        mask = _with_one_token(gene_set.mask) if self.mask_padding else None
        return self._exchange(self.pool(self.queries[None], self._keys_values(gene_set), mask))

    def pool_panel(self, values: Tensor) -> Tensor:
        """Pool dense ``values (cells, genes)``, none below 0, without collecting the expressed genes first.

        What :meth:`forward` returns where padding is masked, computed in another way: for all genes, by shapes that do not depend on
        the values. That is quicker on a GPU, which need not wait for the number of expressed genes, and can be compiled. A norm's
        epsilon that cancels values all but entirely (``value_after_norm=False``) here cancels them entirely.
        """
        rows, scales = self.embed_gene.weight[1:], values  # row 0 stands for padding
        if (
            not self.value_after_norm
        ):  # a cell without genes attends to a token of zeros, of which the norm's bias remains
            present = values != 0
            rows = torch.cat([torch.zeros_like(rows[:1]), rows])
            scales = torch.cat([~present.any(1, keepdim=True), present], dim=1).to(values.dtype)
        return self._exchange(self.pool.pool_scaled(self.queries[None], self.pool.project(rows), scales))

    def _exchange(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def _keys_values(self, gene_set: GeneSet) -> Tensor:
        if self.value_after_norm:
            return embedding(gene_set.genes, self.pool.project(self.embed_gene.weight)) * gene_set.values[..., None]
        return self.pool.project(self.embed_gene(gene_set.genes) * gene_set.values[..., None])


class FactorPooling(nn.Module):
    r"""A weighted sum over genes, :math:`\sum_g p_g w_g` with ``p`` the normalised profile, then a small network.

    Parameters
    ----------
    n_genes
        Size of the panel.
    width
        Width of the pooled vector and of the result.
    """

    def __init__(self, n_genes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(n_genes, width)
        nn.init.normal_(self.weight.weight, std=0.05)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.register_buffer("profile_mean", torch.zeros(n_genes))

    def forward(self, profile: Tensor) -> Tensor:
        """Pool profiles ``(cells, genes)`` into ``(cells, width)``."""
        return self.network(self.weight(profile - self.profile_mean))


def _with_one_token(mask: Tensor) -> Tensor:
    """Let a cell without expressed genes attend to one padded token, of value zero: softmax over nothing is NaN."""
    empty = ~mask.any(1)
    return mask | pad(empty[:, None], (0, mask.shape[1] - 1))
