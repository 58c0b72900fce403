"""How good are cells of types that a trained SCLDM learns later, by each way of fine-tuning?

    python -m benchmarks.studies.new_types
    python -m benchmarks.studies.new_types --datasets pbmc3k --seeds 0 1

A reference is trained without two cell types of a data set, and fine-tuned on the training cells of these alone, or
beside as many cells as it was trained on that it generates itself. Its cells of each label are compared with halves of
the held-out ones, as many as these have, and so are those of a model that was trained with all cells. The floor compares
the halves with each other. Adds to ``results/new_types.csv`` and writes ``results/new_types.md``.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scvi

from benchmarks.quality.splits import join_labels, load_split
from benchmarks.studies.held_out import CPU, REAL, random_halves, run_datasets
from benchmarks.tables import markdown_table
from scgen_diffusion.metrics import ComparisonSpace, energy_distance
from scgen_diffusion.model import SCLDM
from scgen_diffusion.module import TRAINABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.quality.splits import Split
    from scgen_diffusion.module import Trainable

#: A type with markers of its own, and one like T cells, which stay.
NEW_TYPES = {"pbmc3k": ("B", "NK"), "kang_ifnb": ("CD14 Mono", "NK")}
WITH_THEM, NEW, OLD = "trained with them", "new", "old"
REPLAY = {f"{way}, with generated old cells": way for way in ("network", "all")}
MIN_CELLS = 20  # held-out cells of a label
N_DRAWN, N_HALVES = 300, 5  # of a label
FIGURES = {"energy_distance": "energy distance", "profile_error": "error of the profile"}


def train(cells: ad.AnnData, keys: Sequence[str], seed: int) -> SCLDM:
    """Train SCLDM with its defaults."""
    scvi.settings.seed = seed
    cells = cells.copy()
    SCLDM.setup_anndata(cells, layer="counts", condition_keys=list(keys))
    model = SCLDM(cells)
    model.train(**CPU)
    return model


def profile_error(one: ad.AnnData, other: ad.AnnData) -> float:
    """Return how far genes' shares of all counts differ: root mean square of their log ratios, weighted by shares."""
    sums = [np.asarray(cells.layers.get("counts", cells.X).sum(axis=0)).ravel() + 0.5 for cells in (one, other)]
    shares = [values / values.sum() for values in sums]
    return float(np.sqrt((shares[0] * np.log(shares[1] / shares[0]) ** 2).sum()))


def judge(split: Split, new_types: Sequence[str], models: dict[str, SCLDM], seed: int) -> pd.DataFrame:
    """Compare the cells of each label that a model draws with the held-out ones."""
    labels, counts = np.unique(split.held_out_labels, return_counts=True)
    labels = labels[counts >= MIN_CELLS]
    first = pd.Series(split.held_out_labels).drop_duplicates()
    asked = split.held_out.obs[list(split.condition_keys)].iloc[first[first.isin(labels)].index].astype(str)
    asked = asked.loc[asked.index.repeat(N_DRAWN)].reset_index(drop=True)
    drawn = {name: model.generate(condition=asked, seed=seed) for name, model in models.items()}
    ComparisonSpace.fit(split.train, seed=seed).write(split.train, split.held_out, *drawn.values())
    rows = []
    for label in labels:
        real = split.held_out[split.held_out_labels == label]
        halves = random_halves(real.n_obs, N_HALVES, seed)
        pairs = {REAL: [(real[one], real[other]) for one, other in halves]}
        for name, cells in drawn.items():
            own = cells[join_labels(cells.obs, split.condition_keys) == label]
            pairs[name] = [(own[: len(one)], real[other]) for one, other in halves]
        of = NEW if real.obs[split.condition_keys[0]].iloc[0] in new_types else OLD
        for name, compared in pairs.items():
            figures = {
                "energy_distance": np.mean([energy_distance(*pair) for pair in compared]),
                "profile_error": np.mean([profile_error(*pair) for pair in compared]),
            }
            rows.append({"label": label, "type": of, "n_cells": real.n_obs, "cells": name} | figures)
    return pd.DataFrame(rows)


def study(dataset: str, seed: int) -> pd.DataFrame:
    """Train with and without the new types, fine-tune in each way, and judge all models."""
    split, new_types = load_split(dataset, seed), NEW_TYPES[dataset]
    is_new = split.train.obs[split.condition_keys[0]].isin(new_types).to_numpy()
    reference = train(split.train[~is_new], split.condition_keys, seed)

    def fine_tune(cells: ad.AnnData, trainable: Trainable) -> SCLDM:
        model = SCLDM.load_query_data(cells, reference, trainable=trainable, accelerator="cpu")
        model.train(**CPU)
        return model

    new = split.train[is_new].copy()
    old = reference.generate(int((~is_new).sum()), seed=seed)
    old.layers["counts"] = old.X
    both = ad.concat([new, old])
    ways = {trainable: partial(fine_tune, new, trainable) for trainable in TRAINABLE}
    ways |= {name: partial(fine_tune, both, trainable) for name, trainable in REPLAY.items()}
    ways[WITH_THEM] = partial(train, split.train, split.condition_keys, seed)
    models, minutes = {}, {}
    for name, make in ways.items():
        start = time.process_time()
        models[name] = make()
        minutes[name] = (time.process_time() - start) / 60
    table = judge(split, new_types, models, seed)
    return table.assign(minutes=table["cells"].map(minutes))


def summarise(table: pd.DataFrame) -> str:
    """Write one table per data set: a row per model, means over labels and seeds."""
    parts = [
        "SCLDM that learned two cell types later, by the way of fine-tuning (`trainable`), on cells of these alone or "
        "beside cells of the others that it generated itself. "
        "Energy distance in principal components to held-out cells of the label, and error of the mean profile "
        "(root mean square of log ratios of genes' shares, weighted by shares). Means over labels and seeds; minutes "
        "of one core. Written by `python -m benchmarks.studies.new_types`.",
        "",
    ]
    columns = list(product((NEW, OLD), FIGURES))
    for dataset, rows in table.groupby("dataset", sort=False):
        means = rows.pivot_table(index="cells", columns="type", values=list(FIGURES), sort=False)
        minutes = rows.groupby("cells")["minutes"].mean()
        lines = [
            [name, *(f"{row[figure, of]:.2f}" for of, figure in columns)]
            + ["" if np.isnan(minutes[name]) else f"{minutes[name]:.1f}"]
            for name, row in means.iterrows()
        ]
        header = ["", *(f"{of} types: {FIGURES[figure]}" for of, figure in columns), "minutes"]
        seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
        names = " and ".join(NEW_TYPES[str(dataset)])
        parts += [f"**{dataset}**, new: {names}; seeds {seeds}", "", markdown_table(header, lines), ""]
    return "\n".join(parts)


def main() -> None:
    """Run what is missing, and write the summary."""
    run_datasets(__doc__ or "", "new_types", study, summarise, choices=list(NEW_TYPES), default=list(NEW_TYPES))


if __name__ == "__main__":
    main()
