"""The data sets, one function each, and helpers that turn published values into integer counts with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.spatial import KDTree

from . import _originals as originals

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

KANG_CONDITIONS = {"CTRL": "control", "STIM": "stimulated"}

# The published labels are numbers; the names follow from the surface proteins and marker genes of each group.
CITESEQ_CELL_TYPES = {1: "B", 2: "CD14 Mono", 3: "CD16 Mono", 4: "CD4 T", 5: "CD8 T", 6: "DC", 7: "NK"}

# The published total of a cell is at least the total that it was normalised by, up to rounding. So the smallest value
# of a cell may stand for two counts if it is this many counts or more.
TWO_COUNTS = 1.98

# Two centres so near to each other, in pixels, are of one cell: 1.3 µm, where a cell of the section is 11 µm wide.
# There are 535 such pairs, and none between 20 and 26 pixels.
ONE_CELL = 20.0

# The order of the proteins in the published label file, which does not name them.
CITESEQ_PROTEINS = [
    *("CD3", "CD4", "CD8a", "CD14", "CD15", "CD16", "CD56"),
    *("CD19", "CD25", "CD45RA", "CD45RO", "PD-1", "TIGIT", "CD127"),
]


def pbmc68k_reduced() -> AnnData:
    """Load 700 peripheral blood mononuclear cells with 765 genes and ten cell types, without network access.

    The set comes with scanpy. It has log-normalised values; the counts are recovered from ``raw``, where the smallest
    positive value of a cell is one count.

    Returns
    -------
    700 cells x 765 genes. `obs`: ``cell_type`` (scanpy's ``bulk_labels``). Total counts cover only the 765 genes.

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
    """Load 2,638 peripheral blood mononuclear cells from the Seurat tutorial, with nine cell types.

    Counts are recovered from the published values, ``log1p(1e4 * counts / total)``, and the total of each cell.

    Parameters
    ----------
    data_dir
        Folder of the downloaded files (3.1 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    2,638 cells x 13,714 genes. `obs`: ``cell_type``, ``percent_mt`` (percentage of mitochondrial counts).

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.pbmc3k().obs["cell_type"].nunique()  # doctest: +SKIP
    9
    """
    published = originals.read_r(originals.fetch("pbmc_matrix.rda", data_dir))
    meta = originals.read_r(originals.fetch("pbmc_meta.rda", data_dir)).loc[published.obs_names]
    counts = scale_to_counts(normalised_values(published.X), meta["nCount_RNA"].to_numpy(float) / 1e4)
    obs = categorical_obs(published.obs_names, cell_type=meta["classified"])
    obs["percent_mt"] = meta["percent.mt"].to_numpy(float)
    source = originals.source("pbmc_matrix.rda", "10x Genomics 3k PBMCs; Zheng et al. 2017, Nat Commun 8:14049")
    return expression_adata(counts, obs, published.var_names, source)


def kang_ifnb(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 2,800 blood cells of lupus patients, untreated or six hours after interferon beta, with thirteen cell types.

    The counts are the published ones. The published ``sex`` column is left out, because its authors state that it is
    random.

    Parameters
    ----------
    data_dir
        Folder of the downloaded file (2.2 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    2,800 cells x 14,053 genes. `obs`: ``condition`` (control, stimulated), ``cell_type``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> list(scgd.datasets.kang_ifnb().obs["condition"].cat.categories)  # doctest: +SKIP
    ['control', 'stimulated']
    """
    published = originals.read_r(originals.fetch("ifnb_2800.rda", data_dir))
    expression, meta = published["expr"], published["meta"]  # dense (genes, cells)
    genes, cells = (expression.coords[name].to_numpy() for name in expression.dims)
    meta = meta.loc[cells]
    obs = categorical_obs(cells, condition=meta["sample"].map(KANG_CONDITIONS), cell_type=meta["cell_type"])
    source = originals.source("ifnb_2800.rda", "Kang et al. 2018, Nat Biotechnol 36:89; GSE96583")
    return expression_adata(expression.to_numpy().T, obs, genes, source)


def paul15(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 2,660 mouse myeloid progenitors, with seven cell types along a continuum of differentiation.

    The counts are unique molecular identifiers (MARS-seq).

    Parameters
    ----------
    data_dir
        Folder of the downloaded files (1.6 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    2,660 cells x 3,004 genes. `obs`: ``cell_type``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.paul15().shape  # doctest: +SKIP
    (2660, 3004)
    """
    published = originals.read_r(originals.fetch("counts.rda", data_dir))
    cell_type = originals.read_r(originals.fetch("celltype.rda", data_dir))
    obs = categorical_obs(published.obs_names, cell_type=cell_type)
    source = originals.source("counts.rda", "Paul et al. 2015, Cell 163:1663; GSE72857")
    return expression_adata(published.X, obs, published.var_names, source)


def norman_mcfaline_devel(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 5,955 perturbed cells of four cell lines: CRISPRa of genes and gene pairs, CRISPRi of kinases.

    This is the development set of PerturbBench, from Norman et al. 2019 and McFaline-Figueroa et al. 2024. It has only
    500 variable genes, of which the median cell expresses 20. The published values are `log1p` of normalised counts.
    Counts are recovered from the smallest positive value of each cell, which is one count, or two if the cell's total
    says so. Six cells of the second study are left out because their total does not decide between one and two.

    Parameters
    ----------
    data_dir
        Folder of the downloaded file (1.1 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    5,955 cells x 500 genes. `obs`: ``condition`` (genes joined by ``+``, or ``control``), ``cell_type``,
    ``perturbation_type``, ``dataset``, and ``total_umi_all_genes``, the cell's counts in all genes of the study.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.norman_mcfaline_devel().obs["condition"].nunique()  # doctest: +SKIP
    34
    """
    published = anndata.read_h5ad(originals.fetch("devel.h5ad", data_dir))
    table, values = published.obs, normalised_values(published.X)
    # An upper bound, because values were normalised to 10,000 by (at most) the published totals.
    smallest_count = smallest_per_cell(values) * table["ncounts"].to_numpy(float) / 1e4
    kept = (table["dataset"] == "norman19").to_numpy() | (smallest_count < TWO_COUNTS)
    factors = np.where(smallest_count < TWO_COUNTS, 1, 2) / smallest_per_cell(values)
    columns = {name: table[name] for name in ("condition", "cell_type", "perturbation_type", "dataset")}
    obs = categorical_obs(published.obs_names, **columns)
    obs["total_umi_all_genes"] = table["ncounts"].to_numpy(np.float32)
    counts = scale_to_counts(values, factors)[kept]
    publication = "Norman et al. 2019, Science 365:786; McFaline-Figueroa et al. 2024, Cell Genomics 4:100487"
    return expression_adata(counts, obs[kept], published.var_names, originals.source("devel.h5ad", publication))


def pbmc10k_citeseq(data_dir: str | os.PathLike[str] | None = None) -> MuData:
    """Load 5,994 peripheral blood mononuclear cells with RNA and 14 surface proteins (CITE-seq), seven cell types.

    The counts (4,000 genes) come from Gayoso et al. 2021, the labels from Lin et al. 2022, matched by the cells' unique
    protein counts. Cells without a label are left out. The labels were published as numbers; their names here follow
    from surface proteins and marker genes.

    Parameters
    ----------
    data_dir
        Folder of the downloaded files (5.4 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    MuData with the modalities ``rna`` (5,994 x 4,000) and ``prot`` (5,994 x 14), both with ``layers["counts"]``. In
    ``prot``, `X` holds counts too. `obs`: ``cell_type``; in ``rna`` also ``scMDC_label``, the published number. CD4,
    CD14, CD19 and TIGIT name both a gene and a protein.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> mdata = scgd.datasets.pbmc10k_citeseq()  # doctest: +SKIP
    >>> mdata["prot"].n_vars  # doctest: +SKIP
    14
    """
    from scgen_diffusion.data import mudata_of  # takes seconds to import, and only this set needs it

    rna = pd.read_csv(originals.fetch("pbmc10k_harmo_rna.csv.gz", data_dir), index_col=0).T  # (cells, genes)
    protein = pd.read_csv(originals.fetch("pbmc10k_harmo_pro.csv.gz", data_dir), index_col=0).T
    protein.columns = protein.columns.str.removesuffix("_TotalSeqB")
    protein = protein[CITESEQ_PROTEINS]
    with h5py.File(originals.fetch("10XPBMC_filtered_1000G.H5", data_dir)) as file:
        labels = dict(zip(map(tuple, file["X2"][:]), file["Y"][:].astype(int), strict=True))
    found = {cell: labels.get(tuple(counts)) for cell, counts in zip(protein.index, protein.to_numpy(), strict=True)}
    label = pd.Series(found).dropna().astype(int)
    cell_type = label.map(CITESEQ_CELL_TYPES)
    obs = categorical_obs(label.index, cell_type=cell_type, scMDC_label=label)
    publication = "10x Genomics pbmc_10k_protein_v3; Gayoso et al. 2021, Nat Methods 18:272"
    source = originals.source("pbmc10k_harmo_rna.csv.gz", publication)
    modalities = {
        "rna": expression_adata(rna.loc[label.index].to_numpy(), obs, rna.columns, source),
        "prot": count_adata(protein.loc[label.index].to_numpy(), obs[[]], protein.columns),
    }
    mdata = mudata_of(modalities)
    mdata.obs["cell_type"] = modalities["rna"].obs["cell_type"]
    return mdata


def osmfish_cortex(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 4,304 cells of a section of mouse somatosensory cortex, with their positions and 33 genes (osmFISH).

    The counts are molecules seen under the microscope. Cells that the authors excluded are left out. Of the other
    4,839 published cells, 535 are there a second time, less than 20 pixels away, most of them (481) with the same
    counts. Only the first of each pair is kept: otherwise a random split has training cells among the test cells.

    Parameters
    ----------
    data_dir
        Folder of the downloaded file (1.1 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    4,304 cells x 33 genes. `obs`: ``cell_type``, ``region``, ``size_um2`` (area of the cell). ``obsm["spatial"]``:
    position in pixels of 0.065 µm, ``(cells, 2)``; the second column grows from the ventricle to the surface of the
    brain.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.osmfish_cortex().obsm["spatial"].shape  # doctest: +SKIP
    (4304, 2)
    """
    with h5py.File(originals.fetch("osmFISH_SScortex_mouse_all_cells.loom", data_dir)) as file:
        is_valid = file["col_attrs/Valid"][:] == 1
        columns = {name: values[:][is_valid] for name, values in file["col_attrs"].items()}
        counts, genes = file["matrix"][:].T[is_valid], file["row_attrs/Gene"].asstr()[:]
    numbers, cell_type, region = (columns[name].astype(str) for name in ("CellID", "ClusterName", "Region"))
    obs = categorical_obs([f"cell{number}" for number in numbers], cell_type=cell_type, region=region)
    obs["size_um2"] = columns["size_um2"]
    source = originals.source("osmFISH_SScortex_mouse_all_cells.loom", "Codeluppi et al. 2018, Nat Methods 15:932")
    adata = expression_adata(counts, obs, genes, source)
    positions = pd.DataFrame({"x": columns["X"], "y": columns["Y"]}, index=obs.index)
    adata.obsm["spatial"] = positions.loc[adata.obs_names].to_numpy()
    return adata[is_first_of_its_place(adata.obsm["spatial"])].copy()


def worm_embryo(data_dir: str | os.PathLike[str] | None = None) -> AnnData:
    """Load 1,805 cells of worm embryos, from neuroblasts to five kinds of neurons, with the embryo's age in minutes.

    The cells of *Caenorhabditis elegans* belong to the lineages of the amphid neurons ADL, ASG, AWA, AWB and AWC, which
    the tutorial of monocle3 follows. The counts are the published ones, of 10,000 variable genes.

    Parameters
    ----------
    data_dir
        Folder of the downloaded files (1.9 MB). Default: see :mod:`scgen_diffusion.datasets`.

    Returns
    -------
    1,805 cells x 10,000 genes, named by their WormBase identifiers. `obs`: ``cell_type``, ``embryo_time`` (estimated
    age of the embryo in minutes, 210 to 780), ``batch`` (experiment), ``lineage`` (name of the cell in the embryo's
    tree of divisions). `var`: ``gene_symbol``.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> scgd.datasets.worm_embryo().obs["embryo_time"].max()  # doctest: +SKIP
    780.0
    """
    counts = originals.read_r(originals.fetch("worm_embryo_expression_matrix.rds", data_dir))
    meta = originals.read_r(originals.fetch("worm_embryo_coldata.rds", data_dir)).loc[counts.obs_names]
    genes = originals.read_r(originals.fetch("worm_embryo_rowdata.rds", data_dir)).loc[counts.var_names]
    obs = categorical_obs(counts.obs_names, cell_type=meta["cell.type"], batch=meta["batch"], lineage=meta["lineage"])
    obs["embryo_time"] = meta["embryo.time"].to_numpy(float)
    source = originals.source(
        "worm_embryo_expression_matrix.rds", "Packer et al. 2019, Science 365:eaax1971; GSE126954"
    )
    adata = expression_adata(counts.X, obs, counts.var_names, source)
    adata.var["gene_symbol"] = genes["gene_short_name"].to_numpy(str)
    return adata


def is_first_of_its_place(positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which cells of :func:`osmfish_cortex` to keep so that each is there once, shape `(cells,)`.

    Parameters
    ----------
    positions
        In pixels, shape `(cells, 2)`.
    """
    is_first = np.ones(len(positions), dtype=bool)
    is_first[KDTree(positions).query_pairs(ONE_CELL, output_type="ndarray")[:, 1]] = False  # pairs are in order
    return is_first


def normalised_values(log_values: sparse.spmatrix) -> sparse.csr_matrix:
    """Undo `log1p` in double precision, shape `(cells, genes)`."""
    return sparse.csr_matrix(log_values, dtype=np.float64).expm1()


def smallest_per_cell(values: sparse.csr_matrix) -> NDArray[np.float64]:
    """Return the smallest positive value of every cell, shape `(cells,)`; infinite for cells without one."""
    smallest = np.full(values.shape[0], np.inf)
    np.minimum.at(smallest, np.repeat(np.arange(values.shape[0]), np.diff(values.indptr)), values.data)
    return smallest


def scale_to_counts(values: sparse.csr_matrix, factors: ArrayLike) -> sparse.csr_matrix:
    """Multiply every cell of shape `(cells, genes)` by its factor, shape `(cells,)`, and round to integers."""
    counts = values.copy()
    counts.data = np.rint(values.data * np.repeat(np.asarray(factors), np.diff(values.indptr)))
    return counts


def categorical_obs(cells: Iterable[str], **columns: Iterable[str]) -> pd.DataFrame:
    """Build an `obs` table of categorical columns, with sorted categories.

    Parameters
    ----------
    cells
        Barcodes.
    columns
        One text per cell, by column name.
    """
    categoricals = {name: pd.Categorical(_names(values)) for name, values in columns.items()}
    return pd.DataFrame(categoricals, index=_names(cells))


def count_adata(counts: Any, obs: pd.DataFrame, genes: Iterable[str]) -> AnnData:
    """Build an AnnData with the counts in `X` and, as a copy, in ``layers["counts"]``: CSR, float32.

    Parameters
    ----------
    counts
        Integers of shape `(cells, genes)`, sparse or dense.
    obs
        Labels, one row per cell.
    genes
        Gene names.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    counts.eliminate_zeros()
    counts.sort_indices()
    var = pd.DataFrame(index=_names(genes))
    return AnnData(X=counts, obs=obs, var=var, layers={"counts": counts.copy()})


def expression_adata(counts: Any, obs: pd.DataFrame, genes: Iterable[str], source: Mapping[str, str]) -> AnnData:
    """Build what the public functions return: counts as a layer, log-normalised values as `X`.

    Parameters
    ----------
    counts, obs, genes
        As in :func:`count_adata`. Cells without counts are left out.
    source
        Origin of the data.
    """
    adata = count_adata(counts, obs, genes)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.uns["source"] = dict(source)
    return adata


def _names(values: Iterable[str]) -> pd.Index:
    return pd.Index([str(value) for value in values])  # of the type that pandas gives text, as in files that are read
