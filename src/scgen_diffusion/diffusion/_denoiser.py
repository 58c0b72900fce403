"""A denoiser: a network whose prediction can be read as data, noise or velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ._paths import Path
from ._targets import TARGETS

if TYPE_CHECKING:
    from torch import Tensor

    from ._samplers import Field
    from ._targets import Kinds, Target

PathT = TypeVar("PathT", bound=Path)


class Estimate(NamedTuple):
    """The estimated data and noise in ``x_t``, each of ``x_t``'s shape."""

    data: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Denoiser:
    r"""A network's prediction, together with its path and its target.

    Called with ``(x_t, t)``, it returns the velocity :math:`\dot\alpha_t\,\text{data} + \dot\sigma_t\,\text{noise}` of
    the probability-flow ODE, so samplers for flows can use it as a field.

    Parameters
    ----------
    field
        ``(x_t, network time) -> prediction``, such as a :class:`GuidedField`.
    path
        Path between noise and data.
    target
        What ``field`` predicts.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import TARGETS, Denoiser, LinearInterpolant
    >>> denoiser = Denoiser(
    ...     lambda x, t: torch.ones_like(x), LinearInterpolant(), TARGETS["data"]
    ... )
    >>> denoiser(torch.zeros(1, 2), torch.tensor(0.5))
    tensor([[2., 2.]])
    """

    field: Field
    path: Path
    target: Target | Kinds

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the velocity at ``x_t (n, ...)``, for one time or times ``(n,)``."""
        if self.target == TARGETS["velocity"]:
            return self.predict(x_t, t)
        return TARGETS["velocity"].of(self.path, *self.estimate(x_t, t), t)

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the raw prediction at path times ``t``, which samplers know, instead of the network's times."""
        return self.field(x_t, self.path.network_time(t))

    def estimate(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Estimate the data and noise in ``x_t (n, ...)``, for one time or times ``(n,)``."""
        return Estimate(*self.target.to_data_and_noise(self.path, self.predict(x_t, t), x_t, t))


def as_denoiser(field: Field, kind: type[PathT]) -> tuple[Denoiser, PathT]:
    """Return a field that is a denoiser on a kind of path, with its path; raise ValueError for other fields."""
    if not isinstance(field, Denoiser) or not isinstance(field.path, kind):
        found = f"a Denoiser on {field.path}" if isinstance(field, Denoiser) else type(field).__name__
        msg = f"`field` must be a Denoiser on a {kind.__name__} path, but found {found}."
        raise ValueError(msg)
    return field, field.path
