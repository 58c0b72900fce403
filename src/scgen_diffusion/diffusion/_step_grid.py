"""Step grids: the times at which the samplers of denoising diffusion stop."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from scgen_diffusion._arguments import is_whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from ._variance_preserving import VariancePreserving

Spacing = Literal["time", "slowing", "log_snr"]
SLOWING = 1.25


@dataclass(frozen=True)
class StepGrid:
    r"""Increasing times from noise at ``t = 0`` to data at ``t = 1``.

    Parameters
    ----------
    spacing
        ``"time"``: equal steps in ``t``. ``"slowing"``: :math:`1 - t = (1 - u)^{1.25}` for equal steps of ``u``, whose
        last steps are shorter, because what is decided last, such as whether a value is zero, needs to be exact.
        ``"log_snr"``: equal steps in :math:`\log(\alpha / \sigma)` from ``t = 0`` to timestep ``k = 0``, and one more
        to ``t = 1``.
    timesteps
        Explicit, decreasing timestep indices ``k`` instead of a spacing; a list or array becomes a tuple. Sampling ends
        at the last one.

    Examples
    --------
    >>> from scgen_diffusion.diffusion import VariancePreserving
    >>> StepGrid().times(VariancePreserving(), 4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """

    spacing: Spacing = "time"
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.spacing not in get_args(Spacing):
            msg = f"`spacing` must be one of {get_args(Spacing)}, but found {self.spacing!r}."
            raise ValueError(msg)
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", _check_timesteps(self.timesteps))

    def times(self, path: VariancePreserving, n_steps: int | None) -> Tensor:
        """Return the ``n_steps + 1`` times of the steps, or those of the explicit timesteps, in double precision."""
        if self.timesteps is not None:
            return _explicit_times(path, self.timesteps, n_steps)
        if n_steps is None or not 1 <= n_steps <= path.n_timesteps:
            msg = f"`n_steps` must be between 1 and the path's {path.n_timesteps} timesteps, but found {n_steps}."
            raise ValueError(msg)
        if self.spacing == "log_snr" and n_steps > 1:
            return _equal_log_snr(path, n_steps)
        times = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
        return 1 - (1 - times) ** SLOWING if self.spacing == "slowing" else times


def published_timesteps(stride: int = 1, n_timesteps: int = 1000) -> tuple[int, ...]:
    """Return the timesteps of scRDiT's samplers, decreasing: the multiples of ``stride``, 1 and 0.

    Examples
    --------
    >>> published_timesteps(stride=250)
    (750, 500, 250, 1, 0)
    """
    if not 1 <= stride < n_timesteps:
        msg = f"`stride` must be between 1 and {n_timesteps - 1}, but found {stride}."
        raise ValueError(msg)
    return tuple(sorted({0, 1, *range(stride, n_timesteps, stride)}, reverse=True))


def _explicit_times(path: VariancePreserving, timesteps: tuple[int, ...], n_steps: int | None) -> Tensor:
    if n_steps is not None:
        msg = f"`n_steps` was {n_steps}, but the sampler has explicit `timesteps`; leave `n_steps` out."
        raise ValueError(msg)
    if timesteps[0] >= path.n_timesteps:
        msg = f"`timesteps` must lie below the path's {path.n_timesteps} timesteps, but found {timesteps[0]}."
        raise ValueError(msg)
    return path.timestep_to_time(torch.tensor(timesteps, dtype=torch.float64))


def _equal_log_snr(path: VariancePreserving, n_steps: int) -> Tensor:
    """Return ``n_steps`` times with equal steps of the log SNR, followed by ``t = 1``."""
    ends = path.timestep_to_time(torch.tensor([path.n_timesteps - 1, 0], dtype=torch.float64))
    first, last = path.log_snr(ends)
    inner = path.log_snr_to_time(torch.linspace(float(first), float(last), n_steps, dtype=torch.float64)[1:-1])
    return torch.cat([ends[:1], inner, ends[1:], torch.ones(1, dtype=torch.float64)])


def _check_timesteps(timesteps: Any) -> tuple[int, ...]:
    """Return timesteps, which may be an array, as a tuple; raise unless they are indices that decrease."""
    given = tuple(timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps)
    is_decreasing = all(map(is_whole_number, given)) and all(k > following for k, following in pairwise(given))
    if len(given) < 2 or not is_decreasing or given[-1] < 0:
        msg = f"`timesteps` must be at least two indices that decrease and are not negative, but found {given}."
        raise ValueError(msg)
    return tuple(map(int, given))
