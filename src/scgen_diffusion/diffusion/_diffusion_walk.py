"""What the samplers of denoising diffusion share: noise levels, and steps between them."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scgen_diffusion._arguments import check_count

from ._denoiser import as_denoiser
from ._random import check_generators
from ._trace import SteppingSampler, Walk
from ._variance_preserving import VariancePreserving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ._denoiser import Denoiser
    from ._paths import Path
    from ._random import Generators
    from ._samplers import Field


@dataclass(frozen=True)
class Level:
    r"""The weights of data and noise in ``x_t`` at one time: :math:`\alpha_t` and :math:`\sigma_t`."""

    t: Tensor
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        r"""Return :math:`\log(\alpha_t / \sigma_t)`."""
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf


def levels_at(path: Path, times: Tensor, x: Tensor) -> list[Level]:
    """Return the levels at some times, computed in their precision; the times get the device of ``x``."""
    alphas, sigmas = path.alpha(times).tolist(), path.sigma(times).tolist()
    times = times.to(x.device, torch.promote_types(x.dtype, torch.float32))
    return [Level(*row) for row in zip(times, alphas, sigmas, strict=True)]


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(SteppingSampler):
    r"""Base class of the samplers of denoising diffusion: their steps.

    Parameters
    ----------
    default_n_steps
        Number of steps by default; at most the path's number of timesteps.
    """

    default_n_steps: int

    def __post_init__(self) -> None:
        check_count("default_n_steps", self.default_n_steps)

    @property
    def is_stochastic(self) -> bool:
        """Whether random numbers are drawn during sampling."""
        return False

    def walk(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Walk:
        """Prepare to carry noise ``x (n, ...)`` to data.

        Parameters
        ----------
        field
            A :class:`Denoiser` on a :class:`VariancePreserving` path.
        x
            Standard normal noise, ``(n, ...)``.
        n_steps
            Number of steps, from 1 to the path's number of timesteps.
        generators
            One generator per sample, for stochastic samplers.
        """
        denoiser, path = as_denoiser(field, VariancePreserving)
        if self.is_stochastic:
            check_generators(generators, len(x), self)
        levels = self._levels(path, x, n_steps)
        return Walk(torch.stack([level.t for level in levels]), self._states(denoiser, x, levels, generators))

    @abstractmethod
    def _states(
        self, denoiser: Denoiser, x: Tensor, levels: list[Level], generators: Generators | None
    ) -> Iterator[Tensor]:
        """Carry ``x`` from the first level to the last, and yield it at each."""

    def _levels(self, path: VariancePreserving, x: Tensor, n_steps: int | None) -> list[Level]:
        if n_steps is None:
            n_steps = min(self.default_n_steps, path.n_timesteps)
        if not 1 <= n_steps <= path.n_timesteps:
            msg = f"`n_steps` must be between 1 and the path's {path.n_timesteps} timesteps, but found {n_steps}."
            raise ValueError(msg)
        return levels_at(path, self._times(n_steps), x)

    def _times(self, n_steps: int) -> Tensor:
        """Return the times of ``n_steps`` equal steps, in double precision."""
        return torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
