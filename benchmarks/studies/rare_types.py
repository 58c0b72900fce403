"""Which cells help a classifier that has seen ten cells of a type?

    python -m benchmarks.studies.rare_types    # results/rare_types.csv, about 20 minutes

Two types of a data set keep ten training cells each, all others 60 %. 100 cells of each rare type are added: generated
ones, the ten cells again, their reconstructions by the model, or points midway to cells of other types. Remedies are
scored by F1 and, since most of an F1 may come from a moved threshold, by average precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scvi
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.neighbors import NearestNeighbors

import scgen_diffusion as scgd
from benchmarks.tables import describe_source, store_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
N_GENES, N_TRAINING, N_ADDED = 2_000, 10, 100
RUNS = {
    ("pbmc3k", 0): ["NK", "FCGR3A+ Mono"],
    ("pbmc3k", 1): ["NK", "FCGR3A+ Mono"],
    ("paul15", 2): ["Neutrophils", "Multipotent progenitors"],
}


class Split(NamedTuple):
    """Training and held-out cells."""

    train: AnnData
    held_out: AnnData


def split(dataset: str, seed: int, rare: list[str]) -> Split:
    """Keep ten training cells of each rare type, and 60 % of the others."""
    adata = getattr(scgd.datasets, dataset)()
    adata = adata[:, scgd.metrics.gene_statistics(adata)["variance"].nlargest(N_GENES).index].copy()
    labels, rng = adata.obs["cell_type"].to_numpy().astype(str), np.random.default_rng(seed)
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rng.shuffle(rows)
        is_held_out[rows[N_TRAINING if label in rare else int(0.6 * len(rows)) :]] = True
    return Split(adata[~is_held_out].copy(), adata[is_held_out].copy())


def train(cells: AnnData, seed: int) -> scgd.model.SCLDM:
    """Train SCLDM with its defaults on all training cells."""
    scvi.settings.seed = seed
    scgd.model.SCLDM.setup_anndata(cells, layer="counts", condition_keys=["cell_type"])
    model = scgd.model.SCLDM(cells)
    model.train(train_size=1.0)
    return model


def remedies(
    model: scgd.model.SCLDM, cells: AnnData, space: scgd.metrics.ComparisonSpace, rare: list[str]
) -> dict[str, NDArray]:
    """Return 100 added cells of each rare type by each remedy, as points, type by type."""
    values, labels = space.project(cells), cells.obs["cell_type"].to_numpy().astype(str)
    rows = {label: np.flatnonzero(labels == label) for label in rare}
    n_times = N_ADDED // N_TRAINING
    repeated = np.concatenate([np.repeat(values[rows[label]], n_times, axis=0) for label in rare])
    others = values[~np.isin(labels, rare)]
    nearest = NearestNeighbors(n_neighbors=10).fit(others).kneighbors(repeated)[1]
    reconstructed = [
        space.project(model.get_reconstruction(cells[rows[label]].copy(), seed=draw))
        for label in rare
        for draw in range(n_times)
    ]
    wanted = np.repeat(rare, N_ADDED).tolist()
    return {
        "generated": space.project(model.generate(condition={"cell_type": wanted}, seed=0)),
        "reconstructed": np.concatenate(reconstructed),
        "repeated": repeated,
        "midway": (repeated + others[nearest[:, 4]]) / 2,
    }


def score(model: scgd.model.SCLDM, cells: Split, rare: list[str]) -> Iterator[dict[str, object]]:
    """Yield the scores of each remedy for each rare type."""
    space = scgd.metrics.ComparisonSpace.fit(cells.train)
    values, truth = space.project(cells.train), space.project(cells.held_out)
    labels, true = (one.obs["cell_type"].to_numpy().astype(str) for one in cells)
    wanted = np.repeat(rare, N_ADDED)

    def of_logistic(added: NDArray, names: NDArray, remedy: str, **options: str) -> Iterator[dict[str, object]]:
        fitted = LogisticRegression(max_iter=2_000, C=0.1, **options)
        fitted.fit(np.concatenate([values, added]), np.concatenate([labels, names]))
        found, chances = fitted.predict(truth), fitted.predict_proba(truth)
        for label in rare:
            precision = average_precision_score(true == label, chances[:, list(fitted.classes_).index(label)])
            f1 = f1_score(true == label, found == label)
            yield {"label": label, "remedy": remedy, "f1": f1, "average_precision": precision}

    yield from of_logistic(values[:0], labels[:0], "class weights", class_weight="balanced")
    added = remedies(model, cells.train, space, rare)
    gains = {
        remedy: scgd.metrics.augmentation_gain(values, labels, new, wanted, truth, true, classifier="neighbours")
        for remedy, new in added.items()
    }
    of_neighbours = {"nothing": gains["repeated"]["f1_real"]}
    of_neighbours |= {remedy: gain["f1_augmented"] for remedy, gain in gains.items()}
    for remedy, f1 in of_neighbours.items():
        new = added.get(remedy, values[:0])
        for row in of_logistic(new, wanted[: len(new)], remedy):
            yield row | {"f1_neighbours": f1[row["label"]]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    path = parser.parse_args().results / "rare_types.csv"
    source = describe_source("scikit-learn", "scgen-diffusion")
    for (dataset, seed), rare in RUNS.items():
        cells = split(dataset, seed, rare)
        rows = [
            {"dataset": dataset, "seed": seed, **row, **source} for row in score(train(cells.train, seed), cells, rare)
        ]
        store_rows(path, pd.DataFrame(rows), ("dataset", "seed", "label", "remedy"))


if __name__ == "__main__":
    main()
