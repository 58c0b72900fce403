"""Cells of several modalities: read one or all of them, and compare the correlations between two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scgen_diffusion._arguments import as_list, known_names
from scgen_diffusion.data import layer_names

from ._catalogue import CATALOGUE
from ._cells import Expression, Source, align_genes, expression_of, labels_of, layer_of, variances
from ._comparison import Comparison, Context
from ._genes import unit_residuals
from ._space import ComparisonSpace, choose_scales, make_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ._space import Scale, ScaleName

PAIR_COLUMNS = ("first", "second", "real", "synthetic", "difference", "floor")
MIN_PAIRED_CELLS = 4


def common_modalities(sets: Mapping[str, MuData], wanted: Sequence[str] | None = None) -> list[str]:
    """Return the names of the modalities that all sets must have: the given ones, or those of the first set.

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
    names = list(next(iter(sets.values())).mod if wanted is None else wanted)
    for name, cells in sets.items():
        for modality in names:
            if modality not in cells.mod:
                msg = f"`{name}` has no modality {modality!r}. {known_names(modality, list(cells.mod))}"
                raise KeyError(msg)
    return names


def modality_cells(cells: MuData, modality: str, keys: Sequence[str], name: str) -> AnnData:
    """Return the cells of a modality, with these columns of `obs`; values are shared with the MuData."""
    adata = cells.mod[modality]
    if not adata.obs_names.is_unique:
        msg = f"Modality {modality!r} of `{name}` has duplicate cell names; call `obs_names_make_unique()`."
        raise ValueError(msg)
    obs = pd.DataFrame({key: _column(cells, key, adata.obs_names, name) for key in keys}, index=adata.obs_names)
    return AnnData(
        adata.X,
        obs=obs,
        var=pd.DataFrame(index=adata.var_names),
        layers={name: adata.layers[name] for name in layer_names(adata)},
        uns=adata.uns,
    )


def paired_names(cells: MuData, modalities: Sequence[str]) -> pd.Index:
    """Return the names of the cells that have all of these modalities."""
    return reduce(pd.Index.intersection, [cells.mod[modality].obs_names for modality in modalities])


