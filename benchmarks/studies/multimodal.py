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
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.splits import log_normalise, split_cells, to_dense
from benchmarks.studies.quick_judge import QuickJudge
from benchmarks.tables import (
    ROOT,
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    stored_keys,
    write_text,
)
from scgen_diffusion.metrics import classifier_auc, library_size_ks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgen_diffusion.model import SCLDM

logger = logging.getLogger("benchmarks.multimodal")

HERE = Path(__file__).parent
KEYS = ("dataset", "seed", "method")
FLOOR, TOGETHER, RNA_ONLY, RIDGE = "floor", "multimodal", "RNA only", "ridge"
METHODS = (FLOOR, TOGETHER, RNA_ONLY, RIDGE)
IMPUTED = "imputation"
#: The prior's steps are as many as by default, and smaller.
TRAINING: dict[str, Any] = {"plan_kwargs": {"prior": {"batch_size": 128}}, "enable_progress_bar": False}

# --- data -------------------------------------------------------------------------------------------------------------


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


# --- figures ----------------------------------------------------------------------------------------------------------


N_COMPONENTS = 30
N_CORRELATED = 100
N_FLOORS = 3
MIN_CELLS = 20


class PairedJudge:
    """Judges cells of two modalities against the held-out cells of a split.

    The training cells are split in two: principal components and the classifier of labels learn from one half, the other half
    plays the synthetic cells and gives the floor.

    Parameters
    ----------
    split
        Training and held-out cells.
    seed
        Decides how the training cells are split.
    """

    def __init__(self, split: PairedSplit, seed: int) -> None:
        self.split, self.seed, self.other = split, seed, split.dataset.other
        train, held_out = split.train, split.held_out
        self.train_labels, self.labels = split.labels(train), split.labels(held_out)
        self.rna_judge = QuickJudge(train[RNA].X, self.train_labels, held_out[RNA].X, self.labels, seed=seed)
        rng = np.random.default_rng(seed)
        self.fitted_half, self.floor_half = np.array_split(rng.permutation(train.n_obs), 2)
        values = logs(train, self.other)
        n_components = min(N_COMPONENTS, values.shape[1])
        self.pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(values[self.fitted_half])
        self.genes = np.argsort(-log_normalise(train[RNA].X).var(axis=0))[:N_CORRELATED]
        self.features = np.argsort(-values.var(axis=0))[:N_CORRELATED]
        self.classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
        self.classifier.fit(self._joint(train)[self.fitted_half], self.train_labels[self.fitted_half])

    def floor(self) -> pd.DataFrame:
        """Return the figures of training cells that nothing has learned from, means over random draws of them."""
        n_cells = min(len(self.floor_half), self.split.held_out.n_obs)
        rng = np.random.default_rng([self.seed, 1])
        draws = [np.sort(rng.choice(self.floor_half, n_cells, replace=False)) for _ in range(N_FLOORS)]
        tables = [self.paired(self.split.train[draw], self.train_labels[draw]) for draw in draws]
        figures = pd.concat(tables).groupby(["part", "metric"], sort=False)["value"].mean().reset_index()
        return pd.concat([_rows(RNA, self.rna_judge.floor(n_resamples=N_FLOORS)), figures], ignore_index=True)

    def measure(self, cells: MuData) -> pd.DataFrame:
        """Return all figures of synthetic cells that were made for the held-out cells' labels, in their order."""
        return pd.concat([self.measure_rna(cells[RNA].X), self.paired(cells, self.labels)], ignore_index=True)

    def measure_rna(self, counts: NDArray) -> pd.DataFrame:
        """Return the figures of synthetic cells' RNA."""
        return _rows(RNA, self.rna_judge.measure(counts, self.labels))

    def paired(self, cells: MuData, labels: NDArray) -> pd.DataFrame:
        """Return the figures of the other modality, and of both together."""
        rng = np.random.default_rng(self.seed)
        rows = np.sort(rng.choice(self.split.held_out.n_obs, cells.n_obs, replace=False))
        real = self.split.held_out[rows]
        return pd.concat(
            [
                _rows(self.other, self._features(real, cells)),
                _rows(f"{RNA}+{self.other}", self._together(real, cells, labels)),
                _rows("pair", self._pairs(real, cells)),
            ],
            ignore_index=True,
        )

    def _features(self, real: MuData, cells: MuData) -> dict[str, float]:
        counts = [to_dense(part[self.other].X) for part in (real, cells)]
        each = np.array([stats.ks_2samp(a, b).statistic for a, b in zip(*(x.T for x in counts), strict=True)])
        values = [np.log1p(x) for x in counts]
        correlations = [_upper(np.corrcoef(x[:, self.features].T)) for x in values]
        seen = np.isfinite(correlations).all(axis=0)
        return {
            "feature_ks": float(each.mean()),
            "worst_feature_ks": float(each.max()),
            "total_ks": library_size_ks(counts[0].sum(1), counts[1].sum(1)),
            "correlation_error": float(np.abs(np.subtract(*correlations))[seen].mean()),
            "correlation_similarity": float(np.corrcoef(np.array(correlations)[:, seen])[0, 1]),
            "auc": classifier_auc(*(self.pca.transform(x) for x in values)),
        }

    def _together(self, real: MuData, cells: MuData, labels: NDArray) -> dict[str, float]:
        across = [self._across(part) for part in (real, cells)]
        return {
            "cross_correlation_error": float(np.nanmean(np.abs(np.subtract(*across)))),
            "total_correlation_error": abs(
                float(np.subtract(*(self._total_correlation(part) for part in (real, cells))))
            ),
            "auc": classifier_auc(self._joint(real), self._joint(cells)),
            "label_fidelity": float((self.classifier.predict(self._joint(cells)) == labels).mean()),
        }

    def _pairs(self, real: MuData, cells: MuData) -> dict[str, float]:
        """Return the correlation of each gene with what it makes, in synthetic cells, and the distance from the real one."""
        found = {}
        for gene, feature in self.split.dataset.pairs:
            if gene in real[RNA].var_names and feature in real[self.other].var_names:
                r = [_pair_correlation(part, self.other, gene, feature) for part in (real, cells)]
                found |= {f"{gene}/{feature}": r[1], f"{gene}/{feature} real": r[0]}
        if found:
            values = np.array(list(found.values())).reshape(-1, 2)
            found["mean error"] = float(np.abs(values[:, 0] - values[:, 1]).mean())
        return found

    def _across(self, cells: MuData) -> NDArray[np.float64]:
        """Return the correlations of variable genes with variable features of the other modality."""
        genes = log_normalise(cells[RNA].X)[:, self.genes]
        both = np.corrcoef(genes.T, logs(cells, self.other)[:, self.features].T)
        return both[: len(self.genes), len(self.genes) :]

    def _total_correlation(self, cells: MuData) -> float:
        totals = [np.log(to_dense(cells[name].X).sum(1).clip(1)) for name in (RNA, self.other)]
        return float(np.corrcoef(totals)[0, 1])

    def _joint(self, cells: MuData) -> NDArray[np.float64]:
        """Return the principal components of both modalities side by side."""
        rna = self.rna_judge.pca.transform(log_normalise(cells[RNA].X))
        return np.hstack([rna, self.pca.transform(logs(cells, self.other))])


