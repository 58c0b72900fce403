"""Coordinates in the plane: UMAP of real cells, and where other cells belong in it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import scanpy as sc
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_PLACED_BY = 5
N_ITERATIONS = 50
SMALLEST_SHARE = 1e-3  # of the spread of the points: nearer is as good as there


def umap_of(values: NDArray, *, n_neighbors: int, min_dist: float, seed: int) -> NDArray[np.float32]:
    """Return scanpy's UMAP, `(cells, 2)`."""
    cells = AnnData(np.ascontiguousarray(values, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of umap-learn, about seeds and threads
        sc.pp.neighbors(cells, n_neighbors=min(n_neighbors, len(values) - 1), use_rep="X", random_state=seed)
        sc.tl.umap(cells, min_dist=min_dist, random_state=seed)
    return cells.obsm["X_umap"]


def place(values: NDArray | None, fitted: NDArray, coordinates: NDArray) -> NDArray:
    """Place cells at the geometric median of the coordinates of the fitted cells that are nearest.

    The median, since a mean puts cells that are near two islands into the empty space between them; the geometric one, since that
    of each coordinate by itself puts cells in rows.

    Parameters
    ----------
    values
        Cells to place, `(cells, features)`. None places the fitted cells themselves, each by the others.
    fitted
        Cells that have coordinates, `(cells, features)`.
    coordinates
        Of the fitted cells, `(cells, 2)`.
    """
    n_others = len(fitted) - (values is None)
    neighbors = NearestNeighbors(n_neighbors=min(N_PLACED_BY, n_others)).fit(fitted)
    return geometric_median(coordinates[neighbors.kneighbors(values, return_distance=False)])


def geometric_median(points: NDArray) -> NDArray[np.float64]:
    r"""Return the point with the smallest sum of distances to the points of each set, by Weiszfeld's iteration.

    .. math:: y \leftarrow \frac{\sum_i x_i / \lVert x_i - y \rVert}{\sum_i 1 / \lVert x_i - y \rVert}

    Parameters
    ----------
    points
        `(sets, points, 2)`.
    """
    points = points.astype(np.float64)
    scale = np.maximum(np.ptp(points, axis=1).max(axis=-1), 1e-12)[:, None]
    median = points.mean(axis=1)
    for _ in range(N_ITERATIONS):
        distances = np.linalg.norm(points - median[:, None], axis=2)
        weights = 1 / np.maximum(distances, SMALLEST_SHARE * scale)
        median = (points * (weights / weights.sum(axis=1, keepdims=True))[..., None]).sum(axis=1)
    return median


def plane_of(
    real: NDArray,
    synthetic: NDArray,
    train: NDArray | None,
    *,
    fit: Literal["real", "both"],
    n_neighbors: int,
    min_dist: float,
    seed: int,
) -> tuple[NDArray, NDArray]:
    """Return the coordinates of real and synthetic cells, both found in the same way."""
    how = {"n_neighbors": n_neighbors, "min_dist": min_dist, "seed": seed}
    if fit == "both":
        coordinates = umap_of(np.concatenate([real, synthetic]), **how)
        return coordinates[: len(real)], coordinates[len(real) :]
    fitted = real if train is None else train
    coordinates = umap_of(fitted, **how)
    return (
        place(None if train is None else real, fitted, coordinates),
        place(synthetic, fitted, coordinates),
    )
