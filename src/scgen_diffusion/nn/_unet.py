"""The one-dimensional U-Net over genes that scRDiT publishes as an alternative to its transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, max_pool1d, pad

from ._condition_embedding import ConditionEmbedding, ConditionEncoding
from ._gene_networks import parts_of
from ._transformer import SelfAttention, sines_and_cosines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CONTEXT_WIDTH = 256  # width of the embedding of time and conditions, as published
N_HEADS = 4
N_LEVELS = 3


class GeneUNet(nn.Module):
    """A one-dimensional U-Net over genes, with self-attention after each level.

    While the genes are halved three times, the channels grow from ``width`` to ``2 * width``, ``4 * width`` and ``4 *
    width``, with ``8 * width`` at the bottom. The genes are padded with zeros to a multiple of 8. Every level adds a
    linear map of the embedded time (sines, then cosines, without a network) to its channels. Conditions, which the
    published network lacks, are added to the embedded time.

    Parameters
    ----------
    n_genes
        Size of the panel.
    conditions
        Encoding of each condition key, see :class:`ConditionEmbedding`.
    width
        Channels of the first level, a multiple of 4. Published: 64.
    n_outputs
        Numbers predicted per gene. Published: 1.

    Raises
    ------
    ValueError
        If the width is not a multiple of the four heads.

    References
    ----------
    Dong et al. (2024), *scRDiT: generating single-cell RNA-seq data by diffusion transformers and accelerating
    sampling*.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.nn import Classes
    >>> network = GeneUNet(25, conditions=[Classes(3)], width=4)
    >>> network(
    ...     torch.randn(5, 25), torch.full((5,), 500.0), torch.zeros(5, 1, dtype=torch.long)
    ... ).shape
    torch.Size([5, 25])
    """

    def __init__(
        self, n_genes: int, conditions: Sequence[ConditionEncoding] = (), *, width: int = 64, n_outputs: int = 1
    ) -> None:
        super().__init__()
        self.n_genes, self.n_outputs = n_genes, n_outputs
        self.n_padding = -n_genes % 2**N_LEVELS
        self._numbers_per_cell = 3 * width * (n_genes + self.n_padding)  # queries, keys and values of the last level
        self.embed_condition = ConditionEmbedding(conditions, CONTEXT_WIDTH)
        self.convolve_in = DoubleConvolution(1, width)
        self.down = nn.ModuleList([Level(width, 2 * width), Level(2 * width, 4 * width), Level(4 * width, 4 * width)])
        self.bottom = nn.Sequential(
            DoubleConvolution(4 * width, 8 * width),
            DoubleConvolution(8 * width, 8 * width),
            DoubleConvolution(8 * width, 4 * width),
        )
        self.up = nn.ModuleList(
            Level(2 * n_in, n_out, n_in) for n_in, n_out in ((4 * width, 2 * width), (2 * width, width), (width, width))
        )
        self.project_out = nn.Conv1d(width, n_outputs, kernel_size=1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict from cells ``(cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``.

        In the published model, a time is the number of the diffusion step, from 0 to 999. The prediction is
        ``(cells, genes)``, or ``(cells, n_outputs, genes)`` if there are several outputs.
        """
        return torch.cat([self._predict(*part) for part in parts_of(self._numbers_per_cell, x_t, t, condition)])

    def _predict(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        context = torch.cat(sines_and_cosines(t, CONTEXT_WIDTH // 2), dim=1) + self.embed_condition(condition)
        levels = [self.convolve_in(pad(x_t, (0, self.n_padding))[:, None])]
        for down in self.down:
            levels.append(down(levels[-1], context))
        x = self.bottom(levels.pop())
        for up in self.up:
            x = up(x, context, levels.pop())
        prediction = self.project_out(x)[..., : self.n_genes]
        return prediction if self.n_outputs > 1 else prediction[:, 0]


class DoubleConvolution(nn.Module):
    r"""Two convolutions, :math:`\operatorname{GN}(C_2 \operatorname{gelu}(\operatorname{GN}(C_1 x)))`.

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    n_middle
        Channels between the convolutions. Default: ``n_out``.
    residual
        Whether to return ``gelu(x + ...)`` instead.
    """

    def __init__(self, n_in: int, n_out: int, n_middle: int | None = None, *, residual: bool = False) -> None:
        super().__init__()
        n_middle = n_middle or n_out
        self.residual = residual
        self.network = nn.Sequential(
            nn.Conv1d(n_in, n_middle, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, n_middle),
            nn.GELU(),
            nn.Conv1d(n_middle, n_out, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(cells, n_in, genes)`` to ``(cells, n_out, genes)``."""
        return gelu(x + self.network(x)) if self.residual else self.network(x)


class ChannelAttention(nn.Module):
    """Pre-norm self-attention among positions, and a feed-forward network, each with a residual."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_channels)
        self.attention = SelfAttention(n_channels, N_HEADS, bias=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(n_channels), nn.Linear(n_channels, n_channels), nn.GELU(), nn.Linear(n_channels, n_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(cells, channels, positions)`` to the same shape."""
        tokens = x.transpose(1, 2)
        tokens = tokens + self.attention(self.norm(tokens))
        return (tokens + self.feed_forward(tokens)).transpose(1, 2)


class Level(nn.Module):
    """Halve the positions by max pooling, or double them and concatenate a level from the way down; then convolve.

    Then the context is added, and positions attend to each other.

    Parameters
    ----------
    n_in, n_out
        Channels of input (with those of the level from the way down) and output.
    n_middle
        Channels between the last two convolutions.
    """

    def __init__(self, n_in: int, n_out: int, n_middle: int | None = None) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            DoubleConvolution(n_in, n_in, residual=True), DoubleConvolution(n_in, n_out, n_middle)
        )
        self.embed_context = nn.Sequential(nn.SiLU(), nn.Linear(CONTEXT_WIDTH, n_out))
        self.attend = ChannelAttention(n_out)

    def forward(self, x: Tensor, context: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map ``(cells, channels, positions)`` under ``context (cells, context)`` to ``(cells, n_out, ...)``.

        With ``skip (cells, channels, 2 * positions)``, on the way up, the result has its positions, otherwise half.
        """
        if skip is None:
            x = max_pool1d(x, 2)
        else:
            doubled = interpolate(x, scale_factor=2, mode="linear", align_corners=True)
            x = torch.cat([skip, doubled], dim=1)
        return self.attend(self.convolve(x) + self.embed_context(context)[:, :, None])
