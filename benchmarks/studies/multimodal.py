"""Do cells with several modalities come out whole? SCLDM on MuData against real cells, and its RNA against SCLDM on RNA alone.

    python -m benchmarks.studies.multimodal --folder ../shared/data           # everything that is not there yet
    python -m benchmarks.studies.multimodal --datasets pbmc10k_citeseq        # the data set that the package loads

Every model is trained once and kept in ``--models``; figures are added to ``results/multimodal.csv`` one (data set, seed, method) at
a time, and what is there is skipped. The summary goes to ``results/multimodal.md``.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.studies.modality_figures import PairedJudge, imputation_figures, logs, ridge
from benchmarks.studies.modality_splits import DATASETS, RNA, load_paired, split_paired
from benchmarks.studies.multimodal_report import summarise
from benchmarks.tables import ROOT, describe_machine, describe_versions, read_table, store_rows, today, write_text

if TYPE_CHECKING:
    from benchmarks.studies.modality_splits import PairedSplit
    from scgen_diffusion.model import SCLDM

logger = logging.getLogger("benchmarks.multimodal")

HERE = Path(__file__).parent
KEYS = ("dataset", "seed", "method")
FLOOR, TOGETHER, RNA_ONLY, RIDGE = "floor", "multimodal", "RNA only", "ridge"
METHODS = (FLOOR, TOGETHER, RNA_ONLY, RIDGE)
IMPUTED = "imputation"
#: The prior's steps are as many as by default, and smaller.
TRAINING: dict[str, Any] = {"plan_kwargs": {"prior": {"batch_size": 128}}, "enable_progress_bar": False}


class Study:
    """One data set and seed: its models, trained or read when first needed, and their figures.

    Parameters
    ----------
    dataset, seed
        What is studied.
    folder
        Where the data sets are for which there is no loader.
    models
        Where trained models are kept.
    """

    def __init__(self, dataset: str, seed: int, folder: Path, models: Path) -> None:
        self.name, self.seed, self.models = dataset, seed, models
        self.split = split_paired(load_paired(dataset, folder), DATASETS[dataset], seed=seed)
        self.judge = PairedJudge(self.split, seed)

    def figures(self, method: str) -> pd.DataFrame:
        """Return all figures of a method."""
        return {
            FLOOR: self.judge.floor,
            TOGETHER: self._together,
            RNA_ONLY: self._rna_only,
            RIDGE: lambda: self._imputation(ridge(self.split, self.seed)),
        }[method]()

    def _together(self) -> pd.DataFrame:
        model, seconds = self._model(TOGETHER)
        cells = model.generate(condition=self._condition(), seed=self.seed)
        predicted = model.get_reconstruction(self._rna_of_held_out(), sample=False)[self.split.dataset.other].X
        costs = pd.DataFrame([{"part": "cost", "metric": "train_minutes", "value": seconds / 60}])
        return pd.concat([self.judge.measure(cells), self._imputation(np.log1p(predicted)), costs], ignore_index=True)

    def _rna_only(self) -> pd.DataFrame:
        model, seconds = self._model(RNA_ONLY)
        figures = self.judge.measure_rna(model.generate(condition=self._condition(), seed=self.seed).X)
        costs = pd.DataFrame([{"part": "cost", "metric": "train_minutes", "value": seconds / 60}])
        return pd.concat([figures, costs], ignore_index=True)

    def _imputation(self, predicted: np.ndarray) -> pd.DataFrame:
        other, held_out = self.split.dataset.other, self.split.held_out
        names = list(held_out[other].var_names)
        return imputation_figures(np.asarray(predicted), logs(held_out, other), self.judge.labels, names, IMPUTED)

    def _rna_of_held_out(self) -> Any:
        import mudata

        rna = mudata.MuData({RNA: self.split.held_out[RNA].copy()})
        rna.obs[self.split.dataset.label] = self.split.held_out.obs[self.split.dataset.label]
        return rna

    def _condition(self) -> pd.DataFrame:
        return self.split.held_out.obs[[self.split.dataset.label]].reset_index(drop=True)

    def _model(self, method: str) -> tuple[SCLDM, float]:
        """Return a trained model and the seconds that its training took, as far as they are known."""
        from scgen_diffusion.model import SCLDM

        path = self.models / f"{self.name}-{self.seed}-{method.replace(' ', '-')}"
        if not path.exists():
            train(self.split, method, self.seed, path)
        return SCLDM.load(path, adata=False), float((path / "seconds.txt").read_text())


def train(split: PairedSplit, method: str, seed: int, path: Path) -> None:
    """Train on both modalities, or on RNA alone, and keep the model."""
    import scvi

    from scgen_diffusion.model import SCLDM

    scvi.settings.seed = seed
    keys, started = [split.dataset.label], time.process_time()
    if method == TOGETHER:
        cells = split.train.copy()
        SCLDM.setup_mudata(cells, condition_keys=keys)
    else:
        cells = split.train[RNA].copy()
        SCLDM.setup_anndata(cells, condition_keys=keys)
    model = SCLDM(cells)
    model.train(**TRAINING)
    model.save(path)
    (path / "seconds.txt").write_text(str(time.process_time() - started))


def pending(path: Path, dataset: str, seed: int, methods: list[str]) -> list[str]:
    """Return the methods that have no stored figures."""
    table = read_table(path)
    stored = set() if table.empty else set(table[list(KEYS)].itertuples(index=False, name=None))
    return [method for method in methods if (dataset, seed, method) not in stored]


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not stored, then write the summary."""
    path = arguments.results / "multimodal.csv"
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            if not (methods := pending(path, dataset, seed, arguments.methods)):
                continue
            study = Study(dataset, seed, arguments.folder, arguments.models)
            for method in methods:
                logger.info("%s, seed %d: %s", dataset, seed, method)
                source = {
                    "machine": describe_machine(),
                    "versions": describe_versions("torch", "scvi-tools", "scgen-diffusion"),
                    "date": today(),
                }
                table = study.figures(method).assign(dataset=dataset, seed=seed, method=method, **source)
                store_rows(path, table, KEYS)
    write_text(arguments.results / "multimodal.md", summarise(read_table(path), METHODS))


def main() -> None:
    """Run from the command line."""
    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of the data sets without a loader")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of the trained models"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of torch; with one, minutes are CPU minutes"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run(arguments)


if __name__ == "__main__":
    main()
