"""Are cells right that have a combination of classes without training cells? On real cells, with and without effects.

    python -m benchmarks.studies.left_out_combinations
    python -m benchmarks.studies.left_out_combinations --datasets kang_control_8donors kang_ifnb --seeds 0 1

Random combinations of the two keys of a data set, such as a cell type of a donor, are left out of the training cells.
SCLDM draws their cells as it is, and without the effects that it gives to combinations without training cells. Its
cells are compared with all real cells of the combination, training and held-out ones. So are training cells of the same
type and other values of the second key, and (the floor) one half of the real cells with the other half. No
`control_values` are given, so no transport is trained. Figures of each combination go to
``results/left_out_combinations.csv``, their means to ``results/left_out_combinations.md``.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.quality.drawing import VARIANTS, train_model
from benchmarks.quality.splits import CONDITION_KEYS, Split, heading, join_labels, load_split
from benchmarks.studies.held_out import random_halves, run_datasets
from benchmarks.tables import markdown_table
from scgen_diffusion.metrics import ComparisonSpace, effects, energy_distance, mean_change_debiased_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DATASETS = [name for name, keys in CONDITION_KEYS.items() if len(keys) == 2]
OURS, WITHOUT, OTHERS, FLOOR = "SCLDM", "SCLDM, without", "real cells of others", "real cells (floor)"
MIN_CELLS = 40  # training cells of a combination that may be left out
MOST = 0.25  # of the values of a key that are left out of a value of the other key, but one may be
GUIDANCE_SCALES = (1.0, 1.5)
N_DRAWS, N_DRAWN = 2, 150


def leave_out(split: Split, seed: int) -> Split:
    """Leave out random combinations; the held-out cells are all cells that these have in either part."""
    table = split.train.obs[list(split.condition_keys)].value_counts().unstack().fillna(0)
    counts, left_out = table.to_numpy(), np.zeros(table.shape, dtype=bool)
    most_of_row, most_of_column = (max(int(MOST * n), 1) for n in counts.shape[::-1])
    candidates = list(zip(*np.nonzero(counts >= MIN_CELLS), strict=True))
    np.random.default_rng([seed, 5]).shuffle(candidates)
    for row, column in candidates:
        left_out[row, column] = True
        kept = np.where(left_out, 0, counts)
        few = left_out[row].sum() <= most_of_row and left_out[:, column].sum() <= most_of_column
        left_out[row, column] = few and kept[row].any() and kept[:, column].any()
    labels = [f"{table.index[row]}|{table.columns[column]}" for row, column in np.argwhere(left_out)]
    of_train, of_held_out = np.isin(split.train_labels, labels), np.isin(split.held_out_labels, labels)
    judged = ad.concat([split.train[of_train], split.held_out[of_held_out]])
    return Split(split.train[~of_train].copy(), judged, split.condition_keys)


def draw_left_out(model: Any, split: Split, seed: int) -> dict[str, list[ad.AnnData]]:
    """Draw cells of each left-out combination, with and without the effects of absent combinations."""
    asked = split.held_out.obs[list(split.condition_keys)].astype(str).drop_duplicates(ignore_index=True)
    asked = asked.loc[asked.index.repeat(N_DRAWN)].reset_index(drop=True)
    found, absent_effects = {}, model.module.absent_effects
    for (name, used), scale in product({OURS: absent_effects, WITHOUT: None}.items(), GUIDANCE_SCALES):
        model.module.absent_effects = used
        found[name if scale == 1 else f"{name}, guidance {scale}"] = [
            model.generate(condition=asked, seed=N_DRAWS * seed + draw, guidance_scale=scale) for draw in range(N_DRAWS)
        ]
    model.module.absent_effects = absent_effects
    return found


def judge(split: Split, drawn: Mapping[str, Sequence[ad.AnnData]], seed: int) -> pd.DataFrame:
    """Compare cells with the real ones of each left-out combination: energy distance and squared error of the mean.

    Of the cells of others, the latter is the squared effect, by which those of the models can be divided.
    """
    every = [cells for draws in drawn.values() for cells in draws]
    ComparisonSpace.fit(split.train, seed=seed).write(split.train, split.held_out, *every)
    kind, rows = split.condition_keys[0], []
    for label in np.unique(split.held_out_labels):
        real = split.held_out[split.held_out_labels == label]
        others = split.train[split.train.obs[kind] == real.obs[kind].iloc[0]]
        pairs = {
            name: [(real, cells[join_labels(cells.obs, split.condition_keys) == label]) for cells in draws]
            for name, draws in drawn.items()
        }
        pairs[OTHERS] = [(real, others)]
        pairs[FLOOR] = [(real[one], real[other]) for one, other in random_halves(real.n_obs, N_DRAWS, seed)]
        for name, compared in pairs.items():
            distances = [energy_distance(one, other) for one, other in compared]
            errors = [mean_change_debiased_error(*effects(one, other, others)) for one, other in compared]
            figures = {"energy_distance": np.mean(distances), "squared_error": np.mean(errors)}
            rows.append({"combination": label, "n_cells": real.n_obs, "cells": name} | figures)
    return pd.DataFrame(rows)


def study(dataset: str, seed: int) -> pd.DataFrame:
    """Train SCLDM without some combinations of a data set, and judge the cells that it draws for them."""
    split = leave_out(load_split(dataset, seed), seed)
    model = train_model(split, VARIANTS[OURS], seed)
    return judge(split, draw_left_out(model, split, seed), seed)


def summarise(table: pd.DataFrame) -> str:
    """Write one table per data set: a row per kind of cells, means over combinations and seeds."""
    parts = [
        "Cells of combinations that were left out of training, compared with the real cells of the combination: energy "
        "distance in principal components, and the share of squared mean changes, against training cells of the same "
        "type, that is not predicted (without sampling noise). Means over combinations and seeds. Written by "
        "`python -m benchmarks.studies.left_out_combinations`.",
        "",
    ]
    for dataset, rows in table.groupby("dataset", sort=False):
        means = rows.groupby("cells", sort=False)[["energy_distance", "squared_error"]].mean()
        means["squared_error"] /= means.loc[OTHERS, "squared_error"]
        n_each = ", ".join(f"{n} of seed {seed}" for seed, n in rows.groupby("seed")["combination"].nunique().items())
        lines = [
            [name, *(f"{value:.3f}" for value in row)] for name, row in zip(means.index, means.values, strict=True)
        ]
        header = ["", "energy distance", "change not predicted"]
        parts += [f"{heading(str(dataset))}, combinations: {n_each}", "", markdown_table(header, lines), ""]
    return "\n".join(parts)


def main() -> None:
    """Run what is missing, and write the summary."""
    run_datasets(
        __doc__ or "",
        "left_out_combinations",
        study,
        summarise,
        choices=DATASETS,
        default=["kang_control_8donors", "kang_ifnb"],
    )


if __name__ == "__main__":
    main()
