"""Data sets with several modalities, split like those of the other studies."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mudata

from benchmarks.quality.splits import split_cells

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

if hasattr(mudata, "set_options"):  # mudata before 0.4
    mudata.set_options(pull_on_update=False)  # columns of a modality's obs stay there

RNA = "rna"


@dataclass(frozen=True)
class Paired:
    """A data set of the study.

    Parameters
    ----------
    other
        The modality besides RNA.
    label
        Column of ``obs`` on which cells are generated.
    pairs
        Genes and the features of the other modality that they make.
    file
        Name of the file where the package has no loader.
    """

    other: str
    label: str
    pairs: tuple[tuple[str, str], ...] = ()
    file: str = ""


DATASETS = {
    "pbmc10k_citeseq": Paired(
        other="prot",
        label="cell_type",
        pairs=(
            ("CD3E", "CD3"),
            ("CD4", "CD4"),
            ("CD8A", "CD8a"),
            ("CD14", "CD14"),
            ("FUT4", "CD15"),
            ("FCGR3A", "CD16"),
            ("CD19", "CD19"),
            ("MS4A1", "CD19"),
            ("IL2RA", "CD25"),
            ("PTPRC", "CD45RA"),
            ("NCAM1", "CD56"),
            ("NKG7", "CD56"),
            ("PDCD1", "PD-1"),
            ("TIGIT", "TIGIT"),
            ("IL7R", "CD127"),
        ),
    ),
    "a549_scicar": Paired(other="atac", label="time_h", file="a549_scicar.h5mu"),
}


@dataclass(frozen=True)
class PairedSplit:
    """Training and held-out cells; counts in ``X`` of both modalities, the label in ``obs`` of the MuData."""

    train: MuData
    held_out: MuData
    dataset: Paired

    def labels(self, cells: MuData) -> NDArray[np.str_]:
        """Return one label per cell."""
        return cells.obs[self.dataset.label].to_numpy(str)


def load_paired(name: str, folder: Path) -> MuData:
    """Load by the package's loader, or else from the folder that holds the data sets for which there is none."""
    from scgen_diffusion import datasets

    file = DATASETS[name].file
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")
        return mudata.read_h5mu(folder / file) if file else getattr(datasets, name)()


def split_paired(mdata: MuData, dataset: Paired, *, seed: int, n_genes: int = 2_000) -> PairedSplit:
    """Hold out a quarter of the cells, stratified by label, and keep the genes that vary most among the others."""
    rna = mdata[RNA].copy()
    rna.layers["counts"] = rna.layers.get("counts", rna.X)
    rna.obs[dataset.label] = mdata.obs[dataset.label].reindex(rna.obs_names).astype(str)
    split = split_cells(rna, (dataset.label,), seed=seed, n_genes=n_genes)
    parts = (_join(part, mdata[dataset.other], dataset) for part in (split.train, split.held_out))
    return PairedSplit(*parts, dataset)


def _join(rna: AnnData, other: AnnData, dataset: Paired) -> MuData:
    modalities = {RNA: rna.copy(), dataset.other: other[rna.obs_names].copy()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="var_names are not unique")
        mdata = mudata.MuData(modalities)
    mdata.obs[dataset.label] = rna.obs[dataset.label]
    return mdata
