"""Cells of several modalities: the table of each, of all together, and the correlations between two."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.data import known_names, warn_user

from ._catalogue import CATALOGUE, Comparison, Metric
from ._cells import (
    align_genes,
    common_modalities,
    expression_of,
    labels_of,
    layer_of,
    modality_cells,
    paired_cells,
    side_by_side,
)
from ._evaluate import COLUMNS, MIN_CELLS, check_names, evaluate_on_scale
from ._genes import correlation, unit_residuals
from ._space import Blocks, ComparisonSpace, choose_scales, make_scale, variances
from ._table import ALL, Context

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from ._space import Scale, ScaleName

#: Below so many features, a list of 50 markers is all of them, and variances along the means make no trend.
FEW_FEATURES = 100
NEED_MANY_FEATURES = ("marker_overlap", "mean_variance_error")

#: Metrics of the components of all modalities together; those of single features are in the table of each.
JOINT_METRICS = (
    "w2",
    "mmd2",
    "precision",
    "recall",
    "density",
    "coverage",
    "auc_boosting",
    "auc_neighbours",
    "transfer_f1",
    "label_fidelity",
    "nearest_train_ratio",
    "nearer_than_held_out",
    "membership_auc",
)
JOIN = "+"
#: Metrics across modalities, and which way is better.
CROSS_METRICS = {"cross_correlation_similarity": "higher", "cross_correlation_error": "lower"}
PAIR_COLUMNS = ("first", "second", "real", "synthetic", "difference", "floor")
MIN_PAIRED_CELLS = 4


def evaluate_modalities(
    real_test: MuData,
    synthetic: MuData,
    *,
    train: MuData | None = None,
    groupby: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    scales: Mapping[str, ScaleName] | None = None,
    layers: Mapping[str, str] | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare synthetic with real cells of several modalities: the table of :func:`evaluate` for each, and for all together.

    Parameters
    ----------
    real_test, synthetic, train
        As in :func:`evaluate`, with the same modalities. In the table of a modality are the cells that have it; in that of all together, the cells
        that have all.
    groupby
        Column of the global `obs`, or of a modality's, or several.
    metrics
        Names of metrics, of :func:`evaluate` or those across modalities below; if None, all that have what they need and mean something. (Lists of 50 markers, and variances along means, mean nothing with fewer than
        100 features.)
    scales
        By modality, what its counts are compared on. All keep zeros.

        - ``"log_normalised"``: the common scale, `log1p` of counts that sum to 10 000 per cell. The default for 500 features or more.
        - ``"log1p"``: logarithms of counts as they are. The default for fewer features, such as a panel of proteins. With few features, dividing by the cell's total
          makes the rise of one the fall of all others, and so does a centred log-ratio; real and synthetic cells of one experiment need no such correction, and
          wrong totals are seen.
        - ``"tf_idf"``: term frequency, inverse document frequency (Signac), with the frequencies of the training cells (of real ones, without them). The
          default for values of 0 and 1, open chromatin. Its principal components are latent semantic indexing on centred values. The shares of zeros are
          the frequencies themselves, so that `gene_zero_error` is how far they are off.
    layers
        By modality, the layer with the counts.
    max_cells, n_floor, n_bootstrap, seed
        As in :func:`evaluate`.

    Returns
    -------
    The columns of :func:`evaluate` after the column ``modality``, so that ``table[table["modality"] == "rna"]`` is a table for :func:`verdict`
    and :func:`~scgen_diffusion.pl.scores`. Principal components are those of each modality, of all features where there are few.

    Rows of all modalities together, such as ``"rna+prot"``, have the metrics that look at components (`w2`, `precision`, `recall`, AUCs, memorisation): modalities side by side,
    each divided by the standard deviation of its first component so that none outweighs the others (multiple factor analysis). They see whether
    modalities belong together. So do ``cross_correlation_similarity`` and ``cross_correlation_error`` (:func:`cross_modality_correlation`), for each pair
    of modalities, and within labels where there is `groupby`; their ``shuffled`` is real cells with the second modality of another cell.

    ``attrs["scales"]`` and ``attrs["n_cells"]`` say by modality what was compared.

    Raises
    ------
    TypeError
        If a set is no MuData.
    KeyError
        If a modality or a column is absent.
    ValueError
        If cells are too few, or what else :func:`evaluate` finds; the message begins with the modality.

    References
    ----------
    Stuart et al. 2021, Single-cell chromatin state analysis with Signac. Escofier and Pagès 1994, Multiple factor analysis (AFMULT package).

    Examples
    --------
    >>> import anndata as ad, mudata as md, numpy as np
    >>> def cells(seed, n_cells):
    ...     rng = np.random.default_rng(seed)
    ...     counts = {"rna": rng.poisson(2.0, (n_cells, 30)), "prot": rng.poisson(20.0, (n_cells, 5))}
    ...     names = [f"{seed}_{i}" for i in range(n_cells)]
    ...     return md.MuData(
    ...         {k: ad.AnnData(x.astype(np.float32), obs=pd.DataFrame(index=names)) for k, x in counts.items()}
    ...     )
    >>> table = evaluate_modalities(cells(0, 60), cells(1, 60), train=cells(2, 120), metrics="w2", n_bootstrap=0)
    >>> table[["modality", "metric"]].values.tolist()
    [['rna', 'w2'], ['prot', 'w2'], ['rna+prot', 'w2']]
    """
    names = [metrics] if isinstance(metrics, str) else metrics
    wanted = None if names is None else [name for name in names if name not in CROSS_METRICS]
    across = list(CROSS_METRICS) if names is None else [name for name in names if name in CROSS_METRICS]
    check_names(wanted)
    sets = {"real_test": real_test, "synthetic": synthetic} | ({} if train is None else {"train": train})
    keys = [] if groupby is None else [groupby] if isinstance(groupby, str) else list(groupby)
    layers = dict(layers or {})
    modalities = common_modalities(sets)
    cells = {
        modality: {name: modality_cells(mdata, modality, keys, name) for name, mdata in sets.items()}
        for modality in modalities
    }
    real = {modality: own["real_test"] for modality, own in cells.items()}
    reference = {
        modality: align_genes(own.get("train", own["real_test"]), real[modality].var_names, name="train")
        for modality, own in cells.items()
    }
    scale_names = choose_scales(real, scales, layers)
    fitted = {name: make_scale(scale_names[name], reference[name], layers.get(name)) for name in modalities}
    draws = {"max_cells": max_cells, "n_floor": n_floor, "n_bootstrap": n_bootstrap, "seed": seed}

    def judge(name: str, cells: Mapping[str, AnnData], **options: object) -> pd.DataFrame:
        try:
            return evaluate_on_scale(cells, groupby=keys or None, **draws, **options)
        except ValueError as error:
            msg = f"Modality {name!r}: {error}"
            raise ValueError(msg) from error

    tables = {}
    for modality in modalities if wanted != [] else ():
        tables[modality] = judge(
            modality,
            cells[modality],
            metrics=wanted,
            scale=fitted[modality],
            layer=layers.get(modality),
            without=NEED_MANY_FEATURES if wanted is None and reference[modality].n_vars < FEW_FEATURES else (),
        )
    joint = None if wanted is None else [name for name in wanted if name in JOINT_METRICS]
    if len(modalities) > 1 and joint != []:
        features = {modality: own.var_names for modality, own in real.items()}
        paired = {name: paired_cells(mdata, modalities, keys, name, features) for name, mdata in sets.items()}
        n_cells = min(next(iter(parts.values())).n_obs for parts in paired.values())
        if n_cells >= MIN_CELLS:
            name = JOIN.join(modalities)
            tables[name] = judge(
                name,
                {name: side_by_side(parts, layers) for name, parts in paired.items()},
                metrics=joint,
                scale=_blocks(reference, fitted, layers),
                layer=None,
                without=[metric for metric in CATALOGUE if metric not in JOINT_METRICS],
            )
        else:
            msg = f"Modalities are not judged together: {n_cells} cells of a set have all of {modalities}; there must be {MIN_CELLS} or more."
            warn_user(msg)
    n_cells = {name: table.attrs["n_cells"] for name, table in tables.items()}
    parts = [table.assign(modality=name) for name, table in tables.items()]
    for pair in combinations(modalities, 2) if across else ():
        found = cross_modality_correlation(
            real_test,
            synthetic,
            [],
            modalities=pair,
            groupby=keys or None,
            scales={modality: scale_names[modality] for modality in pair},
            layers={modality: layer for modality, layer in layers.items() if modality in pair},
            n_floor=n_floor,
            seed=seed,
        )
        figures = found.summary.loc[across].reset_index()
        parts.append(figures.assign(modality=JOIN.join(pair), group=ALL, low=np.nan, high=np.nan))
    table = pd.concat(parts, ignore_index=True)
    table.attrs.update(scales=scale_names, n_cells=n_cells)
    return table[["modality", *COLUMNS]]


