"""Are positions good conditions? Cells of places in a tissue section that a model has not seen, beside simple ways.

    python -m benchmarks.studies.tissue                                # seven minutes of CPU time per seed
    python -m benchmarks.studies.tissue --cells /tmp/cells --seeds 0   # keeps the cells of every way

One column of square tiles across all layers of `osmfish_cortex` is held out, and a tenth of the other tiles. Every way
learns from the remaining cells and draws one cell for each held-out position. Half of the drawn cells are compared with
the real cells at the other half of the positions. The floor compares real cells of both halves. Adds to
``results/tissue.csv`` and writes ``results/tissue.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors, kneighbors_graph
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.quality.baselines import draw_as_dispersed, gaussian_copula, negative_binomial_copula
from benchmarks.quality.splits import load, log_normalise, to_dense
from benchmarks.studies.held_out import (
    REAL,
    random_halves,
    read_options,
    store_figures,
    study_parser,
)
from benchmarks.tables import markdown_table, read_table, stored_keys, write_text
from scgen_diffusion.metrics import classifier_auc, energy_distance
from scgen_diffusion.model import SCLDM

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    import scipy.sparse as sp
    from numpy.typing import NDArray

DATASET, POSITION, REGION, TYPE = "osmfish_cortex", "spatial", "region", "cell_type"
KEYS = ("method", "seed")

N_TILES = 8  # across the section
SHARE_OF_TILES = 0.1  # held out beside the stripe
MIN_CELLS = 10  # of a tile in each half
N_HALVES = 5
N_NEAREST = 15  # cells that may give their counts or their type, as in the conditions of the package
N_FAR = 60
WIDTHS = np.array([0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12])  # of a kernel, as shares of the section's width
N_AROUND = 6  # neighbours of a cell in the section
N_BINS = 12  # of the depth
N_MARKERS = 10  # genes of the largest Moran's I
N_AXES = 15


@dataclass(frozen=True)
class Section:
    """Training and held-out cells of a section with their tiles, and which held-out cells are in the stripe."""

    train: ad.AnnData
    held_out: ad.AnnData
    train_tiles: NDArray[np.int_]
    tiles: NDArray[np.int_]
    in_stripe: NDArray[np.bool_]

    @classmethod
    def split(cls, cells: ad.AnnData, seed: int) -> Section:
        """Hold out a stripe across the layers, not at the edge, and a share of the other tiles."""
        rng = np.random.default_rng(seed)
        positions = cells.obsm[POSITION]
        column, row = ((positions - positions.min(0)) / (np.ptp(positions[:, 0]) / N_TILES)).astype(int).T
        column = column.clip(max=N_TILES - 1)
        tile, in_stripe = 100 * column + row, column == rng.integers(1, N_TILES - 1)
        others = np.unique(tile[~in_stripe])
        is_held = in_stripe | np.isin(tile, rng.choice(others, round(SHARE_OF_TILES * len(others)), replace=False))
        return cls(cells[~is_held].copy(), cells[is_held].copy(), tile[~is_held], tile[is_held], in_stripe[is_held])


# --- ways to get cells at positions -----------------------------------------------------------------------------------


def near(section: Section, n: int) -> NDArray[np.intp]:
    """Return the nearest training cells of each held-out position, ``(positions, n)``."""
    search = NearestNeighbors(n_neighbors=n).fit(section.train.obsm[POSITION])
    return search.kneighbors(section.held_out.obsm[POSITION], return_distance=False)


def draw_near(section: Section, seed: int, n: int = N_NEAREST) -> NDArray[np.intp]:
    """Draw one of the nearest training cells for each position."""
    nearest = near(section, n)
    return nearest[np.arange(len(nearest)), np.random.default_rng([seed, 1]).integers(n, size=len(nearest))]


def nearest_cell(section: Section, seed: int) -> NDArray:
    """Copy the nearest training cell."""
    return section.train.X[near(section, 1)[:, 0]]


def cell_nearby(section: Section, seed: int, n: int = N_NEAREST) -> NDArray:
    """Copy one of the nearest training cells."""
    return section.train.X[draw_near(section, seed, n)]


def smooth_means(section: Section, seed: int) -> NDArray:
    """Draw negative-binomial counts around smoothed shares of the genes, with the total of a cell nearby.

    The smoother is a Gaussian kernel. Its width and the genes' dispersions give the best prediction of the cells of
    whole training tiles by the other tiles.
    """
    counts, positions = to_dense(section.train.X).astype(float), section.train.obsm[POSITION]
    totals = counts.sum(1, keepdims=True)
    shares = {width: np.empty_like(counts) for width in np.ptp(positions[:, 0]) * WIDTHS}
    for known, wanted in GroupKFold(5).split(counts, groups=section.train_tiles):
        for width, found in shares.items():
            found[wanted] = _smooth(positions[known], counts[known], positions[wanted], width)
    width = min(shares, key=lambda width: np.square(np.sqrt(counts / totals) - np.sqrt(shares[width])).mean())
    expected = totals * shares[width]
    mean = totals[draw_near(section, seed)] * _smooth(positions, counts, section.held_out.obsm[POSITION], width)
    rng = np.random.default_rng([seed, 2])
    return draw_as_dispersed(mean, counts, expected, rng)


def _smooth(positions: NDArray, counts: NDArray, wanted: NDArray, width: float) -> NDArray:
    """Return the shares of the genes at the wanted positions, ``(wanted, genes)``."""
    squares = euclidean_distances(wanted, positions, squared=True)
    means = np.exp(-(squares - squares.min(1, keepdims=True)) / (2 * width**2)) @ counts
    return np.maximum(means / means.sum(1, keepdims=True), 1e-6)


def cell_of_type(draw: Callable[..., sp.csr_matrix]) -> Callable[[Section, int], NDArray]:
    """Draw the type of one of the nearest training cells, and a cell of this type."""

    def draw_cells(section: Section, seed: int) -> NDArray:
        types = section.train.obs[TYPE].to_numpy(str)
        return draw(section.train, types, types[draw_near(section, seed)], seed)

    return draw_cells


def scldm(section: Section, seed: int) -> NDArray:
    """Train SCLDM on positions, with default settings, and generate at the held-out ones."""
    import scvi

    scvi.settings.seed = seed
    train = section.train.copy()
    SCLDM.setup_anndata(train, continuous_condition_keys=[POSITION])
    model = SCLDM(train)
    model.train(accelerator="cpu")
    return model.generate(condition={POSITION: section.held_out.obsm[POSITION]}, seed=seed).X


WAYS: dict[str, Callable[[Section, int], NDArray]] = {
    "SCLDM": scldm,
    "smoothed means, NB": smooth_means,
    "type nearby, then NB copula": cell_of_type(negative_binomial_copula),
    "type nearby, then copula": cell_of_type(gaussian_copula),
    f"one of {N_NEAREST} training cells": cell_nearby,
    f"one of {N_FAR} training cells": partial(cell_nearby, n=N_FAR),
    "nearest training cell": nearest_cell,
}


# --- judge ------------------------------------------------------------------------------------------------------------


class Judge:
    """Compares cells at the held-out positions with the real cells there."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.positions = section.held_out.obsm[POSITION]
        self.scale = np.median(to_dense(section.train.X).sum(1))
        train, self.real = self.genes(section.train.X), self.genes(section.held_out.X)
        self.axes = PCA(N_AXES, random_state=0).fit(train)
        self.find_region, self.find_type = (
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.3)).fit(train, section.train.obs[key])
            for key in (REGION, TYPE)
        )
        self.markers = np.argsort(-_moran(train, section.train.obsm[POSITION]))[:N_MARKERS]
        self.depth = np.full(len(self.real), -1)
        self.depth[section.in_stripe] = pd.qcut(self.positions[section.in_stripe, 1], N_BINS, labels=False)

    def genes(self, counts: NDArray | sp.spmatrix) -> NDArray[np.float32]:
        """Return log-normalised values ``(cells, genes)``."""
        return log_normalise(counts, self.scale)

    def figures(self, counts: NDArray | sp.spmatrix, seed: int) -> dict[str, float]:
        """Return all figures of one cell per held-out position, means over random halves."""
        drawn = self.genes(counts)
        regions = self.find_region.predict(drawn) == self.section.held_out.obs[REGION].to_numpy()
        found = pd.DataFrame([self._of_halves(drawn, *half) for half in random_halves(len(self.real), N_HALVES, seed)])
        return {"region": float(regions.mean())} | found.mean().to_dict()

    def _of_halves(self, drawn: NDArray, a: NDArray, b: NDArray) -> dict[str, float]:
        """Compare drawn cells at the positions `a` with real ones at the positions `b`."""
        mean, real_mean, energy = [], [], []
        x, y = self.axes.transform(drawn), self.axes.transform(self.real)
        for tile in np.unique(self.section.tiles):
            ours, theirs = (half[self.section.tiles[half] == tile] for half in (a, b))
            if min(len(ours), len(theirs)) >= MIN_CELLS:
                energy.append(energy_distance(y[theirs], x[ours]))
                mean.append(drawn[ours].mean(0))
                real_mean.append(self.real[theirs].mean(0))
        moran, real_moran = _moran(drawn[a], self.positions[a]), _moran(self.real[b], self.positions[b])
        profile, real_profile = self._profile(drawn, a), self._profile(self.real, b)
        with_position = [np.c_[genes, StandardScaler().fit_transform(self.positions)] for genes in (self.real, drawn)]
        return {
            "energy_distance": np.mean(energy),
            "tile_error": np.sqrt(np.mean(np.square(np.subtract(mean, real_mean)))),
            "auc": classifier_auc(self.real[b], drawn[a]),
            "auc_with_position": classifier_auc(with_position[0][b], with_position[1][a]),
            "moran_correlation": np.corrcoef(moran, real_moran)[0, 1],
            "moran_ratio": moran.sum() / real_moran.sum(),
            "depth_correlation": np.mean(
                [np.corrcoef(*pair)[0, 1] for pair in zip(profile, real_profile, strict=True)]
            ),
            "neighbourhoods": np.corrcoef(self._neighbourhoods(drawn, a), self._neighbourhoods(self.real, b))[0, 1],
        }

    def _profile(self, genes: NDArray, rows: NDArray) -> NDArray:
        """Return the means of the markers in bins of the stripe's depth, ``(markers, bins)``."""
        values = genes[rows][:, self.markers]
        return np.array([values[self.depth[rows] == k].mean(0) for k in range(N_BINS)]).T

    def _neighbourhoods(self, genes: NDArray, rows: NDArray) -> NDArray:
        """Return how much more often cells of two types are neighbours than by chance, ``(pairs of types,)``."""
        types = self.find_type.predict(genes[rows])[:, None] == self.find_type.classes_
        graph = _neighbours(self.positions[rows])
        found, expected = types.T @ (graph @ types.astype(float)), graph.sum() * np.outer(types.mean(0), types.mean(0))
        return ((found - expected) / np.sqrt(expected + 1))[np.triu_indices(types.shape[1])]