def paired_cells(
    cells: MuData, modalities: Sequence[str], keys: Sequence[str], name: str, genes: Mapping[str, pd.Index]
) -> dict[str, AnnData]:
    """Return the cells that have all of these modalities, in one order, each modality with these features."""
    names = paired_names(cells, modalities)
    return {
        modality: align_genes(modality_cells(cells, modality, keys, name)[names], genes[modality], name=name)
        for modality in modalities
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
        read = Expression(values, None).__getitem__
        options = {"are_counts": False, "values": values.__getitem__, "read": read}
        sources[name] = Source(name, first.obs_names, labels, **options)
    return sources


def scaled_values(
    parts: Mapping[str, AnnData], scales: Mapping[str, Scale], layers: Mapping[str, str], name: str
) -> list[sp.csr_matrix]:
    """Return the values of each modality on its scale."""
    return [
        expression_of(part, layer=layer_of(part, layers.get(modality)), name=name, scale=scales[modality]).values
        for modality, part in parts.items()
    ]


@dataclass(frozen=True)
class CrossModalityCorrelation:
    """How similar the correlations between two modalities are in real and synthetic cells.

    Attributes
    ----------
    summary
        Two rows over all pairs of features: ``cross_correlation_similarity``, Pearson's correlation of the correlations
        (higher is better), and ``cross_correlation_error``, their mean absolute difference (lower is better). `value`
        compares synthetic with real cells, `floor` other real cells with real ones, and `shuffled` real cells that have
        the second modality of another cell (of the same label).
    pairs
        A row per requested pair: the names `first` and `second`; their correlation in all `real` and all `synthetic`
        cells; and `difference`, the absolute difference for equal numbers of real and synthetic cells, next to its
        `floor` between real cells.
    """

    summary: pd.DataFrame
    pairs: pd.DataFrame


def cross_modality_correlation(
    real: MuData,
    synthetic: MuData,
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    modalities: tuple[str, str] | None = None,
    groupby: str | Sequence[str] | None = None,
    n_features: int = 100,
    scales: Mapping[str, ScaleName] | None = None,
    layers: Mapping[str, str] | None = None,
    n_floor: int = 5,
    seed: int = 0,
) -> CrossModalityCorrelation:
    r"""Measure whether two modalities, such as proteins and transcripts, are linked as in real cells.

    .. math:: r_{fg} = \operatorname{corr}_i (y_{if}, z_{ig}), \qquad
        \text{similarity} = \operatorname{corr}_{f, g} (r_{fg}, r'_{fg}),
        \qquad \text{error} = \frac{1}{FG} \sum_{fg} | r_{fg} - r'_{fg} |

    over cells :math:`i` that have both modalities, on the scale of each (see :func:`evaluate`), in real (:math:`r`) and
    synthetic cells (:math:`r'`). The similarity is between -1 and 1 (higher is better), the error between 0 and 2
    (lower is better). Figures are means over splits of the real cells: one half is compared with as many synthetic
    cells and, for the floor, with the other half.

    *Catches* modalities generated independently, which metrics of one modality cannot see, and (only the error)
    correlations that are too weak or too strong. *Misses* everything within a modality. Without `groupby`, differences
    between cell types cause most of the correlations, and a model that only knows the cell's type scores well. With it,
    what remains is how the modalities vary together within a type.

    Parameters
    ----------
    real, synthetic
        Cells with both modalities and the same features. Both should have similar shares of cell types, which affect
        correlations.
    pairs
        Features to look at one by one, each a feature of the first and one of the second modality; by default those
        with the same name, ignoring case.
    modalities
        Names of the first and second modality; by default the two in `real`.
    groupby
        Column of `obs`, or several, whose label means are subtracted first.
    n_features
        Number of features of each modality that `summary` uses: those that vary most in real cells.
    scales, layers
        As in :func:`evaluate`, with `layers` by modality.
    n_floor
        Number of splits.
    seed
        Seed of the splits.

    Raises
    ------
    KeyError
        If a modality, a feature or a column is missing.
    ValueError
        If it is unclear which two modalities are meant, or fewer than four cells have both.

    Examples
    --------
    >>> import anndata as ad, mudata as md, numpy as np
    >>> def cells(seed, *, linked=True):
    ...     rng = np.random.default_rng(seed)
    ...     rate = rng.gamma(2.0, 10.0, (1000, 6))
    ...     of_protein = rate if linked else rng.permuted(rate, axis=0)
    ...     counts = {"rna": rng.poisson(rate), "prot": rng.poisson(10 * of_protein)}
    ...     return md.MuData(
    ...         {name: ad.AnnData(x.astype(np.float32)) for name, x in counts.items()}
    ...     )
    >>> cross_modality_correlation(cells(0), cells(1)).summary["value"].round(1).tolist()
    [1.0, 0.0]
    >>> bool(
    ...     cross_modality_correlation(cells(0), cells(1, linked=False))
    ...     .summary["value"]
    ...     .iloc[0]
    ...     < 0.2
    ... )
    True
    """
    sets = {"real": real, "synthetic": synthetic}
    names = common_modalities(sets, modalities)
    if len(names) != 2:
        msg = f"`modalities` must name two modalities, but found {names}."
        raise ValueError(msg)
    keys = as_list(groupby)
    layers = dict(layers or {})
    features = {name: real.mod[name].var_names for name in names}
    if pairs is None:
        by_name = {name.casefold(): name for name in features[names[1]]}
        pairs = [(name, by_name[name.casefold()]) for name in features[names[0]] if name.casefold() in by_name]
    for pair in pairs:
        for feature, (modality, known) in zip(pair, features.items(), strict=True):
            if feature not in known:
                msg = (
                    f"`pairs` names {feature!r}, which modality {modality!r} lacks. {known_names(feature, list(known))}"
                )
                raise KeyError(msg)
    parts = {name: paired_cells(cells, names, keys, name, features) for name, cells in sets.items()}
    named = choose_scales(parts["real"], scales, layers)
    fitted = {name: make_scale(named[name], parts["real"][name], layers.get(name)) for name in names}
    both = []
    for name, own in parts.items():
        first = own[names[0]]
        if first.n_obs < MIN_PAIRED_CELLS:
            msg = f"`{name}` must have at least {MIN_PAIRED_CELLS} cells with both of {names}, but has {first.n_obs}."
            raise ValueError(msg)
        labels = labels_of(first, keys, name=name) if keys else np.zeros(first.n_obs, int)
        both.append(Paired(*scaled_values(own, fitted, layers, name), labels))
    of_real, of_synthetic = both

    most_variable = [np.argsort(-variances(v), kind="stable")[:n_features] for v in (of_real.first, of_real.second)]
    context = _pair_context(of_real.of(*most_variable), of_synthetic.of(*most_variable), n_floor, seed)
    rows = [context.row(metric) for metric in CATALOGUE.values() if "pair" in metric.scopes]
    summary = pd.DataFrame(rows).set_index("metric")[["value", "floor", "shuffled", "better"]]

    named_features = [[pair[side] for pair in pairs] for side in (0, 1)]
    places = [known.get_indexer_for(own) for known, own in zip(features.values(), named_features, strict=True)]
    of_real, of_synthetic = of_real.of(*places), of_synthetic.of(*places)
    splits = _pair_context(of_real, of_synthetic, n_floor, seed).players  # the same splits
    columns = [*named_features, of_real.pair_correlations(), of_synthetic.pair_correlations()]
    for player in ("value", "floor"):
        found = [np.abs(c.real.pair_correlations() - c.synthetic.pair_correlations()) for c in splits[player]]
        columns.append(np.mean(found, axis=0))
    return CrossModalityCorrelation(summary, pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True))))


