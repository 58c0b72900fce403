"""Checks of a user's MuData, before any long work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

from ._checks import check_counts, check_layer, check_shape, known_names, name_some
from ._condition_setup import listed_names

if TYPE_CHECKING:
    from anndata import AnnData

ModalityLikelihood = Literal["negative_binomial", "poisson", "bernoulli"]
MODALITY_LIKELIHOODS: tuple[ModalityLikelihood, ...] = ("negative_binomial", "poisson", "bernoulli")


def layer_of(adata: AnnData, layer: str | None) -> Any:
    """Return the matrix of a layer; None names ``X``."""
    return adata.X if layer is None else adata.layers[layer]


def check_is_mudata(mdata: object) -> None:
    """Raise for anything else than MuData in memory."""
    if not isinstance(mdata, MuData):
        msg = f"`setup_mudata` takes MuData, but found {type(mdata).__name__}. For AnnData call `setup_anndata`."
        raise TypeError(msg)
    if mdata.isbacked:
        msg = (
            "`mdata` is left in its file (`backed`), but models of MuData need it in memory: `mudata.read_h5mu(path)`."
        )
        raise ValueError(msg)


def resolve_modalities(
    mdata: MuData, modalities: Sequence[str] | Mapping[str, str | None] | None
) -> dict[str, str | None]:
    """Turn what a user says of modalities into a mapping from names to likelihoods, None where they are to be guessed.

    Raises
    ------
    TypeError
        For what is no list of names, and no mapping.
    KeyError
        For modalities that there are not.
    ValueError
        For no modality, a repeated one, an unknown likelihood, and MuData that share features in place of cells.
    """
    given = list(modalities) if isinstance(modalities, Mapping) else modalities
    names = list(mdata.mod) if modalities is None else listed_names(given, "modalities")
    if not names:
        msg = "`modalities` names none; a model needs one modality at least."
        raise ValueError(msg)
    if len(set(names)) < len(names):
        msg = f"`modalities` names one of {names} more than once."
        raise ValueError(msg)
    for name in names:
        if name not in mdata.mod:
            msg = f"There is no modality {name!r} in the MuData. {known_names(name, list(mdata.mod))}"
            raise KeyError(msg)
    if mdata.axis != 0:
        msg = f"The MuData's modalities must share cells (axis 0), but they share axis {mdata.axis}."
        raise ValueError(msg)
    chosen = dict(modalities) if isinstance(modalities, Mapping) else dict.fromkeys(names)
    for name, likelihood in chosen.items():
        if likelihood not in (None, *MODALITY_LIKELIHOODS):
            msg = f"`modalities[{name!r}]` is {likelihood!r}. {known_names(likelihood, MODALITY_LIKELIHOODS)}"
            raise ValueError(msg)
    return chosen


def resolve_layers(layers: str | Mapping[str, str | None] | None, modalities: Sequence[str]) -> dict[str, str | None]:
    """Name a layer for each modality: the same one, or its own; None is ``X``.

    Raises
    ------
    KeyError
        For a modality that is not among those named.
    """
    if not isinstance(layers, Mapping):
        return dict.fromkeys(modalities, layers)
    if unknown := [name for name in layers if name not in modalities]:
        msg = f"`layers` names the modality {unknown[0]!r}. {known_names(unknown[0], modalities)}"
        raise KeyError(msg)
    return {name: layers.get(name) for name in modalities}


def guess_likelihood(adata: AnnData, layer: str | None, name: str) -> ModalityLikelihood:
    """Take values that are all 0 or 1 for a Bernoulli's, all others for a negative binomial's."""
    check_layer(adata, layer, f"mdata[{name!r}]")
    values = layer_of(adata, layer)
    largest = values.max() if values is not None and min(values.shape) else 0
    return "bernoulli" if largest <= 1 else "negative_binomial"


def check_modality(adata: AnnData, name: str, layer: str | None, likelihood: str | None) -> None:
    """Raise unless a modality holds counts, as far as its likelihood can explain them. Cells may be empty.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        For no cells, no features, names that occur twice, no count at all, and values that are no counts or, for a Bernoulli,
        neither 0 nor 1.
    """
    owner = f"mdata[{name!r}]"
    where = check_layer(adata, layer, owner)
    check_shape(adata, where, owner)
    if not adata.obs_names.is_unique:
        repeated = name_some(adata.obs_names[adata.obs_names.duplicated()].unique())
        msg = f"{owner}.obs_names has duplicates: {repeated}. Call {owner}.obs_names_make_unique() first."
        raise ValueError(msg)
    matrix = layer_of(adata, layer)
    if matrix is None:
        msg = f"{where} is empty; name the layer that holds the counts with `layers={{{name!r}: ...}}`."
        raise ValueError(msg)
    advice = f"Name the layer that holds raw counts with `layers={{{name!r}: ...}}`; models of MuData need counts."
    totals = check_counts(matrix, where, advice)
    if not totals.any():
        msg = f"{where} holds no count at all; leave the modality out, or name the layer that holds its counts."
        raise ValueError(msg)
    largest = matrix.max()
    if likelihood == "bernoulli" and largest > 1:
        msg = f"{where} holds values up to {largest:g}, but `modalities[{name!r}]='bernoulli'` explains 0 and 1 only."
        raise ValueError(msg)


def check_modalities(mdata: MuData, names: Sequence[str], layers: Mapping[str, str | None]) -> None:
    """Raise unless the modalities hang together: up-to-date cells, shared ones, and none without any count.

    Raises
    ------
    ValueError
        For modalities of which another has no cell, cells that the MuData does not list, and cells without any count.
    """
    for name in names:
        if unlisted := len(mdata[name].obs_names.difference(mdata.obs_names)):
            msg = f"mdata[{name!r}] has {unlisted} cells that mdata.obs does not list; call mdata.update() first."
            raise ValueError(msg)
        others = [mdata[other].obs_names for other in names if other != name]
        if others and not any(mdata[name].obs_names.isin(cells).any() for cells in others):
            msg = (
                f"No cell of mdata[{name!r}] ({name_some(mdata[name].obs_names)}) is in another modality "
                f"({name_some(others[0])}). The same cell must have the same name in every modality."
            )
            raise ValueError(msg)
    _check_no_cell_is_empty(mdata, names, layers)


def _check_no_cell_is_empty(mdata: MuData, names: Sequence[str], layers: Mapping[str, str | None]) -> None:
    total = pd.Series(0.0, index=mdata.obs_names)
    for name in names:
        check_layer(mdata[name], layers.get(name), f"mdata[{name!r}]")
        values = layer_of(mdata[name], layers.get(name))
        if values is not None:
            sums = np.asarray(values.sum(axis=1)).ravel() if sp.issparse(values) else np.asarray(values).sum(axis=1)
            total[mdata[name].obs_names] += sums
    if (total == 0).any():
        msg = (
            f"Cells have no count in any of {list(names)}: {name_some(total.index[total == 0])}. Remove them: "
            "mdata[mdata.obs_names.isin(...)].copy()."
        )
        raise ValueError(msg)


def check_condition_columns(mdata: MuData, keys: Sequence[str]) -> None:
    """Raise if a condition is a column of a modality's ``obs`` only.

    Raises
    ------
    KeyError
        With advice how to get it into ``mdata.obs``.
    """
    for key in keys:
        owners = [name for name, adata in mdata.mod.items() if key in adata.obs]
        if key not in mdata.obs and owners:
            msg = (
                f"The condition key {key!r} is not a column of mdata.obs, but of mdata[{owners[0]!r}].obs. Bring it up with "
                f"mdata.pull_obs([{key!r}]), or mdata.obs[{key!r}] = mdata[{owners[0]!r}].obs[{key!r}]."
            )
            raise KeyError(msg)
