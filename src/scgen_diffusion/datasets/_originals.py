"""The published files: their addresses, a download that checks them, and a reader for R files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pooch
import rdata
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA_DIR_VARIABLE = "SCGEN_DIFFUSION_DATA_DIR"
REGISTRY = Path(__file__).with_name("registry.txt")


def published_files(data_dir: str | os.PathLike[str] | None = None) -> pooch.Pooch:
    """Return the published files, with their hashes and addresses, and their cache folder."""
    folder = data_dir or os.environ.get(DATA_DIR_VARIABLE) or pooch.os_cache("scgen-diffusion")
    files = pooch.create(folder, base_url="")
    files.load_registry(REGISTRY)
    return files


def source(name: str, publication: str) -> dict[str, str]:
    """Describe the origin of a file, in a form that h5ad and zarr can store."""
    return {"url": published_files().get_url(name), "publication": publication}


def fetch(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file from the cache folder. Download it first if it is missing or its hash is wrong.

    Parameters
    ----------
    name
        Name of the file in the registry.
    data_dir
        Cache folder. Default: the folder named by ``SCGEN_DIFFUSION_DATA_DIR``, else the user's cache folder.

    Returns
    -------
    Path of a file with the expected sha256.

    Raises
    ------
    ValueError
        If the downloaded file is not the published one.
    OSError
        If the file cannot be downloaded.
    """
    files = published_files(data_dir)
    try:
        return Path(files.fetch(name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=60)))
    except OSError as error:
        msg = (
            f"{name!r} is not in {files.abspath}, or differs from the published file, and could not be downloaded from "
            f"{files.get_url(name)} ({error}). Without network access, put the file there, or name a folder that has "
            f"it in the argument data_dir or the environment variable {DATA_DIR_VARIABLE}."
        )
        raise OSError(msg) from error


def read_r(path: Path) -> Any:
    """Read the only object of an ``.rda`` or ``.rds`` file. The file is parsed, never executed.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The object as `rdata` converts it. A sparse matrix (genes, cells) becomes an AnnData (cells, genes), and
    Bioconductor's table becomes a DataFrame.
    """
    constructors = {
        **rdata.conversion.DEFAULT_CLASS_MAP,
        "dgCMatrix": _from_sparse_matrix,
        "DFrame": _from_bioconductor_table,
    }
    if path.suffix == ".rds":
        return rdata.read_rds(path, constructor_dict=constructors)
    (content,) = rdata.read_rda(path, constructor_dict=constructors).values()
    return content


def _from_sparse_matrix(matrix: Any, _attributes: Mapping[str, Any]) -> AnnData:
    genes, cells = matrix.Dimnames  # the compressed columns of (genes, cells) are the compressed rows of (cells, genes)
    values = sparse.csr_matrix((matrix.x, matrix.i, matrix.p), shape=(len(cells), len(genes)))
    return AnnData(
        X=values, obs=pd.DataFrame(index=list(map(str, cells))), var=pd.DataFrame(index=list(map(str, genes)))
    )


def _from_bioconductor_table(table: Any, _attributes: Mapping[str, Any]) -> pd.DataFrame:
    columns = {str(name): np.asarray(values) for name, values in table.listData.items()}
    return pd.DataFrame(columns, index=list(map(str, table.rownames)))
