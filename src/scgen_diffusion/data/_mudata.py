"""MuData in and out: modalities side by side in one matrix, cells that lack a modality with zeros."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from ._anndata import PROVENANCE_KEY, build_anndata, mark_synthetic
from ._checks import check_same_genes
from ._mudata_checks import check_modalities, check_modality, layer_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import rich.table
    from anndata import AnnData

JOINED = "_scgen_expression"  # in obsm
SEPARATOR = ":"


@dataclass(frozen=True)
class Modality:
    """What a model knows of a modality.

    Parameters
    ----------
    features
        Names of its features (genes, proteins, peaks), in the order of the model.
    likelihood
        Distribution of its values: ``"negative_binomial"``, ``"poisson"`` or ``"bernoulli"``.
    """

    features: Sequence[str]
    likelihood: str


def joined_names(modalities: Mapping[str, Modality]) -> pd.Index:
    """Name the features of all modalities, side by side: ``"rna:CD4"``, ``"prot:CD4"``."""
    return pd.Index([f"{name}{SEPARATOR}{feature}" for name, m in modalities.items() for feature in m.features])


def join_expression(
    mdata: MuData, modalities: Mapping[str, Modality], layers: Mapping[str, str | None]
) -> sp.csr_matrix:
    """Put the modalities' values side by side, ``(cells, features of all)``; what a cell lacks is zero."""
    blocks = [
        _rows_of_all(mdata, name, layers)
        if name in mdata.mod
        else sp.csr_matrix((mdata.n_obs, len(modality.features)), dtype=np.float32)
        for name, modality in modalities.items()
    ]
    return sp.hstack(blocks, format="csr", dtype=np.float32)


def _rows_of_all(mdata: MuData, name: str, layers: Mapping[str, str | None]) -> sp.csr_matrix:
    """Return a modality's values for all cells of the MuData, in their order."""
    adata = mdata[name]
    values = sp.csr_matrix(layer_of(adata, layers.get(name)), dtype=np.float32)
    rows = adata.obs_names.get_indexer(mdata.obs_names)
    if np.array_equal(rows, np.arange(adata.n_obs)):
        return values
    padded = sp.vstack([values, sp.csr_matrix((1, values.shape[1]), dtype=np.float32)], format="csr")
    return padded[rows]  # row -1 is the row of zeros


class ModalitiesField(BaseAnnDataField):
    """Registers several modalities as one matrix, which it keeps in ``mdata.obsm``.

    Cells that a modality lacks have zeros there; modalities need neither the same cells nor the same order. In cells that
    are registered later, a whole modality may be absent.

    Parameters
    ----------
    likelihoods
        Distribution of each modality's values, by its name.
    layers
        Layer that holds them; None for ``X``.
    """

    def __init__(self, likelihoods: Mapping[str, str], layers: Mapping[str, str | None]) -> None:
        super().__init__()
        self.likelihoods, self.layers = dict(likelihoods), dict(layers)

    registry_key = REGISTRY_KEYS.X_KEY
    attr_name = "obsm"
    attr_key = JOINED
    is_empty = False

    def validate_field(self, mdata: MuData) -> None:
        """Raise unless every modality that is there holds what its likelihood explains."""
        check_modalities(mdata, [name for name in self.likelihoods if name in mdata.mod], self.layers)
        for name, likelihood in self.likelihoods.items():
            if name in mdata.mod:
                check_modality(mdata[name], name, self.layers.get(name), likelihood)

    def register_field(self, mdata: MuData) -> dict[str, Any]:
        """Join the modalities' values, and take note of their features."""
        self.validate_field(mdata)
        modalities = {n: Modality(list(mdata[n].var_names.astype(str)), kind) for n, kind in self.likelihoods.items()}
        return self._join(mdata, modalities)

    def transfer_field(self, state_registry: dict[str, Any], mdata_target: MuData, **_: Any) -> dict[str, Any]:
        """Join the values of other cells, whose features must be the same."""
        modalities = modalities_of(state_registry)
        check_same_features(mdata_target, modalities)
        self.validate_field(mdata_target)
        return self._join(mdata_target, modalities)

    def _join(self, mdata: MuData, modalities: Mapping[str, Modality]) -> dict[str, Any]:
        mdata.obsm[JOINED] = join_expression(mdata, modalities, self.layers)
        return {
            "n_obs": mdata.n_obs,
            "n_vars": sum(len(modality.features) for modality in modalities.values()),
            "column_names": joined_names(modalities).to_numpy(),
            "modalities": {
                name: {"features": list(m.features), "likelihood": m.likelihood} for name, m in modalities.items()
            },
        }

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the numbers of cells and of features."""
        return {"n_cells": state_registry["n_obs"], "n_vars": state_registry["n_vars"]}

    def view_state_registry(self, state_registry: dict[str, Any]) -> rich.table.Table | None:
        """Show nothing beyond the numbers."""
        return None


def modalities_of(state_registry: Mapping[str, Any]) -> dict[str, Modality]:
    """Read the modalities that :class:`ModalitiesField` registered; none of AnnData."""
    return {name: Modality(**dict(state)) for name, state in state_registry.get("modalities", {}).items()}


def check_same_features(mdata: MuData, modalities: Mapping[str, Modality]) -> None:
    """Raise unless the modalities that are there, at least one, have the model's features in the same order."""
    if not isinstance(mdata, MuData):
        msg = f"The model reads MuData with the modalities {list(modalities)}, but found {type(mdata).__name__}."
        raise TypeError(msg)
    present = [name for name in modalities if name in mdata.mod]
    if not present:
        msg = f"The MuData has none of the model's modalities {list(modalities)}; it has {list(mdata.mod)}."
        raise ValueError(msg)
    for name in present:
        try:
            check_same_genes(mdata[name].var_names, pd.Index(modalities[name].features))
        except ValueError as error:
            text = str(error).replace(
                "adata[:, model.get_var_names()]", f"mdata[{name!r}][:, model.modalities[{name!r}].features]"
            )
            msg = f"Modality {name!r}: {text}"
            raise ValueError(msg) from error


def build_mudata(
    x: sp.csr_matrix | np.ndarray,
    obs: pd.DataFrame,
    variables: Mapping[str, pd.DataFrame],
    provenance: Mapping[str, Any],
    *,
    is_log1p: bool,
    layers: Mapping[str, np.ndarray] | None = None,
) -> MuData:
    """Assemble paired cells from values ``(cells, features of all modalities)``.

    ``obs`` and provenance stand in the MuData and in each of its modalities, which may be looked at on their own.
    """
    parts, start = {}, 0
    for name, var in variables.items():
        own = slice(start, start + len(var))
        own_layers = {layer: values[:, own] for layer, values in (layers or {}).items()}
        parts[name] = build_anndata(x[:, own], obs.copy(), var, provenance, is_log1p=is_log1p, layers=own_layers)
        start = own.stop
    return _paired(parts, obs, provenance)


def _paired(parts: Mapping[str, AnnData], obs: pd.DataFrame, provenance: Mapping[str, Any]) -> MuData:
    mdata = mudata_of(parts)
    mdata.obs = mark_synthetic(obs, provenance)
    mdata.uns[PROVENANCE_KEY] = dict(provenance)
    return mdata


def mudata_of(modalities: Mapping[str, AnnData]) -> MuData:
    """Put modalities into a MuData, whose columns stay where they are; features of two modalities may share a name."""
    with _without_pulling(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")
        return MuData(dict(modalities))


def _without_pulling() -> AbstractContextManager[Any]:
    """Keep modalities' columns where they are, which mudata does of itself from 0.4 on."""
    return mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
