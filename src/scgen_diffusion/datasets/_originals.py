"""The published files: their addresses, a download that checks them, and a reader for R files."""

from __future__ import annotations

import os
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Original:
    """A file of a public repository at one commit.

    Parameters
    ----------
    address
        ``owner/repository/commit/path``.
    sha256
        Hash of the file.
    """

    address: str
    sha256: str

    @property
    def name(self) -> str:
        """File name in the cache folder, as in its repository."""
        return self.address.rpartition("/")[2]

    @property
    def url(self) -> str:
        """Download address of the file."""
        return f"https://raw.githubusercontent.com/{self.address}"

    def source(self, publication: str) -> dict[str, str]:
        """Describe the origin of the data, in a form that h5ad and zarr can store."""
        owner, repository, commit, path = self.address.split("/", maxsplit=3)
        where = {"repository": f"github.com/{owner}/{repository}", "commit": commit, "path": path}
        return {**where, "publication": publication}


PBMC3K_MATRIX = Original(
    "rnabioco/clustifyr/317bf51ef008cb198ec79dbef49dbc2afbd31886/data/pbmc_matrix.rda",
    "c8901a9fd9e9a4afa54e547d496eaa32c6a2061321e17b046ac61e158871b872",
)
PBMC3K_META = Original(
    "rnabioco/clustifyr/9639a395722d52d8ffefae94cec728cb28486249/data/pbmc_meta.rda",
    "df238012d0de5b5ad60009cbce75ad8390899d2decf6944ecf2dfc8bca283e5b",
)
KANG = Original(
    "chthub/rDeepmaps/cdb9c99ee32c7494f04174e9278315104c367889/data/ifnb_2800.rda",
    "e81d90bac3f120583b171655412c3866bb6ac9ca73c219e7ffa584be9b709c6f",
)
PAUL15_COUNTS = Original(
    "statOmics/tradeSeq/f506305f6250284dc6c9f01af0a96c4fb9286688/data/counts.rda",
    "518c40d23964b7ddb71e8af3a00fe4f55931d402677b0b8614521fef6c191283",
)
PAUL15_LABELS = Original(
    "statOmics/tradeSeq/f506305f6250284dc6c9f01af0a96c4fb9286688/data/celltype.rda",
    "caddbfd93b3012af784ae54773c373ff64adf735949f8236187ea6ae71761db9",
)
NORMAN_MCFALINE = Original(
    "altoslabs/perturbench/4dd6a03c54ef348f6be6e46e21ea7f80eb2daaa2/src/perturbench/data/resources/devel.h5ad",
    "220998f5630c813228c8661c86dd52244b9ac87127511289af90e0d900d8429b",
)
CITESEQ_RNA = Original(
    "YosefLab/totalVI_reproducibility/4c97c53f170e413f75e1904e18a3066e803daa73/data/raw_data/pbmc10k_harmo_rna.csv.gz",
    "77cacfec0e17dce2a9b00c479a07a162e29dc9263ff5dc4cb5235df4679baba9",
)
CITESEQ_PROTEIN = Original(
    "YosefLab/totalVI_reproducibility/4c97c53f170e413f75e1904e18a3066e803daa73/data/raw_data/pbmc10k_harmo_pro.csv.gz",
    "184afe670d264b598e24cca73ccfd4f07c7bde696b8fb4cb53ba62d89b13f048",
)
CITESEQ_LABELS = Original(
    "xianglin226/scMDC/5f354593220d3e583fdc44dd019f55b5e090bff3/datasets/10XPBMC_filtered_1000G.H5",
    "44eba814cf417e3154790c6867405e73825aec986ca7191fdb96ef90a0165bf7",
)

OSMFISH = Original(
    "drieslab/spatial-datasets/12a495fe6b2394a703f570615b3470d3b3d2bec8/data/2018_osmFISH_SScortex/raw_data/"
    "osmFISH_SScortex_mouse_all_cells.loom",
    "6153b56b300280e0cbd2eb45377eea4a5e85606bed739c96eb02feee5f53bc63",
)
WORM_COUNTS = Original(
    "cole-trapnell-lab/monocle3/1336cc97d053d46322148947a3375e2beb2f8652/inst/extdata/worm_embryo/worm_embryo_expression_matrix.rds",
    "79fef2d296a982a537ea925728b14e4b779bf162536d23f181fa6f711a5f198a",
)
WORM_CELLS = Original(
    "cole-trapnell-lab/monocle3/1336cc97d053d46322148947a3375e2beb2f8652/inst/extdata/worm_embryo/worm_embryo_coldata.rds",
    "425ee0efdad1af38e18dee109e1a371b5ebefd85365abd5c81e6daa7b57fd6e3",
)
WORM_GENES = Original(
    "cole-trapnell-lab/monocle3/1336cc97d053d46322148947a3375e2beb2f8652/inst/extdata/worm_embryo/worm_embryo_rowdata.rds",
    "e93a2ff0f404b0b71a76e75b6c0c23d6deb5ddc196cca9fc333912a747b30950",
)


def fetch(original: Original, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file from the cache folder. Download it first if it is missing or its hash is wrong.

    Parameters
    ----------
    original
        File to fetch.
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
    folder = Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or pooch.os_cache("scgen-diffusion")).expanduser()
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=60)
    known_hash = f"sha256:{original.sha256}"
    try:
        return Path(pooch.retrieve(original.url, known_hash, original.name, folder, downloader=downloader))
    except OSError as error:
        msg = (
            f"{original.name!r} is not in {folder}, or differs from the published file, and could not be downloaded "
            f"from {original.url} ({error}). Without network access, put the file there, or name a folder that has it "
            f"in the argument data_dir or the environment variable {DATA_DIR_VARIABLE}."
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
