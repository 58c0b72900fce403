"""Random numbers that belong to a sample, not to a batch."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MASK = (1 << 64) - 1
_MASK_32 = (1 << 32) - 1

BLOCK_SIZES = {"cpu": 128, "cuda": 1024}
"""Samples per block, by kind of device: the batch of one random generator."""


def block_size(device: torch.device | str) -> int:
    """Return the number of samples per block on a device."""
    return BLOCK_SIZES.get(torch.device(device).type, BLOCK_SIZES["cpu"])


class Generators:
    """Random numbers for some samples of a request, the same as when the whole request is drawn.

    The samples of a request are divided into blocks of equal size at fixed positions. Each block has its own generator,
    which draws for the whole block. So a sample's numbers depend only on the seed, its index and the kind of device,
    not on which other samples are drawn with it.

    Parameters
    ----------
    seed
        Seed of the whole request.
    indices
        Index of each sample within the request.
    device
        Device on which the numbers are drawn.

    Examples
    --------
    >>> together = Generators(0, range(4)).normal(3)
    >>> alone = Generators(0, [2]).normal(3)
    >>> bool((together[2] == alone[0]).all())
    True
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        numbers, self._size = torch.as_tensor(indices, dtype=torch.long), block_size(device)
        blocks, self._blocks = torch.unique(numbers // self._size, return_inverse=True)
        self._rows = numbers % self._size
        in_order = (blocks[:, None] * self._size + torch.arange(self._size)).flatten()
        self._are_whole_blocks = len(blocks) > 0 and torch.equal(numbers, in_order)
        self._generators = [
            torch.Generator(self.device).manual_seed(sample_seed(seed, block)) for block in blocks.tolist()
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, ``(n, *shape)``."""
        return self._draw(torch.randn, shape, torch.float32)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers uniformly from ``[0, 1)``, ``(n, *shape)``."""
        return self._draw(torch.rand, shape, dtype)

    def apart(self, number: int = 1) -> Generators:
        """Return generators of other numbers for the same samples; drawing from them does not shift the others."""
        other = copy(self)
        seeds = [sample_seed(generator.initial_seed(), number) for generator in self._generators]
        other._generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        return other

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        options = {"dtype": dtype, "device": self.device}
        if self._are_whole_blocks:
            drawn = [draw((self._size, *shape), generator=generator, **options) for generator in self._generators]
            return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        numbers = torch.empty((len(self), *shape), **options)
        for block, generator in enumerate(self._generators):
            of_block = draw((self._size, *shape), generator=generator, **options)
            own = (self._blocks == block).nonzero()[:, 0]
            numbers[own.to(self.device)] = of_block[self._rows[own].to(self.device)]
        return numbers


def sample_seed(seed: int, index: int) -> int:
    """Combine a request's seed and a block's number into the block's seed.

    torch's CPU generator uses only the low 32 bits. There, the seed permutes the numbers, so no two of 2**32 blocks of
    a request share a generator.
    """
    key = _split_mix(int(seed) & _MASK)  # numpy's integers overflow
    low = _permute((_permute((index ^ key) & _MASK_32) ^ (key >> 32)) & _MASK_32)
    high = _split_mix((key + index) & _MASK) >> 33
    return high << 32 | low


def _permute(x: int) -> int:
    """Apply a 32-bit bijection (the finaliser of MurmurHash3)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK_32
    return x ^ (x >> 16)


def _split_mix(x: int) -> int:
    """Take a step of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
