"""The open questions of the gene-space models on real data: zero value, network, sampler, one model for all types, gene order, target.

    python -m benchmarks.studies.gene_space --threads 1 --steps 1500 --minutes 5
    python -m benchmarks.studies.gene_space --experiments targets gene_order --seeds 0
    python -m benchmarks.studies.gene_space --report

Each configuration differs from the default ``SCRDIT`` in what its name says, is stored in ``results/gene_space.csv`` as soon as it is measured, and skipped the next time:
after a change of the model, delete the file. Steps are optimiser steps at batch 128, rounded to whole epochs. ``results/gene_space.md`` has the means over seeds beside the
floor, ``docs/_static/gene_space_samplers.png`` the samplers.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scvi
import torch

from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells, to_dense
from benchmarks.speed.meters import clock
from benchmarks.studies.quick_judge import QuickJudge, ZerosJudge
from benchmarks.tables import (
    ROOT,
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    stored_keys,
    write_text,
)
from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.model import SCRDIT
from scgen_diffusion.module import build_gene_space_architecture
from scgen_diffusion.train import DIFFUSION_RECIPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    from numpy.typing import NDArray

logger = logging.getLogger("benchmarks.gene_space")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "experiment", "configuration")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRAINING = {"batch_size": 128, "train_size": 0.9, "enable_progress_bar": False}
N_CALIBRATION_STEPS = 8
LARGE_TYPE = 100  # training cells that a type needs for a model of its own

ZERO_VALUES = (None, -5.0, -10.0, -20.0)
ZERO_VALUE_EXPERIMENTS: dict[str, dict[str, Any]] = {
    "zero_value": {},
    "zero_value_regression": {"head": "regression", "target": "v", "scaling": "global"},
    "zero_value_published": {"head": "regression", "target": "noise", "scaling": "none"},
}
SAMPLERS: dict[str, Any] = {
    "DDPM": "ddpm",
    "DDIM, eta 0": "ddim",
    "DDIM, eta 1": DDIMSampler(eta=1.0),
    "DPM-Solver++": "dpm_solver",
    "Heun": "heun",
}


# --- what is trained, and what is drawn -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """What decides a trained model, besides its cells and the seed.

    Parameters
    ----------
    architecture
        Changes of SCRDIT's default architecture; the gene order may be ``"random"`` too.
    n_genes
        Most variable genes kept.
    steps, minutes
        Length of the training: one of the two.
    shared
        None for one conditional model; else every large type has an unconditional model of its own, and the steps are shared
        out among them ``"in proportion to cells"`` or ``"equally"``.
    """

    architecture: dict[str, Any] = field(default_factory=dict)
    n_genes: int = 2_000
    steps: int | None = None
    minutes: float | None = None
    shared: str | None = None


@dataclass(frozen=True)
class Configuration:
    """One row of an experiment: a training, the sampler, how many held-out cells are imitated, and whether those of large types only."""

    name: str
    training: Training
    sampler: Any = None
    n_steps: int | None = None
    cells: int | None = None
    large_types: bool = False

    def describe(self) -> str:
        """Return what is set, as JSON."""
        given = {name: value for name, value in asdict(self.training).items() if value not in (None, {})}
        return json.dumps(given | {"sampler": str(self.sampler), "n_steps": self.n_steps}, sort_keys=True)


def experiments(options: argparse.Namespace) -> dict[str, list[Configuration]]:
    """Return the configurations of every experiment."""

    def training(**architecture: Any) -> Training:
        return Training(architecture, options.n_genes, options.steps)

    found = {
        name: [
            Configuration(
                f"{'zeros kept' if value is None else f'zeros become {value:g}'}, {n_genes} genes",
                Training(changes | {"zero_value": value}, n_genes, options.steps),
            )
            for n_genes in (1_000, 2_000, 3_000)
            for value in ZERO_VALUES
        ]
        for name, changes in ZERO_VALUE_EXPERIMENTS.items()
    }
    networks = {
        "DiT": {"backbone": "dit"},
        "white-box DiT": {"backbone": "white_box"},
        f"U-Net (width {options.unet_width})": {"backbone": "unet", "unet_width": options.unet_width},
    }
    lengths = {
        "equal steps": {"steps": options.backbone_steps or options.steps},
        "equal time": {"minutes": options.minutes},
    }
    found["backbones"] = [
        Configuration(f"{name}, {length}", Training(network, options.backbone_genes or options.n_genes, **budget))
        for length, budget in lengths.items()
        for name, network in networks.items()
    ]
    found["samplers"] = [
        Configuration(
            f"{name}, {evaluations} evaluations",
            training(),
            sampler,
            evaluations // (2 if name == "Heun" else 1),
            cells=options.sampler_cells,
        )
        for name, sampler in SAMPLERS.items()
        for evaluations in options.evaluations
    ]
    found["one_model"] = [Configuration("one conditional model", training(), large_types=True)]
    found["one_model"] += [
        Configuration(
            f"one model per type, steps shared {shared}",
            Training({}, options.n_genes, options.steps, shared=shared),
            large_types=True,
        )
        for shared in ("in proportion to cells", "equally")
    ]
    found["gene_order"] = [
        Configuration(order, training(gene_order=order)) for order in ("given", "correlation", "random")
    ]
    heads = {"spike and slab": {"head": "spike_and_slab", "target": "data"}}
    heads |= {name: {"head": "regression", "target": name} for name in ("noise", "data", "v", "velocity")}
    found["targets"] = [
        Configuration(f"{path}, {name}", training(path=path, **head))
        for name, head in heads.items()
        for path in ("vp_linear", "vp_cosine", "flow_matching")
        if _is_offered({"path": path, **head})
    ]
    return found


def _is_offered(architecture: dict[str, Any]) -> bool:
    """Tell whether the package has such an architecture: not every target belongs to every path."""
    try:
        build_gene_space_architecture("SCRDIT", "default", **architecture)
    except ValueError:
        return False
    return True


# --- training ---------------------------------------------------------------------------------------------------------


class StepClock(pl.Callback):
    """Notes when every step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends.append(clock(DEVICE))

    @property
    def seconds_per_step(self) -> float:
        """Median time from one step to the next: validation and start do not count."""
        return median(np.diff(self.ends)) if len(self.ends) > 1 else float("nan")


