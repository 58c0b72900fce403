"""The deposited table of GSE103322: one text file with cells, annotation and expression."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy import sparse

from ._convert import categorical_obs

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

MAXIMA, LYMPH_NODE, CANCER, NON_CANCER, NON_CANCER_TYPE = ANNOTATIONS = (
    "processed by Maxima enzyme",
    "Lymph node",
    "classified  as cancer cell",  # two spaces, as deposited
    "classified as non-cancer cells",
    "non-cancer cell type",
)
NO_TYPE = ("", "0", "0.0", "NA")
PATIENT = re.compile(r"HN(?:SCC)?_?(\d+)", re.IGNORECASE)

# log2(1e6 / 10 + 1) is 16.6: a cell that has one gene only. What is above is no log2(TPM/10 + 1).
LARGEST_VALUE = 16.7

GZIP_MAGIC = b"\x1f\x8b"
N_NAMED = 5  # how many offenders an error names

Row = tuple[int, str, list[str]]  # line number, first field, the other fields


@dataclass(frozen=True)
class _Table:
    """What the file holds; `log2_tpm` is of shape `(cells, genes)`."""

    cells: list[str]
    annotation: dict[str, list[str]]
    genes: list[str]
    log2_tpm: sparse.csr_matrix


def read_gse103322(path: str | os.PathLike[str]) -> AnnData:
    r"""Read the deposited table of 5 902 cells of head and neck cancer (Puram et al. 2017): malignant, stromal, immune.

    The file is ``GSE103322_HNSCC_all_data.txt.gz`` (90 MB) of the Gene Expression Omnibus; it is not downloaded. It is
    tab-separated text, gzipped or not: a line of cell names, five lines of annotation (below), and a line per gene, whose
    name stands in single quotes. A deposited value is :math:`v = \log_2(\mathrm{TPM}/10 + 1)`, of full-length (Smart-seq2)
    transcripts: there are no molecule counts. `X` are these values on the scale of the other data sets,

    .. math:: X_{cg} = \log\left(1 + 10^4 \frac{2^{v_{cg}} - 1}{\sum_h (2^{v_{ch}} - 1)}\right),

    whatever the genes of the table sum to, for ``setup_anndata(adata, values="log1p")``. Do not give the layer ``log2_tpm``
    to it, which is on another scale.

    Parameters
    ----------
    path
        The file, or one of the same form with fewer cells or genes.

    Returns
    -------
    Cells x genes, 5 902 x 23 686 for the deposited file.

    - `X`: as above, CSR, float32.
    - ``layers["log2_tpm"]``: the deposited values, CSR, float32.
    - `obs`:

      - ``cell_type``: ``malignant`` for a cancer cell, else the deposited non-cancer type without a leading ``-`` and with a
        capital (``B cell``, ``Fibroblast``, ``Myocyte``, ...), ``unclassified`` for a cell with neither.
      - ``patient``: ``HN`` and the number at the start of the cell's name, else ``unknown``.
      - ``is_malignant``, ``lymph_node`` (from a lymph node, not the primary tumour), ``maxima_enzyme`` (reverse
        transcriptase): bool.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is cut or damaged, if an annotation line is absent, out of order or other than 0 and 1 where it is a
        yes or no, if a line has too few or too many fields, if a value is not a finite number from 0 to 16.6, if a cell or
        gene occurs twice, if a cell is both cancer and not, or has no expression, or if there is no cell or gene.

    Notes
    -----
    The form, the order of the annotation, the values' scale and that all names are unique agree between several independent
    programs that read the deposited file; so does that names start with ``HN25_``, ``HNSCC25_`` or ``HNSCC_17_``, with
    either prefix for the same patient, but for 109 cells of a pool (``HNSCC_combo1_``) without a patient. The file was not
    at hand when this function was written. The study counts 2 215 malignant and 3 363 other cells; 324 are unclassified.

    The table is read line by line. Measured on a made-up table of the deposited size with a fifth of the values above zero:
    25 seconds, 0.9 GB at the peak, 0.45 GB for the result. A plain text that was cut exactly between two genes looks like a
    smaller table: compare the shape.

    References
    ----------
    Puram et al. 2017, Single-cell transcriptomic analysis of primary and metastatic tumor ecosystems in head and neck
    cancer, Cell 171:1611.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.read_gse103322("GSE103322_HNSCC_all_data.txt.gz")  # doctest: +SKIP
    >>> scgd.model.SCLDM.setup_anndata(adata, values="log1p", condition_keys=["cell_type"])  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        msg = f"`path` must be the table of GSE103322, but there is no file {path}."
        raise FileNotFoundError(msg)
    table = _read_table(path)
    adata = AnnData(X=_log_normalised(table), obs=_obs(table), var=categorical_obs(table.genes))
    adata.layers["log2_tpm"] = table.log2_tpm
    adata.uns["log1p"] = {}
    adata.uns["source"] = {
        "repository": "Gene Expression Omnibus GSE103322",
        "path": path.name,
        "publication": "Puram et al. 2017, Cell 171:1611",
    }
    return adata


