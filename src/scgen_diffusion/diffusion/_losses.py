"""Training objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ._denoiser import Denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from ._paths import Path
    from ._targets import Target


class Network(Protocol):
    """What every path, guidance and sampler works with: ``(x_t, network time, condition) -> prediction`` of ``x_t``'s shape."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor: ...


def diffusion_loss(
    network: Network, path: Path, target: Target, data: Tensor, *, noise: Tensor, t: Tensor, condition: Tensor
) -> Tensor:
    r"""Compute the denoising loss of each sample: flow matching, noise prediction and their relatives.

    .. math:: \ell_i = \operatorname{mean}\, \| p_\theta(x_t, t, c) - (a_t\,\text{data} + b_t\,\text{noise}) \|^2

    Parameters
    ----------
    network
        Predicts the target.
    path
        Joins noise and data.
    target
        What is predicted.
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
    denoiser = Denoiser(lambda x_t, network_time: network(x_t, network_time, condition), path, target)
    error = denoiser.predict(path.interpolate(data, noise, t), t) - target.of(path, data, noise, t)
    return error.square().flatten(1).mean(1)
