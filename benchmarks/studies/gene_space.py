"""Design choices of the gene-space models on real data: target, one model or many, network, zero value.

    python -m benchmarks.studies.gene_space --threads 1 --steps 1500
    python -m benchmarks.studies.gene_space --experiments targets backbones --seeds 0
    python -m benchmarks.studies.gene_space --experiments                  # only the table

Each configuration changes ``SCRDIT(path="vp_linear")`` as its name says. It is stored in ``results/gene_space.csv`` as
soon as it is measured, and skipped the next time; delete the file after a change of the model. Steps are optimiser
steps at batch 128, rounded to whole epochs. ``results/gene_space.md`` has the means over seeds next to the floor.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.quality.drawing import generate, train_model
from benchmarks.quality.splits import CONDITION_KEYS, Split, judge, load, split_cells, to_dense
from benchmarks.speed.meters import clock
from benchmarks.tables import describe_source, markdown_table, read_table, store_rows, stored_keys, write_text

logger = logging.getLogger("benchmarks.gene_space")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "experiment", "configuration")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZE, TRAIN_SIZE = 128, 0.9
LARGE_TYPE = 100  # training cells that a type needs for its own model


@dataclass(frozen=True)
class Configuration:
    """One row of an experiment.

    Parameters
    ----------
    model
        Changes to the architecture of ``SCRDIT(path="vp_linear")``.
    n_genes
        Number of most variable genes to keep.
    as_long_as
        Name of a configuration. This one trains for the same time, instead of the same number of steps.
    shared
        Compare only types with many cells. ``"no"``: one conditional model. Otherwise every type has its own
        unconditional model, and the steps are divided among them ``"in proportion to cells"`` or ``"equally"``.
    """

    model: dict[str, Any] = field(default_factory=dict)
    n_genes: int = 2_000
    as_long_as: str | None = None
    shared: str | None = None


def _zero_values(**model: Any) -> dict[str, Configuration]:
    return {
        f"{'zeros kept' if value is None else f'zeros become {value:g}'}, {n_genes} genes": Configuration(
            model | {"zero_value": value}, n_genes
        )
        for n_genes, value in product((1_000, 2_000, 3_000), (None, -5.0, -10.0, -20.0))
    }


NETWORKS = {
    "DiT": {"backbone": "dit"},
    "white-box DiT": {"backbone": "white_box"},
    "U-Net (width 8)": {"backbone": "unet", "unet_width": 8},
}
TARGETS = [(path, target) for target in ("noise", "data", "v") for path in ("vp_linear", "vp_cosine")]
EXPERIMENTS: dict[str, dict[str, Configuration]] = {
    "targets": {f"{path}, spike and slab": Configuration({"path": path}) for path in ("vp_linear", "vp_cosine")}
    | {
        f"{path}, {target}": Configuration({"path": path, "head": "regression", "target": target})
        for path, target in [*TARGETS, ("flow_matching", "velocity")]
    },
    "one_model": {"one conditional model": Configuration(shared="no")}
    | {
        f"one model per type, steps shared {shared}": Configuration(shared=shared)
        for shared in ("in proportion to cells", "equally")
    },
    "backbones": {f"{name}, equal steps": Configuration(model, n_genes=300) for name, model in NETWORKS.items()}
    | {
        f"{name}, equal time": Configuration(model, n_genes=300, as_long_as="DiT, equal steps")
        for name, model in NETWORKS.items()
    },
    "zero_value": _zero_values(),
    "zero_value_regression": _zero_values(head="regression", target="v", scaling="global"),
    "zero_value_published": _zero_values(head="regression", target="noise", scaling="none"),
}
TITLES = {  # "samplers" and "gene_order" have stored figures only
    "zero_value": "Which value should stand for zero? (default architecture)",
    "zero_value_regression": "Which value should stand for zero? (one scale for all values, the network predicts v)",
    "zero_value_published": "Which value should stand for zero? (published: no scaling, the network predicts noise)",
    "backbones": "Which network?",
    "samplers": "Which sampler, and how many network evaluations?",
    "one_model": "One conditional model, or one model per type?",
    "gene_order": "Does it matter which genes share a patch?",
    "targets": "Which path, and what should the network predict?",
}
#: Columns of the tables; the first one comes from the metrics of older rows.
FIGURES = {
    "auc_pcs": "AUC (PCs)",
    "auc_boosting": "AUC (PCs)",
    "precision": "precision",
    "recall": "recall",
    "w2": "W2",
    "mmd2": "MMD²",
    "within_label_correlation": "within-label corr.",
    "share_of_zeros": "zeros",
    "transfer_f1": "transfer F1",
    "nearest_train_ratio": "nearest-train ratio",
    "n_parameters": "parameters",
    "steps": "steps",
    "seconds_per_step": "s/step",
    "train_seconds": "train s",
    "generation_seconds": "generation s",
    "generated_cells_per_second": "cells/s",
    "diverged": "diverged",
}
JUDGED = [
    "auc_boosting",
    "precision",
    "recall",
    "w2",
    "mmd2",
    "within_label_correlation",
    "transfer_f1",
    "nearest_train_ratio",
]
COSTS = ("n_parameters", "steps", "train_seconds", "generation_seconds")


def measure(split: Split, configuration: Configuration, steps: int, seed: int) -> pd.DataFrame:
    """Train, draw and judge. Return a row per figure, with its floor."""
    model, labels = dict(configuration.model), split.train_labels
    sizes = {label: (labels == label).sum() for label in np.unique(labels)}
    if configuration.shared in (None, "no"):
        sizes = {None: split.train.n_obs}  # one model for all
    counts, costs = np.empty(split.held_out.shape, np.float32), dict.fromkeys(COSTS, 0.0)
    for label, size in sizes.items():
        cells, drawn, share = split, slice(None), 1.0
        if label is not None:
            share = 1 / len(sizes) if configuration.shared == "equally" else size / sum(sizes.values())
            drawn = split.held_out_labels == label
            cells = Split(split.train[labels == label], split.held_out[drawn], ())
        steps_per_epoch = -(-round(TRAIN_SIZE * size) // BATCH_SIZE)
        n_epochs = max(round(steps * share / steps_per_epoch), 1)
        train = {"max_epochs": n_epochs, "batch_size": BATCH_SIZE, "train_size": TRAIN_SIZE}
        started = clock(DEVICE)
        trained = train_model(cells, {"class": "SCRDIT", "model": {"path": "vp_linear"} | model, "train": train}, seed)
        costs["train_seconds"] += clock(DEVICE) - started
        costs["steps"] += n_epochs * steps_per_epoch
        costs["n_parameters"] += sum(p.numel() for p in trained.module.network.parameters())
        started = clock(DEVICE)
        try:
            request = {"n_cells": cells.held_out.n_obs, "counts": True, "seed": seed}
            generated = generate(trained, cells, seed) if label is None else trained.generate(**request)
        except FloatingPointError as error:  # a diverged model has no figures
            logger.warning("%s", error)
            return pd.DataFrame({"metric": ["diverged"], "value": 1.0, "floor": np.nan})
        costs["generation_seconds"] += clock(DEVICE) - started
        counts[drawn] = to_dense(generated.X)
    costs["seconds_per_step"] = costs["train_seconds"] / costs["steps"]
    costs["generated_cells_per_second"] = len(counts) / costs["generation_seconds"]
    zeros = {"share_of_zeros": (counts == 0).mean()}
    rows = pd.DataFrame({"metric": [*zeros, *costs], "value": [*zeros.values(), *costs.values()]})
    return pd.concat([judge(split, counts, seed, metrics=JUDGED)[["metric", "value", "floor"]], rows])


def of_large_types(split: Split) -> Split:
    """Leave out the cells of types that are too small for their own model."""
    names, sizes = np.unique(split.train_labels, return_counts=True)
    train, held_out = (
        np.isin(labels, names[sizes >= LARGE_TYPE]) for labels in (split.train_labels, split.held_out_labels)
    )
    return replace(split, train=split.train[train].copy(), held_out=split.held_out[held_out].copy())


def run(options: argparse.Namespace) -> None:
    """Measure what is requested and not stored yet."""
    path, adata = options.results / "gene_space.csv", load(options.dataset)
    for seed, experiment in product(options.seeds, options.experiments):
        for name, configuration in EXPERIMENTS[experiment].items():
            key, steps = (options.dataset, seed, experiment, name), options.steps
            if key in stored_keys(path, KEYS):
                continue
            logger.info("%s, seed %d, %s: %s", *key)
            if configuration.as_long_as:
                known = read_table(path).set_index([*KEYS, "metric"])["value"].loc[key[:3]]
                seconds = known[configuration.as_long_as, "train_seconds"]
                steps = round(seconds / known[name.replace("equal time", "equal steps"), "seconds_per_step"])
            split = split_cells(adata, CONDITION_KEYS[options.dataset], seed=seed, n_genes=configuration.n_genes)
            split = of_large_types(split) if configuration.shared else split
            table = measure(split, configuration, steps, seed).assign(
                **dict(zip(KEYS, key, strict=True)),
                judged_on=f"{'large types' if configuration.shared else 'all cells'}, {configuration.n_genes} genes",
                settings=json.dumps(asdict(configuration)),
                **describe_source("torch", "scvi-tools", "scgen-diffusion", device=DEVICE),
            )
            store_rows(path, table, KEYS)


def summarise(table: pd.DataFrame) -> str:
    """Write one markdown table per data set and experiment: the floor, then the configurations."""
    parts = [
        "# Design choices of the gene-space models",
        "",
        "Mean over seeds ± half the range. The floor is what real training cells score in place of generated ones. "
        "Written by `python -m benchmarks.studies.gene_space`.",
        "",
    ]
    for (dataset, experiment), rows in table.groupby(["dataset", "experiment"], sort=False):
        figures = [name for name in FIGURES if name in set(rows["metric"])]
        lines = []
        for judged_on, group in rows.groupby("judged_on", sort=False):
            lines.append([f"*floor: {judged_on}*", *(_spread(group, name, "floor") for name in figures)])
            for name, configuration in group.groupby("configuration", sort=False):
                lines.append([name, *(_spread(configuration, figure, "value") for figure in figures)])
        about = f"Data set `{dataset}`; number of seeds: {rows['seed'].nunique()}."
        parts += [f"## {TITLES[experiment]}", "", about, ""]
        parts += [markdown_table(["", *(FIGURES[name] for name in figures)], lines), ""]
    parts += [f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.", ""]
    return "\n".join(parts)


def _spread(rows: pd.DataFrame, metric: str, column: str) -> str:
    """Write mean ± half range over seeds; empty without a value."""
    values = rows[rows["metric"] == metric].groupby("seed")[column].mean().dropna()
    if values.empty:
        return ""
    mean, half = values.mean(), np.ptp(values) / 2
    return _number(mean) if half == 0 else f"{_number(mean)} ± {_number(half)}"


def _number(value: float) -> str:
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1 else f"{value:.3f}" if size >= 0.01 or size == 0 else f"{value:.2g}"


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=CONDITION_KEYS, default="pbmc3k")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--experiments", nargs="*", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--steps", type=int, default=1_500, help="optimiser steps at batch 128")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; with 1, times are CPU times")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    run(options)
    write_text(options.results / "gene_space.md", summarise(read_table(options.results / "gene_space.csv")))


if __name__ == "__main__":
    main()
