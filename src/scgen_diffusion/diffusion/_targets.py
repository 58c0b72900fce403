"""Prediction targets: what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ._paths import expand_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ._paths import Path


@dataclass(frozen=True)
class Target:
    r"""What the network predicts, :math:`p = a_t\,\text{data} + b_t\,\text{noise}`.

    Parameters
    ----------
    weights
        ``(path, t) -> (a_t, b_t)``, both of ``t``'s shape.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import TARGETS, LinearInterpolant
    >>> data, noise, t = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25])
    >>> TARGETS["velocity"].of(LinearInterpolant(), data, noise, t)
    tensor([[1., 1.]])
    """

    weights: Callable[[Path, Tensor], tuple[Tensor, Tensor]]

    def of(self, path: Path, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the correct prediction for ``data`` and ``noise`` ``(n, ...)``, at one time or times ``(n,)``."""
        a, b = self.weights(path, t)
        return expand_time(a, data) * data + expand_time(b, data) * noise

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
        alpha, sigma, (a, b) = path.alpha(t), path.sigma(t), self.weights(path, t)
        determinant = alpha * b - sigma * a
        from_x = [expand_time(weight / determinant, x_t) * x_t for weight in (b, -a)]
        from_prediction = [expand_time(weight / determinant, x_t) * prediction for weight in (-sigma, alpha)]
        return from_x[0] + from_prediction[0], from_x[1] + from_prediction[1]


def _noise_weights(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), torch.ones_like(t)


def _data_weights(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(t), torch.zeros_like(t)


def _v_weights(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of Salimans and Ho (2022), *Progressive distillation*, appendix D."""
    return -path.sigma(t), path.alpha(t)


def _velocity_weights(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of dx/dt, the target of flow matching (Lipman et al., 2023)."""
    return path.alpha_rate(t), path.sigma_rate(t)


@dataclass(frozen=True)
class Kinds:
    """The kinds of masked items (:class:`Masking`): the prediction is the logarithm of their probabilities."""

    def to_data_and_noise(self, path: Path, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expected counts of all items, and the state with all items masked, both ``(n, kinds + 1)``."""
        seen, masked = x_t[:, :-1], x_t[:, -1:]
        data = torch.cat([seen + masked * prediction.softmax(1), torch.zeros_like(masked)], dim=1)
        return data, torch.cat([torch.zeros_like(seen), x_t.sum(1, keepdim=True)], dim=1)


TARGETS: dict[str, Target] = {
    "noise": Target(_noise_weights),
    "data": Target(_data_weights),
    "v": Target(_v_weights),
    "velocity": Target(_velocity_weights),
}
