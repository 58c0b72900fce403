"""Genes of other cells: compared with those of a model, or padded to them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion._arguments import list_first, warn_user

from ._checks import check_unique_names, layer_names
from ._matrices import check_storage

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

PAD_ADVICE = "Use adata[:, model.get_var_names()], or `prepare_query_anndata`, which fills in zeros."
SMALLEST_SHARE = 0.8  # of a model's genes, as in scvi-tools; fewer give a warning


def check_same_genes(found: pd.Index, expected: pd.Index, owner: str = "adata", advice: str = PAD_ADVICE) -> None:
    """Raise unless ``found``, of the cells' ``owner``, holds the ``expected`` genes in the same order."""
    if list(found) == list(expected):
        return
    check_unique_names(found, f"{owner}.var_names")
    missing, unknown = expected.difference(found, sort=False), found.difference(expected, sort=False)
    differ = f"{len(missing)} are missing ({list_first(missing)}), {len(unknown)} are unknown ({list_first(unknown)})"
    msg = f"{owner}.var_names must be the model's, in its order: {differ}. {advice}"
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

    def select(matrix: Any) -> Any:
        """Return the wanted columns; for those that are missing, -1, one of zeros that is added as the last."""
        check_storage(matrix, "A matrix of adata")
        zeros = np.zeros((adata.n_obs, 1), dtype=matrix.dtype)
        if sp.issparse(matrix):
            return sp.hstack([matrix, sp.csr_matrix(zeros)], format="csr")[:, place]
        return np.hstack([matrix, zeros])[:, place]

    source = adata.to_memory() if adata.isbacked else adata
    return AnnData(
        X=None if source.X is None else select(source.X),
        obs=source.obs.copy(),
        var=var.copy(),
        uns=dict(source.uns),
        obsm=dict(source.obsm),
        layers={name: select(source.layers[name]) for name in layer_names(source)},
    )
