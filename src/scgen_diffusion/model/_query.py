"""Fine-tuning: checks of the new cells, and which conditions are new in them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeGuard

import torch
from anndata import AnnData

from scgen_diffusion.data import check_same_genes, mark_occurring

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    from torch import Tensor

    from scgen_diffusion.data import ConditionKey, Paths


def are_paths(cells: object) -> TypeGuard[Paths]:
    """Return whether cells are given as one path of a file, or several."""
    paths = cells if isinstance(cells, list | tuple) else [cells]
    return bool(paths) and all(isinstance(path, str | os.PathLike) for path in paths)


def check_query_cells(adata: object, genes: pd.Index) -> None:
    """Raise unless cells have the genes of the reference."""
    if not isinstance(adata, AnnData):
        msg = f"`adata` must be an AnnData, or paths of files, but found {type(adata).__name__}."
        raise TypeError(msg)
    try:
        check_same_genes(adata.var_names, genes)
    except ValueError as error:
        msg = (
            f"{error} Call `prepare_query_anndata` to give the cells the reference's genes: it returns new cells, and "
            "does not change yours."
        )
        raise ValueError(msg) from error


def learned_values(keys: Sequence[ConditionKey], combinations: np.ndarray) -> list[Tensor]:
    """Mark, per key, the classes and members that the reference's cells have."""
    return [torch.from_numpy(are) for are in mark_occurring(keys, combinations)]


def new_values(keys: Sequence[ConditionKey], codes: np.ndarray, combinations: np.ndarray) -> list[Tensor]:
    """Mark, per key, the classes and members in these codes that the reference's cells lack."""
    found = mark_occurring(keys, codes)
    return [
        torch.from_numpy(here) & ~before for here, before in zip(found, learned_values(keys, combinations), strict=True)
    ]
