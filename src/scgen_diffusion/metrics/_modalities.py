"""Cells of several modalities: read one or all of them, and compare the correlations between two."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scgen_diffusion._arguments import known_names, warn_user
from scgen_diffusion.data import check_unique_names, layer_names, to_csr

from ._cells import (
    GENERATED,
    ComparisonSpace,
    Source,
    align_genes,
    log_normalise,
    matrix_of,
    scale_to_target,
    variances,
)
from ._comparison import N_CORRELATED_GENES, Comparison, Context
from ._genes import unit_residuals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Scale
    from ._comparison import Draws

#: With fewer features, each is a large part of the total: dividing by the total makes all others fall when one rises.
SMALL_PANEL = 500


def tf_idf(reference: sp.csr_matrix) -> Scale:
    r"""Return term frequency, inverse document frequency (TF-IDF), the scale of open chromatin.

    .. math:: y_{if} = \log\Bigl(1 + 10^4\, \frac{x_{if}}{\sum_h x_{ih}} \cdot \frac{n}{n_f}\Bigr)

    where :math:`n_f` of the :math:`n` reference cells have feature :math:`f` (at least 1).

    References
    ----------
    Stuart et al. 2021, Single-cell chromatin state analysis with Signac. Nat Methods 18:1333
    (`RunTFIDF`, its first method).
    """
    n_found = np.asarray((reference != 0).sum(axis=0)).ravel()
    inverse_frequencies = reference.shape[0] / np.maximum(n_found, 1)

    def scale(counts: sp.csr_matrix) -> sp.csr_matrix:
        counts = scale_to_target(counts)
        counts.data *= inverse_frequencies[counts.indices]
        return counts.log1p().astype(np.float32)

    return scale


def log1p_of_counts(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Take `log1p` of the counts as they are (CSR, float32), the scale of a panel of proteins."""
    copied = sp.csr_matrix(counts, dtype=np.float64, copy=True)  # log1p sorts the genes of each cell in place
    return copied.log1p().astype(np.float32)


def choose_scale(sets: Mapping[str, AnnData], layer: str | None) -> tuple[str, Scale]:
    """Return the name of the scale that suits the real cells' values and number of features, and the scale."""
    real = sets["real_test"]
    matrix, log_base = matrix_of(real, layer, "real_test")
    if log_base is None and 0 < to_csr(matrix[:], "real_test").data.max(initial=0) <= 1:
        reference = align_genes(sets.get("train", real), real.var_names, name="train")
        return "tf_idf", tf_idf(to_csr(matrix_of(reference, layer, "train")[0][:], "train"))
    return ("log1p", log1p_of_counts) if real.n_vars < SMALL_PANEL else ("log_normalised", log_normalise)


def common_modalities(sets: Mapping[str, MuData]) -> list[str]:
    """Return the names of the modalities of ``real_test``, which all sets must have.

    Raises
    ------
    TypeError
        If a set is not a MuData.
    KeyError
        If a set lacks one of them.
    """
    for name, cells in sets.items():
        if not isinstance(cells, MuData):
            msg = f"`{name}` must be a MuData, but is {type(cells).__name__}."
            raise TypeError(msg)
        if lacking := [modality for modality in sets["real_test"].mod if modality not in cells.mod]:
            msg = f"`{name}` has no modality {lacking[0]!r}. {known_names(lacking[0], list(cells.mod))}"
            raise KeyError(msg)
    return list(sets["real_test"].mod)


def modality_cells(cells: MuData, modality: str, keys: Sequence[str], name: str, layer: str | None) -> AnnData:
    """Return the cells of a modality, with these columns of `obs`; values are shared with the MuData.

    Real cells without any count lack the modality, and are left out; such generated ones are a fault that is judged.
    """
    adata, whose = cells.mod[modality], f"{name}[{modality!r}]"
    check_unique_names(adata.obs_names, f"{whose}.obs_names")
    obs = pd.DataFrame({key: _column(cells, key, adata.obs_names, name) for key in keys}, index=adata.obs_names)
    found = AnnData(
        adata.X,
        obs=obs,
        var=pd.DataFrame(index=adata.var_names),
        layers={name: adata.layers[name] for name in layer_names(adata)},
        uns=adata.uns,
    )
    if name in GENERATED:
        return found
    has_it = np.ravel(matrix_of(found, layer, whose)[0][:].sum(axis=1)) != 0  # of a backed file, too
    return found if has_it.all() else found[has_it]


