"""Several conditions: which of them training drops, and how classifier-free guidance combines predictions given some.

The condition of ``n`` samples is one tensor ``(n, columns)``, in which every key has one or more adjacent columns.
:class:`ConditionColumns` describes the columns, and the values that mean "not given".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean as mean
from typing import TYPE_CHECKING, Self, TypeAlias

import torch

from scgen_diffusion._arguments import is_number, known_names, warn_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from ._denoiser import Network

GuidanceScale = float | Mapping[str, float]
Terms: TypeAlias = dict[tuple[int, ...], float]
"""Weights of the predictions in a guided mixture, by the keys that each is conditioned on, which ascend."""
WEIGHT_ROUNDING = 1e-9  # weights below this are rounding errors of sums of scales, and need no prediction


@dataclass(frozen=True, eq=False)
class ConditionColumns:
    """What the columns of a condition ``(n, columns)`` mean.

    Parameters
    ----------
    null
        Value that means "not given" in each column, ``(columns,)``: the number of classes for a class, ``-inf`` for a
        number. It has the dtype of the conditions: long, or float32 if any key is a number.
    key
        Number of the key that each column belongs to, ``(columns,)``, ascending from 0.
    n_keys
        Number of keys, which code on a GPU could not read from ``key`` without waiting for it.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import ConditionColumns
    >>> columns = ConditionColumns(
    ...     null=torch.tensor([3, 6, 5]), key=torch.tensor([0, 1, 1]), n_keys=2
    ... )
    >>> columns.keep(torch.tensor([[2, 0, 4]]), keys=[0])
    tensor([[2, 6, 5]])
    """

    null: Tensor
    key: Tensor
    n_keys: int

    def keep(self, condition: Tensor, keys: Sequence[int] | Tensor) -> Tensor:
        """Null every key of ``condition (n, columns)`` that is not listed."""
        given = torch.zeros(1, self.n_keys, dtype=torch.bool, device=condition.device)
        given[:, torch.as_tensor(keys, dtype=torch.long, device=condition.device)] = True
        return self.null_unless(condition, given)

    def complete(self, condition: Tensor) -> Tensor:
        """Null all keys in the samples of ``condition (n, columns)`` that lack one of them."""
        of_key = self.key[:, None] == torch.arange(self.n_keys, device=condition.device)
        given = ((condition != self.null)[:, :, None] & of_key).any(1)  # (n, keys)
        return torch.where(given.all(1, keepdim=True), condition, self.null)

    def null_unless(self, condition: Tensor, given: Tensor) -> Tensor:
        """Null the keys of ``condition (n, columns)`` where ``given (n or 1, keys)`` is false."""
        return torch.where(given[:, self.key], condition, self.null)


@dataclass(frozen=True)
class Joint:
    r"""All conditions together or none: :math:`v = v_\varnothing + \bar{s}\,(v_{all} - v_\varnothing)`.

    The scale is the mean of the keys' scales, as published for scLDM.
    """

    def drop(
        self, condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
    ) -> Tensor:
        """Drop all keys of a sample together, with one coin per sample, and where one is not given."""
        return _drop_samples(columns.complete(condition), columns, probability, generator)

    def terms(self, scales: Sequence[float]) -> Terms:
        """Weigh the prediction given all keys against the one given none."""
        return _of_subsets([(range(len(scales)), mean(scales))] if scales else [])


@dataclass(frozen=True)
class MutuallyExclusive:
    r"""One condition at a time: :math:`v = v_\varnothing + \sum_k s_k\,(v_k - v_\varnothing)`.

    Training shows one key per batch, drawn at random, and nulls the others.
    """

    def drop(
        self, condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
    ) -> Tensor:
        """Keep one random key for the batch, and drop it per sample."""
        if columns.n_keys == 0:
            return condition
        kept = torch.randint(columns.n_keys, (1,), generator=generator, device=condition.device)
        return _drop_samples(columns.keep(condition, kept), columns, probability, generator)

    def terms(self, scales: Sequence[float]) -> Terms:
        """Weigh the predictions given one key each against the one given none."""
        return _of_subsets([((key,), scale) for key, scale in enumerate(scales)])


@dataclass(frozen=True)
class Additive:
    r"""Every condition separately: :math:`v = v_{all} + \sum_k (s_k - 1)\,(v_{all} - v_{all \setminus k})`.

    Scale 1 everywhere is the conditional prediction. Keys of scale 0 are in no term, not even in :math:`v_{all}`, which
    removes their influence and no other; so 0 everywhere is the unconditional prediction, whatever the keys share. With
    one key this is ordinary guidance. Training drops every key with its own coin, and all keys with one more. So the
    model learns every subset, and sees the empty one often enough.

    References
    ----------
    Brooks et al. (2023), *InstructPix2Pix*, drop two conditions in this way. For scores, the difference is the gradient
    of :math:`\log p(k \mid x, \text{the other keys})`, by Bayes' rule.

    Examples
    --------
    >>> from scgen_diffusion.diffusion import Additive
    >>> Additive().terms([1.0, 3.0])
    {(0, 1): 3.0, (0,): -2.0}
    """

    def drop(
        self, condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
    ) -> Tensor:
        """Drop each key of a sample with its own coin, and all of them with one more."""
        n_coins = columns.n_keys + (columns.n_keys > 1)  # a single key needs no extra coin
        kept = torch.rand(len(condition), n_coins, generator=generator, device=condition.device) >= probability
        return columns.null_unless(condition, kept[:, : columns.n_keys] & kept[:, -1:])

    def terms(self, scales: Sequence[float]) -> Terms:
        """Weigh the prediction given all keys against those that lack one key each; keys of scale 0 are in none."""
        every = {key: scale - 1 for key, scale in enumerate(scales) if scale}
        lacking = [([other for other in every if other != key], -excess) for key, excess in every.items()]
        return _add_up([(every, 1 + sum(every.values())), *lacking])


ConditionStrategy = Joint | MutuallyExclusive | Additive
"""How a model handles several conditions: what training drops, and how guidance composes them."""
CONDITION_STRATEGIES = {"joint": Joint(), "mutually_exclusive": MutuallyExclusive(), "additive": Additive()}


def _of_subsets(scales: Sequence[tuple[Iterable[int], float]]) -> Terms:
    r"""Turn the scales of subsets into weights, :math:`v = v_\varnothing + \sum_j s_j\,(v_{K_j} - v_\varnothing)`."""
    return _add_up([((), 1 - sum(scale for _, scale in scales)), *scales])


def _add_up(weighted: Iterable[tuple[Iterable[int], float]]) -> Terms:
    """Add the weights of equal subsets, and leave out subsets of weight zero."""
    weights: Terms = {}
    for keys, weight in weighted:
        subset = tuple(keys)
        weights[subset] = weights.get(subset, 0.0) + weight
    return {keys: weight for keys, weight in weights.items() if abs(weight) > WEIGHT_ROUNDING}


def _drop_samples(
    condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
) -> Tensor:
    coin = torch.rand(len(condition), 1, generator=generator, device=condition.device)
    return torch.where(coin < probability, columns.null, condition)


# --- guidance ---------------------------------------------------------------------------------------------------------


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