@dataclass(frozen=True)
class Paired:
    """Values of some features of two modalities of the same cells, `(cells, features)` each, and the cells' labels."""

    first: sp.csr_matrix
    second: sp.csr_matrix
    labels: NDArray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray) -> Paired:
        return Paired(self.first[rows], self.second[rows], self.labels[rows])

    def of(self, first: NDArray, second: NDArray) -> Paired:
        """Return some of the features of each modality."""
        return Paired(self.first[:, first], self.second[:, second], self.labels)

    def repaired(self, rng: np.random.Generator) -> Paired:
        """Give every cell the second modality of another cell of the same label."""
        order = np.arange(len(self))
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            order[members] = rng.permutation(members)
        return Paired(self.first, self.second[order], self.labels)

    def residuals(self) -> list[NDArray[np.float64]]:
        """Return both modalities minus every label's mean, scaled to length 1 over cells."""
        return [unit_residuals(values.toarray(), self.labels) for values in (self.first, self.second)]

    def correlations(self) -> NDArray[np.float64]:
        """Return the correlations of all features of both modalities, `(first, second)`."""
        first, second = self.residuals()
        return first.T @ second

    def pair_correlations(self) -> NDArray[np.float64]:
        """Return the correlation of each feature with its counterpart, `(pairs,)`."""
        first, second = self.residuals()
        return (first * second).sum(axis=0)


def _pair_context(real: Paired, synthetic: Paired, n_splits: int, seed: int) -> Context:
    """Compare one half of the real cells with as many synthetic cells, the other half, and the other half re-paired."""
    rng = np.random.default_rng(seed)
    n_cells = min(len(real) // 2, len(synthetic))
    players: dict[str, list[Comparison]] = {"value": [], "floor": [], "shuffled": []}
    for _ in range(max(n_splits, 1)):
        order, drawn = rng.permutation(len(real)), rng.permutation(len(synthetic))[:n_cells]
        first, other = real[order[:n_cells]], real[order[n_cells : 2 * n_cells]]
        for name, cells in zip(players, (synthetic[drawn], other, other.repaired(rng)), strict=True):
            players[name].append(Comparison(first, cells))
    return Context({}, players)
