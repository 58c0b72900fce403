"""Giving cells the genes of a model: those that it knows, in its order, and zeros for those that are missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion._arguments import warn_user

from ._checks import layer_names

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger(__name__)

SMALLEST_SHARE = 0.8  # of the model's genes, as in scvi-tools; with fewer there is a warning


def pad_genes(adata: AnnData, var: pd.DataFrame) -> AnnData:
    """Return cells with the genes of ``var``, in every layer.

    Raises
    ------
    ValueError
        If a gene occurs more than once, or none is known.
    """
    place = _places(adata.var_names, var.index)
    shared = place >= 0
    _report(int(shared.sum()), len(var), adata.n_vars)
    source = adata.to_memory() if adata.isbacked else adata
    ones = (shared[shared].astype("float32"), (place[shared], shared.nonzero()[0]))
    selection = sp.csr_matrix(ones, shape=(adata.n_vars, len(var)))
    return AnnData(
        X=None if source.X is None else _selected(source.X, selection),
        obs=source.obs.copy(),
        var=var.copy(),
        uns=dict(source.uns),
        obsm=dict(source.obsm),
        layers={name: _selected(source.layers[name], selection) for name in layer_names(source)},
    )


def _places(found: pd.Index, wanted: pd.Index) -> np.ndarray:
    """Return where each wanted gene is among those found, -1 where it is not."""
    if not found.is_unique:
        msg = (
            f"Genes occur more than once, for example {found[found.duplicated()][0]!r}; adata.var_names must be unique."
        )
        raise ValueError(msg)
    place = found.get_indexer(wanted)
    if not (place >= 0).any():
        msg = (
            f"None of the {len(wanted)} genes of the model is among adata.var_names: the model knows genes such as "
            f"{wanted[0]!r}, the cells have genes such as {found[0]!r}."
        )
        raise ValueError(msg)
    return place


def _report(n_shared: int, n_wanted: int, n_found: int) -> None:
    said = f"{n_shared} of the model's {n_wanted} genes were found; {n_wanted - n_shared} were filled with zeros"
    msg = f"{said}, and {n_found - n_shared} genes that the model does not know were left out."
    logger.info(msg)
    if n_shared < SMALLEST_SHARE * n_wanted:
        warn_user(f"{msg} Below {SMALLEST_SHARE:.0%} the results may be poor.")


def _selected(matrix: Any, selection: sp.csr_matrix) -> np.ndarray | sp.csr_matrix:
    selection = selection.astype(matrix.dtype)
    return sp.csr_matrix(matrix @ selection) if sp.issparse(matrix) else matrix @ selection
