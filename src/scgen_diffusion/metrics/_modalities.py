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
from scgen_diffusion.data import check_unique_names, layer_names

from ._cells import GENERATED, Expression, Source, align_genes, expression_of, labels_of, matrix_of, variances
from ._comparison import ALL, Comparison, Context
from ._genes import unit_residuals
from ._space import ComparisonSpace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Scale

MIN_PAIRED_CELLS = 50  # halves of fewer correlate by chance, and no interval tells
N_CORRELATED = 100


def common_modalities(sets: Mapping[str, MuData]) -> list[str]:
    """Return the names of the modalities of the first set, which all sets must have.

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
    names = list(next(iter(sets.values())).mod)
    for name, cells in sets.items():
        for modality in names:
            if modality not in cells.mod:
                msg = f"`{name}` has no modality {modality!r}. {known_names(modality, list(cells.mod))}"
                raise KeyError(msg)
    return names


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
    cells: Mapping[str, Mapping[str, AnnData]], needed: Mapping[str, int], modalities: Sequence[str], consequence: str
) -> dict[str, dict[str, AnnData]] | None:
    """Return the cells of some sets that have all of these modalities, in one order, with the features of real cells.

    If a set has fewer of them than ``needed``, warn of the ``consequence``, and return None.
    """
    names = {
        name: reduce(pd.Index.intersection, [cells[name][modality].obs_names for modality in modalities])
        for name in needed
    }
    for name, fewest in needed.items():
        if (n_paired := len(names[name])) < fewest:
            found = f"only {n_paired} cells of `{name}` have all of {list(modalities)}"
            warn_user(f"{consequence}: {found}; {fewest} are needed.")
            return None
    return {
        name: {
            modality: align_genes(cells[name][modality][own], cells["real_test"][modality].var_names, name=name)
            for modality in modalities
        }
        for name, own in names.items()
    }


def _column(cells: MuData, key: str, names: pd.Index, name: str) -> pd.Series:
    """Look up a column in the global `obs`, else in a modality that has it for all of these cells."""
    for obs in (cells.obs, *(adata.obs for adata in cells.mod.values())):
        if key in obs and obs[key].ndim == 1 and names.isin(obs.index).all():
            return obs.loc[names, key]
    known = {*cells.obs, *(column for adata in cells.mod.values() for column in adata.obs)}
    msg = f"Neither `{name}.obs` nor any modality has a column {key!r}. {known_names(key, sorted(known))}"
    raise KeyError(msg)


def joint_sources(
    paired: Mapping[str, Mapping[str, AnnData]],
    reference: Mapping[str, AnnData],
    scales: Mapping[str, Scale],
    layers: Mapping[str, str],
    keys: Sequence[str],
) -> dict[str, Source]:
    """Put the modalities of every set side by side, each on its scale.

    Each is divided by the standard deviation of its first component, so that none dominates.
    """
    first_variances = [
        ComparisonSpace.fit(Expression(values, None)).pca.explained_variance_[0]
        for values in scaled_values(reference, scales, layers, "train")
    ]
    sources = {}
    for name, parts in paired.items():
        blocks = zip(scaled_values(parts, scales, layers, name), first_variances, strict=True)
        values = sp.hstack([block * np.float32(1 / np.sqrt(variance)) for block, variance in blocks], format="csr")
        first = next(iter(parts.values()))
        labels = labels_of(first, keys, name=name) if keys else None
        sources[name] = Source(name, first.obs_names, labels, values.__getitem__, log_base=np.e, scale=None)
    return sources


def scaled_values(
    parts: Mapping[str, AnnData], scales: Mapping[str, Scale], layers: Mapping[str, str], name: str
) -> list[sp.csr_matrix]:
    """Return the values of each modality on its scale."""
    return [
        expression_of(part, layer=layers.get(modality), name=name, scale=scales[modality]).values
        for modality, part in parts.items()
    ]


def pair_context(
    paired: Mapping[str, Mapping[str, AnnData]],
    scales: Mapping[str, Scale],
    layers: Mapping[str, str],
    keys: Sequence[str],
    *,
    n_splits: int,
    seed: int,
) -> Context:
    """Compare correlations in one half of the real cells, synthetic cells, the other half, and that one re-paired.

    Each label's mean is subtracted. Of each modality of the pair, the features that vary most in real cells count.
    """
    values = {name: scaled_values(parts, scales, layers, name) for name, parts in paired.items()}
    kept = [np.argsort(-variances(own), kind="stable")[:N_CORRELATED] for own in values["real_test"]]
    labels = {}
    for name, parts in paired.items():
        first = next(iter(parts.values()))
        labels[name] = labels_of(first, keys, name=name) if keys else np.zeros(first.n_obs, int)

    def correlations(name: str, rows: NDArray, order: NDArray | None = None) -> NDArray[np.float64]:
        """Return the correlations of features of both modalities; of the second one, the cells may have an order."""
        first, second = (
            unit_residuals(own[of_side][:, features].toarray(), labels[name][rows])
            for own, features, of_side in zip(values[name], kept, (rows, rows if order is None else order), strict=True)
        )
        return first.T @ second

    rng = np.random.default_rng(seed)
    n_real, n_synthetic = (len(labels[name]) for name in ("real_test", "synthetic"))
    n_cells = min(n_real // 2, n_synthetic)
    comparisons: dict[str, list[Comparison]] = {"value": [], "real": [], "shuffled": []}
    for _ in range(max(n_splits, 1)):
        order, drawn = rng.permutation(n_real), rng.permutation(n_synthetic)[:n_cells]
        first, other = order[:n_cells], order[n_cells : 2 * n_cells]
        # the second modality of each cell is that of another cell of its label
        of_other, mixed = labels["real_test"][other], other.copy()
        for label in np.unique(of_other):
            mixed[of_other == label] = rng.permutation(other[of_other == label])
        of_real = correlations("real_test", first)
        found = (
            correlations("synthetic", drawn),
            correlations("real_test", other),
            correlations("real_test", other, mixed),
        )
        for side, own in zip(comparisons, found, strict=True):
            comparisons[side].append(Comparison(of_real, own))
    return Context({"group": ALL}, comparisons if n_splits else comparisons | {"real": []})
