"""Correlations between features of two modalities, such as a protein and its transcript, in real and in synthetic cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.data import known_names

from ._expression import expression_of
from ._genes import correlation
from ._labels import labels_of
from ._modality_cells import choose_scales, common_modalities, layer_of, paired_cells
from ._scales import make_scale
from ._space import variances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from ._scales import Scale, ScaleName

MIN_CELLS = 4
#: Figures of `summary`, and which way is better.
CROSS_METRICS = {"cross_correlation_similarity": "higher", "cross_correlation_error": "lower"}
PAIR_COLUMNS = ("first", "second", "real", "synthetic", "difference", "floor")


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
    first, second = _two_modalities(sets, modalities)
    keys = [] if groupby is None else [groupby] if isinstance(groupby, str) else list(groupby)
    features = {name: real.mod[name].var_names for name in (first, second)}
    parts = {name: paired_cells(cells, (first, second), keys, name, features) for name, cells in sets.items()}
    layers = dict(layers or {})
    named = choose_scales(parts["real"], scales, layers)
    fitted = {name: make_scale(named[name], parts["real"][name], layers.get(name)) for name in (first, second)}
    read = {name: _Paired.read(cells, fitted, layers, keys, name) for name, cells in parts.items()}
    found = _named_pairs(*features.values()) if pairs is None else _checked_pairs(pairs, features)
    chosen = [read["real"].most_variable(side, n_features) for side in (0, 1)]
    splits = _splits(read["real"], read["synthetic"], n_floor, seed)
    return CrossModalityCorrelation(
        _summary(splits, chosen), _pair_table(read["real"], read["synthetic"], splits, found, list(features.values()))
    )


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
        if cells.n_obs < MIN_CELLS:
            msg = f"`{name}` must have at least {MIN_CELLS} cells with both of {list(parts)}, but has {cells.n_obs}."
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

    def most_variable(self, side: int, n_features: int) -> NDArray[np.intp]:
        return np.argsort(-variances(self.values[side]), kind="stable")[:n_features]

    def repaired(self, rng: np.random.Generator) -> _Paired:
        """Give every cell the second modality of another cell of the same label."""
        order = np.arange(len(self))
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            order[members] = rng.permutation(members)
        return _Paired((self.values[0], self.values[1][order]), self.labels)

    def correlations(self, first: NDArray, second: NDArray) -> NDArray[np.float64]:
        """Return the correlations of some features of both modalities, `(first, second)`."""
        both = [self._residuals(side, features) for side, features in enumerate((first, second))]
        return both[0].T @ both[1]

    def pair_correlations(self, first: NDArray, second: NDArray) -> NDArray[np.float64]:
        """Return the correlations of pairs of features, `(pairs,)`."""
        both = [self._residuals(side, features) for side, features in enumerate((first, second))]
        return (both[0] * both[1]).sum(axis=0)

    def _residuals(self, side: int, features: NDArray) -> NDArray[np.float64]:
        """Return values less their label's mean, of length 1 over cells; zeros for what does not vary."""
        residuals = self.values[side][:, features].toarray().astype(np.float64)
        for label in np.unique(self.labels):
            residuals[self.labels == label] -= residuals[self.labels == label].mean(axis=0)
        norms = np.linalg.norm(residuals, axis=0)
        return residuals / np.where(norms > 1e-8, norms, np.inf)


@dataclass(frozen=True)
class _Split:
    """As many cells of each: real ones, other real ones, real ones with modalities of different cells, and synthetic ones."""

    real: _Paired
    floor: _Paired
    shuffled: _Paired
    value: _Paired


def _splits(real: _Paired, synthetic: _Paired, n_splits: int, seed: int) -> list[_Split]:
    rng = np.random.default_rng(seed)
    n_cells = min(len(real) // 2, len(synthetic))
    splits = []
    for _ in range(max(n_splits, 1)):
        order, drawn = rng.permutation(len(real)), rng.permutation(len(synthetic))[:n_cells]
        other = real[order[n_cells : 2 * n_cells]]
        splits.append(_Split(real[order[:n_cells]], other, other.repaired(rng), synthetic[drawn]))
    return splits


def _summary(splits: Sequence[_Split], features: Sequence[NDArray]) -> pd.DataFrame:
    found: dict[str, list[tuple[float, float]]] = {"value": [], "floor": [], "shuffled": []}
    for split in splits:
        reference = split.real.correlations(*features).ravel()
        for name, figures in found.items():
            other = getattr(split, name).correlations(*features).ravel()
            figures.append((correlation(reference, other), float(np.abs(reference - other).mean())))
    index = pd.Index(list(CROSS_METRICS), name="metric")
    table = pd.DataFrame({name: np.mean(figures, axis=0) for name, figures in found.items()}, index=index)
    return table.assign(better=list(CROSS_METRICS.values()))


def _pair_table(
    real: _Paired,
    synthetic: _Paired,
    splits: Sequence[_Split],
    pairs: Sequence[tuple[str, str]],
    features: Sequence[pd.Index],
) -> pd.DataFrame:
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    places = features[0].get_indexer(first), features[1].get_indexer(second)
    distances = [
        [
            np.abs(split.real.pair_correlations(*places) - other.pair_correlations(*places))
            for other in (split.value, split.floor)
        ]
        for split in splits
    ]
    difference, floor = np.mean(distances, axis=0)
    columns = [first, second, real.pair_correlations(*places), synthetic.pair_correlations(*places), difference, floor]
    return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))


def _two_modalities(sets: Mapping[str, MuData], modalities: tuple[str, str] | None) -> list[str]:
    names = common_modalities(sets, modalities)
    if len(names) != 2:
        msg = f"`modalities` must name two modalities, but found {names}."
        raise ValueError(msg)
    return names


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