def _neighbours(positions: NDArray) -> sp.csr_matrix:
    graph = kneighbors_graph(positions, N_AROUND)
    return graph.maximum(graph.T)


def _moran(genes: NDArray, positions: NDArray) -> NDArray:
    """Return Moran's I of every gene, 0 for a gene that does not vary."""
    return np.nan_to_num(sc.metrics.morans_i(_neighbours(positions), np.ascontiguousarray(genes.T, dtype=float)))


# --- study ------------------------------------------------------------------------------------------------------------


def cells_of(way: str, section: Section, seed: int, folder: Path | None) -> NDArray:
    """Return the counts of one cell per held-out position: those in the folder, or new ones."""
    path = folder / f"{way.replace(' ', '_')}-{seed}.npy" if folder else None
    if path is not None and path.exists():
        return np.load(path)
    counts = to_dense(WAYS[way](section, seed))
    if path is not None:
        np.save(path, counts)
    return counts


#: Columns of the summary.
COLUMNS = {
    "region": "region found",
    "energy_distance": "energy distance in a tile",
    "tile_error": "error of a tile's means",
    "auc": "AUC",
    "auc_with_position": "AUC, position known",
    "moran_correlation": "Moran's I, correlation",
    "moran_ratio": "Moran's I, share",
    "depth_correlation": "depth, correlation",
    "neighbourhoods": "neighbours, correlation",
}


