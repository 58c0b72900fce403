"""The open questions of the gene-space models on real data: zero value, network, sampler, one model for all types, gene order, target.

    python -m benchmarks.studies.gene_space --threads 1 --steps 1500 --minutes 5
    python -m benchmarks.studies.gene_space --experiments targets gene_order --seeds 0
    python -m benchmarks.studies.gene_space --plots-only

Every configuration is stored in ``results/gene_space.csv`` as soon as it is measured, and skipped the next time; one that another
experiment has measured already is copied. A text of settings holds what differs from the package's defaults, and a digest of these. ``results/gene_space.md`` has the means over seeds beside the floor.
"""

from __future__ import annotations

import argparse
import logging
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells
from benchmarks.studies.gene_space_experiments import EXPERIMENTS, Configuration, Options
from benchmarks.studies.quick_judge import QuickJudge, ZerosJudge
from benchmarks.tables import describe_machine, describe_versions, read_table, store_rows, today, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import anndata as ad
    from numpy.typing import NDArray

    from benchmarks.studies.gene_space_experiments import Drawing, Training
    from benchmarks.studies.gene_space_runs import Trained

logger = logging.getLogger("benchmarks.gene_space")

RESULTS = Path(__file__).parent / "results"
PLOTS = Path(__file__).parents[1] / "docs" / "_static"
KEYS = ("dataset", "seed", "experiment", "configuration")


class Splits(dict):
    """The split of one data set and seed at every number of genes; the held-out cells are always the same."""

    def __init__(self, adata: ad.AnnData, condition_keys: tuple[str, ...], seed: int) -> None:
        self.adata, self.condition_keys, self.seed = adata, condition_keys, seed

    def __missing__(self, n_genes: int) -> Split:
        """Split when first asked."""
        self[n_genes] = split_cells(self.adata, self.condition_keys, seed=self.seed, n_genes=n_genes)
        return self[n_genes]


class Comparison:
    """The held-out cells that a drawing imitates, and their judge."""

    def __init__(self, split: Split, drawing: Drawing, seed: int, judge: type[ZerosJudge]) -> None:
        from benchmarks.studies.gene_space_runs import large_types

        chosen, train = np.ones(len(split.held_out_labels), bool), np.ones(len(split.train_labels), bool)
        if drawing.large_types:
            large = large_types(split.train_labels)
            chosen, train = np.isin(split.held_out_labels, large), np.isin(split.train_labels, large)
        rows = np.flatnonzero(chosen)
        if drawing.cells is not None and drawing.cells < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(rows, drawing.cells, replace=False))
        held_out = split.held_out[rows]
        self.labels = split.held_out_labels[rows]
        self.conditions = held_out.obs[list(split.condition_keys)].reset_index(drop=True)
        self.description = describe_cells(drawing, held_out.n_vars)
        counts = split.train.layers["counts"][train], held_out.layers["counts"]
        self.judge = judge(counts[0], split.train_labels[train], counts[1], self.labels, seed=seed)

    @cached_property
    def floor(self) -> dict[str, float]:
        """What real cells score."""
        return self.judge.floor()

    def measure(self, counts: NDArray) -> dict[str, float]:
        """Return the figures of drawn cells."""
        return self.judge.measure(counts, self.labels)


def describe_cells(drawing: Drawing, n_genes: int) -> str:
    """Say which held-out cells are imitated."""
    cells = "all cells" if drawing.cells is None else f"{drawing.cells} cells"
    return f"{cells}{', large types' if drawing.large_types else ''}, {n_genes} genes"


