"""Fine-tuning: the copy of the reference, and what is new and trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import torch

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.data import Conditions, digest_of, mark_occurring, recode
from scgen_diffusion.module import TRAINABLE, copy_reference, perturbation_flow_fits, trained_masks

from ._end_of_training import TOO_SHORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scgen_diffusion.data import ConditionKey, Paths
    from scgen_diffusion.module import Trainable

    from ._base import DiffusionModel


def are_paths(cells: object) -> TypeGuard[Paths]:
    """Return whether cells are given as one path of a file, or several."""
    paths = cells if isinstance(cells, list | tuple) else [cells]
    return bool(paths) and all(isinstance(path, str | os.PathLike) for path in paths)


def start_from(model: DiffusionModel, reference: DiffusionModel, trainable: Trainable) -> None:
    """Copy weights, conditions and trained stages of a reference."""
    before, after = reference.conditions.by_key, model.conditions.by_key
    model.combinations_ = recode(reference.combinations_, before, after)
    model.combination_sizes_ = reference.combination_sizes_
    model.reference_ = {
        "trainable": trainable,
        "digest": digest_of(*(tensor.cpu().numpy() for tensor in reference.module.state_dict().values())),
        "combinations": model.combinations_,
        "combination_sizes": model.combination_sizes_,
        "of_autoencoder": recode(reference._combinations_of_autoencoder, before, after),
    }
    keeps_perturbation_flow = trainable != "all" and perturbation_flow_fits(model.module, reference.module)
    copy_reference(
        model.module,
        reference.module,
        _mark_occurring(after, model.combinations_),
        lambda codes: torch.from_numpy(recode(codes.cpu().numpy(), before, after)),
        trainable=trainable,
        with_perturbation_flow=keeps_perturbation_flow,
    )
    model._copy_features(reference)
    stages = {*reference.trained_stages_}
    if "perturbation_flow" in stages and not keeps_perturbation_flow:
        stages.remove("perturbation_flow")
        warn_user(
            "The new model leaves out the reference's flow, which does not fit a new autoencoder or more known "
            "embeddings of perturbations. `train` trains another, on the control and perturbed cells among the new "
            "ones alone."
        )
    model.library_head_is_trained_ = reference.library_head_is_trained_
    # TOO_SHORT instead: "stopped" would tell `train` that this model began the perturbation flow
    states = reference.cut_short_.items()
    model.cut_short_ = {stage: TOO_SHORT if stage == "perturbation_flow" else state for stage, state in states}
    model.recipes_ = dict(reference.recipes_)
    model._record_trained(*stages)
    check_learns_something(model)


def check_learns_something(model: DiffusionModel) -> None:
    """Raise if fine-tuning has nothing to train on the model's cells."""
    assert model.reference_ is not None
    trainable = model.reference_["trainable"]
    if trained_masks(model.module, trainable, new_values(model)):
        return
    if trainable == "conditions":
        msg = f"The reference has no conditions to train; set `trainable` to one of {TRAINABLE[2:]}."
        raise ValueError(msg)
    msg = (
        "There is nothing to train: the reference knows all classes and members of the new cells, or their embeddings "
        "are known, so they have no vectors to train. To learn from new embeddings, combinations, numbers or cells, "
        f"set `trainable` to one of {TRAINABLE[1:]}."
    )
    raise ValueError(msg)


def new_values(model: DiffusionModel) -> list[Tensor]:
    """Mark, per key, the classes and members that the model's cells have and the reference's cells lacked."""
    assert model.reference_ is not None
    codes = model._registered_codes, model.reference_["combinations"]
    here, before = (_mark_occurring(model.conditions.by_key, of) for of in codes)
    return [own & ~known for own, known in zip(here, before, strict=True)]


def are_learned(model: DiffusionModel, codes: np.ndarray) -> np.ndarray:
    """Mark the codes ``(n, columns)`` that count as training cells.

    With ``"new_conditions"`` these are the reference's combinations, and those with a new class or member. Numbers and
    places far from the reference's are none of its combinations.
    """
    reference = model.reference_
    if reference is None or reference["trainable"] != "new_conditions":
        return np.ones(len(codes), dtype=bool)
    before = Conditions(model.conditions.by_key, reference["combinations"], reference["combination_sizes"])
    parts = zip(before.parts, new_values(model), strict=True)
    have_new = [np.isin(codes[:, columns], np.flatnonzero(new)).any(1) for (_, columns), new in parts]
    return np.any(have_new, axis=0) | ~(before.are_unseen(codes) | before.are_far(codes))


def _mark_occurring(keys: Sequence[ConditionKey], codes: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(are) for are in mark_occurring(keys, codes)]


def is_untrained_query(model: DiffusionModel) -> bool:
    """Return whether a model starts from a reference, and was not trained since."""
    return model.reference_ is not None and not model.history_


def has_values_to_learn(model: DiffusionModel) -> bool:
    """Return whether a query is not yet trained, and its cells have classes or members that the reference lacked."""
    return is_untrained_query(model) and any(new.any() for new in new_values(model))


def trained_rows(model: DiffusionModel) -> dict[torch.nn.Parameter, Tensor | None]:
    """Return the parameters that fine-tuning trains."""
    assert model.reference_ is not None
    masks = trained_masks(model.module, model.reference_["trainable"], new_values(model))
    if not model.library_head_is_trained_:  # published weights lack this head
        masks |= dict.fromkeys(model.module.library_size.parameters())
    if (flow := model.module.perturbation_flow) is not None:
        masks |= dict.fromkeys(flow.parameters())
    return masks
