"""Training losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ._paths import Path
    from ._targets import Target


class Network(Protocol):
    """The interface of networks: ``(x_t, network time, condition) -> prediction``, of ``x_t``'s shape."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor: ...


def diffusion_loss(
    network: Network, path: Path, target: Target, data: Tensor, *, noise: Tensor, t: Tensor, condition: Tensor
) -> Tensor:
    r"""Compute the denoising loss of each sample, for flow matching, noise prediction and other targets.

    .. math:: \ell_i = \operatorname{mean}\, \| p_\theta(x_t, t, c) - (a_t\,\text{data} + b_t\,\text{noise}) \|^2

    Parameters
    ----------
    network
        Network that predicts the target.
    path
        Path between noise and data.
    target
        What the network predicts.
    data, noise
        End points of the path, ``(n, ...)``.
    t
        Times in ``[0, 1]``, ``(n,)``.
    condition
        Conditions of the samples, ``(n, columns)``.

    Returns
    -------
    Tensor
        Mean squared error over all but the first dimension, ``(n,)``.
    """
    prediction = network(path.interpolate(data, noise, t), path.network_time(t), condition)
    return (prediction - target.of(path, data, noise, t)).square().flatten(1).mean(1)
