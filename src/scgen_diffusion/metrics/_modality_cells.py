"""Cells of a MuData: one modality at a time, or those that were measured in several."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scgen_diffusion.data import known_names, layer_names

from ._expression import align_genes, matrix_of
from ._scales import default_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._scales import ScaleName


def common_modalities(sets: Mapping[str, MuData], wanted: Sequence[str] | None = None) -> list[str]:
    """Return the names of the modalities, those wanted or those of the first set, that all sets must have.

    Raises
    ------
    TypeError
        If a set is no MuData.
    KeyError
        If a set lacks one of them.
    """
    for name, cells in sets.items():
        if not isinstance(cells, MuData):
            msg = f"`{name}` must be a MuData, but is {type(cells).__name__}. For one modality, there is `evaluate`."
            raise TypeError(msg)
    names = list(next(iter(sets.values())).mod if wanted is None else wanted)
    for name, cells in sets.items():
        for modality in names:
            if modality not in cells.mod:
                msg = f"`{name}` has no modality {modality!r}. {known_names(modality, list(cells.mod))}"
                raise KeyError(msg)
    return names


def modality_cells(cells: MuData, modality: str, keys: Sequence[str], name: str) -> AnnData:
    """Return the cells that have a modality, with these columns of `obs`; values are shared with the MuData."""
    adata = cells.mod[modality]
    if not adata.obs_names.is_unique:
        msg = f"Modality {modality!r} of `{name}` has several cells of one name; call `obs_names_make_unique()`."
        raise ValueError(msg)
    obs = pd.DataFrame({key: _column(cells, key, adata.obs_names, name) for key in keys}, index=adata.obs_names)
    return AnnData(
        adata.X,
        obs=obs,
        var=pd.DataFrame(index=adata.var_names),
        layers={name: adata.layers[name] for name in layer_names(adata)},
        uns=adata.uns,
    )


def paired_cells(
    cells: MuData, modalities: Sequence[str], keys: Sequence[str], name: str, genes: Mapping[str, pd.Index]
) -> dict[str, AnnData]:
    """Return the cells that have all of these modalities, in one order, each with these features in their order."""
    names = reduce(pd.Index.intersection, [cells.mod[modality].obs_names for modality in modalities])
    return {
        modality: align_genes(modality_cells(cells, modality, keys, name)[names], genes[modality], name=name)
        for modality in modalities
    }


def side_by_side(parts: Mapping[str, AnnData], layers: Mapping[str, str]) -> AnnData:
    """Return several modalities of the same cells as one AnnData, features named ``modality:feature``: counts, or natural logarithms if one has logarithms."""
    found = [matrix_of(cells, layer_of(cells, layers.get(modality)), modality) for modality, cells in parts.items()]
    blocks = [sp.csr_matrix(matrix) for matrix, _ in found]
    is_log1p = any(log_base is not None for _, log_base in found)
    if is_log1p:
        blocks = [x.log1p() if b is None else x * np.log(b) for x, (_, b) in zip(blocks, found, strict=True)]
    var_names = [f"{modality}:{feature}" for modality, cells in parts.items() for feature in cells.var_names]
    obs = next(iter(parts.values())).obs.copy()
    uns = {"log1p": {}} if is_log1p else {}
    return AnnData(sp.hstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=var_names), uns=uns)


def layer_of(cells: AnnData, layer: str | None) -> str | None:
    """Return a layer if the cells have it; generated cells have their counts in `X`."""
    return layer if layer in cells.layers else None


def choose_scales(
    real: Mapping[str, AnnData], scales: Mapping[str, ScaleName] | None, layers: Mapping[str, str]
) -> dict[str, ScaleName]:
    """Return the name of each modality's scale: the one given, or the one that suits the real cells."""
    given = dict(scales or {})
    for argument, names in (("scales", given), ("layers", layers)):
        for modality in names:
            if modality not in real:
                msg = f"`{argument}` names the unknown modality {modality!r}. {known_names(modality, list(real))}"
                raise KeyError(msg)
    return {
        modality: given.get(modality) or default_scale(cells, layers.get(modality), modality)
        for modality, cells in real.items()
    }


def _column(cells: MuData, key: str, names: pd.Index, name: str) -> pd.Series:
    """Look a column up in the global `obs`, else in a modality that has it for all of these cells."""
    for obs in (cells.obs, *(adata.obs for adata in cells.mod.values())):
        if key in obs and obs[key].ndim == 1 and names.isin(obs.index).all():
            return obs.loc[names, key]
    known = {*cells.obs, *(column for adata in cells.mod.values() for column in adata.obs)}
    msg = f"`{name}.obs` has no column {key!r}, nor has a modality. {known_names(key, sorted(known))}"
    raise KeyError(msg)
