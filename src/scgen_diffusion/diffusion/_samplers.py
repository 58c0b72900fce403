r"""Samplers carry noise at ``t = 0`` to data at ``t = 1``: for flows, for denoising diffusion, and for masking.

Most can also ``invert``: turn data into noise with one field, and the same noise into data with another. First, a
trajectory from noise to the data is found. The difference between this trajectory and the sampler's steps under the
data's own condition, :math:`r = x_s - \text{step}_{own}(x_t)`, is then added to its steps under the new condition. So
both trajectories agree if the conditions do, and the round trip returns exactly the same data, however few steps it
takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from scgen_diffusion._arguments import check_count

from ._count_draws import counterfactual_counts, draw_binomial, draw_negative_binomial
from ._denoiser import Denoiser, Field
from ._paths import LinearInterpolant, Masking, VariancePreserving, with_masked

if TYPE_CHECKING:
    from torch import Tensor

    from ._paths import Path
    from ._random import Generators

Step = Callable[[Field, "Tensor", "Tensor", "Tensor"], "Tensor"]
Advance = Callable[[Any, "Tensor", Any, Any], "Tensor"]  # (field, x_t, t, s) -> x_s


class Sampler(Protocol):
    """Anything that carries samples along a field, with random numbers if the method needs them."""

    def __call__(
        self, field: Any, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry noise ``x (n, ...)`` from ``t = 0`` to data at ``t = 1``, along a field or by a denoiser."""


# --- flows: integrate dx/dt = v(x, t) ---------------------------------------------------------------------------------


