"""A sampling path brought to the plane of principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from matplotlib.colors import to_rgba_array

from scgen_diffusion.metrics import ComparisonSpace, Expression, expression_of

from ._figures import chosen
from ._pairs import SOURCES, drawn, label_colors, label_order, labels_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

MAX_REFERENCE_CELLS = 20_000
COLUMNS = ("cell", "frame", "time")


@dataclass(frozen=True)
class Film:
    """Cells on their way in the plane.

    Attributes
    ----------
    points
        ``(frames, cells, 2)``, cells in random order, so that none hides the others.
    times
        ``(frames,)``.
    background
        Real cells, ``(cells, 2)``; none without a reference.
    colors
        Of the cells, ``(cells, 4)``.
    labels
        Colour of each label; none without labels.
    """

    points: NDArray
    times: NDArray
    background: NDArray
    colors: NDArray
    labels: dict[str, str]

    @property
    def limits(self) -> tuple[NDArray, NDArray]:
        """Return the lowest and the highest corner of what is seen, ``(2,)``."""
        everything = np.concatenate([*self.points, self.background])
        low, high = everything.min(axis=0), everything.max(axis=0)
        margin = 0.05 * np.maximum(high - low, 1e-6)
        return low - margin, high + margin

    def at(self, moment: float) -> tuple[NDArray, float]:
        """Return points and time at a frame or between two, on straight lines."""
        first = min(int(moment), len(self.times) - 2)
        weights = np.array([first + 1 - moment, moment - first])
        return np.tensordot(weights, self.points[first : first + 2], 1), float(weights @ self.times[first : first + 2])


def film_of(
    path: AnnData,
    reference: AnnData | None,
    *,
    color: str | None,
    values: str,
    layer: str | None,
    palette: Mapping[str, str] | Sequence[str] | None,
) -> Film:
    """Bring a sampling path to the plane of the reference's, or else its own cells', principal components."""
    chosen("values", [values], ["state", "estimate"])
    rows = rows_of_frames(path)
    matrix = path.X if values == "state" else path.layers["estimate"]
    if reference is None:
        space, background = plane_of_values(matrix[rows[-1]]), np.empty((0, 2))
    else:
        real = log_values(with_genes(drawn(reference, "reference", MAX_REFERENCE_CELLS, 0), path.var_names), layer)
        space = plane_of_values(real)
        background = project(space, real)
    cells = path[rows[0]]
    colors, labels = coloring_of(cells, reference, color, palette)
    points = np.stack([project(space, matrix[frame]) for frame in rows])
    return Film(points, path.obs["time"].to_numpy(dtype=float)[rows[:, 0]], background, colors, labels)


def rows_of_frames(path: AnnData) -> NDArray[np.intp]:
    """Return the rows of each frame, ``(frames, cells)``, the cells in the same random order.

    Raises
    ------
    ValueError
        If that is not told in `obs`, or frames have different cells.
    """
    lacking = [name for name in COLUMNS if name not in path.obs]
    if lacking:
        msg = f"`path` must be of a model's get_sampling_path, but its `obs` has no column {lacking[0]!r}."
        raise ValueError(msg)
    frames, frame_of = np.unique(path.obs["frame"], return_inverse=True)
    cells, cell_of = np.unique(path.obs["cell"].astype(str), return_inverse=True)
    table = np.full((len(frames), len(cells)), -1)
    table[frame_of, cell_of] = np.arange(path.n_obs)
    if len(frames) < 2 or path.n_obs != table.size or (table < 0).any():
        msg = (
            f"`path` must have the same cells in at least two frames, but found {path.n_obs} rows of {len(cells)} cells in "
            f"{len(frames)} frames."
        )
        raise ValueError(msg)
    return table[:, np.random.default_rng(0).permutation(len(cells))]


def with_genes(reference: AnnData, genes: pd.Index) -> AnnData:
    """Return the real cells with the genes of the path, over which models normalise.

    Raises
    ------
    ValueError
        If a gene is absent.
    """
    missing = genes.difference(reference.var_names)
    if len(missing):
        msg = f"`reference` lacks {len(missing)} of the {len(genes)} genes of `path`, such as {list(missing[:3])}."
        raise ValueError(msg)
    return reference[:, genes]


def log_values(reference: AnnData, layer: str | None) -> sp.csr_matrix:
    """Return log-normalised values: of counts as models see them, of logarithms as they are."""
    expression = expression_of(reference, layer=layer, name="reference")
    return sp.csr_matrix(reference.X) if expression.library_sizes is None else expression.values


def plane_of_values(values: NDArray | sp.csr_matrix) -> ComparisonSpace:
    """Return the plane of the first two principal components.

    Raises
    ------
    ValueError
        If there are too few cells or genes for a plane.
    """
    if min(values.shape) < 3:
        msg = f"Principal components need at least 3 cells and 3 genes, but found {values.shape}; give a larger `reference`."
        raise ValueError(msg)
    return ComparisonSpace.fit(Expression(sp.csr_matrix(values), None), n_components=2)


def project(space: ComparisonSpace, values: NDArray | sp.csr_matrix) -> NDArray:
    """Bring log-normalised values to the plane as they are. Noise is not scaled to a total, which it has not."""
    chosen_genes = values[:, space.genes]
    return space.pca.transform(chosen_genes.toarray() if sp.issparse(chosen_genes) else np.asarray(chosen_genes))


def coloring_of(
    cells: AnnData, reference: AnnData | None, color: str | None, palette: Mapping[str, str] | Sequence[str] | None
) -> tuple[NDArray, dict[str, str]]:
    """Return each cell's colour ``(cells, 4)``, and what the colours mean."""
    if color is None:
        return np.broadcast_to(to_rgba_array(SOURCES["synthetic"]), (cells.n_obs, 4)), {}
    labels = labels_of(cells, color, "path")
    owner = cells if reference is None or color not in reference.obs else reference
    colors = label_colors(owner, color, label_order(owner, color, labels), palette)
    return to_rgba_array([colors[label] for label in labels]), colors
