"""Real data sets with labels, all but one with integer counts, for examples, tests and benchmarks.

Every function but :func:`read_gse103322` returns cells with

- `layers["counts"]`: integer counts, CSR, float32,
- `X`: the same, normalised to 10 000 counts per cell and `log1p`-transformed, as scanpy's functions expect it,
- `obs`: the labels, as categoricals,
- `uns["source"]`: where the data come from.

:func:`pbmc68k_reduced` is part of scanpy's installation. The others but one are downloaded once from the public repositories that
hold them, at a pinned commit and checked by sha256, into the folder `data_dir`, else the folder named by the environment
variable ``SCGEN_DIFFUSION_DATA_DIR``, else the user's cache folder.

:func:`read_gse103322` reads a file that you download yourself. It holds no counts: `X` is normalised and `log1p`-transformed
as above, and the published values are in ``layers["log2_tpm"]``.
"""

from ._gse103322 import read_gse103322
from ._loaders import kang_ifnb, norman_mcfaline_devel, paul15, pbmc3k, pbmc10k_citeseq, pbmc68k_reduced

__all__ = [
    "kang_ifnb",
    "norman_mcfaline_devel",
    "paul15",
    "pbmc3k",
    "pbmc10k_citeseq",
    "pbmc68k_reduced",
    "read_gse103322",
]