def _blocks(reference: Mapping[str, AnnData], scales: Mapping[str, Scale], layers: Mapping[str, str]) -> Blocks:
    """Return all scales side by side, each weighted by the first component of its own space."""
    weights = []
    for modality, cells in reference.items():
        values = expression_of(cells, layer=layers.get(modality), name=modality, scale=scales[modality])
        weights.append(1 / np.sqrt(ComparisonSpace.fit(values).pca.explained_variance_[0]))
    return Blocks(list(scales.values()), [cells.n_vars for cells in reference.values()], weights)


@dataclass(frozen=True)
class CrossModalityCorrelation:
    """How alike the correlations between two modalities are in real and in synthetic cells.

    Attributes
    ----------
    summary
        Two rows over all pairs of features: ``cross_correlation_similarity``, Pearson's correlation of the correlations (higher is better), and
        ``cross_correlation_error``, their mean absolute difference (lower is better). `value` is synthetic against real cells, `floor` other real cells
        against real ones, `shuffled` real cells whose second modality is that of another cell (of the same label).
    pairs
        A row per pair asked for: `first` and `second`, the names of the features; `real` and `synthetic`, their correlation in all cells; and
        `difference`, the absolute difference between equally many real and synthetic cells, beside its `floor`, that between equally many real ones.
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
    r"""Compare the correlations between features of two modalities, such as proteins and transcripts, in real and in synthetic cells.

    .. math:: r_{fg} = \operatorname{corr}_i (y_{if}, z_{ig}), \qquad \text{similarity} = \operatorname{corr}_{f, g} (r_{fg}, r'_{fg}),
        \qquad \text{error} = \frac{1}{FG} \sum_{fg} | r_{fg} - r'_{fg} |

    over cells :math:`i` that have both modalities, on the scale of each (:func:`evaluate_modalities`), in real (:math:`r`) and in synthetic cells
    (:math:`r'`). Similarity lies in -1 to 1 (higher is better), the error in 0 to 2 (lower is better). Figures are means over splits of the real cells: one
    half is compared with as many synthetic cells and, for the floor, with the other half.

    *Catches* modalities that were generated without regard to each other, which no table of one modality shows, and (the error only)
    correlations that are too weak or too strong. *Misses* everything within a modality. Without `groupby`, differences between cell types make most of the
    correlations, and a model that knows the type of the cell scores well; with it, what is left is how both modalities move together within a type.

    Parameters
    ----------
    real, synthetic
        Cells with both modalities, with the same features. Synthetic ones should have about the real ones' labels: shares of types decide correlations.
    pairs
        Features to look at one by one, each a feature of the first and one of the second modality; those of the same name, in capitals or not, if None.
    modalities
        Names of the first and second modality; the two that `real` has if None.
    groupby
        Column of `obs`, or several: each label's mean is taken away first.
    n_features
        How many features of each modality `summary` looks at: those that vary most in real cells.
    scales, layers
        As in :func:`evaluate_modalities`.
    n_floor
        Number of splits.
    seed
        Decides the splits.

    Raises
    ------
    KeyError
        If a modality, a feature or a column is absent.
    ValueError
        If it is not clear which two modalities are meant, or fewer than four cells have both.

    Examples
    --------
    >>> import anndata as ad, mudata as md, numpy as np
    >>> def cells(seed, *, linked=True):
    ...     rng = np.random.default_rng(seed)
    ...     rate = rng.gamma(2.0, 10.0, (1000, 6))
    ...     of_protein = rate if linked else rng.permuted(rate, axis=0)
    ...     counts = {"rna": rng.poisson(rate), "prot": rng.poisson(10 * of_protein)}
    ...     return md.MuData({name: ad.AnnData(x.astype(np.float32)) for name, x in counts.items()})
    >>> cross_modality_correlation(cells(0), cells(1)).summary["value"].round(1).tolist()
    [1.0, 0.0]
    >>> bool(cross_modality_correlation(cells(0), cells(1, linked=False)).summary["value"].iloc[0] < 0.2)
    True
    """
    sets = {"real": real, "synthetic": synthetic}
    names = common_modalities(sets, modalities)
    if len(names) != 2:
        msg = f"`modalities` must name two modalities, but found {names}."
        raise ValueError(msg)
    keys = [] if groupby is None else [groupby] if isinstance(groupby, str) else list(groupby)
    layers = dict(layers or {})
    features = {name: real.mod[name].var_names for name in names}
    parts = {name: paired_cells(cells, names, keys, name, features) for name, cells in sets.items()}
    named = choose_scales(parts["real"], scales, layers)
    fitted = {name: make_scale(named[name], parts["real"][name], layers.get(name)) for name in names}
    of_real, of_synthetic = (_Paired.read(cells, fitted, layers, keys, name) for name, cells in parts.items())
    found = _named_pairs(*features.values()) if pairs is None else _checked_pairs(pairs, features)
    chosen = [np.argsort(-variances(values), kind="stable")[:n_features] for values in of_real.values]
    context = _pair_context(of_real, of_synthetic, n_floor, seed)

    def correlations(comparison: Comparison) -> list[NDArray[np.float64]]:
        return [side.correlations(*chosen).ravel() for side in (comparison.real, comparison.synthetic)]

    measures = {
        "cross_correlation_similarity": lambda c: correlation(*c.once(correlations)),
        "cross_correlation_error": lambda c: float(np.abs(np.subtract(*c.once(correlations))).mean()),
    }
    rows = [context.row(Metric(name, better, measures[name])) for name, better in CROSS_METRICS.items()]
    summary = pd.DataFrame(rows).set_index("metric")[["value", "floor", "shuffled", "better"]]
    return CrossModalityCorrelation(summary, _pair_table(of_real, of_synthetic, context, found, features))


@dataclass(frozen=True)
class _Paired:
    """Values of two modalities of the same cells, with every label's mean taken away."""

    values: tuple[NDArray, NDArray]
    labels: NDArray

    @classmethod
    def read(
        cls,
        parts: Mapping[str, AnnData],
        scales: Mapping[str, Scale],
        layers: Mapping[str, str],
        keys: Sequence[str],
        name: str,
    ) -> _Paired:
        cells = next(iter(parts.values()))
        if cells.n_obs < MIN_PAIRED_CELLS:
            msg = f"`{name}` must have at least {MIN_PAIRED_CELLS} cells with both of {list(parts)}, but has {cells.n_obs}."
            raise ValueError(msg)
        labels = labels_of(cells, keys, name=name) if keys else np.zeros(cells.n_obs, int)
        values = tuple(
            expression_of(part, layer=layer_of(part, layers.get(modality)), name=name, scale=scales[modality]).values
            for modality, part in parts.items()
        )
        return cls(values, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray) -> _Paired:
        return _Paired(tuple(values[rows] for values in self.values), self.labels[rows])

    def repaired(self, rng: np.random.Generator) -> _Paired:
        """Give every cell the second modality of another cell of the same label."""
        order = np.arange(len(self))
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            order[members] = rng.permutation(members)
        return _Paired((self.values[0], self.values[1][order]), self.labels)

    def correlations(self, *features: NDArray) -> NDArray[np.float64]:
        """Return the correlations of some features of both modalities, `(first, second)`."""
        first, second = self._residuals(*features)
        return first.T @ second

    def pair_correlations(self, *features: NDArray) -> NDArray[np.float64]:
        """Return the correlations of pairs of features, `(pairs,)`."""
        first, second = self._residuals(*features)
        return (first * second).sum(axis=0)

    def _residuals(self, *features: NDArray) -> Iterator[NDArray[np.float64]]:
        for values, own in zip(self.values, features, strict=True):
            yield unit_residuals(values[:, own].toarray(), self.labels)


def _pair_context(real: _Paired, synthetic: _Paired, n_splits: int, seed: int) -> Context:
    """Compare one half of the real cells with as many synthetic cells, with the other half, and with that half with modalities of different cells."""
    rng = np.random.default_rng(seed)
    n_cells = min(len(real) // 2, len(synthetic))
    players: dict[str, list[Comparison]] = {"value": [], "floor": [], "shuffled": []}
    for _ in range(max(n_splits, 1)):
        order, drawn = rng.permutation(len(real)), rng.permutation(len(synthetic))[:n_cells]
        first, other = real[order[:n_cells]], real[order[n_cells : 2 * n_cells]]
        for name, cells in zip(players, (synthetic[drawn], other, other.repaired(rng)), strict=True):
            players[name].append(Comparison(first, cells))
    return Context({}, players)


def _pair_table(
    real: _Paired,
    synthetic: _Paired,
    context: Context,
    pairs: Sequence[tuple[str, str]],
    features: Mapping[str, pd.Index],
) -> pd.DataFrame:
    both = [[pair[side] for pair in pairs] for side in (0, 1)]
    places = [known.get_indexer(names) for known, names in zip(features.values(), both, strict=True)]
    difference, floor = (
        np.mean(
            [
                np.abs(split.real.pair_correlations(*places) - split.synthetic.pair_correlations(*places))
                for split in context.players[player]
            ],
            axis=0,
        )
        for player in ("value", "floor")
    )
    columns = [*both, real.pair_correlations(*places), synthetic.pair_correlations(*places), difference, floor]
    return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))


def _named_pairs(first: pd.Index, second: pd.Index) -> list[tuple[str, str]]:
    by_name = {name.casefold(): name for name in second}
    return [(name, by_name[name.casefold()]) for name in first if name.casefold() in by_name]


def _checked_pairs(pairs: Sequence[tuple[str, str]], features: Mapping[str, pd.Index]) -> list[tuple[str, str]]:
    pairs = [tuple(pair) for pair in pairs]
    for pair in pairs:
        for feature, (modality, known) in zip(pair, features.items(), strict=True):
            if feature not in known:
                msg = (
                    f"`pairs` names {feature!r}, which modality {modality!r} lacks. {known_names(feature, list(known))}"
                )
                raise KeyError(msg)
    return pairs
