"""Random numbers that belong to a sample, not to a batch."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MASK = (1 << 64) - 1
_MASK_32 = (1 << 32) - 1


class Generators(Protocol):
    """Random numbers for ``n`` samples, drawn for all of them at once, from which everything else about them follows."""

    def __len__(self) -> int:
        """Return ``n``."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, ``(n, *shape)``."""
        ...

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers uniform in ``[0, 1)``, ``(n, *shape)``."""
        ...

    def first(self, n: int) -> Generators:
        """Return what draws the same numbers for the first ``n`` samples alone."""
        ...


class SampleGenerators(Generators):
    """One random generator per sample, so that a sample does not depend on which others are drawn with it.

    Every sample is a call of its own, which on a CPU costs little beside the drawing, and on a GPU more than all the rest:
    see :class:`BlockGenerator`.

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
        return self._fill(Tensor.normal_, shape, torch.float32)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers uniform in ``[0, 1)``, ``(n, *shape)``."""
        return self._fill(Tensor.uniform_, shape, dtype)

    def map(self, draw: Callable[[Tensor, torch.Generator], Tensor], parameters: Tensor) -> Tensor:
        """Apply ``draw(row, generator)`` to every row of ``parameters (n, ...)``."""
        return torch.stack([draw(row, g) for row, g in zip(parameters, self._generators, strict=True)])

    def first(self, n: int) -> SampleGenerators:
        """Return the generators of the first ``n`` samples."""
        few = SampleGenerators(0, (), self.device)
        few._generators = self._generators[:n]
        return few

    def _fill(self, draw: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numbers = torch.empty(len(self), *shape, dtype=dtype, device=self.device)
        for row, generator in zip(numbers, self._generators, strict=True):
            draw(row, generator=generator)
        return numbers


class BlockGenerator(Generators):
    """One random generator for a block of samples: each kind of number is a single call for all of them.

    What a sample gets depends on its place in the block, and on the block's size and seed, but not on what the other samples are.
    So blocks have to be drawn whole, and cut alike, as those of a request are.

    Parameters
    ----------
    seed
        Seed of the whole request.
    first_index
        Number of the block's first sample within the request.
    n_samples
        Size of the block.
    device
        Where the numbers are drawn.

    Examples
    --------
    >>> block = BlockGenerator(0, 4096, 1024)
    >>> block.normal(3).shape, block.first(5).uniform().shape
    (torch.Size([1024, 3]), torch.Size([5]))
    """

    def __init__(self, seed: int, first_index: int, n_samples: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._n_drawn = self._n_kept = n_samples
        self._generator = torch.Generator(self.device).manual_seed(sample_seed(seed, first_index))

    def __len__(self) -> int:
        return self._n_kept

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, ``(n, *shape)``."""
        numbers = torch.randn(self._n_drawn, *shape, generator=self._generator, device=self.device)
        return numbers[: self._n_kept]

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers uniform in ``[0, 1)``, ``(n, *shape)``."""
        numbers = torch.rand(self._n_drawn, *shape, generator=self._generator, device=self.device, dtype=dtype)
        return numbers[: self._n_kept]

    def first(self, n: int) -> BlockGenerator:
        """Return what draws the same numbers, and keeps those of the first ``n`` samples."""
        few = copy(self)
        few._n_kept = n
        return few


def generators_of_block(
    seed: int, first_index: int, n_samples: int, device: torch.device | str = "cpu"
) -> SampleGenerators | BlockGenerator:
    """Return what draws a block of consecutive samples fastest: on a CPU one generator per sample, elsewhere one for all."""
    if torch.device(device).type == "cpu":
        return SampleGenerators(seed, range(first_index, first_index + n_samples), device)
    return BlockGenerator(seed, first_index, n_samples, device)


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