class Study:
    """Measures configurations on one data set and seed, and stores each as soon as it is done."""

    def __init__(
        self, path: Path, dataset: str, seed: int, splits: Splits, baseline: Training, judge: type[ZerosJudge]
    ) -> None:
        from benchmarks.studies.gene_space_runs import Trainer

        self.path, self.dataset, self.seed, self.splits, self.judge = path, dataset, seed, splits, judge
        self.trainer = Trainer(splits, baseline, seed)
        self._comparisons: dict[tuple[int, int | None, bool], Comparison] = {}

    def measure(self, experiment: str, configuration: Configuration) -> None:
        """Train, or take what is trained, draw, judge and store."""
        logger.info("%s, seed %d, %s: %s", self.dataset, self.seed, experiment, configuration.name)
        comparison = self._comparison(configuration)
        trained = self.trainer.train(configuration.training)
        figures = sample_and_judge(trained, comparison, configuration.drawing, self.seed) | trained.costs
        rows = [
            {"metric": name, "value": value, "floor": comparison.floor.get(name, np.nan)}
            for name, value in figures.items()
        ]
        table = pd.DataFrame(rows).assign(judged_on=comparison.description, settings=configuration.describe())
        self.store(table, experiment, configuration)

    def store(self, table: pd.DataFrame, experiment: str, configuration: Configuration) -> None:
        """Store a configuration's figures under its name."""
        from benchmarks.studies.gene_space_runs import device

        keys = {"dataset": self.dataset, "seed": self.seed, "experiment": experiment}
        table = table.assign(
            **keys,
            configuration=configuration.name,
            machine=describe_machine(device()),
            versions=describe_versions("torch", "scvi-tools", "scgen-diffusion"),
            date=today(),
        )
        store_rows(self.path, table[[*KEYS, *(name for name in table.columns if name not in KEYS)]], KEYS)

    def _comparison(self, configuration: Configuration) -> Comparison:
        n_genes, drawing = configuration.training.n_genes, configuration.drawing
        key = (n_genes, drawing.cells, drawing.large_types)
        if key not in self._comparisons:
            self._comparisons[key] = Comparison(self.splits[n_genes], drawing, self.seed, self.judge)
        return self._comparisons[key]


def sample_and_judge(trained: Trained, comparison: Comparison, drawing: Drawing, seed: int) -> dict[str, float]:
    """Draw cells and return their figures; cells that diverge have none."""
    from benchmarks.studies.gene_space_runs import seconds

    started = seconds()
    try:
        counts = trained.sample(comparison.conditions, comparison.labels, drawing, seed)
    except FloatingPointError as error:
        logger.warning("%s", error)
        return dict.fromkeys(comparison.floor, np.nan) | {"diverged": 1.0}
    generation = seconds() - started
    costs = {"generation_seconds": generation, "generated_cells_per_second": len(counts) / generation}
    return comparison.measure(counts) | costs


def pending(stored: pd.DataFrame, experiment: str, configurations: Iterable[Configuration]) -> list[Configuration]:
    """Return the configurations of an experiment that are not stored.

    Parameters
    ----------
    stored
        Rows of one data set and seed.
    experiment, configurations
        What is asked for.

    Raises
    ------
    ValueError
        If a stored result has the same name, but other settings.
    """
    configurations = list(configurations)
    if stored.empty:
        return configurations
    known = stored[stored["experiment"] == experiment].groupby("configuration")["settings"].first().to_dict()
    for configuration in configurations:
        settings = configuration.describe()
        if known.get(configuration.name, settings) != settings:
            msg = (
                f"`{configuration.name}` of the experiment `{experiment}` is stored with the settings "
                f"{known[configuration.name]}, not {settings}: take another folder (--results), or pass --force."
            )
            raise ValueError(msg)
    return [configuration for configuration in configurations if configuration.name not in known]


def measured_elsewhere(stored: pd.DataFrame, configuration: Configuration) -> pd.DataFrame:
    """Return the figures that another experiment, on the same data set and seed, has under the same settings."""
    if stored.empty:
        return stored
    same = stored[stored["settings"] == configuration.describe()]
    first = same[same["experiment"] == same["experiment"].iloc[0]] if len(same) else same
    return first.drop(columns=[*KEYS, "machine", "versions", "date"])


def stored_rows(path: Path, dataset: str, seed: int) -> pd.DataFrame:
    """Return the stored rows of one data set and seed."""
    table = read_table(path)
    return table if table.empty else table[(table["dataset"] == dataset) & (table["seed"] == seed)]