def paired_cells(
    sources: Mapping[str, Mapping[str, Source]], needed: Mapping[str, int]
) -> dict[str, list[NDArray[np.intp]]] | None:
    """Return the positions, in each modality, of the cells of some sets that have all of these modalities.

    If a set has fewer of them than ``needed``, give a warning, and return None.
    """
    found = {}
    for name, fewest in needed.items():
        of_modalities = [own[name].obs_names for own in sources.values()]
        names = reduce(pd.Index.intersection, of_modalities)
        if len(names) < fewest:
            together = " and ".join(sources)
            warn_user(f"Comparing {together} needs {fewest} cells of `{name}` with all of them, not {len(names)}.")
            return None
        found[name] = [own.get_indexer(names) for own in of_modalities]
    return found


def _column(cells: MuData, key: str, names: pd.Index, name: str) -> pd.Series:
    """Look up a column in the global `obs`, else in a modality that has it for all of these cells."""
    for obs in (cells.obs, *(adata.obs for adata in cells.mod.values())):
        if key in obs and obs[key].ndim == 1 and names.isin(obs.index).all():
            return obs.loc[names, key]
    known = {*cells.obs, *(column for adata in cells.mod.values() for column in adata.obs)}
    msg = f"Neither `{name}.obs` nor any modality has a column {key!r}. {known_names(key, sorted(known))}"
    raise KeyError(msg)


def joint_sources(
    sources: Mapping[str, Mapping[str, Source]], paired: Mapping[str, Sequence[NDArray[np.intp]]]
) -> dict[str, Source]:
    """Put the modalities of every set side by side, each on its scale.

    Each is divided by the standard deviation of its first component, so that none dominates.
    """
    units = []
    for own in sources.values():
        reference = own.get("train", own["real_test"])
        values = reference.read(np.arange(len(reference)))
        units.append(np.float32(1 / np.sqrt(ComparisonSpace.fit(values).pca.explained_variance_[0])))
    joint = {}
    for name, places in paired.items():
        blocks = zip(_read_paired(sources, name, places), units, strict=True)
        values = sp.hstack([block * unit for block, unit in blocks], format="csr")
        first, rows = next(iter(sources.values()))[name], places[0]
        labels = None if first.labels is None else first.labels[rows]
        joint[name] = Source(name, first.obs_names[rows], labels, values, slice(None), log_base=np.e, scale=None)
    return joint


def _read_paired(
    sources: Mapping[str, Mapping[str, Source]], name: str, places: Sequence[NDArray[np.intp]]
) -> list[sp.csr_matrix]:
    """Return the values of each modality on its scale."""
    return [own[name].read(rows).values for own, rows in zip(sources.values(), places, strict=True)]


def pair_context(
    sources: Mapping[str, Mapping[str, Source]], paired: Mapping[str, Sequence[NDArray[np.intp]]], draws: Draws
) -> Context:
    """Compare correlations in one half of the real cells, synthetic cells, the other half, and that one re-paired.

    Each label's mean is subtracted. Of each modality of the pair, the features that vary most in real cells count.
    """
    values = {name: _read_paired(sources, name, places) for name, places in paired.items()}
    kept = [np.argsort(-variances(own), kind="stable")[:N_CORRELATED_GENES] for own in values["real_test"]]
    labels = {}
    for name, (rows, _) in paired.items():
        own = next(iter(sources.values()))[name].labels
        labels[name] = np.zeros(len(rows)) if own is None else own[rows]

    def correlations(name: str, rows: NDArray, order: NDArray | None = None) -> NDArray[np.float64]:
        """Return the correlations of features of both modalities; of the second one, the cells may have an order."""
        first, second = (
            unit_residuals(own[of_side][:, features].toarray(), labels[name][rows])
            for own, features, of_side in zip(values[name], kept, (rows, rows if order is None else order), strict=True)
        )
        return first.T @ second

    rng = np.random.default_rng(draws.seed)
    n_real, n_synthetic = (len(labels[name]) for name in ("real_test", "synthetic"))
    n_cells = min(n_real // 2, n_synthetic)
    comparisons: dict[str, list[Comparison]] = {"value": [], "real": [], "shuffled": []}
    for _ in range(max(draws.n_repeats, 1)):
        order, drawn = rng.permutation(n_real), rng.permutation(n_synthetic)[:n_cells]
        first, other = order[:n_cells], order[n_cells : 2 * n_cells]
        # the second modality of each cell is that of another cell of its label
        of_other, mixed = labels["real_test"][other], other.copy()
        for label in np.unique(of_other):
            mixed[of_other == label] = rng.permutation(other[of_other == label])
        of_real = correlations("real_test", first)
        comparisons["value"].append(Comparison(of_real, correlations("synthetic", drawn)))
        comparisons["real"].append(Comparison(of_real, correlations("real_test", other)))
        comparisons["shuffled"].append(Comparison(of_real, correlations("real_test", other, mixed)))
    return Context(comparisons if draws.n_repeats else comparisons | {"real": []})
