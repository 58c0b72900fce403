"""What ``print(model)`` says of conditions, stages, and the next step."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

from scgen_diffusion._arguments import list_first
from scgen_diffusion.data import CategoricalKey, have_labels, with_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from scgen_diffusion.data import ConditionKey, Conditions


def describe_conditions(
    keys: Sequence[ConditionKey], controls: Mapping[str, Any], codes: np.ndarray, new: Sequence[Tensor] | None
) -> str:
    """Describe condition keys.

    Parameters
    ----------
    keys, controls
        The keys, and the values of control cells.
    codes
        Codes of the model's cells, ``(cells, columns)``.
    new
        Which labels of each key a query has and its reference lacked; None: no query.
    """
    described = []
    for number, (key, columns) in enumerate(with_columns(keys)):
        notes = [key.summary]
        if controls.get(key.name) is not None:
            notes.append(f"control: {controls[key.name]!r}")
        if new is not None and new[number].any():
            notes.append(f"new: {list_first([repr(label) for label in compress(key.labels, new[number])])}")
        if key.may_be_missing and (n := int((~have_labels([key], codes[:, columns])).sum())):
            notes.append(f"{n:,} cells without a label")
        described.append(f"{key.name} ({'; '.join(notes)})")
    return list_first(described) or "none"


def describe_stages(
    trained: Sequence[str], missing: Sequence[str], cut_short: Mapping[str, str], *, is_query: bool
) -> str:
    """Describe which stages are trained, and which are not yet."""
    names = ", ".join(f"{name} ({cut_short[name]})" if name in cut_short else name for name in trained)
    if is_query:
        return f"{names} (by the reference; not fine-tuned yet)"
    return f"{names or 'nothing'} (not yet: {', '.join(missing)})" if missing else names


def next_step(train: str, conditions: Conditions, controls: Mapping[str, Any], *, can_predict: bool) -> str:
    """Say what to call next; ``train`` is what to call before cells can be generated, "" if they can."""
    calls = []
    if can_predict:
        changed = ", ".join(f"{key!r}: ..." for key in controls)
        calls.append(f"model.predict_perturbation(control_cells, {{{changed}}})")
    if train:
        return ", or ".join([*calls, train])
    condition = ""
    match conditions.by_key[:1]:
        case [CategoricalKey() as key] if len(conditions.combinations):
            condition = f", condition={{{key.name!r}: {key.values[int(conditions.combinations[0, 0])]!r}}}"
    return ", ".join([f"model.generate(1_000{condition})", *calls]) + " and model.save('my_model')"
