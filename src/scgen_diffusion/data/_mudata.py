"""MuData: checks, and modalities joined in one matrix, with zeros for cells that lack a modality."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from scgen_diffusion._arguments import known_names, list_first

from ._checks import check_names, check_unique_names, expression_totals, values_in
from ._gene_names import check_same_genes
from ._matrices import exceeds_one

if TYPE_CHECKING:
    import rich.table
    from anndata import AnnData

JOINED = "_scgen_expression"  # key in obsm
ModalityLikelihood = Literal["negative_binomial", "bernoulli"]


@dataclass(frozen=True)
class Modality:
    """Features and likelihood of a modality.

    Parameters
    ----------
    features
        Names of its features (genes, proteins, peaks), in the model's order.
    likelihood
        Distribution of its values: ``"negative_binomial"`` or ``"bernoulli"``.
    """

    features: Sequence[str]
    likelihood: str


# --- arguments of setup_mudata ----------------------------------------------------------------------------------------


def check_is_mudata(mdata: object) -> None:
    """Raise for anything but MuData."""
    if not isinstance(mdata, MuData):
        msg = f"`mdata` must be MuData, but found {type(mdata).__name__}."
        raise TypeError(msg)


def resolve_modalities(
    mdata: MuData,
    modalities: Sequence[str] | Mapping[str, str | None] | None,
    layers: str | Mapping[str, str | None] | None,
) -> tuple[dict[str, str], dict[str, str | None]]:
    """Return likelihood and layer (None is ``X``) of each modality.

    The default likelihood is Bernoulli if all values are 0 or 1, else negative binomial.

    Raises
    ------
    TypeError
        For arguments that are neither lists of names nor mappings.
    KeyError
        For unknown modalities and layers.
    ValueError
        For no modality, an unknown likelihood, and as in :func:`check_modalities`.
    """
    known, allowed = list(mdata.mod), get_args(ModalityLikelihood)
    listed = list(modalities) if isinstance(modalities, Mapping) else modalities
    names = known if listed is None else check_names(listed, "modalities")
    if not names:
        msg = "`modalities` must name at least one modality."
        raise ValueError(msg)
    if isinstance(layers, Mapping) and (unknown := [name for name in layers if name not in names]):
        msg = f"`layers` names the modality {unknown[0]!r}. {known_names(unknown[0], names)}"
        raise KeyError(msg)
    chosen = {name: layers.get(name) if isinstance(layers, Mapping) else layers for name in names}
    given: dict[str, str | None] = dict(modalities) if isinstance(modalities, Mapping) else dict.fromkeys(names)
    for name, likelihood in given.items():
        if name not in known:
            msg = f"There is no modality {name!r} in the MuData. {known_names(name, known)}"
            raise KeyError(msg)
        if likelihood not in (None, *allowed):
            msg = f"`modalities[{name!r}]` is {likelihood!r}. {known_names(likelihood, allowed)}"
            raise ValueError(msg)
    check_modalities(mdata, given, chosen)
    likelihoods = {}
    for name, likelihood in given.items():
        is_count = likelihood is None and exceeds_one(values_in(mdata[name], chosen[name]), name)
        likelihoods[name] = likelihood or ("negative_binomial" if is_count else "bernoulli")
    return likelihoods, chosen


# --- modalities as one matrix ---------------------------------------------------------------------------------------


class ModalitiesField(BaseAnnDataField):
    """Registers several modalities as one matrix, kept in ``mdata.obsm``.

    Cells that a modality lacks have zeros. Modalities need neither the same cells nor the same order. Cells registered
    later may lack a whole modality.

    Parameters
    ----------
    likelihoods
        Distribution of each modality's values, by name.
    layers
        Layer of each modality; None for ``X``.
    """

    registry_key = REGISTRY_KEYS.X_KEY
    attr_name = "obsm"
    attr_key = JOINED
    is_empty = False

    def __init__(self, likelihoods: Mapping[str, str], layers: Mapping[str, str | None]) -> None:
        super().__init__()
        self.likelihoods, self.layers = dict(likelihoods), dict(layers)

    def validate_field(self, mdata: MuData) -> None:
        """Raise unless all present modalities have values that fit their likelihoods."""
        check_modalities(mdata, self.likelihoods, self.layers, are_known=True)

    def register_field(self, mdata: MuData) -> dict[str, Any]:
        """Join the modalities' values, which were checked, and record their features."""
        return self._join(
            mdata, {n: Modality(list(mdata[n].var_names.astype(str)), k) for n, k in self.likelihoods.items()}
        )

    def transfer_field(self, state_registry: dict[str, Any], mdata_target: MuData, **_: Any) -> dict[str, Any]:
        """Join the values of other cells; raise unless their features are the same."""
        modalities = modalities_of(state_registry)
        check_same_features(mdata_target, modalities)
        self.validate_field(mdata_target)
        return self._join(mdata_target, modalities)

    def _join(self, mdata: MuData, modalities: Mapping[str, Modality]) -> dict[str, Any]:
        mdata.obsm[JOINED] = join_expression(mdata, modalities, self.layers)
        names = [f"{name}:{feature}" for name, modality in modalities.items() for feature in modality.features]
        return {
            "n_obs": mdata.n_obs,
            "n_vars": len(names),
            "column_names": np.array(names, dtype=object),
            "modalities": {name: asdict(modality) for name, modality in modalities.items()},
        }

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the numbers of cells and features."""
        return {"n_cells": state_registry["n_obs"], "n_vars": state_registry["n_vars"]}

    def view_state_registry(self, state_registry: dict[str, Any]) -> rich.table.Table | None:
        """Show no more than the summary."""
        return None


def join_expression(
    mdata: MuData, modalities: Mapping[str, Modality], layers: Mapping[str, str | None]
) -> sp.csr_matrix:
    """Join the modalities' values side by side, ``(cells, features of all)``, with zeros for missing modalities."""
    blocks = []
    for name, modality in modalities.items():
        if name not in mdata.mod:
            blocks.append(sp.csr_matrix((mdata.n_obs, len(modality.features)), dtype=np.float32))
            continue
        rows = mdata[name].obs_names.get_indexer(mdata.obs_names)
        blocks.append(_take_rows(values_in(mdata[name], layers.get(name)), rows))
    return sp.hstack(blocks, format="csr", dtype=np.float32)


