"""Figures of a modality, of both together, and of one predicted from the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.splits import log_normalise, to_dense
from benchmarks.studies.modality_splits import RNA
from benchmarks.studies.quick_judge import QuickJudge
from scgen_diffusion.metrics import classifier_auc, library_size_ks

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import NDArray

    from benchmarks.studies.modality_splits import PairedSplit

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
