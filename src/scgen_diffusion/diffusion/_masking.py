r"""Masked diffusion of counts: the items of a sample are masked at random, and unmasked a few at a time.

A sample is a bag of items of several kinds, such as the molecules of a cell, each from a gene. A state is
``(n, kinds + 1)``: how many items of each kind are seen, and in the last column how many are masked. At time ``t``
every item is seen with probability :math:`\alpha_t`, so the seen counts are binomial. A network predicts the kinds of
masked items from those that are seen. Samples start with all items masked.

References
----------
Austin et al. (2021), *Structured denoising diffusion models in discrete state-spaces*; Sahoo et al. (2024), *Simple and
effective masked diffusion language models*; Chen and Zhou (2023), *Learning to jump: thinning and thickening latent
counts for generative modeling*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from scgen_diffusion._arguments import check_count

from ._count_draws import draw_binomial, draw_poisson
from ._denoiser import as_denoiser
from ._paths import Path, expand_time
from ._random import check_generators
from ._samplers import SteppingSampler, Walk, equal_times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ._denoiser import Denoiser
    from ._random import Generators
    from ._samplers import Field, Sampler

DEFAULT_N_STEPS = 64


@dataclass(frozen=True)
class Masking(Path):
    r"""The path on which each item is seen with probability :math:`\alpha_t = ((1 + r)^t - 1) / r`, otherwise masked.

    Equal steps multiply the number of seen items by about the same factor, because the first items tell the most.

    Parameters
    ----------
    resolution
        The number :math:`r`. Below a share of :math:`1 / r`, steps add items instead of multiplying them.

    Examples
    --------
    >>> import torch
    >>> Masking().alpha(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.0306, 1.0000])
    """

    resolution: float = 1000.0

    @property
    def _growth(self) -> float:
        return math.log1p(self.resolution)

    def alpha(self, t: Tensor) -> Tensor:
        """Return the probability that an item is seen."""
        return torch.expm1(t * self._growth) / math.expm1(self._growth)  # exactly 1 at the end

    def sigma(self, t: Tensor) -> Tensor:
        """Return the probability that an item is masked."""
        return 1 - self.alpha(t)

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return the derivative of :meth:`alpha`."""
        return torch.exp(t * self._growth) * (self._growth / self.resolution)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return the derivative of :meth:`sigma`."""
        return -self.alpha_rate(t)

    def draw_times(self, n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw ``n`` times uniformly from ``[0, 1]``, one in each of ``n`` equal parts, in random order.

        The loss differs a lot from time to time, so independent times would make it noisy.
        """
        offsets = torch.rand(n, generator=generator, device=device)
        return (torch.randperm(n, generator=generator, device=device) + offsets) / max(n, 1)

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mask items.

        Parameters
        ----------
        data
            Samples without masked items, ``(n, kinds + 1)``.
        noise
            Uniform numbers in double precision, ``(n, kinds)``.
        t
            One time, or times ``(n,)``.
        """
        counts = data[:, :-1]
        share = expand_time(self.alpha(t), noise).expand_as(noise)
        return with_masked(draw_binomial(noise, counts.double(), share).to(data.dtype), counts.sum(1))


def with_masked(seen: Tensor, totals: Tensor) -> Tensor:
    """Return the state ``(n, kinds + 1)`` of seen counts ``(n, kinds)`` of samples with ``totals (n,)`` items."""
    return torch.cat([seen, (totals - seen.sum(1)).clamp(min=0)[:, None].to(seen.dtype)], dim=1)


@dataclass(frozen=True)
class UnmaskingSampler(SteppingSampler):
    r"""Unmask items in steps.

    Of :math:`m` masked items, a step from ``t`` to ``s`` unmasks :math:`\operatorname{Poisson}\bigl(m\,p_k\,(\alpha_s -
    \alpha_t) / \sigma_t\bigr)` of kind :math:`k`, where :math:`p_k` is the predicted probability. The number of items
    in the finished sample therefore varies a little around the one it started with.

    Parameters
    ----------
    default_n_steps
        Default number of steps.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import Denoiser, Generators, Kinds, Masking
    >>> always_the_first = lambda x, t: torch.tensor([[0.0, -100.0]])
    >>> denoiser = Denoiser(always_the_first, Masking(), Kinds())
    >>> state = UnmaskingSampler()(
    ...     denoiser, torch.tensor([[0.0, 0.0, 500.0]]), generators=Generators(0, [0])
    ... )
    >>> state
    tensor([[497.,   0.,   3.]])
    """

    default_n_steps: int = DEFAULT_N_STEPS

    def __post_init__(self) -> None:
        check_count("default_n_steps", self.default_n_steps)

    def walk(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Walk:
        """Prepare to unmask the items of states ``x (n, kinds + 1)``, usually all.

        Parameters
        ----------
        field
            A :class:`Denoiser` on the :class:`Masking` path.
        x
            States at ``t = 0``.
        n_steps
            Number of steps.
        generators
            One generator per sample.
        """
        denoiser, _ = as_denoiser(field, Masking)
        generators = check_generators(generators, len(x), self)
        times = equal_times(self.default_n_steps if n_steps is None else n_steps, x.device)
        return Walk(times, self._states(denoiser, x, times, generators))

    def _states(self, denoiser: Denoiser, x: Tensor, times: Tensor, generators: Generators) -> Iterator[Tensor]:
        yield x
        totals = x.sum(1)
        for t, s in pairwise(times):
            expected = expected_step(denoiser, x, t, s)
            drawn = draw_poisson(generators.uniform(expected.shape[1], dtype=torch.float64), expected)
            x = with_masked(x[:, :-1] + drawn, totals)
            yield x


def expected_step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the expected number of items of each kind that a step from ``t`` to ``s`` unmasks, ``(n, kinds)``."""
    return x[:, -1:] * share_of_masked(denoiser.path, t, s) * denoiser.predict(x, t).softmax(1)


def share_of_masked(path: Path, t: Tensor, s: Tensor) -> Tensor:
    """Return the share of masked items that a step unmasks."""
    return (path.alpha(s) - path.alpha(t)) / path.sigma(t)


MASKING_SAMPLERS: dict[str, Sampler] = {"unmasking": UnmaskingSampler()}
