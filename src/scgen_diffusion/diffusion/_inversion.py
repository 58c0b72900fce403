r"""Inversion: turn data into noise with one field, and the same noise into data with another.

First, a trajectory from noise to the data is found. The difference between this trajectory and a sampler's steps under
the data's own condition, :math:`r = x_s - \text{step}_{own}(x_t)`, is then added to the sampler's steps under the new
condition. So both trajectories agree if the conditions do, and the round trip returns exactly the same data, however
few steps it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from ._count_draws import counterfactual_counts, draw_binomial
from ._paths import with_masked
from ._samplers import (
    N_UNMASKING_STEPS,
    DDIMSampler,
    DDPMSampler,
    FixedStepSampler,
    Level,
    Step,
    UnmaskingSampler,
    check_sampler,
    equal_times,
    expected_step,
    levels_at,
    midpoint_step,
    share_of_masked,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ._denoiser import Denoiser, Field
    from ._paths import Path
    from ._random import Generators
    from ._samplers import Sampler

Advance = Callable[[Any, "Tensor", Any, Any], "Tensor"]  # (field, x_t, t, s) -> x_s


@dataclass(frozen=True)
class FlowInversion:
    """Go back to noise along the probability flow of one field, and forward to data along that of another.

    It draws no random numbers. For normally distributed data the result is the optimal affine map between the two
    distributions. The error against the exact flows has the order of the method. The field must be finite at the data.

    Parameters
    ----------
    step
        One step of the method.
    default_n_steps
        Default number of steps in each direction.

    References
    ----------
    Su et al. (2023), *Dual diffusion implicit bridges for image-to-image translation*.

    Examples
    --------
    >>> import torch
    >>> own, new = (lambda x, t, mean=mean: torch.full_like(x, mean) for mean in (1.0, 3.0))
    >>> FlowInversion()(own, new, torch.ones(1, 2))
    tensor([[3., 3.]])
    """

    step: Step = midpoint_step
    default_n_steps: int = 10

    def __call__(
        self, own: Field, new: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry data ``x (n, ...)`` back to noise along ``own``, and to data along ``new``."""
        times = equal_times(n_steps, self.default_n_steps, dtype=torch.float64).to(x)
        states = [x]
        for t, earlier in pairwise(times.flip(0)):
            states.append(self._advance(own, states[-1], t, earlier))
        return _replay(self._advance, own, new, reversed(states), times)

    def _advance(self, field: Field, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.step(field, x, t, t_next - t)


@dataclass(frozen=True)
class NoiseInversion:
    r"""Reach data with the noise that ancestral sampling would have needed to reach given data.

    If many noises lead to the same data, as for a value that is exactly zero, the probability flow cannot be inverted.
    So a trajectory is drawn: a chain of states from noise to the data :math:`x`, distributed as in the diffusion that
    ends there,

    .. math:: x_s = \alpha_s x + \sqrt{\sigma_s^2 - \tau^2}\,\frac{x_t - \alpha_t x}{\sigma_t} + \tau z

    with :math:`\tau` as in :class:`DDIMSampler`. If the path starts at pure noise, distributions that differ by a shift
    are mapped exactly, in any number of steps.

    Parameters
    ----------
    eta
        Amount of randomness; 0 uses a single noise for the whole trajectory.
    default_n_steps
        Default number of steps.

    References
    ----------
    Wu and De la Torre (2023), *A latent space of stochastic diffusion models for zero-shot image editing and guidance*
    (CycleDiffusion); Huberman-Spiegelglas et al. (2024), *An edit friendly DDPM noise space*.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import (
    ...     TARGETS,
    ...     Denoiser,
    ...     LinearInterpolant,
    ...     Generators,
    ... )
    >>> fields = [lambda x, t, mean=mean: torch.full_like(x, mean) for mean in (1.0, 3.0)]
    >>> own, new = (
    ...     Denoiser(field, LinearInterpolant(), TARGETS["data"]) for field in fields
    ... )
    >>> NoiseInversion()(own, new, torch.ones(1, 2), generators=Generators(0, [0]))
    tensor([[3., 3.]])
    """

    eta: float = 1.0
    default_n_steps: int = 50

    def __call__(
        self, own: Denoiser, new: Denoiser, x: Tensor, *, n_steps: int | None = None, generators: Generators
    ) -> Tensor:
        """Draw a trajectory from noise to data ``x (n, ...)``, and repeat it under ``new``."""
        times = equal_times(n_steps, self.default_n_steps, dtype=torch.float64)
        levels = levels_at(own.path, times, x)
        return _replay(self._advance, own, new, self._states(x, levels, generators), levels)

    def _states(self, x: Tensor, levels: Sequence[Level], generators: Generators) -> Iterator[Tensor]:
        """Draw states from the diffusion that ends at ``x``."""
        noise = generators.normal(*x.shape[1:]).to(x)
        yield levels[0].alpha * x + levels[0].sigma * noise
        for now, following in pairwise(levels):
            direction, std = self._weights(now, following)
            rest = direction * noise + (std * generators.normal(*x.shape[1:]).to(x) if std > 0 else 0)
            yield following.alpha * x + rest
            if following.sigma > 0:
                noise = rest / following.sigma

    def _advance(self, denoiser: Denoiser, x: Tensor, now: Level, following: Level) -> Tensor:
        data, noise = denoiser.estimate(x, now.t)
        return following.alpha * data + self._weights(now, following)[0] * noise

    def _weights(self, now: Level, following: Level) -> tuple[float, float]:
        return DDIMSampler(eta=self.eta).weights(now, following)


@dataclass(frozen=True)
class UnmaskingInversion:
    """Reach given samples by unmasking, and repeat the same steps with another prediction.

    The order in which a sample's items are unmasked is drawn. Each step under the new prediction keeps the residuals of
    the given sample's step (:func:`counterfactual_counts`): where a kind becomes rarer some of its items are left out,
    where it becomes more frequent items are added. Equal predictions return the same samples.

    Parameters
    ----------
    default_n_steps
        Default number of steps.
    """

    default_n_steps: int = N_UNMASKING_STEPS

    def __call__(
        self, own: Denoiser, new: Denoiser, x: Tensor, *, n_steps: int | None = None, generators: Generators
    ) -> Tensor:
        """Unmask the items of ``x (n, kinds + 1)``, and repeat the steps under ``new``."""
        counts, totals, n_kinds = x[:, :-1], x.sum(1), x.shape[1] - 1
        times = equal_times(n_steps, self.default_n_steps, dtype=torch.float64).to(x.device, x.dtype)
        state = new_state = with_masked(torch.zeros_like(counts), totals)
        for t, s in pairwise(times):
            hidden = (counts - state[:, :-1]).double()
            # in single precision, the last step would leave a few molecules masked
            share = share_of_masked(own.path, t.double(), s.double()).expand_as(hidden)
            step = draw_binomial(generators.uniform(n_kinds, dtype=torch.float64), hidden, share)
            mean, theta = expected_step(own, state, t, s)
            new_mean, _ = expected_step(new, new_state, t, s)
            uniform = generators.uniform(n_kinds, dtype=torch.float64)
            new_step = counterfactual_counts(uniform, step, mean.double(), new_mean.double(), theta.double())
            state = with_masked((state[:, :-1] + step).to(x.dtype), totals)
            new_state = with_masked((new_state[:, :-1] + new_step).to(x.dtype), totals)
        return new_state


Inversion = FlowInversion | NoiseInversion | UnmaskingInversion
"""How data are carried from one field's distribution to another's by way of noise."""


def inversion_by(sampler: Sampler, path: Path) -> Inversion:
    """Return the inversion that belongs to a sampler; raise ValueError for one that does not fit or has none."""
    check_sampler(sampler, path)
    if isinstance(sampler, FixedStepSampler):
        return FlowInversion(sampler.step, sampler.default_n_steps)
    if isinstance(sampler, DDIMSampler | DDPMSampler):
        return NoiseInversion(getattr(sampler, "eta", 1.0), sampler.default_n_steps)
    if isinstance(sampler, UnmaskingSampler):
        return UnmaskingInversion(sampler.default_n_steps)
    msg = f"`sampler` {sampler!r} cannot be inverted; choose 'ddpm' or 'ddim'."
    raise ValueError(msg)


def _replay(advance: Advance, own: Any, new: Any, states: Iterable[Tensor], moments: Iterable[Any]) -> Tensor:
    """Sample under ``new``, adding the deviations of the ``states`` at the ``moments`` from the steps of ``own``."""
    following = iter(states)
    x = x_new = next(following)
    for (t, s), x_next in zip(pairwise(moments), following, strict=True):
        x_new = x_next + (advance(new, x_new, t, s) - advance(own, x, t, s))
        x = x_next
    return x_new
