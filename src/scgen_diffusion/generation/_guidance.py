"""What a user asks of guidance, checked and resolved for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scgen_diffusion.data import known_names
from scgen_diffusion.diffusion import CONDITION_STRATEGIES, WHOLE_PATH, Guidance, terms_of_subsets

if TYPE_CHECKING:
    from scgen_diffusion.diffusion import ConditionStrategy, GuidanceTerm

Composition = Literal["joint", "mutually_exclusive", "additive"]
GuidanceScale = float | Mapping[str, float] | Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class GuidanceOptions:
    """Guidance as :meth:`generate` is asked for it.

    Parameters
    ----------
    scale
        One number, one per condition key, or one per subset of keys.
    composition
        How scales of keys become weights of predictions; None for the way in which the model was trained.
    interval
        Times between which there is guidance; None for the whole path.
    rescale
        Share by which the spread of guided predictions is brought back.
    """

    scale: GuidanceScale = 1.0
    composition: Composition | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def resolve(self, trained: ConditionStrategy, keys: Sequence[str]) -> Guidance:
        """Return what is asked of a model with these keys, trained in this way.

        Raises
        ------
        ValueError
            For what is not allowed, and for predictions that the model has never learned.
        """
        composed_by = self._composed_by(trained)
        guidance = Guidance(
            self._terms(composed_by, keys),
            composed_by.terms([1.0] * len(keys)),
            WHOLE_PATH if self.interval is None else self.interval,
            self.rescale,
        )
        for subset in guidance.subsets:
            if not trained.has_shown(subset, len(keys)):
                raise ValueError(self._never_shown([keys[key] for key in subset], trained))
        return guidance

    def describe(self, trained: ConditionStrategy) -> dict[str, Any]:
        """Return what provenance tells, in values that a file can hold."""
        composition = "subsets" if self._has_subsets else self._composed_by(trained).name
        return {
            "guidance_scale": self._describe_scale(),
            "composition": composition,
            "guidance_interval": [float(end) for end in (WHOLE_PATH if self.interval is None else self.interval)],
            "guidance_rescale": float(self.rescale),
        }

    @property
    def _has_subsets(self) -> bool:
        return isinstance(self.scale, Mapping) and any(isinstance(key, tuple) for key in self.scale)

    def _composed_by(self, trained: ConditionStrategy) -> ConditionStrategy:
        if self.composition is None or self.composition == trained.name:
            return trained
        if not isinstance(self.composition, str) or self.composition not in CONDITION_STRATEGIES:
            known = known_names(self.composition, list(CONDITION_STRATEGIES))
            msg = f"`composition` {self.composition!r} is not known. {known}"
            raise ValueError(msg)
        return CONDITION_STRATEGIES[self.composition]

    def _terms(self, composed_by: ConditionStrategy, keys: Sequence[str]) -> tuple[GuidanceTerm, ...]:
        if not self._has_subsets:
            return composed_by.terms(scales_of_keys(self.scale, keys))
        if self.composition is not None:
            msg = "`composition` has no say where `guidance_scale` has subsets of keys; leave it out."
            raise ValueError(msg)
        return terms_of_subsets(scales_of_subsets(self.scale, keys))  # type: ignore[arg-type]

    def _describe_scale(self) -> Any:
        if not isinstance(self.scale, Mapping):
            return float(self.scale)
        return {", ".join(key) if isinstance(key, tuple) else key: float(scale) for key, scale in self.scale.items()}

    def _never_shown(self, subset: Sequence[str], trained: ConditionStrategy) -> str:
        asked = "`guidance_scale`" if self._has_subsets else f"`composition={self.composition!r}`"
        given = f"only {', '.join(map(repr, subset))}" if subset else "no condition"
        groups = " and without `dropped_together`" if trained.name == "additive" else ""
        return (
            f"{asked} needs predictions that are given {given}, but the model was trained with "
            f"`condition_strategy={trained.name!r}`, which shows {trained.shows}. Leave `composition` out and give one "
            f"scale per key, or train a model with `condition_strategy='additive'`{groups}."
        )


def scales_of_keys(scale: Any, keys: Sequence[str]) -> list[float]:
    """Return one scale per key; a mapping may leave out keys, whose scale is then 1.

    Raises
    ------
    ValueError
        For unknown keys, for what is no finite number, and for a scale other than 1 where there are no keys.
    """
    if not isinstance(scale, Mapping):
        _check_scale(scale)
        if not keys and scale != 1:
            msg = f"`guidance_scale` is {scale}, but the model has no conditions to guide by."
            raise ValueError(msg)
        return [float(scale)] * len(keys)
    for key, value in scale.items():
        _check_key(key, keys)
        _check_scale(value)
    return [float(scale.get(key, 1.0)) for key in keys]


def scales_of_subsets(scale: Mapping[Any, float], keys: Sequence[str]) -> list[tuple[list[int], float]]:
    """Return the numbers of each subset's keys, and its scale.

    Raises
    ------
    ValueError
        For subsets that are no tuples or have no keys, unknown keys, and what is no finite number.
    """
    for subset, value in scale.items():
        if not isinstance(subset, tuple) or not subset or len(set(subset)) < len(subset):
            msg = f"`guidance_scale` must have keys, or tuples of different keys, but found {subset!r} among them."
            raise ValueError(msg)
        for key in subset:
            _check_key(key, keys)
        _check_scale(value)
    return [([keys.index(key) for key in subset], float(value)) for subset, value in scale.items()]


def numbers_of_groups(groups: Sequence[Sequence[str]], keys: Sequence[str]) -> list[list[int]]:
    """Return the numbers of keys that are dropped together.

    Raises
    ------
    ValueError
        For unknown keys.
    """
    for group in groups:
        for key in group:
            if key not in keys:
                msg = f"`dropped_together` has the unknown key {key!r}. {known_names(key, list(keys))}"
                raise ValueError(msg)
    return [[keys.index(key) for key in group] for group in groups]


def _check_key(key: Any, keys: Sequence[str]) -> None:
    if key not in keys:
        msg = f"`guidance_scale` has the unknown key {key!r}. {known_names(key, list(keys))}"
        raise ValueError(msg)


def _check_scale(value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(value):  # type: ignore[call-overload]
        msg = f"`guidance_scale` must be a finite number, one per key, or one per subset of keys, but found {value!r}."
        raise ValueError(msg)
