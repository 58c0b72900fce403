"""Control and perturbed training cells, from which the perturbation flow learns."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgen_diffusion._arguments import list_first, warn_user
from scgen_diffusion.data import are_same_codes, check_names, have_labels
from scgen_diffusion.perturbation import perturbation_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scgen_diffusion.data import Conditions
    from scgen_diffusion.perturbation import PerturbationGroup
    from scgen_diffusion.train import TrainingCells


MOST_GROUPS = 10_000  # memory and time of the flow grow with their square and cube: 4 GB and minutes


class TrainingPairs:
    """Training cells with all labels, in groups whose control and perturbed cells differ only by the perturbation.

    Without a label, it is not known which cells are a pair. Numbers that do not perturb, such as age, are ignored,
    since hardly two cells share one.

    Parameters
    ----------
    conditions
        The model's conditions.
    cells, rows
        The cells that it trains on, and the rows of its training cells.
    control
        Values of unperturbed cells, by the keys that perturb.
    match_keys
        Columns of ``obs`` within which cells are paired.

    Attributes
    ----------
    code
        Codes of ``control``, open in other keys, ``(columns,)``.
    context_keys
        Names of the classes and sets that do not perturb.
    labels, matched
        The columns to match, and their codes ``(cells, columns)``, of all cells of the model.
    perturbed
        Row numbers of the perturbed cells.
    """

    def __init__(
        self,
        conditions: Conditions,
        cells: TrainingCells,
        rows: np.ndarray,
        control: Mapping[str, Any],
        match_keys: Sequence[str] | None = None,
    ) -> None:
        self.control, self.conditions, self.codes = control, conditions, cells.codes
        try:
            self.code = self.conditions.encode(control, 1)[0]
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("`condition`", "`control_values`")) from error
        discrete = [key.name for key in self.conditions.by_key if not key.is_numeric]
        self.context_keys = [name for name in discrete if name not in control]
        names = check_names(match_keys, "match_keys")
        if perturbing := [name for name in names if name in control]:
            msg = f"`match_keys` has {perturbing[0]!r}, but this key perturbs (`control_values`); leave it out."
            raise ValueError(msg)
        self.labels = cells.match_labels(names)
        matched = [pd.factorize(self.labels[name])[0] for name in self.labels]
        self.matched = np.column_stack(matched or [np.zeros(len(self.codes), int)])
        self.rows = rows[have_labels(self.conditions.by_key, self.codes[rows])]
        perturbs = self._columns_of(control)
        self._are_control = are_same_codes(self.codes[self.rows][:, perturbs], self.code[perturbs])
        self.perturbed = self.rows[~self._are_control]

    @cached_property
    def groups(self) -> list[PerturbationGroup]:
        """The groups that have both kinds of cells."""
        codes = self.codes[self.rows]
        others = np.hstack([codes[:, self._columns_of(self.context_keys)], self.matched[self.rows]])
        return perturbation_groups(self.rows, self._are_control, codes[:, self._columns_of(self.control)], others)

    @property
    def fault(self) -> str:
        """Why the perturbation flow cannot learn from the groups; empty if it can."""
        if not self.groups:
            same = f" and the same {list(self.labels)}" if len(self.labels.columns) else ""
            return (
                f"No perturbed training cells have control cells ({self.control}) with the same values of the other "
                f"keys{same}. `control_values` must have every key that perturbs, such as a drug and its dose. Leave "
                "out keys that are confounded with the perturbation, such as the donor."
            )
        if len(self.groups) > MOST_GROUPS:
            return (
                f"There are {len(self.groups):,} groups of perturbed cells, such as a perturbation in a cell type, and "
                f"the perturbation flow learns from {MOST_GROUPS:,} at most. Condition on fewer keys or perturbations."
            )
        return ""

    def check(self) -> None:
        """Raise unless the perturbation flow can learn from the groups; warn of perturbed cells that are in none."""
        if self.fault:
            raise ValueError(self.fault)
        unpaired = np.setdiff1d(self.perturbed, np.concatenate([group.perturbed for group in self.groups]))
        if len(unpaired):
            contexts = self.conditions.to_obs(self.codes[unpaired], pd.RangeIndex(len(unpaired)))[self.context_keys]
            found = contexts.join(self.labels.iloc[unpaired].reset_index(drop=True), rsuffix=" (matched)")
            warn_user(
                f"{len(unpaired)} of {len(self.perturbed)} perturbed cells have no control cells like them, so the "
                "perturbation flow does not learn from them. They are those of "
                f"{list_first(found.drop_duplicates().astype(str).to_dict('records'))}. If a key such as the donor is "
                "confounded with the perturbation, leave it out."
            )

    def _columns_of(self, names: Iterable[str]) -> list[int]:
        slices = (self.conditions.columns(name) for name in names)
        return [column for found in slices for column in range(found.start, found.stop)]
