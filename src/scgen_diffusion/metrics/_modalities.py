"""Cells of several modalities: the table of each, and of all together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.data import warn_user

from ._catalogue import CATALOGUE
from ._cross_modality import CROSS_METRICS, cross_modality_correlation
from ._evaluate import evaluate_on_scale
from ._evaluate_checks import MIN_CELLS, check_names
from ._expression import expression_of
from ._modality_cells import (
    choose_scales,
    common_modalities,
    modality_cells,
    paired_cells,
    side_by_side,
)
from ._scales import Blocks, make_scale
from ._space import ComparisonSpace
from ._table import ALL, COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from ._scales import Scale, ScaleName

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
PART = "|"


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
    wanted, across = _metrics_of_each_and_across(metrics)
    sets = {"real_test": real_test, "synthetic": synthetic} | ({} if train is None else {"train": train})
    keys = [] if groupby is None else [groupby] if isinstance(groupby, str) else list(groupby)
    draws = {"max_cells": max_cells, "n_floor": n_floor, "n_bootstrap": n_bootstrap, "seed": seed}
    evaluation = _Evaluation.prepare(sets, keys, scales, dict(layers or {}), {"metrics": wanted, **draws})
    tables = {} if wanted == [] else evaluation.of_each() | evaluation.of_all_together()
    n_cells = {name: table.attrs["n_cells"] for name, table in tables.items()}
    if across:
        tables |= evaluation.across(across, n_floor=n_floor, seed=seed)
    table = pd.concat([table.assign(modality=name.split(PART)[0]) for name, table in tables.items()], ignore_index=True)
    table.attrs.update(scales=evaluation.scale_names, n_cells=n_cells)
    return table[["modality", *COLUMNS]]


def _metrics_of_each_and_across(metrics: str | Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """Return the metrics of single modalities, None for all that make sense, and those across modalities."""
    if metrics is None:
        return None, list(CROSS_METRICS)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    wanted = [name for name in metrics if name not in CROSS_METRICS]
    check_names(wanted)
    return wanted, [name for name in metrics if name in CROSS_METRICS]


@dataclass(frozen=True)
class _Evaluation:
    """Sets of cells by name, each with its modalities, and how they are compared."""

    sets: dict[str, MuData]
    cells: dict[str, dict[str, AnnData]]
    keys: list[str]
    layers: dict[str, str]
    scale_names: dict[str, ScaleName]
    scales: dict[str, Scale]
    arguments: dict[str, object]

    @classmethod
    def prepare(
        cls,
        sets: dict[str, MuData],
        keys: list[str],
        scales: Mapping[str, ScaleName] | None,
        layers: dict[str, str],
        arguments: dict[str, object],
    ) -> _Evaluation:
        """Take the sets apart, and choose the scales on real cells."""
        modalities = common_modalities(sets)
        cells = {
            name: {modality: modality_cells(mdata, modality, keys, name) for modality in modalities}
            for name, mdata in sets.items()
        }
        names = choose_scales(cells["real_test"], scales, layers)
        reference = cells.get("train", cells["real_test"])
        fitted = {
            modality: make_scale(names[modality], reference[modality], layers.get(modality)) for modality in modalities
        }
        return cls(sets, cells, keys, layers, names, fitted, arguments)

    @property
    def modalities(self) -> list[str]:
        return list(self.scales)

    @property
    def reference(self) -> dict[str, AnnData]:
        """The cells that scales are fitted to: training cells, or real ones without them."""
        return self.cells.get("train", self.cells["real_test"])

    def of_each(self) -> dict[str, pd.DataFrame]:
        """Return the table of each modality."""
        return {modality: self._of_modality(modality) for modality in self.modalities}

    def _of_modality(self, modality: str) -> pd.DataFrame:
        has_few = self.reference[modality].n_vars < FEW_FEATURES and self.arguments["metrics"] is None
        return self._evaluate(
            modality,
            {name: cells[modality] for name, cells in self.cells.items()},
            scale=self.scales[modality],
            without=NEED_MANY_FEATURES if has_few else (),
            layer=self.layers.get(modality),
        )

    def of_all_together(self) -> dict[str, pd.DataFrame]:
        """Return the table of all modalities side by side; none of one, where too few cells have all, or where no such metric was asked for."""
        wanted = self.arguments["metrics"]
        joint = None if wanted is None else [name for name in wanted if name in JOINT_METRICS]
        if len(self.modalities) < 2 or joint == []:
            return {}
        features = {modality: cells.var_names for modality, cells in self.cells["real_test"].items()}
        paired = {
            name: paired_cells(mdata, self.modalities, self.keys, name, features) for name, mdata in self.sets.items()
        }
        n_cells = min(next(iter(parts.values())).n_obs for parts in paired.values())
        if n_cells < MIN_CELLS:
            msg = f"Modalities are not judged together: {n_cells} cells of a set have all of {self.modalities}; there must be {MIN_CELLS} or more."
            warn_user(msg)
            return {}
        name = JOIN.join(self.modalities)
        sides = {name: side_by_side(parts, self.layers) for name, parts in paired.items()}
        without = [metric for metric in CATALOGUE if metric not in JOINT_METRICS]
        return {name: self._evaluate(name, sides, scale=self._blocks(features), without=without, metrics=joint)}

    def across(self, metrics: list[str], *, n_floor: int, seed: int) -> dict[str, pd.DataFrame]:
        """Return a table of correlations for every pair of modalities."""
        tables = {}
        for pair in combinations(self.modalities, 2):
            found = cross_modality_correlation(
                self.sets["real_test"],
                self.sets["synthetic"],
                [],
                modalities=pair,
                groupby=self.keys or None,
                scales={modality: self.scale_names[modality] for modality in pair},
                layers={modality: layer for modality, layer in self.layers.items() if modality in pair},
                n_floor=n_floor,
                seed=seed,
            )
            # the mark keeps the two parts of a joint table apart
            tables[JOIN.join(pair) + PART] = (
                found.summary.loc[metrics].reset_index().assign(group=ALL, low=np.nan, high=np.nan)
            )
        return tables

    def _blocks(self, features: Mapping[str, pd.Index]) -> Blocks:
        """Return all scales side by side, each weighted by the first component of its own space."""
        weights = []
        for modality, cells in self.reference.items():
            layer = self.layers.get(modality)
            values = expression_of(cells, layer=layer, name=modality, scale=self.scales[modality])
            weights.append(1 / np.sqrt(ComparisonSpace.fit(values).pca.explained_variance_[0]))
        return Blocks(list(self.scales.values()), [len(features[name]) for name in self.scales], weights)

    def _evaluate(self, modality: str, cells: dict[str, AnnData], **arguments: object) -> pd.DataFrame:
        try:
            return evaluate_on_scale(
                cells["real_test"],
                cells["synthetic"],
                train=cells.get("train"),
                groupby=self.keys or None,
                **self.arguments | arguments,
            )
        except ValueError as error:
            msg = f"Modality {modality!r}: {error}"
            raise ValueError(msg) from error