def train(
    cells: ad.AnnData, keys: Sequence[str], training: Training, steps: int | None, seed: int
) -> tuple[SCRDIT, dict[str, float]]:
    """Train one model for about so many steps, or for the training's minutes: whole epochs. Return it with its costs."""
    if steps is None:  # a few are timed first
        timed = StepClock()
        _build(cells, keys, training, 0).train(
            N_CALIBRATION_STEPS, callbacks=[timed], max_steps=N_CALIBRATION_STEPS, **TRAINING
        )
        steps = max(round(60 * training.minutes / timed.seconds_per_step), 1)
    recipe = DIFFUSION_RECIPES["SCRDIT"]["default"]
    n_epochs = max(round(steps / recipe.steps_per_epoch(round(TRAINING["train_size"] * cells.n_obs))), 1)
    model, timed, started = _build(cells, keys, training, seed), StepClock(), clock(DEVICE)
    model.train(n_epochs, callbacks=[timed], **TRAINING)
    return model, {
        "train_seconds": clock(DEVICE) - started,
        "seconds_per_step": timed.seconds_per_step,
        "steps": float(len(timed.ends)),
        "n_parameters": float(sum(p.numel() for p in model.module.network.parameters())),
    }


def _build(cells: ad.AnnData, keys: Sequence[str], training: Training, seed: int) -> SCRDIT:
    scvi.settings.seed = seed
    architecture = dict(training.architecture)
    if architecture.get("gene_order") == "random":
        architecture["gene_order"] = np.random.default_rng(seed).permutation(cells.var_names).tolist()
    adata = cells.copy()
    SCRDIT.setup_anndata(adata, layer="counts", condition_keys=list(keys))
    return SCRDIT(adata, **architecture)