def run(arguments: argparse.Namespace) -> None:
    """Measure what is asked for and not yet stored."""
    path = arguments.results / "gene_space.csv"
    adata, judge = load(arguments.dataset), ZerosJudge if arguments.full_judge else QuickJudge
    options = options_from(arguments)
    for seed in arguments.seeds:
        splits = Splits(adata, CONDITION_KEYS[arguments.dataset], seed)
        study = Study(path, arguments.dataset, seed, splits, options.training(), judge)
        for experiment in arguments.experiments:
            run_experiment(study, experiment, EXPERIMENTS[experiment](options), force=arguments.force)


def run_experiment(study: Study, experiment: str, configurations: list[Configuration], *, force: bool = False) -> None:
    """Measure, or copy, what is not stored of one experiment."""
    rows = stored_rows(study.path, study.dataset, study.seed)
    for configuration in configurations if force else pending(rows, experiment, configurations):
        if configuration.training.n_genes > study.splits.adata.n_vars:
            logger.info("%s is left out: there are fewer genes.", configuration.name)
            continue
        rows = stored_rows(study.path, study.dataset, study.seed)
        copied = measured_elsewhere(rows, configuration)
        if len(copied) and not force:
            study.store(copied, experiment, configuration)
            continue
        started = time.perf_counter()
        study.measure(experiment, configuration)
        logger.info("  %.0f s in all", time.perf_counter() - started)


def options_from(arguments: argparse.Namespace) -> Options:
    """Take the sizes from the command line."""
    given = {name: getattr(arguments, name) for name in Options.__dataclass_fields__}
    given["backbone_genes"] = given["backbone_genes"] or arguments.n_genes
    given["backbone_steps"] = given["backbone_steps"] or arguments.steps
    return Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def report(results: Path, plots: Path, *, with_plots: bool) -> None:
    """Write the tables, and the plots if they are asked for."""
    from benchmarks.studies.gene_space_plots import draw_plots
    from benchmarks.studies.gene_space_report import summarise

    table = read_table(results / "gene_space.csv")
    write_text(results / "gene_space.md", summarise(table))
    if with_plots:
        for file in draw_plots(table, plots):
            logger.info("%s", file)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    sizes: dict[str, Any] = {name: field.default for name, field in Options.__dataclass_fields__.items()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=CONDITION_KEYS, default="pbmc3k")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=sizes["steps"], help="optimiser steps at batch 128")
    parser.add_argument("--minutes", type=float, default=sizes["minutes"], help="equal-time arm of the backbones")
    parser.add_argument("--n-genes", type=int, default=sizes["n_genes"], help="most variable genes kept")
    parser.add_argument("--backbones", nargs="+", choices=sizes["backbones"], default=list(sizes["backbones"]))
    parser.add_argument("--backbone-genes", type=int, help="genes of that experiment; default: --n-genes")
    parser.add_argument("--backbone-steps", type=int, help="steps of its equal-steps arm; default: --steps")
    parser.add_argument("--unet-width", type=int, default=sizes["unet_width"], help="channels of its first level")
    parser.add_argument("--sampler-cells", type=int, default=sizes["sampler_cells"], help="cells that samplers draw")
    parser.add_argument(
        "--evaluations", nargs="+", type=int, default=list(sizes["evaluations"]), help="of the samplers"
    )
    parser.add_argument("--full-judge", action="store_true", help="tell cells apart by all genes, too (slow)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: its own choice")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of gene_space.csv and gene_space.md")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder of gene_space_*.png")
    parser.add_argument(
        "--plots-only", action="store_true", help="measure nothing; write table and plots of what is stored"
    )
    parser.add_argument("--force", action="store_true", help="measure again what is stored")
    return parser.parse_args(arguments)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    arguments = parse_arguments()
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    if not arguments.plots_only:
        run(arguments)
    report(arguments.results, arguments.plots, with_plots=arguments.plots_only)


if __name__ == "__main__":
    main()
