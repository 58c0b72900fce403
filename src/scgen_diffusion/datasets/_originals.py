"""The published files: their addresses, their hashes, and a download that checks them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pooch

DATA_DIR_VARIABLE = "SCGEN_DIFFUSION_DATA_DIR"


@dataclass(frozen=True)
class Original:
    """A file of a public repository at one commit."""

    repository: str
    commit: str
    path: str
    sha256: str

    @property
    def name(self) -> str:
        """File name in the cache folder: the name that the file has in its repository."""
        return self.path.rsplit("/", maxsplit=1)[-1]

    @property
    def url(self) -> str:
        """Address of the file's bytes."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"


PBMC3K_MATRIX = Original(
    repository="rnabioco/clustifyr",
    commit="317bf51ef008cb198ec79dbef49dbc2afbd31886",
    path="data/pbmc_matrix.rda",
    sha256="c8901a9fd9e9a4afa54e547d496eaa32c6a2061321e17b046ac61e158871b872",
)
PBMC3K_META = Original(
    repository="rnabioco/clustifyr",
    commit="9639a395722d52d8ffefae94cec728cb28486249",
    path="data/pbmc_meta.rda",
    sha256="df238012d0de5b5ad60009cbce75ad8390899d2decf6944ecf2dfc8bca283e5b",
)
KANG = Original(
    repository="chthub/rDeepmaps",
    commit="cdb9c99ee32c7494f04174e9278315104c367889",
    path="data/ifnb_2800.rda",
    sha256="e81d90bac3f120583b171655412c3866bb6ac9ca73c219e7ffa584be9b709c6f",
)
PAUL15_COUNTS = Original(
    repository="statOmics/tradeSeq",
    commit="f506305f6250284dc6c9f01af0a96c4fb9286688",
    path="data/counts.rda",
    sha256="518c40d23964b7ddb71e8af3a00fe4f55931d402677b0b8614521fef6c191283",
)
PAUL15_LABELS = Original(
    repository="statOmics/tradeSeq",
    commit="f506305f6250284dc6c9f01af0a96c4fb9286688",
    path="data/celltype.rda",
    sha256="caddbfd93b3012af784ae54773c373ff64adf735949f8236187ea6ae71761db9",
)
NORMAN_MCFALINE = Original(
    repository="altoslabs/perturbench",
    commit="4dd6a03c54ef348f6be6e46e21ea7f80eb2daaa2",
    path="src/perturbench/data/resources/devel.h5ad",
    sha256="220998f5630c813228c8661c86dd52244b9ac87127511289af90e0d900d8429b",
)
CITESEQ_RNA = Original(
    repository="YosefLab/totalVI_reproducibility",
    commit="4c97c53f170e413f75e1904e18a3066e803daa73",
    path="data/raw_data/pbmc10k_harmo_rna.csv.gz",
    sha256="77cacfec0e17dce2a9b00c479a07a162e29dc9263ff5dc4cb5235df4679baba9",
)
CITESEQ_PROTEIN = Original(
    repository="YosefLab/totalVI_reproducibility",
    commit="4c97c53f170e413f75e1904e18a3066e803daa73",
    path="data/raw_data/pbmc10k_harmo_pro.csv.gz",
    sha256="184afe670d264b598e24cca73ccfd4f07c7bde696b8fb4cb53ba62d89b13f048",
)
CITESEQ_LABELS = Original(
    repository="xianglin226/scMDC",
    commit="5f354593220d3e583fdc44dd019f55b5e090bff3",
    path="datasets/10XPBMC_filtered_1000G.H5",
    sha256="44eba814cf417e3154790c6867405e73825aec986ca7191fdb96ef90a0165bf7",
)


def fetch(original: Original, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file from the cache folder, downloading it first if it is not there.

    Parameters
    ----------
    original
        What to fetch.
    data_dir
        Cache folder. Defaults to the folder named by ``SCGEN_DIFFUSION_DATA_DIR``, else the user's cache folder. It is
        written to only when the file is not there.

    Returns
    -------
    Path of a file whose sha256 is the expected one.

    Raises
    ------
    ValueError
        If the file in the cache folder, or the one downloaded, is not the expected one.
    OSError
        If the file is not in the cache folder and cannot be downloaded into it.
    """
    path = _cache_folder(data_dir) / original.name
    if not path.exists():
        _download(original, path)
    elif pooch.file_hash(str(path)) != original.sha256:
        msg = (
            f"The file {path} is not the one published at {original.url}: its sha256 is not {original.sha256}. "
            f"Delete it to download it again, or choose another folder (data_dir= or {DATA_DIR_VARIABLE})."
        )
        raise ValueError(msg)
    return path


def _cache_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE) or pooch.os_cache("scgen-diffusion")
    return Path(chosen).expanduser()


def _download(original: Original, path: Path) -> None:
    try:
        pooch.retrieve(
            original.url,
            known_hash=f"sha256:{original.sha256}",
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=60),
        )
    except OSError as error:
        msg = (
            f"{original.name!r} is not in {path.parent} and could not be downloaded from {original.url} ({error}). "
            f"Without network access, put the file there, or name a folder that has it by the environment variable "
            f"{DATA_DIR_VARIABLE} or the argument data_dir."
        )
        raise OSError(msg) from error
    except ValueError as error:
        msg = (
            f"What was downloaded from {original.url} is not the published file: its sha256 is not {original.sha256}. "
            f"Nothing was kept. A proxy or a broken connection may have altered it: try again, or put the file into "
            f"{path.parent}."
        )
        raise ValueError(msg) from error
