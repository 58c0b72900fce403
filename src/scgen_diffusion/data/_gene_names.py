"""Genes of other cells: compared with those of a model, or padded to them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion._arguments import warn_user

from ._checks import check_unique_names, layer_names, list_some
from ._matrices import check_storage

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SMALLEST_SHARE = 0.8  # of a model's genes, as in scvi-tools; fewer give a warning


def check_same_genes(
    found: pd.Index,
    expected: pd.Index,
    *,
    to_order: str = "Use adata[:, model.get_var_names()].",
    to_pad: str = "`prepare_query_anndata` fills in zeros; the page on matching genes says what that does.",
) -> None:
    """Raise unless ``found`` holds the ``expected`` genes in the same order, with advice how to order or pad them."""
    if list(found) == list(expected):
        return
    if not found.is_unique:
        msg = f"Genes occur more than once: {list_some(found[found.duplicated()].unique())}."
        raise ValueError(msg)
    missing, extra = expected.difference(found, sort=False), found.difference(expected, sort=False)
    msg = "The genes are those of the model in another order."
    if len(missing) or len(extra):
        found = f"{list_some(missing)} missing, {list_some(extra)} unknown"
        msg = f"The genes differ from the {len(expected)} of the model: {found}."
    msg = f"{msg} {to_pad if len(missing) else to_order}"
    raise ValueError(msg)


def pad_genes(adata: AnnData, var: pd.DataFrame) -> AnnData:
    """Return cells with the genes of ``var``, in its order and in every layer; missing genes are zero.

    Raises
    ------
    ValueError
        If a gene name is not unique, or no gene is known.
    """
    found, wanted = adata.var_names, var.index
    check_unique_names(found, "adata.var_names")
    place = found.get_indexer(wanted)
    shared = place >= 0
    if not shared.any():
        msg = f"adata.var_names has no gene of the model, such as {wanted[0]!r}; it has genes such as {found[0]!r}."
        raise ValueError(msg)
    n_missing, n_unknown = int((~shared).sum()), adata.n_vars - int(shared.sum())
    msg = f"{n_missing} of the model's {len(wanted)} genes were filled with zeros; {n_unknown} unknown ones dropped."
    logger.info(msg)
    if shared.mean() < SMALLEST_SHARE:
        warn_user(f"{msg} Below {SMALLEST_SHARE:.0%} the results may be poor.")
    ones = (np.ones(shared.sum(), dtype="float32"), (place[shared], shared.nonzero()[0]))
    selection = sp.csr_matrix(ones, shape=(adata.n_vars, len(wanted)))

    def select(matrix: Any) -> Any:
        check_storage(matrix, "A matrix of adata")
        if sp.issparse(matrix):
            return sp.csr_matrix(matrix @ selection.astype(matrix.dtype))
        chosen = np.zeros((adata.n_obs, len(wanted)), dtype=matrix.dtype)
        chosen[:, shared] = matrix[:, place[shared]]  # also of dask, and of types that SciPy lacks
        return chosen

    source = adata.to_memory() if adata.isbacked else adata
    return AnnData(
        X=None if source.X is None else select(source.X),
        obs=source.obs.copy(),
        var=var.copy(),
        uns=dict(source.uns),
        obsm=dict(source.obsm),
        layers={name: select(source.layers[name]) for name in layer_names(source)},
    )
