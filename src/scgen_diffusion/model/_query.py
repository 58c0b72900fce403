"""Fine-tuning: checks of the new cells, and which conditions are new in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anndata import AnnData

from scgen_diffusion._arguments import known_names
from scgen_diffusion.data import check_same_genes, extend_table, occurring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
    from torch import Tensor

    from scgen_diffusion.data import ConditionKey


def check_query_cells(adata: object, genes: pd.Index) -> None:
    """Raise unless cells have the genes of the reference."""
    if not isinstance(adata, AnnData):
        msg = f"`adata` must be an AnnData, but found {type(adata).__name__}."
        raise TypeError(msg)
    try:
        check_same_genes(adata.var_names, genes)
    except ValueError as error:
        msg = f"{error} Call `prepare_query_anndata` to give the cells the reference's genes."
        raise ValueError(msg) from error


def extend_tables(
    tables: Mapping[str, pd.DataFrame], further: Mapping[str, pd.DataFrame | str] | None, adata: AnnData
) -> dict[str, pd.DataFrame]:
    """Add rows to the reference's embedding tables."""
    for name in further or {}:
        if name not in tables:
            msg = (
                f"`condition_embeddings` names {name!r}, for which the reference has no known embeddings. "
                f"{known_names(name, list(tables))}"
            )
            raise ValueError(msg)
    more = {name: extend_table(adata, name, tables[name], table) for name, table in (further or {}).items()}
    return {**tables, **more}


def learned_values(keys: Sequence[ConditionKey], combinations: np.ndarray) -> list[Tensor]:
    """Mark, per key, the classes and members that the reference's cells have."""
    return [torch.from_numpy(are) for are in occurring(keys, combinations)]


def new_values(keys: Sequence[ConditionKey], codes: np.ndarray, combinations: np.ndarray) -> list[Tensor]:
    """Mark, per key, the classes and members in these codes that the reference's cells lack."""
    found = occurring(keys, codes)
    return [
        torch.from_numpy(here) & ~before for here, before in zip(found, learned_values(keys, combinations), strict=True)
    ]