def _read_table(path: Path) -> _Table:
    with _opened(path) as lines:
        rows = _rows(lines)
        _, _, fields = next(rows, (1, "", []))
        cells = [_unquoted(field) for field in fields]
        if not cells:
            msg = (
                f"The first line of {path.name} must name the cells, tab-separated after a first field, but names none."
            )
            raise ValueError(msg)
        _check_names(cells, "cell names")
        annotation = {name: _annotation_row(next(rows, None), name, cells) for name in ANNOTATIONS}
        genes, log2_tpm = _read_genes(rows, cells)
    return _Table(cells, annotation, genes, log2_tpm)


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOBase]:
    """Open a text, gzipped or not whatever its name, and tell a cut or damaged file from other mistakes."""
    with path.open("rb") as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        content = gzip.GzipFile(fileobj=file) if compressed else file
        try:
            yield io.TextIOWrapper(content, encoding="utf-8")
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
            msg = f"{path} is cut or damaged ({error}); download it again."
            raise ValueError(msg) from error


def _rows(lines: io.TextIOBase) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if stripped := line.rstrip("\r\n"):
            name, *fields = stripped.split("\t")
            yield number, _unquoted(name), fields


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"").strip()


def _annotation_row(row: Row | None, expected: str, cells: Sequence[str]) -> list[str]:
    """Return the fields of an annotation line, after a check of its name but for case and spaces."""
    order = ", ".join(map(repr, ANNOTATIONS))
    if row is None:
        msg = f"The table ends before the annotation line {expected!r}. Expected are, in this order: {order}."
        raise ValueError(msg)
    number, name, fields = row
    if name.lower().split() != expected.lower().split():
        msg = f"Line {number} must be the annotation {expected!r}, but found {name!r}. Expected are, in this order: {order}."
        raise ValueError(msg)
    _check_length(row, cells)
    return [_unquoted(field) for field in fields]


