"""Permutation-invariant encoder: from the set of expressed genes to the parameters of the latent tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ._pooling import AttentionPooling, FactorPooling, expressed_genes

if TYPE_CHECKING:
    from torch import Tensor


class SetEncoder(nn.Module):
    """Sum of an attention pooling and a factor pooling, either of which may be absent.

    Parameters
    ----------
    n_tokens
        Number of latent tokens.
    n_outputs
        Numbers per token.
    attention, factors
        The poolings; at least one.
    padded_length
        Number of gene tokens of every cell. Default: as many as the batch needs.
    """

    def __init__(
        self,
        n_tokens: int,
        n_outputs: int,
        *,
        attention: AttentionPooling | None,
        factors: FactorPooling | None,
        padded_length: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = (n_tokens, n_outputs)
        self.padded_length = padded_length
        self.attention = attention
        self.factors = factors
        self.read_attention = nn.Linear(attention.queries.shape[1], n_outputs, bias=False) if attention else None
        self.read_factors = nn.Linear(factors.weight.out_features, n_tokens * n_outputs) if factors else None

    def forward(self, values: Tensor, profile: Tensor) -> Tensor:
        """Encode cells.

        Parameters
        ----------
        values
            Value of each gene for the attention, 0 if it is not expressed, ``(cells, genes)``.
        profile
            Normalised expression for the factors, ``(cells, genes)``.

        Returns
        -------
        Tensor
            ``(cells, n_tokens, n_outputs)``.
        """
        encoded = torch.zeros(len(values), *self.shape, device=values.device)
        if self.attention is not None:
            encoded = encoded + self.read_attention(self._attend(values))
        if self.factors is not None:
            encoded = encoded + self.read_factors(self.factors(profile)).view(-1, *self.shape)
        return encoded

    def _attend(self, values: Tensor) -> Tensor:
        """Pool by attention: over the expressed genes on a CPU, over all genes, with fixed shapes, elsewhere."""
        is_eager_on_cpu = values.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_eager_on_cpu or not self.attention.mask_padding:
            return self.attention(expressed_genes(values, length=self.padded_length))
        return self.attention.pool_panel(values)
