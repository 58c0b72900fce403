"""What networks predict: targets, how a prediction is read as data, noise or velocity, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._paths import expand_time

if TYPE_CHECKING:
    from torch import Tensor

    from ._paths import Path

Field = Callable[["Tensor", "Tensor"], "Tensor"]  # (x_t, t) -> prediction
Network = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]  # (x_t, network time, condition) -> prediction
LOG_STD_RANGE = (-4.0, 2.0)


@dataclass(frozen=True)
class Target:
    r"""What the network predicts, :math:`p = a\,\text{data} + b\,\text{noise}`.

    Parameters
    ----------
    a, b
        Weights of data and noise.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import TARGETS
    >>> TARGETS["velocity"].of(data=torch.ones(1, 2), noise=torch.zeros(1, 2))
    tensor([[1., 1.]])
    """

    a: float
    b: float

    def of(self, data: Tensor, noise: Tensor) -> Tensor:
        """Return the correct prediction for ``data`` and ``noise`` ``(n, ...)``."""
        return self.a * data + self.b * noise

    def to_data_and_noise(self, path: Path, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the data and the noise that a prediction at ``x_t`` implies.

        .. math::
            \begin{pmatrix} \alpha & \sigma \\ a & b \end{pmatrix}
            \begin{pmatrix} \text{data} \\ \text{noise} \end{pmatrix}
            = \begin{pmatrix} x_t \\ p \end{pmatrix}

        The result is not finite if the determinant :math:`\alpha b - \sigma a` is zero: predicted noise says nothing
        about the data at :math:`\alpha = 0`, and predicted data nothing about the noise at :math:`\sigma = 0`.

        Parameters
        ----------
        path
            The path that ``x_t`` lies on.
        prediction, x_t
            ``(n, ...)``.
        t
            One time, or times ``(n,)``.
        """
        alpha, sigma = path.alpha(t), path.sigma(t)
        determinant = alpha * self.b - sigma * self.a
        from_x = [expand_time(weight / determinant, x_t) * x_t for weight in (self.b, -self.a)]
        from_prediction = [expand_time(weight / determinant, x_t) * prediction for weight in (-sigma, alpha)]
        return from_x[0] + from_prediction[0], from_x[1] + from_prediction[1]


TARGETS: dict[str, Target] = {
    "noise": Target(0.0, 1.0),
    "data": Target(1.0, 0.0),
    "velocity": Target(1.0, -1.0),  # of the straight path, the target of flow matching (Lipman et al., 2023)
}


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network's prediction, together with its path and its target.

    Called with ``(x_t, t)``, it returns the raw prediction: for the target ``"velocity"`` the field that samplers of
    flows integrate.

    Parameters
    ----------
    field
        ``(x_t, network time) -> prediction``, such as a :class:`GuidedField`.
    path
        Path between noise and data.
    target
        What ``field`` predicts; None if samplers of the path read the prediction itself (:class:`UnmaskingSampler`).

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import TARGETS, Denoiser, LinearInterpolant
    >>> denoiser = Denoiser(
    ...     lambda x, t: torch.ones_like(x), LinearInterpolant(), TARGETS["data"]
    ... )
    >>> denoiser.estimate(torch.zeros(1, 2), torch.tensor(0.5))
    (tensor([[1., 1.]]), tensor([[-1., -1.]]))
    """

    field: Field
    path: Path
    target: Target | None = None

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction at path times ``t``, which samplers know, instead of the network's times."""
        return self.field(x_t, self.path.network_time(t))

    def estimate(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the data and noise in ``x_t (n, ...)``, for one time or times ``(n,)``."""
        assert self.target is not None
        return self.target.to_data_and_noise(self.path, self(x_t, t), x_t, t)


def diffusion_loss(
    network: Network, path: Path, target: Target, data: Tensor, *, noise: Tensor, t: Tensor, condition: Tensor
) -> Tensor:
    r"""Compute the denoising loss of each sample, for flow matching, noise prediction and other targets.

    .. math:: \ell_i = \operatorname{mean}\, \| p_\theta(x_t, t, c) - (a\,\text{data} + b\,\text{noise}) \|^2

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
    return (prediction - target.of(data, noise)).square().flatten(1).mean(1)


def spike_and_slab_mean(prior: Tensor, x_t: Tensor, *, alpha: Tensor, sigma: Tensor, spike: Tensor) -> Tensor:
    r"""Return the expected data given noisy values, if data are either exactly ``spike`` or normally distributed.

    The prior :math:`(1 - \pi)\,\delta_z + \pi\,\mathcal N(m, s^2)` of each value, observed as
    :math:`x_t = \alpha x + \sigma \varepsilon`, gives with :math:`V = \sigma^2 + \alpha^2 s^2`

    .. math::
        \operatorname{logit} q &= \operatorname{logit} \pi
            + \log \mathcal N(x_t; \alpha m, V) - \log \mathcal N(x_t; \alpha z, \sigma^2) \\
        \mathbb E[x \mid x_t] &= (1 - q)\,z + q\,\Bigl(m + \frac{\alpha s^2}{V} (x_t - \alpha m)\Bigr)

    A network that predicts :math:`\pi, m, s` from the whole of ``x_t`` does not have to learn how to denoise a single
    value, which follows from this formula. It only has to learn what the other values say about it.

    Parameters
    ----------
    prior
        Log odds of not being the spike, mean and log standard deviation, ``(n, 3, values)``.
    x_t
        Noisy values, ``(n, values)``.
    alpha, sigma
        Weights of data and noise, broadcastable to them; ``sigma`` must not be zero.
    spike
        The value of the spike, ``(values,)``.

    Returns
    -------
    Tensor
        ``(n, values)``.

    Examples
    --------
    >>> import torch
    >>> prior = torch.tensor([[[50.0], [2.0], [0.0]]])  # normal around 2, never the spike
    >>> one = torch.ones(1, 1)
    >>> spike_and_slab_mean(prior, 4 * one, alpha=one, sigma=one, spike=0 * one)
    tensor([[3.]])
    """
    logit, mean, log_std = prior.float().unbind(1)
    variance = (2 * log_std.clamp(*LOG_STD_RANGE)).exp()
    total = sigma.square() + alpha.square() * variance
    misfit_spike = (x_t - alpha * spike).square() / sigma.square() + 2 * sigma.log()
    misfit_slab = (x_t - alpha * mean).square() / total + total.log()
    slab_mean = mean + alpha * variance / total * (x_t - alpha * mean)
    q = (logit + (misfit_spike - misfit_slab) / 2).sigmoid()
    return spike + q * (slab_mean - spike)