def _take_rows(matrix: Any, rows: np.ndarray) -> sp.csr_matrix:
    """Return rows of a matrix as CSR of float32; row -1 is zero."""
    values = sp.csr_matrix(matrix, dtype=np.float32)
    if np.array_equal(rows, np.arange(values.shape[0])):
        return values
    zeros = sp.csr_matrix((1, values.shape[1]), dtype=np.float32)
    return sp.vstack([values, zeros], format="csr")[rows]


def check_modalities(
    mdata: MuData,
    likelihoods: Mapping[str, str | None],
    layers: Mapping[str, str | None],
    *,
    are_known: bool = False,
) -> None:
    """Raise unless modalities hold counts that fit their likelihoods, and share cells.

    A modality may lack cells, but every cell needs a count in one of them. For a model that knows the modalities, they
    may be absent, lack all cells and share none.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        For a modality without cells or features, or that shares no cell with another; for duplicate names, values that
        are not counts (for a Bernoulli, 0 or 1), and cells without any count.
    """
    if are_known:
        likelihoods = {name: kind for name, kind in likelihoods.items() if name in mdata.mod}
    totals = pd.Series(0.0, index=mdata.obs_names)
    for name, likelihood in likelihoods.items():
        adata, owner, layer = mdata[name], f"mdata[{name!r}]", layers.get(name)
        if are_known and mdata.n_obs and not adata.n_obs:  # a part of a MuData keeps modalities that its cells lack
            continue
        advice = f"Give the layer with raw counts as `layers={{{name!r}: ...}}`; models of MuData need counts."
        found = expression_totals(adata, layer, "counts", advice, owner)
        check_unique_names(adata.obs_names, f"{owner}.obs_names")
        others = [mdata[other].obs_names for other in likelihoods if other != name]
        if others and not are_known and not any(adata.obs_names.isin(cells).any() for cells in others):
            msg = f"No cell of {owner} is in another modality. A cell must have the same name in every modality."
            raise ValueError(msg)
        if likelihood == "bernoulli" and exceeds_one(values_in(adata, layer), owner):
            msg = f"{owner} holds values above 1, but `modalities[{name!r}]='bernoulli'` allows only 0 and 1."
            raise ValueError(msg)
        totals[adata.obs_names] += found
    if (totals == 0).any():
        msg = f"Some cells have no count in any of {list(likelihoods)}: {list_first(totals.index[totals == 0])}."
        raise ValueError(msg)


def modalities_of(state_registry: Mapping[str, Any]) -> dict[str, Modality]:
    """Return the modalities that :class:`ModalitiesField` registered; none for AnnData."""
    return {name: Modality(**dict(state)) for name, state in state_registry.get("modalities", {}).items()}


def check_same_features(mdata: MuData, modalities: Mapping[str, Modality]) -> None:
    """Raise unless at least one modality is present, and all present ones have the model's features in order."""
    present = [name for name in modalities if name in mdata.mod]
    if not present:
        msg = f"The MuData has none of the model's modalities {list(modalities)}; it has {list(mdata.mod)}."
        raise ValueError(msg)
    for name in present:
        features, advice = pd.Index(modalities[name].features), "`model.modalities` has all of them in order."
        check_same_genes(mdata[name].var_names, features, f"mdata[{name!r}]", advice)


def mudata_of(modalities: Mapping[str, AnnData]) -> MuData:
    """Combine modalities into a MuData without moving their columns; modalities may share feature names."""
    has_option = hasattr(mudata, "set_options")  # mudata 0.4 no longer moves columns
    with warnings.catch_warnings(), mudata.set_options(pull_on_update=False) if has_option else nullcontext():
        warnings.filterwarnings("ignore", message="var_names are not unique")
        return MuData(dict(modalities))