class Trained:
    """One conditional model, or one unconditional model per large type whose steps in all are those of one model."""

    def __init__(self, split: Split, training: Training, seed: int) -> None:
        self.models: dict[str | None, SCRDIT] = {}
        if training.shared is None:
            self.models[None], self.costs = train(split.train, split.condition_keys, training, training.steps, seed)
            return
        labels, costs = split.train_labels, []
        sizes = {label: int((labels == label).sum()) for label in large_types(labels)}
        for label, size in sizes.items():
            share = 1 / len(sizes) if training.shared == "equally" else size / sum(sizes.values())
            steps = max(round(training.steps * share), 1)
            self.models[label], cost = train(split.train[labels == label], (), training, steps, seed)
            costs.append(cost)
        self.costs = pd.DataFrame(costs).sum().to_dict()
        self.costs["seconds_per_step"] = (
            sum(cost["seconds_per_step"] * cost["steps"] for cost in costs) / self.costs["steps"]
        )

    def sample(
        self, conditions: pd.DataFrame, labels: NDArray, sampler: Any, n_steps: int | None, seed: int
    ) -> NDArray:
        """Draw counts ``(cells, genes)``, one cell per row of ``conditions``."""
        drawn = {}
        for number, (label, model) in enumerate(self.models.items()):
            rows = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
            request = {"condition": conditions.iloc[rows]} if label is None else {"n_cells": len(rows)}
            way = {"sampler": sampler, "n_steps": n_steps, "counts": True, "seed": seed + 1000 * number}
            drawn |= dict(zip(rows, to_dense(model.generate(**request, **way).X), strict=True))
        return np.stack([drawn[row] for row in range(len(labels))])


def large_types(labels: NDArray) -> list[str]:
    """Return the labels that have enough training cells for a model of their own."""
    names, sizes = np.unique(labels, return_counts=True)
    return names[sizes >= LARGE_TYPE].tolist()


# --- judging ----------------------------------------------------------------------------------------------------------


class Comparison:
    """The held-out cells that a configuration imitates, and their judge."""

    def __init__(self, split: Split, configuration: Configuration, seed: int, judge: type[ZerosJudge]) -> None:
        n_cells, large = configuration.cells, large_types(split.train_labels)
        chosen, train = (
            np.isin(labels, large) | (not configuration.large_types)
            for labels in (split.held_out_labels, split.train_labels)
        )
        rows = np.flatnonzero(chosen)
        if n_cells is not None and n_cells < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(rows, n_cells, replace=False))
        held_out, self.labels = split.held_out[rows], split.held_out_labels[rows]
        self.conditions = held_out.obs[list(split.condition_keys)].reset_index(drop=True)
        cells = "all cells" if n_cells is None else f"{n_cells} cells"
        large = ", large types" if configuration.large_types else ""
        self.description = f"{cells}{large}, {held_out.n_vars} genes"
        counts = split.train.layers["counts"][train], held_out.layers["counts"]
        self.judge = judge(counts[0], split.train_labels[train], counts[1], self.labels, seed=seed)

    @cached_property
    def floor(self) -> dict[str, float]:
        """What real cells score."""
        return self.judge.floor()

    def measure(self, trained: Trained, configuration: Configuration, seed: int) -> dict[str, float]:
        """Draw cells and return their figures; cells that diverge have none."""
        started = clock(DEVICE)
        try:
            counts = trained.sample(self.conditions, self.labels, configuration.sampler, configuration.n_steps, seed)
        except FloatingPointError as error:
            logger.warning("%s", error)
            return dict.fromkeys(self.floor, np.nan) | {"diverged": 1.0}
        seconds = clock(DEVICE) - started
        costs = {"generation_seconds": seconds, "generated_cells_per_second": len(counts) / seconds}
        return self.judge.measure(counts, self.labels) | costs


def run(options: argparse.Namespace) -> None:
    """Measure what is asked for and not yet stored."""
    path, adata = options.results / "gene_space.csv", load(options.dataset)
    judge = ZerosJudge if options.full_judge else QuickJudge
    for seed in options.seeds:
        kept: tuple[Training, Trained] | None = None  # several configurations in a row draw from one model
        for experiment in options.experiments:
            for configuration in experiments(options)[experiment]:
                key, training = (options.dataset, seed, experiment, configuration.name), configuration.training
                if key in stored_keys(path, KEYS):
                    continue
                logger.info("%s, seed %d, %s: %s", *key)
                split = split_cells(adata, CONDITION_KEYS[options.dataset], seed=seed, n_genes=training.n_genes)
                comparison = Comparison(split, configuration, seed, judge)
                if kept is None or kept[0] != training:
                    kept = training, Trained(split, training, seed)
                figures = comparison.measure(kept[1], configuration, seed) | kept[1].costs
                floor = [comparison.floor.get(name, np.nan) for name in figures]
                table = pd.DataFrame(
                    dict(zip(KEYS, key, strict=True)) | {"metric": list(figures), "value": list(figures.values())}
                )
                table = table.assign(
                    floor=floor,
                    judged_on=comparison.description,
                    settings=configuration.describe(),
                    **describe_source("torch", "scvi-tools", "scgen-diffusion", device=DEVICE),
                )
                store_rows(path, table, KEYS)


