"""Scales on which the features of a modality are compared: transcripts, surface proteins, open chromatin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import scipy.sparse as sp

from ._expression import TARGET_SUM, log_normalise, matrix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

#: What turns counts `(cells, features)` into values that are compared; zeros stay zeros.
Scale: TypeAlias = "Callable[[sp.csr_matrix], sp.csr_matrix]"

ScaleName: TypeAlias = Literal["log_normalised", "log1p", "tf_idf"]

#: Below so many features, one of them is a large part of a cell's total, and dividing by the total would let its rise be the fall of all others.
FEW_FEATURES = 500


@dataclass(frozen=True)
class TfIdf:
    r"""Term frequency, inverse document frequency: the scale of open chromatin.

    .. math:: y_{if} = \log\Bigl(1 + 10^4\, \frac{x_{if}}{\sum_h x_{ih}} \cdot \frac{n}{n_f}\Bigr)

    with the number :math:`n_f` of the :math:`n` reference cells that have feature :math:`f`, at least 1.

    Attributes
    ----------
    inverse_frequencies
        :math:`n / n_f`, `(features,)`.

    References
    ----------
    Stuart et al. 2021, Single-cell chromatin state analysis with Signac. Nat Methods 18:1333 (`RunTFIDF`, its first method).
    """

    inverse_frequencies: NDArray[np.float64]

    @classmethod
    def fit(cls, reference: sp.csr_matrix) -> TfIdf:
        """Count in how many reference cells each feature is found."""
        n_found = np.asarray((reference != 0).sum(axis=0)).ravel()
        return cls(reference.shape[0] / np.maximum(n_found, 1))

    def __call__(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Put cells on this scale, CSR, float32."""
        counts = sp.csr_matrix(counts, dtype=np.float64, copy=True)
        totals = np.asarray(counts.sum(axis=1)).ravel()
        counts.data *= np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1), np.diff(counts.indptr))
        counts.data *= self.inverse_frequencies[counts.indices]
        return counts.log1p().astype(np.float32)


@dataclass(frozen=True)
class Blocks:
    """Several modalities side by side, each on its own scale, and weighted.

    Attributes
    ----------
    scales
        Scale of each.
    n_features
        Number of features of each.
    weights
        What the values of each are multiplied by.
    """

    scales: Sequence[Scale]
    n_features: Sequence[int]
    weights: Sequence[float]

    def __call__(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Put cells on these scales, CSR, float32."""
        counts = sp.csc_matrix(counts)
        ends = np.cumsum(self.n_features)
        parts = [
            scale(sp.csr_matrix(counts[:, end - n : end])) * np.float32(weight)
            for scale, n, end, weight in zip(self.scales, self.n_features, ends, self.weights, strict=True)
        ]
        return sp.hstack(parts, format="csr", dtype=np.float32)


def log1p_of_counts(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Take `log1p` of counts as they are: the scale of a panel of proteins. CSR, float32."""
    return sp.csr_matrix(counts, dtype=np.float64).log1p().astype(np.float32)


def default_scale(cells: AnnData, layer: str | None, name: str) -> ScaleName:
    """Return the name of the scale that suits some cells: by whether values are 0 and 1 only, and by the number of features."""
    matrix, log_base = matrix_of(cells, layer, name)
    values = sp.csr_matrix(matrix[:]).data
    if log_base is None and len(values) and values.max() <= 1:
        return "tf_idf"
    return "log1p" if cells.n_vars < FEW_FEATURES else "log_normalised"


def make_scale(name: ScaleName, reference: AnnData, layer: str | None) -> Scale:
    """Return a scale, fitted to reference cells where it needs some."""
    if name == "log_normalised":
        return log_normalise
    if name == "log1p":
        return log1p_of_counts
    if name == "tf_idf":
        return TfIdf.fit(sp.csr_matrix(matrix_of(reference, layer, "train")[0][:]))
    msg = f"`scales` names {name!r}; a scale must be one of {list(get_args(ScaleName))}."
    raise ValueError(msg)
