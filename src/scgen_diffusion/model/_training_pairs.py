"""Control and perturbed training cells, from which the perturbation flow learns."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from scgen_diffusion._arguments import list_first, warn_user
from scgen_diffusion.data import are_same_codes, check_names, have_labels
from scgen_diffusion.perturbation import perturbation_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scgen_diffusion.data import Conditions
    from scgen_diffusion.perturbation import PerturbationGroup
    from scgen_diffusion.train import TrainingCells


SMALLEST_DIFFERENCE = 0.3  # of shares of cells with a modality
FALSE_ALARMS = 0.005  # share of models with equal shares that are warned of
MOST_GROUPS = (
    10_000  # of the perturbation flow, whose memory and time grow with their square and cube: 4 GB and minutes
)


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
        n_cells = len(self.codes)
        self.labels = cells.match_labels(names) if names else pd.DataFrame(index=range(n_cells))
        matched = [pd.factorize(self.labels[name])[0] for name in self.labels]
        self.matched = np.column_stack(matched or [np.zeros(n_cells, int)])
        self.rows = rows[have_labels(self.conditions.by_key, self.codes[rows])]
        perturbs = self._columns_of(control)
        self._are_control = np.all(are_same_codes(self.codes[self.rows][:, perturbs], self.code[perturbs]), axis=1)
        self.perturbed = self.rows[~self._are_control]

    @cached_property
    def groups(self) -> list[PerturbationGroup]:
        """The groups that have both kinds of cells."""
        codes = self.codes[self.rows]
        others = np.hstack([codes[:, self._columns_of(self.context_keys)], self.matched[self.rows]])
        return perturbation_groups(self.rows, self._are_control, codes[:, self._columns_of(self.control)], others)

    @property
    def _same(self) -> str:
        """In what the cells of a group are the same."""
        return " and ".join(["the same values of the other keys", *(f"the same {name!r}" for name in self.labels)])

    @property
    def fault(self) -> str:
        """Why the perturbation flow cannot learn from the groups; empty if it can."""
        if not self.groups:
            return (
                f"No perturbed training cells have control cells ({self.control}) with {self._same}. `control_values` "
                "must have every key that perturbs, such as a drug and its dose. If a key such as the donor is "
                "confounded with the perturbation, leave it out."
            )
        if len(self.groups) > MOST_GROUPS:
            return (
                f"There are {len(self.groups):,} groups of perturbed cells, such as a perturbation in a cell type, and "
                f"the perturbation flow learns from {MOST_GROUPS:,} at most. Train a model on fewer perturbations, or "
                "condition on fewer keys."
            )
        return ""

    def check(self) -> None:
        """Raise unless the perturbation flow can learn from the groups; warn of perturbed cells that are in none."""
        if self.fault:
            raise ValueError(self.fault)
        unpaired = np.setdiff1d(self.perturbed, np.concatenate([group.perturbed for group in self.groups]))
        if len(unpaired):
            warn_user(
                f"{len(unpaired)} of {len(self.perturbed)} perturbed cells have no control cells with {self._same}; "
                "the perturbation flow does not learn from them. They are those of "
                f"{self._name_groups(unpaired)}. If a key such as the donor is confounded with the perturbation, leave "
                "it out."
            )

    def warn_of_modalities(self, names: Sequence[str], has: np.ndarray) -> None:
        """Warn if control and perturbed cells of a group differ in the modalities that they have.

        Latents tell which modalities were measured, so that the perturbation flow takes a difference for an effect.

        Parameters
        ----------
        names
            Names of the modalities.
        has
            Which cells of the model have each, ``(cells, modalities)``.
        """
        controls = {int(group.control[0]): group.control for group in self.groups}  # which groups share
        of_control = {first: has[rows].sum(0) for first, rows in controls.items()}
        sizes = np.array([[len(group.control), len(group.perturbed)] for group in self.groups])
        counts = np.array([[of_control[int(g.control[0])], has[g.perturbed].sum(0)] for g in self.groups])
        shares, pooled = counts / sizes[:, :, None], counts.sum(1) / sizes.sum(1, keepdims=True)
        difference = abs(shares[:, 0] - shares[:, 1])  # (groups, modalities)
        n_errors = norm.isf(FALSE_ALARMS / difference.size)  # chance of many groups
        chance = n_errors * np.sqrt(pooled * (1 - pooled) * (1 / sizes).sum(1, keepdims=True))
        apart = difference > np.maximum(chance, SMALLEST_DIFFERENCE)
        if apart.any():
            group, which = np.unravel_index((difference * apart).argmax(), apart.shape)
            control, perturbed = shares[group, :, which]
            warn_user(
                f"In {apart.any(1).sum()} of {len(self.groups)} groups, control and perturbed cells do not have a "
                f"modality equally often (one has {names[which]!r} in {control:.0%} of the control and in "
                f"{perturbed:.0%} of the perturbed cells). The flow takes this for an effect, so supports may be "
                "wrong. Train on cells that have all modalities, or leave this modality out."
            )

    def _name_groups(self, rows: np.ndarray) -> str:
        """Name the first groups of cells by their values of the keys that do not perturb."""
        table = self.conditions.to_obs(self.codes[rows], pd.RangeIndex(len(rows)))[self.context_keys]
        matched = {name: self.labels[name].to_numpy()[rows] for name in self.labels if name not in table}
        return list_first(table.assign(**matched).drop_duplicates().astype(str).to_dict("records"))

    def _columns_of(self, names: Iterable[str]) -> list[int]:
        slices = (self.conditions.columns(name) for name in names)
        return [column for found in slices for column in range(found.start, found.stop)]
