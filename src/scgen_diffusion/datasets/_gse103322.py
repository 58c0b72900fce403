"""Read the published table of GSE103322: one text file with cells, annotation and expression."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import TextIO

    from numpy.typing import NDArray

ANNOTATIONS = MAXIMA, LYMPH_NODE, CANCER, NON_CANCER, NON_CANCER_TYPE = (
    "processed by Maxima enzyme",
    "Lymph node",
    "classified as cancer cell",
    "classified as non-cancer cells",
    "non-cancer cell type",
)
NO_TYPE = ("", "0", "0.0", "NA")
PATIENT = re.compile(r"HN(?:SCC)?_?(\d+)", re.IGNORECASE)
GZIP_MAGIC = b"\x1f\x8b"
GENES_AT_A_TIME = 500

# log2(1e6 / 10 + 1) is 16.6, the value of a cell that expresses a single gene. Larger values are not log2(TPM/10 + 1).
LARGEST_VALUE = 16.7


def read_gse103322(path: str | os.PathLike[str]) -> AnnData:
    r"""Read the published table of 5 902 cells of head and neck cancer (Puram et al. 2017): malignant, stromal, immune.

    Download ``GSE103322_HNSCC_all_data.txt.gz`` (90 MB) from the Gene Expression Omnibus first. It is tab-separated
    text, gzipped or not: a line of cell names, five lines of annotation, and a line per gene, whose name is in single
    quotes. The published values are :math:`v = \log_2(\mathrm{TPM}/10 + 1)` of full-length (Smart-seq2) transcripts,
    not molecule counts. `X` holds these values on the scale of the other data sets,

    .. math:: X_{cg} = \log\left(1 + 10^4 \frac{2^{v_{cg}} - 1}{\sum_h (2^{v_{ch}} - 1)}\right),

    for ``setup_anndata(adata, values="log1p")``. Do not register the layer ``log2_tpm``, which is on another scale.

    Parameters
    ----------
    path
        The file, or one of the same format with fewer cells or genes.

    Returns
    -------
    Cells x genes, 5 902 x 23 686 for the published file.

    - `X`: as above, CSR, float32.
    - ``layers["log2_tpm"]``: the published values, CSR, float32.
    - `obs`:

      - ``cell_type``: ``malignant`` for cancer cells, else the published non-cancer type, capitalised and without a
        leading ``-`` (``B cell``, ``Fibroblast``, ``Myocyte``, ...), or ``unclassified`` if there is neither.
      - ``patient``: ``HN`` and the number at the start of the cell's name, else ``unknown``.
      - ``is_malignant``, ``lymph_node`` (from a lymph node, not the primary tumour), ``maxima_enzyme`` (reverse
        transcriptase): bool.

    Raises
    ------
    ValueError
        If the file is truncated, damaged or has another format, if a value is not a number from 0 to 16.6, or if a cell
        or gene occurs twice.

    Notes
    -----
    This function was written without access to the file. The format, the order of the annotation, the scale of the
    values and the uniqueness of the names are taken from several independent programs that read it and agree. So are
    the prefixes of the cell names: ``HN25_``, ``HNSCC25_`` and ``HNSCC_17_``, with either prefix for the same patient,
    except for 109 cells of a pool (``HNSCC_combo1_``) without a patient. The study counts 2 215 malignant and 3 363
    other cells; 324 are unclassified.

    A plain text file that was truncated exactly between two genes looks like a smaller table: check the shape.

    References
    ----------
    Puram et al. 2017, Single-cell transcriptomic analysis of primary and metastatic tumor ecosystems in head and neck
    cancer, Cell 171:1611.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.read_gse103322(
    ...     "GSE103322_HNSCC_all_data.txt.gz"
    ... )  # doctest: +SKIP
    >>> scgd.model.SCLDM.setup_anndata(
    ...     adata, values="log1p", condition_keys=["cell_type"]
    ... )  # doctest: +SKIP
    """
    path = Path(path)
    with path.open("rb") as file:
        opened = gzip.open if file.read(2) == GZIP_MAGIC else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            obs = _read_annotation(file)
            genes, log2_tpm = _read_genes(file, list(obs.index))
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        msg = f"{path} is truncated or damaged ({error}); download it again."
        raise ValueError(msg) from error
    adata = AnnData(log2_tpm.astype(np.float64), obs=obs, var=pd.DataFrame(index=genes))
    np.expm1(adata.X.data * np.log(2), out=adata.X.data)  # TPM / 10
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.X = adata.X.astype(np.float32)
    adata.layers["log2_tpm"] = log2_tpm
    adata.uns["source"] = {
        "repository": "Gene Expression Omnibus GSE103322",
        "path": path.name,
        "publication": "Puram et al. 2017, Cell 171:1611",
    }
    return adata


def _read_annotation(file: TextIO) -> pd.DataFrame:
    """Read the first six lines: the names of the cells and their annotation."""
    (_, *cells), *rows = ([_bare(field) for field in file.readline().split("\t")] for _ in range(1 + len(ANNOTATIONS)))
    annotation = {}
    for number, (expected, (name, *fields)) in enumerate(zip(ANNOTATIONS, rows, strict=True), start=2):
        is_flag = expected != NON_CANCER_TYPE
        if name.lower().split() != expected.lower().split() or len(fields) != len(cells):
            msg = (
                f"Line {number} must be the annotation {expected!r} of {len(cells)} cells, but is {name!r} with "
                f"{len(fields)} fields. After the cell names, the lines must be {', '.join(map(repr, ANNOTATIONS))}."
            )
            raise ValueError(msg)
        if is_flag and (wrong := set(fields) - {"0", "1"}):
            msg = f"The annotation {expected!r} must be 0 or 1, but found {wrong.pop()!r}."
            raise ValueError(msg)
        annotation[expected] = np.array(fields) == "1" if is_flag else fields
    _check_unique(cells, "cell names")
    cell_types = map(_cell_type, annotation[CANCER], annotation[NON_CANCER_TYPE])
    patients = [f"HN{int(found[1])}" if (found := PATIENT.match(cell)) else "unknown" for cell in cells]
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical(list(cell_types)),
            "patient": pd.Categorical(patients),
            "is_malignant": annotation[CANCER],
            "lymph_node": annotation[LYMPH_NODE],
            "maxima_enzyme": annotation[MAXIMA],
        },
        index=cells,
    )


def _read_genes(file: TextIO, cells: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """Read the remaining lines in chunks, one gene each: the gene names, and the values ``(cells, genes)``."""
    genes: list[str] = []
    parts = []
    how = {"sep": "\t", "header": None, "index_col": 0, "keep_default_na": False, "quoting": csv.QUOTE_NONE}
    try:
        for chunk in pd.read_csv(file, chunksize=GENES_AT_A_TIME, **how):
            names = [_bare(str(name)) for name in chunk.index]
            parts.append(sparse.csr_matrix(_checked_values(chunk, names, cells), dtype=np.float32))
            genes += names
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        msg = (
            f"The table has no genes, or lines of different lengths ({error}). "
            "If the file is truncated, download it again."
        )
        raise ValueError(msg) from error
    _check_unique(genes, "gene names")
    return genes, sparse.vstack(parts).T.tocsr()


def _checked_values(chunk: pd.DataFrame, genes: Sequence[str], cells: Sequence[str]) -> NDArray[np.float64]:
    """Return the values ``(genes, cells)``, or raise if a line lacks a number from 0 to 16.6 for any cell."""
    if chunk.shape[1] != len(cells):
        msg = f"The gene {genes[0]!r} must have a value for each of the {len(cells)} cells, but has {chunk.shape[1]}."
        raise ValueError(msg)
    try:
        values = chunk.to_numpy(float)
    except ValueError:
        values = chunk.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = ~((values >= 0) & (values <= LARGEST_VALUE))  # catches NaN
    if wrong.any():
        gene, cell = np.argwhere(wrong)[0]
        msg = (
            f"The values must be log2(TPM/10 + 1), numbers from 0 to 16.6, but found '{chunk.iat[gene, cell]}' for "
            f"gene {genes[gene]!r} in cell {cells[cell]!r}. If the file is truncated there, download it again."
        )
        raise ValueError(msg)
    return values


def _check_unique(names: Sequence[str], what: str) -> None:
    if repeated := pd.Index(names)[pd.Index(names).duplicated()].unique().tolist():
        msg = f"The {what} must be unique, but found duplicates: {', '.join(map(repr, repeated[:5]))}."
        raise ValueError(msg)


def _bare(text: str) -> str:
    return text.strip().strip("'\"").strip()


def _cell_type(is_malignant: bool, non_cancer_type: str) -> str:
    if is_malignant:
        return "malignant"
    if non_cancer_type in NO_TYPE:
        return "unclassified"
    name = " ".join(non_cancer_type.lstrip("-").split())
    return name[:1].upper() + name[1:]
