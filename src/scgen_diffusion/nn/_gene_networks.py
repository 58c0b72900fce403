"""Denoising networks over whole profiles: a transformer over patches of genes, and a residual network."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import pad, silu

from ._condition_embedding import ConditionEmbedding
from ._transformer import MLP, DiT, SelfAttention, TimeEmbedding, gated_step, patch_position_embedding, zero_modulation
from ._white_box import SparseCoding, SubspaceAttention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from ._condition_embedding import ConditionEncoding
    from ._transformer import BlockTrace


LARGEST_ACTIVATION = 2**26
"""Numbers in a network's largest intermediate tensor without gradients: 256 MiB of float32."""


def parts_of(numbers_per_cell: int, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Divide inputs ``(cells, ...)`` so that each part's largest activation fits; without gradients only.

    The default networks are so small that a block of generated cells is one part.
    """
    n_parts = 1 if torch.is_grad_enabled() else max(-(-len(inputs[0]) * numbers_per_cell // LARGEST_ACTIVATION), 1)
    return zip(*(each.chunk(n_parts) for each in inputs), strict=True)


Block = Literal["transformer", "white_box"]


class GeneDiT(nn.Module):
    """A diffusion transformer in gene space, whose tokens are patches of neighbouring genes.

    This is the network of scRDiT (``block="transformer"``: self-attention and MLP) and of the white-box diffusion
    transformer (``block="white_box"``: subspace attention and sparse coding). The genes are padded with zeros to full
    patches.

    For interpretation, :meth:`trace` returns the intermediate values of each block. With white-box blocks,
    :meth:`head_coordinates` returns what each head reads.

    Parameters
    ----------
    n_genes
        Size of the panel.
    conditions
        Encoding of each condition key, see :class:`ConditionEmbedding`.
    patch_size
        Genes per token. Published: 10.
    width
        Token width, a multiple of ``n_heads`` and of 4. Published: 768.
    n_layers, n_heads
        Number of blocks, and of heads per block. Published: 3 and 8.
    block
        Type of the blocks.
    n_outputs
        Numbers predicted per gene. Published: 1.
    n_global_tokens
        Number of extra tokens that read all genes at once. They, the time and the condition also write to all genes.
        With them, even few layers see the whole cell. Published: none.

    Raises
    ------
    ValueError
        If the width does not fit the number of heads or the embedding of positions.

    References
    ----------
    Dong et al. (2024), *scRDiT: generating single-cell RNA-seq data by diffusion transformers and accelerating
    sampling*. Cui et al. (2024), *White-box diffusion transformer for single-cell RNA-seq generation*.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.nn import Classes
    >>> network = GeneDiT(25, conditions=[Classes(3)], width=16, n_layers=1, n_heads=2)
    >>> network(
    ...     torch.randn(5, 25), torch.full((5,), 500.0), torch.zeros(5, 1, dtype=torch.long)
    ... ).shape
    torch.Size([5, 25])
    """

    def __init__(
        self,
        n_genes: int,
        conditions: Sequence[ConditionEncoding] = (),
        *,
        patch_size: int = 10,
        width: int = 768,
        n_layers: int = 3,
        n_heads: int = 8,
        block: Block = "transformer",
        n_outputs: int = 1,
        n_global_tokens: int = 0,
    ) -> None:
        super().__init__()
        if block == "white_box":
            attention, feed_forward = partial(SubspaceAttention, width, n_heads), partial(SparseCoding, width)
        else:
            attention, feed_forward = partial(SelfAttention, width, n_heads, bias=True), partial(MLP, width)
        self.n_genes, self.n_outputs, self.n_global_tokens = n_genes, n_outputs, n_global_tokens
        self.patch_size, self.n_patches = patch_size, -(-n_genes // patch_size)
        self._numbers_per_cell = (self.n_patches + n_global_tokens) * 4 * width
        positions = patch_position_embedding(self.n_patches, width)
        self.network = DiT(
            self.n_patches + n_global_tokens,
            patch_size,
            conditions,
            width=width,
            n_layers=n_layers,
            attention=attention,
            feed_forward=feed_forward,
            positions=torch.cat([positions, torch.zeros(n_global_tokens, width)]),
            output_width=n_outputs * patch_size,
        )
        initialise_as_published(self.network)
        if n_global_tokens:
            self.read_all_genes = nn.Linear(n_genes, n_global_tokens * width)
            self.write_all_genes = nn.Linear((n_global_tokens + 1) * width, n_outputs * n_genes, bias=False)
            nn.init.zeros_(self.write_all_genes.weight)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict from cells ``(cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``.

        In the published models, a time is the number of the diffusion step, from 0 to 999.

        Returns
        -------
        Tensor
            ``(cells, genes)``, or ``(cells, n_outputs, genes)`` if there are several outputs.
        """
        return torch.cat([self._predict(*part) for part in parts_of(self._numbers_per_cell, x_t, t, condition)])

    def _predict(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        context = self.network.embed_context(t, condition)
        tokens = self.network.transform(self._embed(x_t), context)
        per_patch = self.network.project_out(tokens[:, : self.n_patches])
        prediction = per_patch.unflatten(-1, (self.n_outputs, -1)).transpose(1, 2).flatten(2)[..., : self.n_genes]
        if self.n_global_tokens:
            seen = torch.cat([tokens[:, self.n_patches :].flatten(1), silu(context)], dim=1)
            prediction = prediction + self.write_all_genes(seen).unflatten(-1, (self.n_outputs, -1))
        return prediction if self.n_outputs > 1 else prediction[:, 0]

    def start_reading(self, directions: Tensor) -> None:
        """Initialise global tokens to read the cells' coordinates along ``directions (k, genes)``."""
        set_first_rows(self.read_all_genes, directions)

    @property
    def gene_weights(self) -> list[Tensor]:
        """The matrices with which global tokens read and write genes."""
        return [self.read_all_genes.weight, self.write_all_genes.weight] if self.n_global_tokens else []

    def trace(self, x_t: Tensor, t: Tensor, condition: Tensor) -> list[BlockTrace]:
        """Return every block's intermediate values, for the arguments of :meth:`forward`; global tokens come last."""
        return self.network.trace(self._embed(x_t), self.network.embed_context(t, condition))

    def head_coordinates(self, x_t: Tensor, t: Tensor, condition: Tensor) -> list[Tensor]:
        r"""Return what each head of white-box blocks reads: :math:`U_k^\top z` of its modulated tokens ``z``.

        One tensor per layer, ``(cells, heads, patches, width / heads)``.
        """
        traces = self.trace(x_t, t, condition)
        return [
            block.attention.coordinates(trace.attention.modulated)
            for block, trace in zip(self.network.blocks, traces, strict=True)
        ]

    def _embed(self, x_t: Tensor) -> Tensor:
        """Turn cells ``(cells, genes)`` into tokens ``(cells, patches + global tokens, width)``."""
        padded = pad(x_t, (0, self.n_patches * self.patch_size - self.n_genes))
        patches = self.network.project_in(padded.unflatten(1, (self.n_patches, -1)))
        if not self.n_global_tokens:
            return patches
        return torch.cat([patches, self.read_all_genes(x_t).unflatten(1, (self.n_global_tokens, -1))], dim=1)


@torch.no_grad()
def initialise_as_published(network: DiT) -> None:
    """Initialise projections with Glorot's uniform distribution, and time embeddings with small weights."""
    halves = [half for block in network.blocks for half in (block.attention, block.feed_forward)]
    for linear in _linears(network.project_in, *halves):
        nn.init.xavier_uniform_(linear.weight)
    for linear in _linears(network.embed_time):
        nn.init.normal_(linear.weight, std=0.02)
    for linear in _linears(network.project_in, *halves, network.embed_time):
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def _linears(*modules: nn.Module) -> list[nn.Linear]:
    return [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]


class GeneMLP(nn.Module):
    """A residual network that reads and writes all genes at once, modulated by time and condition (adaLN-zero).

    It has neither patches nor attention, so it is several times as fast as :class:`GeneDiT`. Its outputs start at zero.
    It sees genes along few axes only, which :meth:`start_reading` initialises.

    Parameters
    ----------
    n_genes
        Size of the panel.
    conditions
        Encoding of each condition key, see :class:`ConditionEmbedding`.
    width, n_layers
        Width of the residual stream, and number of blocks.
    n_outputs
        Numbers predicted per gene.
    n_axes
        Number of axes along which it reads genes.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.nn import Classes
    >>> network = GeneMLP(25, conditions=[Classes(3)], width=16, n_outputs=2)
    >>> network(
    ...     torch.randn(5, 25), torch.full((5,), 500.0), torch.zeros(5, 1, dtype=torch.long)
    ... ).shape
    torch.Size([5, 2, 25])
    """

    def __init__(
        self,
        n_genes: int,
        conditions: Sequence[ConditionEncoding] = (),
        *,
        width: int = 256,
        n_layers: int = 2,
        n_outputs: int = 1,
        n_axes: int = 64,
    ) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.embed_time = TimeEmbedding(width)
        self.embed_condition = ConditionEmbedding(conditions, width)
        self.read_genes = nn.Linear(n_genes, n_axes)
        self.project_in = nn.Linear(n_axes, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(n_layers)])
        self.blocks = nn.ModuleList([MLP(width, 2 * width) for _ in range(n_layers)])
        self.modulations = nn.ModuleList([zero_modulation(width, 3) for _ in range(n_layers)])
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(2 * width, n_outputs * n_genes)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict from cells ``(cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``.

        Returns
        -------
        Tensor
            ``(cells, genes)``, or ``(cells, n_outputs, genes)`` if there are several outputs.
        """
        context = self.embed_time(t) + self.embed_condition(condition)
        h = self.project_in(self.read_genes(x_t)) + context
        for norm, block, modulation in zip(self.norms, self.blocks, self.modulations, strict=True):
            h = gated_step(norm, block, h, modulation(context).chunk(3, dim=-1)).tokens_out
        prediction = self.project_out(torch.cat([self.norm_out(h), silu(context)], dim=1))
        return prediction.unflatten(1, (self.n_outputs, -1)) if self.n_outputs > 1 else prediction

    def start_reading(self, directions: Tensor) -> None:
        """Initialise the axes along which it reads genes as ``directions (k, genes)``."""
        set_first_rows(self.read_genes, directions)

    @property
    def gene_weights(self) -> list[Tensor]:
        """The matrices that read and write genes."""
        return [self.read_genes.weight, self.project_out.weight]


@torch.no_grad()
def set_first_rows(linear: nn.Linear, rows: Tensor) -> None:
    """Let the first outputs of a layer be coordinates along ``rows (k, inputs)``; more than it has are cut."""
    k = min(len(rows), linear.out_features)
    linear.weight[:k] = rows[:k]
    linear.bias[:k] = 0
