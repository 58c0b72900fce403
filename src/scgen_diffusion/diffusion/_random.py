"""Random numbers that belong to a sample, not to a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MASK = (1 << 64) - 1
_MASK_32 = (1 << 32) - 1


class SampleGenerators:
    """One random generator per sample, so that a sample does not depend on which others are drawn with it.

    Parameters
    ----------
    seed
        Seed of the whole request.
    indices
        Number of each sample within the request.
    device
        Where the numbers are drawn.

    Examples
    --------
    >>> together = SampleGenerators(0, range(4)).normal(3)
    >>> alone = SampleGenerators(0, [2]).normal(3)
    >>> bool((together[2] == alone[0]).all())
    True
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator(self.device).manual_seed(sample_seed(seed, int(i))) for i in indices]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, ``(n, *shape)``."""
        return self._stack(lambda g: torch.randn(shape, generator=g, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers uniform in ``[0, 1)``, ``(n, *shape)``."""
        return self._stack(lambda g: torch.rand(shape, generator=g, device=self.device))

    def map(self, draw: Callable[[Tensor, torch.Generator], Tensor], parameters: Tensor) -> Tensor:
        """Apply ``draw(row, generator)`` to every row of ``parameters (n, ...)``."""
        return torch.stack([draw(row, g) for row, g in zip(parameters, self._generators, strict=True)])

    def first(self, n: int) -> SampleGenerators:
        """Return the generators of the first ``n`` samples."""
        few = SampleGenerators(0, (), self.device)
        few._generators = self._generators[:n]
        return few

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self._generators])


def sample_seed(seed: int, index: int) -> int:
    """Mix a request's seed and a sample's number into the sample's own seed.

    torch's CPU generator looks at the low 32 bits only. There the seed permutes the numbers, so that no two of 2**32 samples
    of a request share a generator.
    """
    key = _mix(seed & _MASK)
    low = _permute((_permute((index ^ key) & _MASK_32) ^ (key >> 32)) & _MASK_32)
    high = _mix((key + index) & _MASK) >> 33
    return high << 32 | low


def _permute(x: int) -> int:
    """Apply a bijection of 32 bits (the finaliser of MurmurHash3)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK_32
    return x ^ (x >> 16)


def _mix(x: int) -> int:
    """Spread 64 bits (the finaliser of SplitMix64)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
