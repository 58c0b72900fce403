"""Do the modalities of generated cells belong together? Multimodal SCLDM against real cells and SCLDM on RNA alone.

    python -m benchmarks.studies.multimodal --folder ../shared/data           # everything that is missing
    python -m benchmarks.studies.multimodal --datasets pbmc10k_citeseq        # the data set that the package loads

Figures are added to ``results/multimodal.csv`` one (data set, seed, method) at a time; stored ones are skipped.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
import scvi
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.splits import log_normalise, split_cells, to_dense
from benchmarks.tables import (
    describe_source,
    store_rows,
    stored_keys,
)
from scgen_diffusion import datasets, metrics
from scgen_diffusion.model import MULTISCLDM, SCLDM

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

logger = logging.getLogger("benchmarks.multimodal")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "method")
FLOOR, TOGETHER, RNA_ONLY, RIDGE = METHODS = ("floor", "multimodal", "RNA only", "ridge")
RNA = "rna"
#: Per data set: the second modality, the condition column of ``obs``, and the file if the package has no loader.
DATASETS = {"pbmc10k_citeseq": ("prot", "cell_type", ""), "a549_scicar": ("atac", "time_h", "a549_scicar.h5mu")}
#: The prior's steps are as many as by default, and smaller.
TRAINING: dict[str, Any] = {"plan_kwargs": {"prior": {"batch_size": 128}}, "enable_progress_bar": False}
MIN_CELLS = 20

if hasattr(mudata, "set_options"):  # mudata before 0.4
    mudata.set_options(pull_on_update=False)  # keeps columns in the modality's obs


class PairedSplit(NamedTuple):
    """Training and held-out cells; counts in ``X`` of both modalities, the label in ``obs`` of the MuData."""

    train: MuData
    held_out: MuData
    other: str
    label: str


def split_paired(name: str, folder: Path, seed: int) -> PairedSplit:
    """Hold out a quarter of the cells, stratified by label, and keep the genes that vary most in the others."""
    warnings.filterwarnings("ignore", message="var_names are not unique")
    other, label, file = DATASETS[name]
    mdata = mudata.read_h5mu(folder / file) if file else getattr(datasets, name)()
    rna = mdata[RNA].copy()
    rna.layers["counts"] = rna.layers.get("counts", rna.X)
    rna.obs[label] = mdata.obs[label].reindex(rna.obs_names).astype(str)

    def join(part: AnnData) -> MuData:
        joined = mudata.MuData({RNA: part.copy(), other: mdata[other][part.obs_names].copy()})
        joined.obs[label] = part.obs[label]
        return joined

    split = split_cells(rna, (label,), seed=seed)
    return PairedSplit(join(split.train), join(split.held_out), other, label)


def train(split: PairedSplit, seed: int, *, rna_only: bool) -> tuple[SCLDM, pd.DataFrame]:
    """Return a model of both modalities, or of RNA alone, and the cost of its training."""
    scvi.settings.seed = seed
    started, keys = time.process_time(), [split.label]
    cells = split.train[RNA].copy() if rna_only else split.train.copy()
    (SCLDM.setup_anndata if rna_only else MULTISCLDM.setup_mudata)(cells, condition_keys=keys)
    model = (SCLDM if rna_only else MULTISCLDM)(cells)
    model.train(**TRAINING)
    minutes = (time.process_time() - started) / 60
    return model, pd.DataFrame([{"part": "cost", "metric": "train_minutes", "value": minutes}])


def figures(split: PairedSplit, seed: int, method: str) -> pd.DataFrame:
    """Return the figures of a method, with those of real cells in the column ``floor``."""
    if method == RIDGE:
        return imputation(split, ridge(split, seed))
    model, costs = train(split, seed, rna_only=method == RNA_ONLY)
    requested = split.held_out.obs[[split.label]].reset_index(drop=True)
    cells = model.generate(condition=requested, seed=seed)
    options = {"groupby": split.label, "seed": seed}
    if method == RNA_ONLY:
        table = metrics.evaluate(split.held_out[RNA], cells, train=split.train[RNA], **options).assign(modality=RNA)
        predicted = []
    else:
        table = metrics.evaluate(split.held_out, cells, train=split.train, **options)
        rna = mudata.MuData({RNA: split.held_out[RNA].copy()})
        rna.obs[split.label] = split.held_out.obs[split.label]
        expected = model.get_reconstruction(rna, sample=False)[split.other].X
        predicted = [imputation(split, np.log1p(to_dense(expected)))]
    table = table[table["group"] == "all"].rename(columns={"modality": "part"})
    return pd.concat([table[["part", "metric", "value", "floor"]], *predicted, costs], ignore_index=True)


def logs(cells: MuData, name: str) -> NDArray[np.float32]:
    """Return a modality's counts as logarithms, not normalised."""
    return np.log1p(to_dense(cells[name].X)).astype(np.float32)


def ridge(split: PairedSplit, seed: int) -> NDArray[np.float64]:
    """Predict the other modality (logarithms) of held-out cells from their RNA by ridge regression on components."""
    values = [log_normalise(part[RNA].X) for part in (split.train, split.held_out)]
    pca = PCA(50, svd_solver="randomized", random_state=seed).fit(values[0])
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    model.fit(pca.transform(values[0]), logs(split.train, split.other))
    return model.predict(pca.transform(values[1]))


def imputation(split: PairedSplit, predicted: NDArray) -> pd.DataFrame:
    """Correlate predicted and measured logarithms over held-out cells, also after subtracting label means."""
    names, labels = list(split.held_out[split.other].var_names), split.held_out.obs[split.label].to_numpy(str)
    found, real = (pd.DataFrame(x, columns=names) for x in (predicted, logs(split.held_out, split.other)))
    seen = (real > real.min()).sum() >= MIN_CELLS
    centred = [frame - frame.groupby(labels).transform("mean") for frame in (found, real)]
    each, within = found.corrwith(real)[seen], centred[0].corrwith(centred[1])[seen]
    values = {"mean correlation": each.mean(), "mean correlation within label": within.mean()}
    values |= each.to_dict() if len(names) <= 100 else {}
    return pd.DataFrame({"part": "imputation", "metric": list(values), "value": list(values.values())})


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not stored."""
    path = arguments.results / "multimodal.csv"
    for dataset, seed in product(arguments.datasets, arguments.seeds):
        done = stored_keys(path, KEYS)
        methods = [method for method in arguments.methods if (dataset, seed, method) not in done]
        split = split_paired(dataset, arguments.folder, seed) if methods else None
        for method in methods:
            logger.info("%s, seed %d: %s", dataset, seed, method)
            table = figures(split, seed, method)
            where = {"dataset": dataset, "seed": seed} | describe_source("torch", "scvi-tools", "scgen-diffusion")
            if method == TOGETHER:
                floor = table.dropna(subset="floor").assign(value=table["floor"], method=FLOOR)
                store_rows(path, floor.drop(columns="floor").assign(**where), KEYS)
            store_rows(path, table.filter(["part", "metric", "value"]).assign(method=method, **where), KEYS)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS[1:], default=list(METHODS[1:]))
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of the data sets without a loader")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch; with 1, times are CPU times")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run(arguments)


if __name__ == "__main__":
    main()
