"""Embeddings of position and time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
