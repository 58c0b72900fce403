"""Training objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ._paths import Path


class Network(Protocol):
    """What every path, guidance and sampler works with: ``(x_t, t, condition) -> prediction`` of ``x_t``'s shape."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor: ...


def flow_matching_loss(
    network: Network, path: Path, data: Tensor, *, noise: Tensor, t: Tensor, condition: Tensor
) -> Tensor:
    r"""Compute the conditional flow-matching loss of each sample.

    .. math:: \ell_i = \operatorname{mean}\, \| v_\theta(x_t, t, c) - \dot{x}_t \|^2

    Parameters
    ----------
    network
        Predicts the velocity.
    path
        Joins noise and data.
    data, noise
        End points of the path, ``(n, ...)``.
    t
        Times in ``[0, 1]``, ``(n,)``.
    condition
        Class indices, ``(n, keys)``.

    Returns
    -------
    Tensor
        Mean squared error over all but the first dimension, ``(n,)``.
    """
    error = network(path.interpolate(data, noise, t), t, condition) - path.velocity(data, noise, t)
    return error.square().flatten(1).mean(1)