def euler_step(field: Field, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """Take one explicit Euler step (order 1, one evaluation)."""
    return x + dt * field(x, t)


def midpoint_step(field: Field, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """Take one midpoint step (order 2, two evaluations)."""
    return x + dt * field(x + dt / 2 * field(x, t), t + dt / 2)


@dataclass(frozen=True)
class FixedStepSampler:
    """Integrate with equal steps.

    Parameters
    ----------
    step
        One step of the method.
    default_n_steps
        Default number of steps.
    """

    path_type = LinearInterpolant
    step: Step
    default_n_steps: int

    def __call__(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Integrate ``field`` from noise ``x (n, ...)`` in equal steps, without random numbers."""
        for t, t_next in pairwise(equal_times(n_steps, self.default_n_steps, device=x.device)):
            x = self._advance(field, x, t, t_next)
        return x

    def invert(
        self, own: Field, new: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry data ``x (n, ...)`` back to noise along the flow of ``own``, and to data along that of ``new``.

        It draws no random numbers. For normally distributed data the result is the optimal affine map between the two
        distributions. The error against the exact flows has the order of the method. The field must be finite at the
        data.

        References
        ----------
        Su et al. (2023), *Dual diffusion implicit bridges for image-to-image translation*.

        Examples
        --------
        >>> import torch
        >>> own, new = (lambda x, t, mean=mean: torch.full_like(x, mean) for mean in (1.0, 3.0))
        >>> samplers_for(LinearInterpolant())["midpoint"].invert(own, new, torch.ones(1, 2))
        tensor([[3., 3.]])
        """
        times = equal_times(n_steps, self.default_n_steps, dtype=torch.float64).to(x)
        states = [x]
        for t, earlier in pairwise(times.flip(0)):
            states.append(self._advance(own, states[-1], t, earlier))
        return _replay(self._advance, own, new, reversed(states), times)

    def _advance(self, field: Field, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.step(field, x, t, t_next - t)


def _replay(advance: Advance, own: Any, new: Any, states: Iterable[Tensor], moments: Iterable[Any]) -> Tensor:
    """Sample under ``new``, adding the deviations of the ``states`` at the ``moments`` from the steps of ``own``."""
    following = iter(states)
    x = x_new = next(following)
    for (t, s), x_next in zip(pairwise(moments), following, strict=True):
        x_new = x_next + (advance(new, x_new, t, s) - advance(own, x, t, s))
        x = x_next
    return x_new


def equal_times(n_steps: int | None, default: int, **options: Any) -> Tensor:
    """Return the times of equal steps from 0 to 1; raise ValueError for fewer than one step."""
    return torch.linspace(0, 1, check_count("n_steps", default if n_steps is None else n_steps) + 1, **options)


# --- denoising diffusion, on variance-preserving paths ----------------------------------------------------------------


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
class DiffusionSampler(ABC):
    r"""Base class of the samplers of denoising diffusion: their steps.

    Parameters
    ----------
    default_n_steps
        Number of steps by default; at most the path's number of timesteps.
    """

    path_type = VariancePreserving
    default_n_steps: int

    def __call__(
        self, field: Denoiser, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry noise to data.

        Parameters
        ----------
        field
            A :class:`Denoiser` on a :class:`VariancePreserving` path.
        x
            Standard normal noise, ``(n, ...)``.
        n_steps
            Number of steps, from 1 to the path's number of timesteps.
        generators
            One generator per sample, for samplers that draw random numbers.
        """
        times = self.times(self.n_steps_on(field.path, n_steps))
        return self.carry(field, x, levels_at(field.path, times, x), generators)

    @abstractmethod
    def carry(self, denoiser: Denoiser, x: Tensor, levels: list[Level], generators: Generators | None) -> Tensor:
        """Carry ``x (n, ...)`` from the first level to the last."""

    def n_steps_on(self, path: VariancePreserving, n_steps: int | None) -> int:
        """Return the number of steps; raise ValueError if the path has fewer timesteps."""
        default = min(self.default_n_steps, path.n_timesteps)
        return check_count("n_steps", default if n_steps is None else n_steps, most=path.n_timesteps)

    def times(self, n_steps: int) -> Tensor:
        """Return the times of ``n_steps`` equal steps, in double precision."""
        return torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class _RandomWalk(DiffusionSampler):
    """Steps to ``alpha_s data + direction noise + std z`` with fresh noise ``z``, except in the last step."""

    def carry(self, denoiser: Denoiser, x: Tensor, levels: list[Level], generators: Generators | None) -> Tensor:
        """Carry ``x (n, ...)`` from the first level to the last."""
        for now, following in pairwise(levels):
            x, (_, std) = self.mean_step(denoiser, x, now, following), self.weights(now, following)
            if std > 0 and following is not levels[-1]:
                x = x + std * generators.normal(*x.shape[1:]).to(x)
        return x

    def mean_step(self, denoiser: Denoiser, x: Tensor, now: Level, following: Level) -> Tensor:
        """Carry ``x (n, ...)`` to the next level, without fresh noise."""
        data, noise = denoiser.estimate(x, now.t)
        return following.alpha * data + self.weights(now, following)[0] * noise

    @abstractmethod
    def weights(self, now: Level, following: Level) -> tuple[float, float]:
        """Return the weights of the estimated noise and of the fresh noise."""


@dataclass(frozen=True, kw_only=True)
class DDPMSampler(_RandomWalk):
    r"""Ancestral sampling, with any number of steps.

    A step from ``t`` to the cleaner ``s``, with :math:`r = \tfrac{\alpha_t \sigma_s}{\alpha_s \sigma_t}`, draws from

    .. math:: N(\alpha_s\,\text{data} + r \sigma_s\,\text{noise},\ 1 - \alpha_t^2 / \alpha_s^2)

    The variance is the step's :math:`\beta`, as published; for that of the posterior, use :class:`DDIMSampler` with
    ``eta=1``. The last step returns the mean.

    Parameters
    ----------
    default_n_steps
        Number of steps by default, as published; at most the path's number of timesteps.

    References
    ----------
    Ho et al. (2020), *Denoising diffusion probabilistic models*.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import (
    ...     TARGETS,
    ...     Denoiser,
    ...     Generators,
    ...     VariancePreserving,
    ... )
    >>> denoiser = Denoiser(
    ...     lambda x, k: torch.full_like(x, 2.0), VariancePreserving(), TARGETS["data"]
    ... )
    >>> DDPMSampler()(
    ...     denoiser, torch.zeros(1, 2), n_steps=10, generators=Generators(0, [0])
    ... )
    tensor([[2., 2.]])
    """

    default_n_steps: int = 1000

    def weights(self, now: Level, following: Level) -> tuple[float, float]:
        """Return the weights of the estimated noise and of the fresh noise."""
        return following.sigma * _kept_noise(now, following), math.sqrt(1 - (now.alpha / following.alpha) ** 2)

    def invert(self, *states: Any, **options: Any) -> Tensor:
        """Invert as :meth:`DDIMSampler.invert` does with ``eta=1``."""
        return DDIMSampler(eta=1.0, default_n_steps=self.default_n_steps).invert(*states, **options)


@dataclass(frozen=True, kw_only=True)
class DDIMSampler(_RandomWalk):
    r"""Denoising diffusion implicit model.

    .. math:: x_s = \alpha_s\,\text{data} + \sqrt{\sigma_s^2 - \tau^2}\,\text{noise} + \tau z, \qquad
        \tau = \eta\,\sigma_s \sqrt{1 - r^2}, \qquad r = \tfrac{\alpha_t \sigma_s}{\alpha_s \sigma_t}

    The last step adds no ``z``.

    Parameters
    ----------
    eta
        Amount of randomness: 0 follows the probability-flow ODE (order 1), 1 is ancestral
        sampling with the variance of the posterior.
    default_n_steps
        Number of steps by default; at most the path's number of timesteps.

    References
    ----------
    Song et al. (2021), *Denoising diffusion implicit models*, equation 12.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import TARGETS, Denoiser, VariancePreserving
    >>> denoiser = Denoiser(
    ...     lambda x, k: torch.full_like(x, 2.0), VariancePreserving(), TARGETS["data"]
    ... )
    >>> DDIMSampler()(denoiser, torch.zeros(1, 2), n_steps=10)
    tensor([[2., 2.]])
    """

    eta: float = 0.0
    default_n_steps: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            msg = f"`eta` must be between 0 and 1, but found {self.eta}."
            raise ValueError(msg)

    def weights(self, now: Level, following: Level) -> tuple[float, float]:
        """Return the weights of the estimated noise and of the fresh noise."""
        fresh = self.eta**2 * (1 - _kept_noise(now, following) ** 2)
        return following.sigma * math.sqrt(1 - fresh), following.sigma * math.sqrt(fresh)

    def invert(
        self, own: Denoiser, new: Denoiser, x: Tensor, *, n_steps: int | None = None, generators: Generators
    ) -> Tensor:
        r"""Draw a trajectory from noise to data ``x (n, ...)``, and repeat it under ``new``.

        If many noises lead to the same data, as for a value that is exactly zero, the probability flow cannot be
        inverted. So a trajectory is drawn: a chain of states from noise to the data :math:`x`, distributed as in the
        diffusion that ends there,

        .. math:: x_s = \alpha_s x + \sqrt{\sigma_s^2 - \tau^2}\,\frac{x_t - \alpha_t x}{\sigma_t} + \tau z

        If the path starts at pure noise, distributions that differ by a shift are mapped exactly, in any number of
        steps. With ``eta=0``, a single noise makes the whole trajectory.

        References
        ----------
        Wu and De la Torre (2023), *A latent space of stochastic diffusion models for zero-shot image editing and
        guidance* (CycleDiffusion); Huberman-Spiegelglas et al. (2024), *An edit friendly DDPM noise space*.

        Examples
        --------
        >>> import torch
        >>> from scgen_diffusion.diffusion import (
        ...     TARGETS,
        ...     Denoiser,
        ...     Generators,
        ...     VariancePreserving,
        ... )
        >>> own, new = (
        ...     Denoiser(
        ...         lambda x, k, mean=mean: torch.full_like(x, mean),
        ...         VariancePreserving(),
        ...         TARGETS["data"],
        ...     )
        ...     for mean in (1.0, 3.0)
        ... )
        >>> DDIMSampler(eta=1.0).invert(
        ...     own, new, torch.ones(1, 2), generators=Generators(0, [0])
        ... )
        tensor([[3., 3.]])
        """
        levels = levels_at(own.path, equal_times(n_steps, self.default_n_steps, dtype=torch.float64), x)
        return _replay(self.mean_step, own, new, self._states(x, levels, generators), levels)

    def _states(self, x: Tensor, levels: Sequence[Level], generators: Generators) -> Iterator[Tensor]:
        """Draw states from the diffusion that ends at ``x``."""
        noise = generators.normal(*x.shape[1:]).to(x)
        yield levels[0].alpha * x + levels[0].sigma * noise
        for now, following in pairwise(levels):
            direction, std = self.weights(now, following)
            rest = direction * noise + (std * generators.normal(*x.shape[1:]).to(x) if std > 0 else 0)
            yield following.alpha * x + rest
            if following.sigma > 0:
                noise = rest / following.sigma


def _kept_noise(now: Level, following: Level) -> float:
    """Return the share of the noise that the posterior mean keeps: the ratio of ``alpha / sigma`` at the two levels."""
    return now.alpha * following.sigma / (following.alpha * now.sigma)


@dataclass(frozen=True, kw_only=True)
class DPMSolverSampler(DiffusionSampler):
    r"""DPM-Solver++(2M) or (3M): each step uses the last two or three predictions, and one new evaluation.

    With :math:`h = \lambda_s - \lambda_t` in the log SNR :math:`\lambda = \log(\alpha / \sigma)`,

    .. math:: x_s = \tfrac{\sigma_s}{\sigma_t} x_t + \alpha_s \Big(\phi_1\,\text{data}_t
        + \phi_2\,h\,\tfrac{d\,\text{data}}{d\lambda} + \phi_3\,h^2\,\tfrac{d^2\,\text{data}}{d\lambda^2}\Big),
        \qquad \phi_1 = 1 - e^{-h},\quad \phi_2 = 1 - \tfrac{\phi_1}{h},\quad \phi_3 = \tfrac12 - \tfrac{\phi_2}{h},

    where the derivatives are those of the polynomial through the last two or three predictions. ``order=2`` uses
    :math:`\phi_2 = \phi_1 / 2` and no third term. ``order=3`` uses half of the third term, as the authors' code does:
    it extrapolates less. The first and the last step use one prediction, the second step two.

    Parameters
    ----------
    order
        Number of predictions that each step uses: 2 or 3.
    slowing
        The number :math:`s` in :math:`1 - t = (1 - u)^s` for equal steps of ``u``. With more than 1, the last steps of
        ``t`` are shorter: what is decided last, such as whether a value is zero, needs to be exact.
    default_n_steps
        Number of steps by default; at most the path's number of timesteps.

    References
    ----------
    Lu et al. (2022), *DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models*, algorithm 2.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import TARGETS, Denoiser, VariancePreserving
    >>> denoiser = Denoiser(
    ...     lambda x, k: torch.full_like(x, 2.0), VariancePreserving(), TARGETS["data"]
    ... )
    >>> DPMSolverSampler()(denoiser, torch.zeros(1, 2), n_steps=10)
    tensor([[2., 2.]])
    """

    order: Literal[2, 3] = 2
    slowing: float = 1.0
    default_n_steps: int = 20

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            msg = f"`order` must be 2 or 3, but found {self.order!r}."
            raise ValueError(msg)

    def times(self, n_steps: int) -> Tensor:
        """Return the times of the steps, in double precision."""
        times = super().times(n_steps)
        return times if self.slowing == 1 else 1 - (1 - times) ** self.slowing

    def carry(self, denoiser: Denoiser, x: Tensor, levels: list[Level], generators: Generators | None) -> Tensor:
        """Carry ``x (n, ...)`` from the first level to the last."""
        known: deque[tuple[float, Tensor]] = deque(maxlen=self.order)  # log SNR and estimated data of the last steps
        for now, following in pairwise(levels):
            known.append((now.log_snr, denoiser.estimate(x, now.t)[0]))
            if following is levels[-1]:
                known = deque([known[-1]])
            x = following.sigma / now.sigma * x + following.alpha * _integral(known, following.log_snr - now.log_snr)
        return x


def _integral(known: Sequence[tuple[float, Tensor]], h: float) -> Tensor:
    """Integrate the data over a log-SNR step ``h``, by the polynomial through the known estimates (latest last)."""
    now, data = known[-1]
    phi_1 = -math.expm1(-h)
    if len(known) == 1:
        return phi_1 * data
    slope = (data - known[-2][1]) / (now - known[-2][0])
    if len(known) == 2:
        return phi_1 * (data + h / 2 * slope)
    (first, oldest), (second, older) = known[0], known[1]
    curvature = (slope - (older - oldest) / (second - first)) / (now - first)  # half of the second derivative
    slope = slope + (now - second) * curvature
    phi_2 = 1 - phi_1 / h
    return phi_1 * data + h * phi_2 * slope + h**2 * (0.5 - phi_2 / h) * curvature


# --- masking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnmaskingSampler:
    r"""Unmask items in steps.

    A prediction ``(n, 2, kinds)`` has the logarithms of each kind's share :math:`p_k` and inverse dispersion
    :math:`\theta_k` among the masked items. Of :math:`m` masked items, a step from ``t`` to ``s`` unmasks

    .. math:: y_k \sim \operatorname{NB}(e_k, \theta_k), \quad e_k = m\,p_k\,(\alpha_s - \alpha_t) / \sigma_t

    of kind :math:`k`, with variance :math:`e_k + e_k^2 / \theta_k`. The number of items in the finished sample
    therefore varies a little around the one it started with.

    This is exact in any number of steps if the rate :math:`\lambda_k` of a kind has a Gamma distribution: given
    :math:`x_k` seen items, it has one of shape :math:`\theta_k = \theta_{0k} + x_k`, and :math:`y_k \mid \lambda_k` is
    Poisson, so :math:`y_k` is negative binomial with this :math:`\theta_k`. Poisson steps of the mean rate would lack
    the variance of :math:`\lambda_k` within a step.

    Parameters
    ----------
    default_n_steps
        Default number of steps.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import Denoiser, Generators, Masking
    >>> always_the_first = lambda x, t: torch.tensor([[[0.0, -100.0], [20.0, 20.0]]])
    >>> denoiser = Denoiser(always_the_first, Masking())
    >>> state = UnmaskingSampler()(
    ...     denoiser, torch.tensor([[0.0, 0.0, 500.0]]), generators=Generators(0, [0])
    ... )
    >>> state
    tensor([[494.,   0.,   6.]])
    """

    path_type = Masking
    default_n_steps: int = 64

    def __call__(self, field: Denoiser, x: Tensor, *, n_steps: int | None = None, generators: Generators) -> Tensor:
        """Unmask the items of states ``x (n, kinds + 1)``, usually all.

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
        totals = x.sum(1)
        for t, s in pairwise(equal_times(n_steps, self.default_n_steps, device=x.device)):
            mean, theta = expected_step(field, x, t, s)
            drawn = draw_negative_binomial(generators.uniform(mean.shape[1], dtype=torch.float64), mean, theta)
            x = with_masked(x[:, :-1] + drawn, totals)
        return x

    def invert(
        self, own: Denoiser, new: Denoiser, x: Tensor, *, n_steps: int | None = None, generators: Generators
    ) -> Tensor:
        """Reach samples ``x (n, kinds + 1)`` by unmasking, and repeat the same steps under ``new``.

        The order in which a sample's items are unmasked is drawn. Each step under the new prediction keeps the
        residuals of the given sample's step (:func:`counterfactual_counts`): where a kind becomes rarer some of its
        items are left out, where it becomes more frequent items are added. Equal predictions return the same samples.
        """
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


def expected_step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and inverse dispersion of the items of each kind that a step unmasks, ``(n, kinds)`` each."""
    log_p, log_theta = denoiser(x, t).unbind(1)
    return x[:, -1:] * share_of_masked(denoiser.path, t, s) * log_p.softmax(1), log_theta.exp()


def share_of_masked(path: Path, t: Tensor, s: Tensor) -> Tensor:
    """Return the share of masked items that a step unmasks."""
    return (path.alpha(s) - path.alpha(t)) / path.sigma(t)


# --- which sampler fits which path ------------------------------------------------------------------------------------


FLOW_SAMPLERS: dict[str, Sampler] = {
    "euler": FixedStepSampler(euler_step, default_n_steps=50),
    "midpoint": FixedStepSampler(midpoint_step, default_n_steps=10),
}
DIFFUSION_SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPMSampler(),
    "ddim": DDIMSampler(),
    "dpm_solver": DPMSolverSampler(),
    "dpm_solver_3m": DPMSolverSampler(order=3, slowing=1.25, default_n_steps=12),
}
MASKING_SAMPLERS: dict[str, Sampler] = {"unmasking": UnmaskingSampler()}


def samplers_for(path: Path) -> dict[str, Sampler]:
    """Return the samplers for a path, by name.

    Examples
    --------
    >>> from scgen_diffusion.diffusion import VariancePreserving
    >>> list(samplers_for(VariancePreserving()))
    ['ddpm', 'ddim', 'dpm_solver', 'dpm_solver_3m']
    """
    if isinstance(path, Masking):
        return MASKING_SAMPLERS
    return DIFFUSION_SAMPLERS if isinstance(path, VariancePreserving) else FLOW_SAMPLERS


def check_sampler(sampler: Sampler, path: Path, n_steps: int | None = None) -> None:
    """Raise ValueError unless a sampler fits a path and can take a number of steps; take none of them.

    Samplers of classes outside of this package are not checked.
    """
    if not isinstance(path, getattr(sampler, "path_type", type(path))):
        msg = f"`sampler` {sampler!r} does not fit the model's path; choose one of {list(samplers_for(path))}."
        raise ValueError(msg)
    if isinstance(sampler, DiffusionSampler):
        sampler.n_steps_on(path, n_steps)
