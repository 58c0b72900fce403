"""Probability paths between noise and data (straight, variance-preserving, masking), and which ends belong together."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import torch
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from torch import Tensor


class Path(Protocol):
    r"""A path :math:`x_t = \alpha_t\,\text{data} + \sigma_t\,\text{noise}` from noise (``t = 0``) to data (1).

    Every function of time maps times of any shape to values of the same shape. The network sees ``t`` itself unless a
    path says otherwise. :class:`Masking` does not add noise, and its states are not interpolated.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Return the weight of the data, :math:`\alpha_t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Return the weight of the noise, :math:`\sigma_t`."""

    @abstractmethod
    def draw_times(self, n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw the times of ``n`` training samples, ``(n,)``. The generator must be on the same device."""

    def network_time(self, t: Tensor) -> Tensor:
        """Return the input of the network's time embedding at ``t``."""
        return t

    def time(self, network_time: Tensor) -> Tensor:
        """Invert :meth:`network_time`."""
        return network_time

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mix ``data`` and ``noise``, both ``(n, ...)``, at one time or times ``(n,)``."""
        return expand_time(self.alpha(t), data) * data + expand_time(self.sigma(t), data) * noise


@dataclass(frozen=True)
class LinearInterpolant(Path):
    r"""The straight path of flow matching, :math:`\alpha_t = t`, :math:`\sigma_t = 1 - t`.

    Training times are uniform in ``[0, 1)``.

    References
    ----------
    Lipman et al. (2023), *Flow matching for generative modeling*; Ma et al. (2024), *SiT*.

    Examples
    --------
    >>> import torch
    >>> LinearInterpolant().interpolate(
    ...     torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25])
    ... )
    tensor([[0.2500, 0.2500]])
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Return ``t``."""
        return t

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``1 - t``."""
        return 1 - t

    def draw_times(self, n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw ``n`` times uniformly from ``[0, 1)``."""
        return torch.rand(n, generator=generator, device=device)


@dataclass(frozen=True)
class VariancePreserving(Path):
    r"""The path of denoising diffusion, :math:`\alpha_t^2 + \sigma_t^2 = 1`, with the linear schedule.

    As published, the timestep indices ``k = 0, ..., n_timesteps - 1`` have
    :math:`\alpha^2 = \bar\alpha_k = \prod_{i \le k} (1 - \beta_i)`, where :math:`\beta_k` increases in equal
    steps from 1e-4 to 0.02. Here, index ``k`` corresponds to ``t = 1 - (k + 1)
    / n_timesteps`` and clean data to ``t = 1``; between these times :math:`\log \bar\alpha` is linear. The network sees
    ``k``, and training draws it uniformly.

    Parameters
    ----------
    n_timesteps
        Number of timesteps; the published value is 1,000.

    References
    ----------
    Ho et al. (2020), *Denoising diffusion probabilistic models*.

    Examples
    --------
    >>> import torch
    >>> path = VariancePreserving()
    >>> path.network_time(torch.tensor([0.0, 0.5, 1.0]))
    tensor([999., 499.,  -1.])
    """

    n_timesteps: int = 1000

    def betas(self) -> Tensor:
        r"""Return :math:`\beta_k`, ``(n_timesteps,)``, in double precision."""
        return torch.linspace(1e-4, 0.02, self.n_timesteps, dtype=torch.float64)

    def alpha(self, t: Tensor) -> Tensor:
        r"""Return :math:`\sqrt{\bar\alpha_t}`."""
        return (self._log_alpha_bar(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        r"""Return :math:`\sqrt{1 - \bar\alpha_t}`."""
        return (-self._log_alpha_bar(t).expm1()).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        """Return the timestep index ``n_timesteps (1 - t) - 1``, without rounding errors if it is a whole number."""
        k = self.n_timesteps * (1 - t) - 1
        whole = k.round()
        return torch.where((k - whole).abs() < self.n_timesteps * torch.finfo(k.dtype).eps, whole, k)

    def time(self, network_time: Tensor) -> Tensor:
        """Return the time ``1 - (k + 1) / n_timesteps`` of a timestep index."""
        return 1 - (network_time + 1) / self.n_timesteps

    def draw_times(self, n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw ``n`` timesteps uniformly, and return their times."""
        return self.time(torch.randint(self.n_timesteps, (n,), generator=generator, device=device))

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        r"""Return :math:`\log \bar\alpha_t`, interpolated between the timesteps around ``t``."""
        table, position = _log_alpha_bar_table(self, t.device, t.dtype), self.network_time(t) + 1
        cleaner = position.floor().long().clamp(0, self.n_timesteps - 1)
        below, above = _look_up(table, cleaner), _look_up(table, cleaner + 1)
        return below + (position - cleaner) * (above - below)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return ``table[index]`` without the device synchronisation that plain indexing by a single number causes."""
    return table.index_select(0, index.flatten()).reshape(index.shape)


@lru_cache(maxsize=64)
def _log_alpha_bar_table(path: VariancePreserving, device: torch.device, dtype: torch.dtype) -> Tensor:
    r"""Return :math:`\log \bar\alpha` of clean data and of every timestep, ``(n_timesteps + 1,)``."""
    with torch.inference_mode(False):  # tensors created in inference mode cannot be used in training
        table = torch.cat([torch.zeros(1, dtype=torch.float64), (-path.betas()).log1p().cumsum(0)])
        return table.to(device, dtype)


@dataclass(frozen=True)
class Masking(Path):
    r"""Masked diffusion of counts: each item is seen with probability :math:`\alpha_t = ((1 + r)^t - 1) / r`.

    A sample is a bag of items of several kinds, such as the molecules of a cell, each from a gene. A state is
    ``(n, kinds + 1)``: how many items of each kind are seen, and in the last column how many are masked. So the seen
    counts are binomial. A network predicts the kinds of masked items from those that are seen. Samples start with all
    items masked. Equal steps multiply the number of seen items by about the same factor, because the first items tell
    the most.

    Parameters
    ----------
    resolution
        The number :math:`r`. Below a share of :math:`1 / r`, steps add items instead of multiplying them.

    References
    ----------
    Austin et al. (2021), *Structured denoising diffusion models in discrete state-spaces*; Sahoo et al. (2024), *Simple
    and effective masked diffusion language models*; Chen and Zhou (2023), *Learning to jump: thinning and thickening
    latent counts for generative modeling*.

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

    def draw_times(self, n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw ``n`` times uniformly from ``[0, 1]``, one in each of ``n`` equal parts, in random order.

        The loss differs a lot from time to time, so independent times would make it noisy.
        """
        offsets = torch.rand(n, generator=generator, device=device)
        return (torch.randperm(n, generator=generator, device=device) + offsets) / max(n, 1)


@torch.no_grad()
def optimal_pairs(start: Tensor, end: Tensor) -> Tensor:
    r"""Pair samples of two sets of equal size so that the sum of squared distances is smallest (optimal transport).

    .. math:: \pi^* = \arg\min_\pi \sum_i \lVert x_i - y_{\pi(i)} \rVert^2

    Pairing each batch this way before training makes the paths of a flow straighter, and keeps similar samples similar.

    Parameters
    ----------
    start, end
        Samples, both ``(n, ...)``.

    Returns
    -------
    Tensor
        Index of the end that belongs to each start, ``(n,)``.

    References
    ----------
    Tong et al. (2024), *Improving and generalizing flow-based generative models with minibatch optimal transport*.

    Examples
    --------
    >>> optimal_pairs(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
    tensor([1, 0])
    """
    cost = torch.cdist(start.flatten(1), end.flatten(1)).square().cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(cost)[1]).to(start.device)


def with_masked(seen: Tensor, totals: Tensor) -> Tensor:
    """Return the state ``(n, kinds + 1)`` of seen counts ``(n, kinds)`` of samples with ``totals (n,)`` items."""
    return torch.cat([seen, (totals - seen.sum(1)).clamp(min=0)[:, None].to(seen.dtype)], dim=1)


def expand_time(values: Tensor, like: Tensor) -> Tensor:
    """Cast one value or values ``(n,)`` to the dtype of ``like (n, ...)``, and reshape to broadcast against it."""
    return expand_like(values.to(like.dtype), like)


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values ``(n,)`` to broadcast against ``like (n, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
