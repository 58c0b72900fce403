"""Labelled data sets for examples, tests and benchmarks.

Every function returns cells with

- `layers["counts"]`: integer counts, CSR, float32,
- `X`: the counts, normalised to 10,000 per cell and `log1p`-transformed, as scanpy's functions expect,
- `obs`: the labels, as categoricals,
- `uns["source"]`: the origin of the data.

:func:`pbmc68k_reduced` comes with scanpy. The others are downloaded once from public repositories, at a pinned commit
and checked by sha256. They are stored in `data_dir`, else in the folder that the environment variable
``SCGEN_DIFFUSION_DATA_DIR`` names, else in the user's cache folder.
"""

from ._loaders import (
    kang_ifnb,
    norman_mcfaline_devel,
    osmfish_cortex,
    paul15,
    pbmc3k,
    pbmc10k_citeseq,
    pbmc68k_reduced,
    worm_embryo,
)

__all__ = [
    "kang_ifnb",
    "norman_mcfaline_devel",
    "osmfish_cortex",
    "paul15",
    "pbmc3k",
    "pbmc10k_citeseq",
    "pbmc68k_reduced",
    "worm_embryo",
]
