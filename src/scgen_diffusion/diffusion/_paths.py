"""Probability paths: how data becomes noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Path(Protocol):
    r"""A Gaussian path :math:`x_t = \alpha_t x_1 + \sigma_t x_0` between noise ``x_0`` and data ``x_1``."""

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mix data and noise at time ``t``."""
        ...

    def velocity(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Differentiate the mixture with respect to ``t``."""
        ...


@dataclass(frozen=True)
class LinearInterpolant:
    r"""The straight path of flow matching, :math:`x_t = t x_1 + (1 - t) x_0`.

    Noise sits at ``t = 0``, data at ``t = 1``; the velocity :math:`x_1 - x_0` does not depend on ``t``.

    References
    ----------
    Lipman et al. (2023), *Flow matching for generative modeling*; Ma et al. (2024), *SiT*.

    Examples
    --------
    >>> import torch
    >>> LinearInterpolant().interpolate(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
    tensor([[0.2500, 0.2500]])
    """

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mix ``data`` and ``noise``, both ``(n, ...)``, at times ``t`` of shape ``(n,)``."""
        t = expand_time(t, data)
        return t * data + (1 - t) * noise

    def velocity(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return ``data - noise``, the regression target of the network."""
        return data - noise


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """Reshape times ``(n,)`` so that they broadcast against ``like`` of shape ``(n, ...)``."""
    return t.reshape(-1, *[1] * (like.ndim - 1))
