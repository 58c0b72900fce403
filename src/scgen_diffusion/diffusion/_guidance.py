"""Classifier-free guidance: how several predictions are combined, and where on the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch

from scgen_diffusion._arguments import is_number, known_names, warn_user

from ._conditioning import WEIGHT_ROUNDING, Joint
from ._paths import expand_like

if TYPE_CHECKING:
    from torch import Tensor

    from ._conditioning import ConditionColumns, ConditionStrategy, Terms
    from ._denoiser import Network
    from ._paths import Path

GuidanceScale = float | Mapping[str, float]
WHOLE_PATH = (0.0, 1.0)
TIME_ROUNDING = 1e-6  # error of times converted to the network's time and back, in single precision


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: how strong, and where on the path.

    Parameters
    ----------
    scale
        1: conditional; 0: unconditional; larger: more typical of the condition and less diverse, and far above 5 unlike
        real cells; negative: away from the condition. One number, or a mapping from condition keys to numbers (1 for
        missing keys), which are combined as the model's ``condition_strategy`` says. Total counts follow the condition
        without the keys at scale 0. Other scales than 1 shift totals that are drawn from the latent.
    interval
        Path times, from 0 (noise) to 1 (data), between which the scale applies; elsewhere it is 1.
    rescale
        From 0 to 1: how far to bring the standard deviation of guided predictions, which large scales inflate, back to
        that of conditional ones.

    Raises
    ------
    ValueError
        If a value is not allowed.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> late = scgd.diffusion.Guidance(2.0, interval=(0.5, 1.0))
    >>> synthetic = model.generate(
    ...     100, {"cell_type": "B"}, guidance_scale=late
    ... )  # doctest: +SKIP
    """

    scale: GuidanceScale = 1.0
    interval: tuple[float, float] = WHOLE_PATH
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Check everything that can be checked without a model."""
        for scale in self.scale.values() if isinstance(self.scale, Mapping) else [self.scale]:
            if not is_number(scale) or abs(scale) > torch.finfo(torch.float32).max:
                msg = f"`guidance_scale` must be a finite number, or one per key, but found {scale!r}."
                raise ValueError(msg)
        object.__setattr__(self, "interval", _as_interval(self.interval))
        if not is_number(self.rescale) or not 0 <= self.rescale <= 1:
            msg = f"`Guidance(rescale=...)` must be a number from 0 to 1, but found {self.rescale!r}."
            raise ValueError(msg)

    @classmethod
    def of(cls, guidance_scale: Any) -> Self:
        """Return a scale as a guidance; a guidance stays as it is."""
        return guidance_scale if isinstance(guidance_scale, cls) else cls(guidance_scale)

    def resolve(self, trained: ConditionStrategy, keys: Sequence[str]) -> ResolvedGuidance:
        """Return the predictions to combine, for a model with these condition keys and this training strategy.

        Raises
        ------
        ValueError
            If a key is unknown, or there are no conditions to guide by.

        Warns
        -----
        UserWarning
            If keys that training shows together have different scales: their mean applies.
        """
        scales = self._scales(keys)
        if isinstance(trained, Joint):
            _warn_of_shared_scales(dict(zip(keys, scales, strict=True)))
        return ResolvedGuidance.of(trained, scales, interval=self.interval, rescale=self.rescale)

    def describe(self, trained: ConditionStrategy) -> dict[str, Any]:
        """Return the values that ``uns`` records, in a form that a file can store."""
        is_per_key = isinstance(self.scale, Mapping)
        return {
            "guidance_scale": {k: float(v) for k, v in self.scale.items()} if is_per_key else float(self.scale),
            "composition": trained.name,
            "guidance_interval": list(self.interval),
            "guidance_rescale": float(self.rescale),
        }

    def _scales(self, keys: Sequence[str]) -> list[float]:
        if isinstance(self.scale, Mapping):
            for key in self.scale:
                if key not in keys:
                    msg = f"`guidance_scale` has the unknown key {key!r}. {known_names(key, list(keys))}"
                    raise ValueError(msg)
            return [float(self.scale.get(key, 1.0)) for key in keys]
        if not keys and self.scale != 1:
            msg = f"`guidance_scale` is {self.scale}, but the model has no conditions to guide by."
            raise ValueError(msg)
        return [float(self.scale)] * len(keys)


def _warn_of_shared_scales(scales: Mapping[str, float]) -> None:
    if len(set(scales.values())) > 1:
        warn_user(
            f"{', '.join(map(repr, scales))} share the guidance scale {mean(scales.values()):g}, the mean of "
            f"{', '.join(f'{scale:g}' for scale in scales.values())}, because the model learned them together only. "
            "For a scale per key, train with `condition_strategy='additive'`."
        )


@dataclass(frozen=True)
class ResolvedGuidance:
    r"""The predictions of a guided network, and how they are combined.

    Inside the interval,

    .. math:: v = \Big(1 + \phi\,\big(\tfrac{\operatorname{std} v_y}{\operatorname{std} v_s} - 1\big)\Big)\,v_s,
        \qquad v_s = \sum_j w_j v_{K_j},

    with each sample's own standard deviations; outside, :math:`v = v_y`.

    Parameters
    ----------
    terms
        The weights :math:`w_j`, which sum to 1, by the subsets :math:`K_j` of keys.
    plain
        Terms of :math:`v_y`, the plain conditional prediction.
    interval
        Path times, from 0 (noise) to 1 (data), between which guidance applies, ends included.
    rescale
        :math:`\phi`, from 0 to 1.

    References
    ----------
    Ho and Salimans (2022), *Classifier-free diffusion guidance*; Liu et al. (2022), *Compositional visual generation*;
    Kynkäänniemi et al. (2024), *Applying guidance in a limited interval*; Lin et al. (2024), *Common diffusion noise
    schedules and sample steps are flawed*.

    Examples
    --------
    >>> from scgen_diffusion.diffusion import ResolvedGuidance, Joint
    >>> ResolvedGuidance.of(Joint(), [2.0]).terms
    {(): -1.0, (0,): 2.0}
    """

    terms: Terms
    plain: Terms
    interval: tuple[float, float] = WHOLE_PATH
    rescale: float = 0.0

    @classmethod
    def of(
        cls,
        strategy: ConditionStrategy,
        scales: Sequence[float],
        *,
        interval: tuple[float, float] = WHOLE_PATH,
        rescale: float = 0.0,
    ) -> Self:
        """Compose the predictions as a strategy does, with one scale per key."""
        return cls(strategy.terms(scales), strategy.terms([1.0] * len(scales)), interval, rescale)

    @property
    def weights(self) -> dict[int, float]:
        """The sum of each key's weights, which is its scale; keys of scale 0 are left out."""
        return _sum_by_key(self.terms)

    @property
    def keys(self) -> tuple[int, ...]:
        """Keys that count somewhere on the path: those of another scale than 0."""
        outside = {} if self.covers_path else _sum_by_key(self.plain)
        return tuple(sorted({*self.weights, *outside}))

    @property
    def covers_path(self) -> bool:
        """Whether the prediction is composed in the same way along the whole path."""
        return self.terms == self.plain or self.interval == WHOLE_PATH

    @property
    def is_rescaled(self) -> bool:
        """Whether the plain prediction is needed as well as the guided one."""
        return self.rescale > 0 and self.terms != self.plain


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
    path
        Path that converts the network's time, for guidance in an interval.
    guidance
        Which predictions are combined, and where.
    """

    network: Network
    condition: Tensor
    columns: ConditionColumns
    path: Path
    guidance: ResolvedGuidance

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Evaluate the guided prediction at ``x_t (n, ...)``, for a scalar time or times ``(n,)``."""
        t = t.expand(len(x_t))
        if self.guidance.covers_path or (is_inside := self._is_inside(t)).all():
            return self._mix(self._guided_mixture, x_t, t)
        plain = self._mix(self._plain_mixture, x_t, t)
        if not is_inside.any():
            return plain
        return torch.where(expand_like(is_inside, x_t), self._mix(self._guided_mixture, x_t, t), plain)

    def _mix(self, mixture: _Mixtures, x_t: Tensor, t: Tensor) -> Tensor:
        """Evaluate the predictions of a mixture as one batch, and add them up; a second mixture gives the spread."""
        repeats = len(mixture.weights[0])
        x = x_t.repeat(repeats, *[1] * (x_t.ndim - 1)) if repeats > 1 else x_t
        predictions = self.network(x, t.repeat(repeats), mixture.conditions).chunk(repeats)
        mixed, *plain = (_weighted_sum(weights, predictions) for weights in mixture.weights)
        return rescale_to(mixed, plain[0], self.guidance.rescale) if plain else mixed

    def _is_inside(self, t: Tensor) -> Tensor:
        """Return which of the network's times ``(n,)`` are in the interval."""
        times, (start, end) = self.path.time(t), self.guidance.interval
        return (times >= start - TIME_ROUNDING) & (times <= end + TIME_ROUNDING)

    @cached_property
    def _guided_mixture(self) -> _Mixtures:
        plain = [self.guidance.plain] if self.guidance.is_rescaled else []
        return _Mixtures.of(self.condition, self.columns, self.guidance.terms, *plain)

    @cached_property
    def _plain_mixture(self) -> _Mixtures:
        return _Mixtures.of(self.condition, self.columns, self.guidance.plain)