def logs(cells: MuData, name: str) -> NDArray[np.float32]:
    """Return a modality's counts as logarithms, not normalised."""
    return np.log1p(to_dense(cells[name].X)).astype(np.float32)


def imputation_figures(predicted: NDArray, real: NDArray, labels: NDArray, names: list[str], part: str) -> pd.DataFrame:
    """Compare predicted with measured values, both ``(cells, features)`` logarithms: correlations over cells.

    ``within label`` is the correlation after each label's mean was taken away from both.
    """
    frames = [pd.DataFrame(values, columns=names) for values in (predicted, real)]
    each = _correlations(*frames)
    within = _correlations(*(frame - frame.groupby(labels).transform("mean") for frame in frames))
    figures = {"mean correlation": each.mean(), "mean correlation within label": within.mean()}
    return _rows(part, figures | (each.to_dict() if len(names) <= N_CORRELATED else {}))


def ridge(split: PairedSplit, seed: int) -> NDArray[np.float64]:
    """Predict the held-out cells' other modality (logarithms) from their RNA by ridge regression on principal components."""
    values = [log_normalise(part[RNA].X) for part in (split.train, split.held_out)]
    pca = PCA(min(50, values[0].shape[1]), svd_solver="randomized", random_state=seed).fit(values[0])
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    model.fit(pca.transform(values[0]), logs(split.train, split.dataset.other))
    return model.predict(pca.transform(values[1]))


