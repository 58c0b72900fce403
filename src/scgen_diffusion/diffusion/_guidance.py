"""Classifier-free guidance: how predictions given more or fewer conditions are combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean as mean
from typing import TYPE_CHECKING, Self

import torch

from scgen_diffusion._arguments import is_number, known_names, warn_user

from ._conditioning import Joint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._conditioning import ConditionColumns, ConditionStrategy, Terms
    from ._denoiser import Network

GuidanceScale = float | Mapping[str, float]


@dataclass(frozen=True)
class Guidance:
    r"""The predictions of a guided network, and how they are combined: :math:`v = \sum_j w_j v_{K_j}`.

    Parameters
    ----------
    terms
        The weights :math:`w_j`, which sum to 1, by the subsets :math:`K_j` of keys.

    References
    ----------
    Ho and Salimans (2022), *Classifier-free diffusion guidance*; Liu et al. (2022), *Compositional visual generation*.

    Examples
    --------
    >>> from scgen_diffusion.diffusion import Guidance, Joint
    >>> Guidance(Joint().terms([2.0])).terms
    {(): -1.0, (0,): 2.0}
    """

    terms: Terms

    @classmethod
    def resolve(cls, scale: GuidanceScale, strategy: ConditionStrategy, keys: Sequence[str]) -> Self:
        """Compose the predictions for a model with these condition keys and this training strategy.

        Parameters
        ----------
        scale
            1: conditional; 0: unconditional; larger: more typical of the condition and less diverse; negative: away
            from the condition. One number, or a mapping from keys to numbers (1 for missing keys).
        strategy
            The training strategy.
        keys
            Names of the condition keys.

        Raises
        ------
        ValueError
            If a scale is not a finite number, a key is unknown, or there are no conditions to guide by.

        Warns
        -----
        UserWarning
            If keys that training shows together have different scales: their mean applies.
        """
        by_key = scale if isinstance(scale, Mapping) else dict.fromkeys(keys, scale)
        for key, value in by_key.items():
            if key not in keys:
                msg = f"`guidance_scale` has the unknown key {key!r}. {known_names(key, list(keys))}"
                raise ValueError(msg)
            if not is_number(value):
                msg = f"`guidance_scale` must be a finite number, or one per key, but found {value!r}."
                raise ValueError(msg)
        if not keys and not isinstance(scale, Mapping) and scale != 1:
            msg = f"`guidance_scale` is {scale!r}, but the model has no conditions to guide by."
            raise ValueError(msg)
        scales = [float(by_key.get(key, 1.0)) for key in keys]
        if isinstance(strategy, Joint) and len(set(scales)) > 1:
            warn_user(
                f"All keys have the guidance scale {mean(scales):g}, the mean of the given ones, because the model "
                "learned them together only. For a scale per key, train with `condition_strategy='additive'`."
            )
        return cls(strategy.terms(scales))

    @property
    def keys(self) -> tuple[int, ...]:
        """Keys of another scale than 0."""
        return tuple(sorted({key for subset in self.terms for key in subset}))


@dataclass(frozen=True, eq=False)
class GuidedField:
    """A network with a fixed condition and guidance, as a function of ``(x_t, t)`` alone.

    Predictions of weight zero are not evaluated, so at scale 1 of one key the unconditional prediction costs nothing.
    All others run as one batch.

    Parameters
    ----------
    network
        ``(x_t, t, condition) -> prediction``, where ``t`` is the network's time (:meth:`Path.network_time`).
    condition
        ``(n, columns)``.
    columns
        What the columns of the condition mean.
    guidance
        Which predictions are combined.
    """

    network: Network
    condition: Tensor
    columns: ConditionColumns
    guidance: Guidance

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Evaluate the guided prediction at ``x_t (n, ...)``, for a scalar time or times ``(n,)``."""
        weights, t = list(self.guidance.terms.values()), t.expand(len(x_t))
        if len(weights) == 1:
            return self.network(x_t, t, self._conditions)
        x_t = x_t.repeat(len(weights), *[1] * (x_t.ndim - 1))
        predictions = self.network(x_t, t.repeat(len(weights)), self._conditions).chunk(len(weights))
        return sum(weight * v for weight, v in zip(weights, predictions, strict=True))  # type: ignore[return-value]

    @cached_property
    def _conditions(self) -> Tensor:
        """The condition of each prediction, one after another, ``(predictions * n, columns)``."""
        return torch.cat([self.columns.keep(self.condition, keys) for keys in self.guidance.terms])
