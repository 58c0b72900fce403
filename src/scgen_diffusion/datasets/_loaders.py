"""The data sets, one function each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import h5py
import numpy as np
import pandas as pd
import scanpy as sc

from . import _originals as originals
from ._convert import (
    categorical_obs,
    count_adata,
    expression_adata,
    normalised_values,
    read_r,
    scale_to_counts,
    smallest_per_cell,
)

if TYPE_CHECKING:
    import os

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray
    from scipy import sparse

    from ._originals import Original

KANG_CONDITIONS = {"CTRL": "control", "STIM": "stimulated"}

# The published labels are numbers; the names follow from the surface proteins and marker genes of each group.
CITESEQ_CELL_TYPES = {1: "B", 2: "CD14 Mono", 3: "CD16 Mono", 4: "CD4 T", 5: "CD8 T", 6: "DC", 7: "NK"}

# A cell's published total is at least the one it was normalised by, up to rounding: a smallest value of this many counts or
# more may stand for two.
TWO_COUNTS = 1.98

# The order of the proteins in the published label file, which names none of them.
CITESEQ_PROTEINS = [
    *("CD3", "CD4", "CD8a", "CD14", "CD15", "CD16", "CD56"),
    *("CD19", "CD25", "CD45RA", "CD45RO", "PD-1", "TIGIT", "CD127"),
]


def pbmc68k_reduced() -> AnnData:
    """Load 700 peripheral blood mononuclear cells and 765 genes, ten cell types, without network access.

    The set is part of scanpy's installation. It holds log-normalised values; the counts are recovered from
    ``raw``: per cell the smallest value above zero is one count.

    Returns
    -------
    700 cells x 765 genes. `obs`: ``cell_type`` (scanpy's ``bulk_labels``). The totals are those of the 765 genes.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> adata.shape
    (700, 765)
    >>> int(adata.layers["counts"].sum(axis=1).min())
    342
    """
    published = sc.datasets.pbmc68k_reduced()
    values = normalised_values(published.raw.X)
    counts = scale_to_counts(values, 1 / smallest_per_cell(values))
    obs = pd.DataFrame({"cell_type": published.obs["bulk_labels"]})
    source = {"repository": "scanpy.datasets.pbmc68k_reduced", "publication": "Zheng et al. 2017, Nat Commun 8:14049"}
    return expression_adata(counts, obs, published.raw.var_names, source)


def pbmc3k(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 2 638 peripheral blood mononuclear cells of the Seurat tutorial, nine cell types.

    The published values are ``log1p(1e4 * counts / total)`` with the total of each cell.

    Parameters
    ----------
    data_dir
        Folder that has, or gets, the downloaded files (3.1 MB).

    Returns
    -------
    2 638 cells x 13 714 genes. `obs`: ``cell_type``, ``percent_mt`` (% of counts that are mitochondrial).

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.pbmc3k().obs["cell_type"].nunique()  # doctest: +SKIP
    9
    """
    published = read_r(originals.fetch(originals.PBMC3K_MATRIX, data_dir))
    meta = read_r(originals.fetch(originals.PBMC3K_META, data_dir)).loc[published.obs_names]
    counts = scale_to_counts(normalised_values(published.X), meta["nCount_RNA"].to_numpy(float) / 1e4)
    obs = categorical_obs(published.obs_names, cell_type=meta["classified"])
    obs["percent_mt"] = meta["percent.mt"].to_numpy(float)
    source = _source(originals.PBMC3K_MATRIX, "10x Genomics 3k PBMCs; Zheng et al. 2017, Nat Commun 8:14049")
    return expression_adata(counts, obs, published.var_names, source)


def kang_ifnb(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 2 800 blood cells of lupus patients, untreated or six hours with interferon beta, thirteen cell types.

    The counts are the published ones. The published ``sex`` column is random by its authors' account, and left out.

    Parameters
    ----------
    data_dir
        Folder that has, or gets, the downloaded file (2.2 MB).

    Returns
    -------
    2 800 cells x 14 053 genes. `obs`: ``condition`` (control, stimulated), ``cell_type``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> list(scgd.datasets.kang_ifnb().obs["condition"].cat.categories)  # doctest: +SKIP
    ['control', 'stimulated']
    """
    published = read_r(originals.fetch(originals.KANG, data_dir))
    expression, meta = published["expr"], published["meta"]  # dense (genes, cells)
    genes, cells = (expression.coords[name].to_numpy() for name in expression.dims)
    meta = meta.loc[cells]
    obs = categorical_obs(cells, condition=meta["sample"].map(KANG_CONDITIONS), cell_type=meta["cell_type"])
    source = _source(originals.KANG, "Kang et al. 2018, Nat Biotechnol 36:89; GSE96583")
    return expression_adata(expression.to_numpy().T, obs, genes, source)


def paul15(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 2 660 mouse myeloid progenitors, seven cell types along a continuum of differentiation.

    The counts are unique molecular identifiers of MARS-seq.

    Parameters
    ----------
    data_dir
        Folder that has, or gets, the downloaded files (1.6 MB).

    Returns
    -------
    2 660 cells x 3 004 genes. `obs`: ``cell_type``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.paul15().shape  # doctest: +SKIP
    (2660, 3004)
    """
    published = read_r(originals.fetch(originals.PAUL15_COUNTS, data_dir))
    cell_type = read_r(originals.fetch(originals.PAUL15_LABELS, data_dir))
    obs = categorical_obs(published.obs_names, cell_type=cell_type)
    source = _source(originals.PAUL15_COUNTS, "Paul et al. 2015, Cell 163:1663; GSE72857")
    return expression_adata(published.X, obs, published.var_names, source)


def norman_mcfaline_devel(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 5 955 perturbed cells of four cell lines: CRISPRa of genes and gene pairs, CRISPRi of kinases.

    The development set of PerturbBench, from Norman et al. 2019 and McFaline-Figueroa et al. 2024. It has 500 variable genes only, in which a
    cell has 20 detected genes at the median. The published values are `log1p` of normalised counts; counts are recovered from
    the smallest value above zero of each cell, which is one count, or two where the cell's total says so. Six cells of the
    second study, of which the total does not tell whether it is one or two, are left out.

    Parameters
    ----------
    data_dir
        Folder that has, or gets, the downloaded file (1.1 MB).

    Returns
    -------
    5 955 cells x 500 genes. `obs`: ``condition`` (genes joined by ``+``, or ``control``), ``cell_type``,
    ``perturbation_type``, ``dataset``, and ``total_umi_all_genes``, the counts of the cell in all genes of the study.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.norman_mcfaline_devel().obs["condition"].nunique()  # doctest: +SKIP
    34
    """
    published = anndata.read_h5ad(originals.fetch(originals.NORMAN_MCFALINE, data_dir))
    values = normalised_values(published.X)
    smallest_count = _smallest_count(values, published.obs["ncounts"].to_numpy(float))
    kept = (published.obs["dataset"] == "norman19").to_numpy() | (smallest_count < TWO_COUNTS)
    factors = np.where(smallest_count < TWO_COUNTS, 1, 2) / smallest_per_cell(values)
    table = published.obs
    columns = {name: table[name] for name in ("condition", "cell_type", "perturbation_type", "dataset")}
    obs = categorical_obs(published.obs_names, **columns)
    obs["total_umi_all_genes"] = table["ncounts"].to_numpy(np.float32)
    counts = scale_to_counts(values, factors)[kept]
    publication = "Norman et al. 2019, Science 365:786; McFaline-Figueroa et al. 2024, Cell Genomics 4:100487"
    return expression_adata(counts, obs[kept], published.var_names, _source(originals.NORMAN_MCFALINE, publication))


def pbmc10k_citeseq(data_dir: str | os.PathLike[str] | None = None) -> MuData:
    """Load 5 994 peripheral blood mononuclear cells with RNA and 14 surface proteins (CITE-seq), seven cell types.

    The counts are those of Gayoso et al. 2021, 4 000 genes; the labels those of Lin et al. 2022, joined by the cells' protein counts, which
    are unique. Cells without a label are left out. The labels were published as numbers; the names given here follow from
    surface proteins and marker genes.

    Parameters
    ----------
    data_dir
        Folder that has, or gets, the downloaded files (5.4 MB).

    Returns
    -------
    MuData with the modalities ``rna`` (5 994 x 4 000) and ``prot`` (5 994 x 14), both with ``layers["counts"]``. The `X` of
    ``prot`` are the counts too. `obs`: ``cell_type``; in ``rna`` also ``scMDC_label``, the published number. CD4, CD14, CD19
    and TIGIT are names of a gene and of a protein.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> mdata = scgd.datasets.pbmc10k_citeseq()  # doctest: +SKIP
    >>> mdata["prot"].n_vars  # doctest: +SKIP
    14
    """
    rna = pd.read_csv(originals.fetch(originals.CITESEQ_RNA, data_dir), index_col=0).T  # (cells, genes)
    from scgen_diffusion.data import mudata_of  # which takes seconds to import, for this set alone

    protein = pd.read_csv(originals.fetch(originals.CITESEQ_PROTEIN, data_dir), index_col=0).T
    protein.columns = protein.columns.str.removesuffix("_TotalSeqB")
    protein = protein[CITESEQ_PROTEINS]
    label = _citeseq_labels(protein, data_dir)
    cell_type = label.map(CITESEQ_CELL_TYPES)
    obs = categorical_obs(label.index, cell_type=cell_type, scMDC_label=label)
    source = _source(originals.CITESEQ_RNA, "10x Genomics pbmc_10k_protein_v3; Gayoso et al. 2021, Nat Methods 18:272")
    modalities = {
        "rna": expression_adata(rna.loc[label.index].to_numpy(), obs, rna.columns, source),
        "prot": count_adata(protein.loc[label.index].to_numpy(), obs[[]], protein.columns),
    }
    mdata = mudata_of(modalities)
    mdata.obs["cell_type"] = modalities["rna"].obs["cell_type"]
    return mdata


def _smallest_count(values: sparse.csr_matrix, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate each cell's smallest count from above, if values were normalised to 10 000 by (at most) `totals`."""
    return smallest_per_cell(values) * totals / 1e4


def _citeseq_labels(protein: pd.DataFrame, data_dir: str | os.PathLike[str] | None) -> pd.Series:
    """Look up the published label of each cell by its protein counts, shape `(cells, proteins)`."""
    with h5py.File(originals.fetch(originals.CITESEQ_LABELS, data_dir)) as file:
        labels = dict(zip(map(tuple, file["X2"][:]), file["Y"][:].astype(int), strict=True))
    found = {cell: labels.get(tuple(counts)) for cell, counts in zip(protein.index, protein.to_numpy(), strict=True)}
    return pd.Series(found).dropna().astype(int)


def _source(original: Original, publication: str) -> dict[str, str]:
    """Describe where the data come from, in a form that h5ad and zarr can hold."""
    return {
        "repository": f"github.com/{original.repository}",
        "commit": original.commit,
        "path": original.path,
        "publication": publication,
    }