def _read_genes(rows: Iterator[Row], cells: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """Read gene after gene, keeping what is not zero."""
    genes, data, indices = [], [np.empty(0, np.float32)], [np.empty(0, np.int32)]
    indptr = [0]
    for row in rows:
        _check_length(row, cells)
        values = _values(row, cells)
        above_zero = np.flatnonzero(values)
        genes.append(row[1])
        data.append(values[above_zero])
        indices.append(above_zero.astype(np.int32))
        indptr.append(indptr[-1] + above_zero.size)
    if not genes:
        msg = "The table must have at least one gene after the annotation, but has none."
        raise ValueError(msg)
    _check_names(genes, "gene names")
    parts = (np.concatenate(data), np.concatenate(indices), np.array(indptr))
    return genes, sparse.csc_matrix(parts, shape=(len(cells), len(genes))).tocsr()


def _values(row: Row, cells: Sequence[str]) -> NDArray[np.float32]:
    """Parse one gene's values, shape `(cells,)`."""
    _, gene, fields = row
    try:
        values = np.array(list(map(float, fields)))
    except ValueError:
        values = np.array([_float_or_nan(field) for field in fields])
    wrong = ~((values >= 0) & (values <= LARGEST_VALUE))  # catches NaN
    if wrong.any():
        first = int(wrong.argmax())
        msg = (
            f"The values must be log2(TPM/10 + 1), numbers from 0 to 16.6, but found {fields[first]!r} for gene {gene!r} in "
            f"cell {cells[first]!r} (line {row[0]})."
        )
        raise ValueError(msg)
    return values.astype(np.float32)


def _float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _check_length(row: Row, cells: Sequence[str]) -> None:
    number, name, fields = row
    if len(fields) != len(cells):
        msg = (
            f"Line {number} ({name!r}) must have a field for each of the {len(cells)} cells, but has {len(fields)}. If it is "
            "the last line, the file is cut; download it again."
        )
        raise ValueError(msg)


def _check_names(names: list[str], what: str) -> None:
    """Raise for names that are empty or occur twice; the deposited ones do not, and a sum of duplicates would be a guess."""
    if empty := [number for number, name in enumerate(names, start=1) if not name.strip()]:
        msg = f"The {what} must not be empty, but number {empty[0]} is."
        raise ValueError(msg)
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        msg = f"The {what} must be unique, but these occur more than once: {_named(repeated)}."
        raise ValueError(msg)


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:N_NAMED])) + (", ..." if len(names) > N_NAMED else "")


def _obs(table: _Table) -> pd.DataFrame:
    flags = {name: _flags(table, name) for name in (MAXIMA, LYMPH_NODE, CANCER, NON_CANCER)}
    both = flags[CANCER] & flags[NON_CANCER]
    if both.any():
        msg = (
            f"A cell is cancer or not, but these are annotated as both: {_named(np.array(table.cells)[both].tolist())}."
        )
        raise ValueError(msg)
    types = map(_cell_type, flags[CANCER], table.annotation[NON_CANCER_TYPE])
    obs = categorical_obs(table.cells, cell_type=types, patient=map(_patient, table.cells))
    obs["is_malignant"] = flags[CANCER]
    obs["lymph_node"] = flags[LYMPH_NODE]
    obs["maxima_enzyme"] = flags[MAXIMA]
    return obs


def _flags(table: _Table, name: str) -> NDArray[np.bool_]:
    values = np.array([_float_or_nan(field) for field in table.annotation[name]])
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        first = int(wrong.argmax())
        found = table.annotation[name][first]
        msg = f"The annotation {name!r} must be 0 or 1, but found {found!r} for cell {table.cells[first]!r}."
        raise ValueError(msg)
    return values == 1


def _cell_type(is_malignant: bool, non_cancer_type: str) -> str:
    if is_malignant:
        return "malignant"
    if non_cancer_type in NO_TYPE:
        return "unclassified"
    name = " ".join(non_cancer_type.lstrip("-").split())
    return name[:1].upper() + name[1:]


def _patient(cell: str) -> str:
    found = PATIENT.match(cell)
    return f"HN{int(found[1])}" if found else "unknown"


def _log_normalised(table: _Table) -> sparse.csr_matrix:
    """Convert log2(TPM/10 + 1) to log1p(1e4 * share of the cell), shape `(cells, genes)`."""
    shares = table.log2_tpm.astype(np.float64)
    np.expm1(shares.data * np.log(2), out=shares.data)  # TPM / 10
    totals = np.asarray(shares.sum(axis=1)).ravel()
    if not totals.all():
        msg = f"These cells have no expression at all: {_named(np.array(table.cells)[totals == 0].tolist())}."
        raise ValueError(msg)
    shares.data *= np.repeat(1e4 / totals, np.diff(shares.indptr))
    np.log1p(shares.data, out=shares.data)
    return shares.astype(np.float32)