# --- tables and the picture -------------------------------------------------------------------------------------------

TITLES = {
    "zero_value": "Which value should stand for zero? (default architecture)",
    "zero_value_regression": "Which value should stand for zero? (one scale for all values, the network predicts v)",
    "zero_value_published": "Which value should stand for zero? (published: no scaling, the network predicts noise)",
    "backbones": "Which network?",
    "samplers": "Which sampler, and how many network evaluations?",
    "one_model": "One conditional model, or one model per type?",
    "gene_order": "Does it matter which genes share a patch?",
    "targets": "Which path, and what should the network predict?",
}
FIGURES = {
    "auc_pcs": "AUC (PCs)",
    "auc_genes": "AUC (genes)",
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
PANELS = ("auc_pcs", "precision", "recall", "w2", "within_label_correlation", "share_of_zeros")


def summarise(table: pd.DataFrame) -> str:
    """Write one markdown table per data set and experiment: configurations below the floor of the cells that they were compared with."""
    parts = [
        "# The gene-space models' open questions",
        "",
        "Mean over seeds ± half the range. The floor is what real training cells score in place of generated ones. Written by "
        "`python -m benchmarks.studies.gene_space`.",
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
        parts += [f"## {TITLES.get(experiment, experiment)}", "", about, ""]
        parts += [markdown_table(["", *(FIGURES[name] for name in figures)], lines), ""]
    parts += [f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.", ""]
    return "\n".join(parts)


def _spread(rows: pd.DataFrame, metric: str, column: str) -> str:
    """Write mean +- half range over seeds; nothing where there is no value."""
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


def draw_samplers(table: pd.DataFrame, path: Path) -> None:
    """Draw figures against network evaluations, one line per sampler, beside the floor (dashed)."""
    rows = table[(table["experiment"] == "samplers") & (table["dataset"] == table["dataset"].iloc[0])]
    rows = rows.join(rows["configuration"].str.extract(r"(?P<sampler>.*), (?P<evaluations>\d+) evaluations"))
    rows = rows.astype({"evaluations": int})
    figure, axes = plt.subplots(2, 3, figsize=(8.0, 4.4), layout="constrained")
    for metric, ax in zip(PANELS, axes.flat, strict=True):
        of_metric = rows[rows["metric"] == metric]
        for marker, (name, line) in zip("os^DvP", of_metric.groupby("sampler", sort=False), strict=False):
            values = line.groupby("evaluations")["value"].agg(["mean", "min", "max"])
            ax.plot(values.index, values["mean"], marker=marker, ms=4, lw=1.2, label=name)
            ax.vlines(values.index, values["min"], values["max"], lw=1.2)
        ax.axhline(of_metric["floor"].mean(), color="#666666", linestyle="--", lw=0.9)
        ax.set(xscale="log", xlabel="network evaluations")
        ax.set_title(FIGURES[metric], loc="left", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = [*ZERO_VALUE_EXPERIMENTS, "backbones", "samplers", "one_model", "gene_order", "targets"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=CONDITION_KEYS, default="pbmc3k")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--experiments", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=1_500, help="optimiser steps at batch 128")
    parser.add_argument("--minutes", type=float, default=5.0, help="equal-time arm of the backbones")
    parser.add_argument("--n-genes", type=int, default=2_000, help="most variable genes kept")
    parser.add_argument("--backbone-genes", type=int, help="genes of that experiment, of which the U-Net can take few")
    parser.add_argument("--backbone-steps", type=int, help="steps of its equal-steps arm; default: --steps")
    parser.add_argument("--unet-width", type=int, default=16, help="channels of its first level")
    parser.add_argument("--sampler-cells", type=int, default=512, help="cells that samplers draw")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[1000, 500, 200, 100, 50, 20, 10])
    parser.add_argument("--full-judge", action="store_true", help="tell cells apart by all genes, too (slow)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; with 1, seconds are CPU seconds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="measure nothing; write table and picture")
    return parser.parse_args(arguments)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.report:
        run(options)
    table = read_table(options.results / "gene_space.csv")
    write_text(options.results / "gene_space.md", summarise(table))
    if options.report:
        draw_samplers(table, ROOT / "docs" / "_static" / "gene_space_samplers.png")


if __name__ == "__main__":
    main()