def _sum_by_key(terms: Terms) -> dict[int, float]:
    keys = sorted({key for subset in terms for key in subset})
    weights = {key: sum(weight for subset, weight in terms.items() if key in subset) for key in keys}
    return {key: round(weight, 9) for key, weight in weights.items() if abs(weight) > WEIGHT_ROUNDING}


class _Mixtures(NamedTuple):
    """Weighted sums of predictions, each of which is evaluated once.

    Conditions and weights do not change along the path.

    Parameters
    ----------
    conditions
        Conditions of the predictions, concatenated, ``(predictions * n, columns)``.
    weights
        One row per mixture, ``(mixtures, predictions)``.
    """

    conditions: Tensor
    weights: list[list[float]]

    @classmethod
    def of(cls, condition: Tensor, columns: ConditionColumns, *mixtures: Terms) -> Self:
        """Prepare mixtures for samples with the condition ``(n, columns)``."""
        subsets = list(dict.fromkeys(keys for terms in mixtures for keys in terms))
        conditions = torch.cat([columns.keep(condition, keys) for keys in subsets])
        return cls(conditions, [[terms.get(keys, 0.0) for keys in subsets] for terms in mixtures])


def rescale_to(guided: Tensor, plain: Tensor, share: float) -> Tensor:
    """Move each sample's standard deviation towards that of the plain prediction, by ``share`` of the difference."""
    spread, wanted = (v.flatten(1).std(1, correction=0) for v in (guided, plain))
    ratio = torch.where(spread > 0, wanted / spread, 1.0)
    return expand_like(1 + share * (ratio - 1), guided) * guided


def _weighted_sum(weights: Sequence[float], predictions: Sequence[Tensor]) -> Tensor:
    weighted = [(weight, v) for weight, v in zip(weights, predictions, strict=True) if weight != 0]
    if [weight for weight, _ in weighted] == [1]:
        return weighted[0][1]
    return sum(weight * v for weight, v in weighted)  # type: ignore[return-value]


def _as_interval(interval: object) -> tuple[float, float]:
    """Return two times as plain numbers, from a tuple, a list or an array."""
    ends = list(interval) if isinstance(interval, Sequence | np.ndarray) else []
    is_pair = len(ends) == 2 and all(is_number(end) for end in ends)
    if not is_pair or not 0 <= ends[0] < ends[1] <= 1:
        msg = (
            "`Guidance(interval=...)` must be two times, the first before the second, from 0 (noise) to 1 (data), "
            f"but found {interval!r}."
        )
        raise ValueError(msg)
    return float(ends[0]), float(ends[1])
