"""Probability paths between noise and data."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Path(Protocol):
    r"""A path :math:`x_t = \alpha_t\,\text{data} + \sigma_t\,\text{noise}` from noise (``t = 0``) to data (1).

    Every function of time maps times of any shape to values of the same shape. The network sees ``t`` itself unless a
    path says otherwise. A path that does not add noise overrides :meth:`interpolate`.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        r"""Return the weight of the data, :math:`\alpha_t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Return the weight of the noise, :math:`\sigma_t`."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        r"""Return the derivative :math:`d\alpha_t / dt`."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        r"""Return the derivative :math:`d\sigma_t / dt`."""

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

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return -1."""
        return -torch.ones_like(t)

    def draw_times(self, n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw ``n`` times uniformly from ``[0, 1)``."""
        return torch.rand(n, generator=generator, device=device)


def expand_time(values: Tensor, like: Tensor) -> Tensor:
    """Cast one value or values ``(n,)`` to the dtype of ``like (n, ...)``, and reshape to broadcast against it."""
    return expand_like(values.to(like.dtype), like)


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values ``(n,)`` to broadcast against ``like (n, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
