"""Data of the studies: the most variable genes of a data set, with a stratified quarter of the cells held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.model_selection import StratifiedShuffleSplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: The data sets of the study and the columns of `obs` on which cells are generated.
CONDITION_KEYS = {
    "pbmc3k": ("cell_type",),
    "kang_ifnb": ("cell_type", "condition"),
    "paul15": ("cell_type",),
    "pbmc68k_reduced": ("cell_type",),
    "pbmc10k_citeseq": ("cell_type",),
}

#: The column of `obs` with the joined conditions of a cell.
LABEL = "label"

#: Number of cells to compare on each side; cost grows with its square.
MAX_CELLS = 1_000

#: Labels with fewer cells share one stratum, because they are too few to be split separately.
MIN_CELLS_PER_STRATUM = 4


@dataclass(frozen=True)
class Split:
    """Training and held-out cells of one data set; integer counts in ``layers["counts"]``."""

    train: ad.AnnData
    held_out: ad.AnnData
    condition_keys: tuple[str, ...]

    @property
    def train_labels(self) -> NDArray[np.str_]:
        """One label per training cell: its joined conditions."""
        return join_labels(self.train.obs, self.condition_keys)

    @property
    def held_out_labels(self) -> NDArray[np.str_]:
        """One label per held-out cell: its joined conditions."""
        return join_labels(self.held_out.obs, self.condition_keys)


def join_labels(obs: pd.DataFrame, keys: Sequence[str]) -> NDArray[np.str_]:
    """Return one label per cell: its values of all keys, joined by ``|``."""
    return obs[list(keys)].astype(str).agg("|".join, axis=1).to_numpy(dtype=str)


def to_dense(counts: NDArray | sp.spmatrix | sp.sparray) -> NDArray:
    """Return a dense array."""
    return counts.toarray() if sp.issparse(counts) else np.asarray(counts)


def log_normalise(counts: NDArray | sp.spmatrix | sp.sparray, target_sum: float = 1e4) -> NDArray[np.float32]:
    """Scale every cell to ``target_sum`` counts and take ``log1p``, dense; a cell without counts stays zero.

    It differs from :func:`scgen_diffusion.metrics.log_normalise` in the last bit, and the genes and components of
    stored results depend on that.
    """
    dense = to_dense(counts).astype(np.float64)
    totals = np.maximum(dense.sum(axis=1, keepdims=True), 1)
    return np.log1p(dense / totals * target_sum).astype(np.float32)


def load(dataset: str) -> ad.AnnData:
    """Return the RNA of a data set from the package's loader, offline if ``SCGEN_DIFFUSION_DATA_DIR`` has its files."""
    from scgen_diffusion import datasets

    cells = getattr(datasets, dataset)()
    return cells if isinstance(cells, ad.AnnData) else cells["rna"]


def split_cells(
    adata: ad.AnnData,
    condition_keys: tuple[str, ...],
    *,
    seed: int,
    n_genes: int = 2_000,
    held_out_share: float = 0.25,
    kept_genes: Sequence[str] = (),
) -> Split:
    """Hold out a share of the cells, stratified by label, and keep the genes that vary most in the others.

    Parameters
    ----------
    adata
        Counts in ``layers["counts"]``.
    condition_keys
        Columns of ``obs`` that together make the label.
    seed
        Seed of the split.
    n_genes
        Number of genes to keep, by variance of log-normalised values in the training cells.
    held_out_share
        Share of cells to hold out.
    kept_genes
        Genes to keep however little they vary. Names that the data lack are ignored.
    """
    labels = pd.Series(join_labels(adata.obs, condition_keys))
    strata = labels.where(labels.map(labels.value_counts()) >= MIN_CELLS_PER_STRATUM, "rare")
    splitter = StratifiedShuffleSplit(1, test_size=held_out_share, random_state=seed)
    train, held_out = next(splitter.split(np.empty(len(strata)), strata))
    variance = log_normalise(adata.layers["counts"][train]).var(axis=0)
    variance[adata.var_names.isin(kept_genes)] = np.inf
    adata = adata[:, np.sort(np.argsort(-variance)[:n_genes])]
    return Split(_minimal(adata[train]), _minimal(adata[held_out]), condition_keys)


def judge(split: Split, counts: NDArray | sp.csr_matrix, seed: int, **options: Any) -> pd.DataFrame:
    """Compare generated with held-out cells, one for each and with its label.

    Parameters
    ----------
    counts
        Counts ``(held-out cells, genes)``.
    options
        Further arguments of ``evaluate``, such as ``metrics``.

    Returns
    -------
    The rows of all cells, not of single labels.
    """
    from scgen_diffusion import metrics

    def labelled(cells: ad.AnnData, labels: NDArray) -> ad.AnnData:
        return ad.AnnData(cells.layers["counts"], obs=cells.obs.assign(**{LABEL: labels})[[LABEL]], var=cells.var[[]])

    real, train = labelled(split.held_out, split.held_out_labels), labelled(split.train, split.train_labels)
    cells = ad.AnnData(
        sp.csr_matrix(counts), obs=real.obs.set_axis([f"drawn-{i}" for i in range(real.n_obs)]), var=real.var
    )
    table = metrics.evaluate(real, cells, train=train, groupby=LABEL, seed=seed, **{"max_cells": MAX_CELLS} | options)
    return table[table["group"] == "all"].reset_index(drop=True)


def _minimal(adata: ad.AnnData) -> ad.AnnData:
    """Keep only counts and `obs`, without unused categories."""
    counts = adata.layers["counts"].copy()
    obs = adata.obs.copy()
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    return ad.AnnData(counts, obs=obs, var=adata.var[[]].copy(), layers={"counts": counts.copy()})