def summarise(table: pd.DataFrame) -> str:
    """Write one row per way: means over seeds."""
    means = table.groupby("method", sort=False)[list(COLUMNS)].mean()
    rows = [[way, *(f"{value:.3f}" for value in means.loc[way])] for way in (REAL, *WAYS) if way in means.index]
    return "\n".join(
        [
            f"Cells at held-out positions of `{DATASET}` (a stripe across all layers, and a tenth of the other tiles), "
            f"means over {table['seed'].nunique()} seeds. Written by `python -m benchmarks.studies.tissue`.",
            "",
            markdown_table(["", *COLUMNS.values()], rows),
            "",
        ]
    )


def main() -> None:
    """Run from the command line."""
    parser = study_parser(__doc__, "tissue")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--cells", type=Path, help="folder in which counts are kept")
    arguments = read_options(parser)
    path, cells = arguments.results / "tissue.csv", load(DATASET)
    cells.X = cells.layers["counts"].copy()
    cells.uns.clear()  # which says that `X` is log-normalised
    for seed in arguments.seeds:
        section = Section.split(cells, seed)
        todo = [way for way in (REAL, *arguments.ways) if (way, seed) not in stored_keys(path, KEYS)]
        judge = Judge(section) if todo else None
        for way in todo:
            counts = section.held_out.X if way == REAL else cells_of(way, section, seed, arguments.cells)
            store_figures(path, {"method": way, "seed": seed}, judge.figures(counts, seed))
    write_text(path.with_suffix(".md"), summarise(read_table(path)))


if __name__ == "__main__":
    main()
