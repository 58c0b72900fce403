"""Spike-and-slab data, in which many values equal exactly one number: what noisy values tell about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOG_STD_RANGE = (-4.0, 2.0)


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
