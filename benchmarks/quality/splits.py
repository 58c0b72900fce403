"""Data of the studies: the most variable genes of a data set, with a stratified quarter of the cells held out."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

from benchmarks.tables import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class DataSet:
    """A data set: columns of `obs` on which cells are generated, what it was used for, and where it comes from.

    `untouched`: no choice has looked at its scores.
    `loader` is a function of `scgen_diffusion.datasets`. A set without one lies in a file ``NAME.h5ad``, counts in `X`.
    """

    condition_keys: tuple[str, ...]
    use: str
    untouched: bool = False
    loader: str = ""
    origin: str = ""


DATASETS = {
    name: DataSet(**{**given, "condition_keys": tuple(given["condition_keys"])})
    for name, given in tomllib.loads(Path(__file__).with_name("datasets.toml").read_text(encoding="utf-8")).items()
}

FOLDER_VARIABLE = "BENCHMARK_DATA_DIR"  # environment variable with the folder of the sets without a loader
LABEL = "label"  # the column of `obs` with the joined conditions of a cell
MAX_CELLS = 1_000  # to compare on each side; cost grows with its square
N_GENES = 2_000  # that are judged, of those that vary most
MIN_CELLS_PER_STRATUM = 4  # labels with fewer cells share one stratum


@dataclass(frozen=True)
class Split:
    """Training and held-out cells of one data set; integer counts in ``layers["counts"]``.

    `spare` are the other cells if only some may be used for training. They only give the space of the comparison.
    """

    train: ad.AnnData
    held_out: ad.AnnData
    condition_keys: tuple[str, ...]
    spare: ad.AnnData | None = None

    @property
    def train_labels(self) -> NDArray[np.str_]:
        return join_labels(self.train.obs, self.condition_keys)

    @property
    def held_out_labels(self) -> NDArray[np.str_]:
        return join_labels(self.held_out.obs, self.condition_keys)


def join_labels(obs: pd.DataFrame, keys: Sequence[str]) -> NDArray[np.str_]:
    """Return one label per cell: its values of all keys, joined by ``|``."""
    return obs[list(keys)].astype(str).agg("|".join, axis=1).to_numpy(dtype=str)


def to_dense(counts: NDArray | sp.spmatrix | sp.sparray) -> NDArray:
    return counts.toarray() if sp.issparse(counts) else np.asarray(counts)


def log_normalise(counts: NDArray | sp.spmatrix | sp.sparray, target_sum: float = 1e4) -> NDArray[np.float32]:
    """Scale every cell to ``target_sum`` counts and take ``log1p``, dense; a cell without counts stays zero.

    It differs from :func:`scgen_diffusion.metrics.log_normalise` in the last bit, and the genes and components of
    stored results depend on that.
    """
    dense = to_dense(counts).astype(np.float64)
    totals = np.maximum(dense.sum(axis=1, keepdims=True), 1)
    return np.log1p(dense / totals * target_sum).astype(np.float32)


def most_variable(
    counts: NDArray | sp.spmatrix | sp.sparray, n_genes: int | None, kept: NDArray[np.bool_] | None = None
) -> NDArray[np.intp]:
    """Return the genes whose log-normalised values vary most, by position and in order; ``kept`` ones come first."""
    variance = log_normalise(counts).var(axis=0)
    if kept is not None:
        variance[kept] = np.inf
    return np.sort(np.argsort(-variance)[:n_genes])


def parse_dataset(text: str) -> tuple[str, str]:
    """Return the name of a data set, and its number of training cells or the key to split by (empty: neither)."""
    name, _, part = text.partition(":")
    if name not in DATASETS or not (part.isdecimal() or part in ("", *DATASETS[name].condition_keys)):
        msg = (
            f"`dataset` is {text!r}. Known: {list(DATASETS)}; add `:300` for 300 training cells, or a condition key, "
            "as in `kang_control_8donors:donor`, to hold out all cells of some of its values."
        )
        raise ValueError(msg)
    return name, part


def load(dataset: str) -> ad.AnnData:
    """Return the RNA of a data set.

    Sets of the package come from its loaders, offline if ``SCGEN_DIFFUSION_DATA_DIR`` has their files. The others are
    read from a folder, see :func:`file_of`; cells of osmFISH that are there twice are kept once.
    """
    from scgen_diffusion import datasets
    from scgen_diffusion.datasets._loaders import is_first_of_its_place

    chosen = DATASETS[dataset]
    if chosen.loader:
        cells = getattr(datasets, chosen.loader)()
        return cells if isinstance(cells, ad.AnnData) else cells["rna"]
    cells = ad.read_h5ad(file_of(dataset))
    if dataset == "osmfish_cortex":
        cells = cells[is_first_of_its_place(cells.obsm["spatial"])].copy()
    cells.layers["counts"] = cells.X.copy()
    return cells


def data_folder() -> Path:
    """Return the folder ``BENCHMARK_DATA_DIR`` (default: ``../shared/data``)."""
    return Path(os.environ.get(FOLDER_VARIABLE, ROOT.parent / "shared" / "data"))


def file_of(dataset: str) -> Path:
    """Return the file of a set without a loader."""
    chosen, path = DATASETS[dataset], data_folder() / f"{dataset}.h5ad"
    if not path.exists():
        msg = (
            f"{dataset!r} is read from a file, but {path} does not exist. Set {FOLDER_VARIABLE} to a folder with "
            f"{path.name}: counts in `X`, {', '.join(chosen.condition_keys)} in `obs`. Origin: {chosen.origin}."
        )
        raise FileNotFoundError(msg)
    return path


def load_split(dataset: str, seed: int, *, n_genes: int | None = N_GENES) -> Split:
    """Return the split of a data set, which may be made small, or split by donors, see :func:`parse_dataset`."""
    name, part = parse_dataset(dataset)
    size, apart = (int(part), None) if part.isdecimal() else (None, part or None)
    keys = tuple(key for key in DATASETS[name].condition_keys if key != apart)
    return split_cells(load(name), keys, seed=seed, n_train=size, n_genes=n_genes, apart=apart)


def split_cells(
    adata: ad.AnnData,
    condition_keys: tuple[str, ...],
    *,
    seed: int,
    n_genes: int | None = N_GENES,
    held_out_share: float = 0.25,
    kept_genes: Sequence[str] = (),
    n_train: int | None = None,
    apart: str | None = None,
) -> Split:
    """Hold out a share of the cells, stratified by label, and keep the genes that vary most in the others.

    Counts are in ``layers["counts"]``. `kept_genes` are kept however little they vary; names that the data lack are
    ignored. Of `n_train` training cells, there are one or more of every label; None takes all that are not held out. With
    `apart`, a column of `obs`, all cells of a share of its values are held out, such as those of two of eight donors.
    """
    labels = pd.Series(join_labels(adata.obs, condition_keys))
    strata = labels.where(labels.map(labels.value_counts()) >= MIN_CELLS_PER_STRATUM, "rare")
    splitter = (GroupShuffleSplit if apart else StratifiedShuffleSplit)(1, test_size=held_out_share, random_state=seed)
    groups = adata.obs[apart] if apart else None
    train, held_out = next(splitter.split(np.empty(len(strata)), strata, groups))
    spare = None
    if n_train is not None:
        if n_train >= len(train):
            msg = f"`n_train` is {n_train}, but must be below the number of training cells, {len(train)}."
            raise ValueError(msg)
        repeated = labels.iloc[train].duplicated().to_numpy()
        train, spare = np.split(train[np.argsort(repeated, kind="stable")], [n_train])
    kept = adata.var_names.isin(kept_genes)
    adata = adata[:, most_variable(adata.layers["counts"][train], n_genes, kept)]
    parts = [None if rows is None else _minimal(adata[rows]) for rows in (train, held_out, spare)]
    return Split(parts[0], parts[1], condition_keys, parts[2])


def judge(split: Split, counts: NDArray | sp.csr_matrix, seed: int, **options: Any) -> pd.DataFrame:
    """Compare generated counts ``(held-out cells, genes)`` with held-out cells, one for each and with its label.

    `options` are further arguments of ``evaluate``. Returns the rows of all cells, not of single labels.
    """
    from scgen_diffusion import metrics

    def labelled(cells: ad.AnnData, labels: NDArray) -> ad.AnnData:
        return ad.AnnData(cells.layers["counts"], obs=cells.obs.assign(**{LABEL: labels})[[LABEL]], var=cells.var[[]])

    real, train = labelled(split.held_out, split.held_out_labels), labelled(split.train, split.train_labels)
    cells = ad.AnnData(
        sp.csr_matrix(counts), obs=real.obs.set_axis([f"drawn-{i}" for i in range(real.n_obs)]), var=real.var
    )
    if split.spare is not None:  # so that all of the few training cells take part in the comparison
        options["space"] = metrics.ComparisonSpace.fit(split.spare, seed=seed)
    table = metrics.evaluate(real, cells, train=train, groupby=LABEL, seed=seed, **{"max_cells": MAX_CELLS} | options)
    return table[table["group"] == "all"].reset_index(drop=True)


def _minimal(adata: ad.AnnData) -> ad.AnnData:
    """Keep only counts and `obs`, without unused categories."""
    counts = adata.layers["counts"].copy()
    obs = adata.obs.copy()
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    return ad.AnnData(counts, obs=obs, var=adata.var[[]].copy(), layers={"counts": counts.copy()})