def _correlations(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    return a.corrwith(b)[(b > b.min()).sum() >= MIN_CELLS]


def _pair_correlation(cells: MuData, other: str, gene: str, feature: str) -> float:
    values = log_normalise(cells[RNA].X)[:, cells[RNA].var_names.get_loc(gene)]
    counts = to_dense(cells[other][:, feature].X)[:, 0]
    return float(np.corrcoef(values, np.log1p(counts))[0, 1])


def _upper(matrix: NDArray) -> NDArray:
    return matrix[np.triu_indices(len(matrix), 1)]


def _rows(part: str, figures: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame([{"part": part, "metric": name, "value": value} for name, value in figures.items()])


# --- report -----------------------------------------------------------------------------------------------------------


TITLES = {
    "rna": "RNA",
    "prot": "Surface proteins",
    "atac": "Open chromatin",
    "rna+prot": "RNA and proteins together",
    "rna+atac": "RNA and chromatin together",
    "pair": "Correlation of a gene with its protein",
    "imputation": "Other modality predicted from RNA alone, correlation with the measured one over held-out cells",
    "cost": "Cost",
}


def summarise(table: pd.DataFrame, methods: Sequence[str]) -> str:
    """Write one table per data set and part, means over seeds, with a column for every method that has figures of it."""
    lines = ["# Several modalities", "", "Means over seeds. Written by `python -m benchmarks.studies.multimodal`.", ""]
    for dataset, rows in table.groupby("dataset", sort=False):
        lines += [f"## {dataset}", "", f"{rows['seed'].nunique()} seed(s).", ""]
        for part in (name for name in TITLES if name in set(rows["part"])):
            lines += [f"### {TITLES[part]}", "", _part(rows[rows["part"] == part], methods), ""]
    sources = ("versions", "machine", "date")
    lines.append(f"Measured with {'; '.join(', '.join(map(str, table[name].unique())) for name in sources)}.")
    return "\n".join(lines) + "\n"


def _part(rows: pd.DataFrame, methods: Sequence[str]) -> str:
    values = rows.pivot_table(index="metric", columns="method", values="value", sort=False)
    shown = [method for method in methods if method in values]
    body = [[metric, *(_number(row[method]) for method in shown)] for metric, row in values.iterrows()]
    return markdown_table(["figure", *shown], body)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


# --- the study --------------------------------------------------------------------------------------------------------


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
        from scgen_diffusion.model import load

        path = self.models / f"{self.name}-{self.seed}-{method.replace(' ', '-')}"
        if not path.exists():
            train(self.split, method, self.seed, path)
        return load(path, adata=False), float((path / "seconds.txt").read_text())


def train(split: PairedSplit, method: str, seed: int, path: Path) -> None:
    """Train on both modalities, or on RNA alone, and keep the model."""
    import scvi

    from scgen_diffusion.model import MULTISCLDM, SCLDM

    scvi.settings.seed = seed
    keys, started = [split.dataset.label], time.process_time()
    if method == TOGETHER:
        cells = split.train.copy()
        MULTISCLDM.setup_mudata(cells, condition_keys=keys)
        model = MULTISCLDM(cells)
    else:
        cells = split.train[RNA].copy()
        SCLDM.setup_anndata(cells, condition_keys=keys)
        model = SCLDM(cells)
    model.train(**TRAINING)
    model.save(path)
    (path / "seconds.txt").write_text(str(time.process_time() - started))


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not stored, then write the summary."""
    path = arguments.results / "multimodal.csv"
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            done = stored_keys(path, KEYS)
            if not (methods := [method for method in arguments.methods if (dataset, seed, method) not in done]):
                continue
            study = Study(dataset, seed, arguments.folder, arguments.models)
            for method in methods:
                logger.info("%s, seed %d: %s", dataset, seed, method)
                source = describe_source("torch", "scvi-tools", "scgen-diffusion")
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
