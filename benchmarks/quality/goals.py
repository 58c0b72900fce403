"""How good are the generated cells? Every method on every data set and seed, beside its floor.

    python -m benchmarks.quality.goals --datasets pbmc3k paul15 --seeds 0 1 2 --methods SCLDM SCRDIT WBDIT copula
    python -m benchmarks.quality.goals --methods --variants 'wide={"class": "WBDIT", "width": 256}'

Results are added to ``results/quality.csv`` one (data set, seed, method) at a time; what is there already is skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.judge import GOALS, Judge, judgement_table
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells, to_dense
from benchmarks.speed.meters import clock
from benchmarks.tables import (
    describe_machine,
    describe_versions,
    markdown_table,
    read_table,
    store_rows,
    today,
    write_text,
)
from scgen_diffusion.data import join_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    from numpy.typing import NDArray

logger = logging.getLogger("benchmarks.quality")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "method")
FLOOR = "floor"
RECONSTRUCTION, IDEAL_PRIOR = "-reconstruction", "-ideal-prior"
WITH_AUTOENCODER = "SCLDM"
GENE_SPACE_MODELS = ("SCRDIT", "WBDIT")
MODELS = (WITH_AUTOENCODER, *GENE_SPACE_MODELS)
DEFAULT_METHODS = ("SCLDM", f"SCLDM{RECONSTRUCTION}", f"SCLDM{IDEAL_PRIOR}", *GENE_SPACE_MODELS, *BASELINES)


@dataclass(frozen=True)
class Sampled:
    """What a method drew, one cell per held-out cell, and what it cost."""

    counts: NDArray  # (cells, genes)
    costs: dict[str, float]


@dataclass(frozen=True)
class Variant:
    """Keyword arguments of one configuration of a model, and the name of its class."""

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    model_class: str = WITH_AUTOENCODER

    @classmethod
    def parse(cls, text: str) -> tuple[str, Variant]:
        """Read ``name={"class": ..., "model": {...}, "train": {...}, "generate": {...}}``; other keys go to the model."""
        name, _, value = text.partition("=")
        arguments = json.loads(value or "{}")
        model_class = arguments.pop("class", WITH_AUTOENCODER)
        if model_class not in MODELS:
            msg = f"The class of the variant `{name}` must be one of {list(MODELS)}, but found {model_class!r}."
            raise ValueError(msg)
        parts = {part: arguments.pop(part, {}) for part in ("model", "train", "generate")}
        parts["model"] |= arguments
        return name, cls(**parts, model_class=model_class)

    def describe(self) -> str:
        """Return the arguments as JSON; the class only where it is not SCLDM, as in rows that are older than the others."""
        named = {} if self.has_autoencoder else {"class": self.model_class}
        arguments = {"model": self.model, "train": self.train, "generate": self.generate}
        return json.dumps(named | arguments, sort_keys=True)

    @property
    def has_autoencoder(self) -> bool:
        """Whether there is something to reconstruct with."""
        return self.model_class == WITH_AUTOENCODER

    @property
    def output(self) -> dict[str, Any]:
        """What ``generate`` must be told to return counts."""
        return {"counts": True} if self.model_class in GENE_SPACE_MODELS else {}


class ModelRuns:
    """The models of one split: each variant is trained once, when it is first needed."""

    def __init__(self, split: Split, seed: int, variants: dict[str, Variant]) -> None:
        self.split, self.seed, self.variants = split, seed, variants
        self._trained: dict[str, tuple[Any, float]] = {}

    def sample(self, method: str) -> Sampled:
        """Draw cells by the method ``variant``, ``variant-reconstruction`` or ``variant-ideal-prior``."""
        variant, part = split_method(method)
        model, train_seconds = self._model(variant)
        started = clock("cpu")
        synthetic = self._draw(model, part, self.variants[variant])
        seconds = clock("cpu") - started
        costs = {"train_minutes": train_seconds / 60, "generated_cells_per_second": synthetic.n_obs / seconds}
        return Sampled(self._counts(synthetic), costs)

    def _draw(self, model: Any, part: str, variant: Variant) -> ad.AnnData:
        if part == RECONSTRUCTION:
            return model.get_reconstruction(self.split.held_out, seed=self.seed)
        if part == IDEAL_PRIOR:
            return model.get_reconstruction(self._training_cells(), seed=self.seed)
        condition = self.split.held_out.obs[list(self.split.condition_keys)].reset_index(drop=True)
        return model.generate(condition=condition, seed=self.seed, **variant.output, **variant.generate)

    def _training_cells(self) -> ad.AnnData:
        """Draw a training cell per held-out label: their latents are what a perfect prior would return."""
        rng = np.random.default_rng(self.seed)
        drawn = draw_matching(self.split.train_labels, self.split.held_out_labels, rng)
        cells = self.split.train[drawn].copy()
        cells.obs_names_make_unique()
        return cells

    def _model(self, variant: str) -> tuple[Any, float]:
        if variant not in self._trained:
            self._trained[variant] = train_model(self.split, self.variants[variant], self.seed)
        return self._trained[variant]

    def _counts(self, synthetic: ad.AnnData) -> NDArray:
        if not synthetic.var_names.equals(self.split.train.var_names):
            msg = "The generated cells do not have the genes of the training cells, in their order."
            raise ValueError(msg)
        if (join_labels(synthetic.obs, self.split.condition_keys) != self.split.held_out_labels).any():
            msg = "The generated cells do not have the labels that were asked for, in their order."
            raise ValueError(msg)
        return to_dense(synthetic.X)


def train_model(split: Split, variant: Variant, seed: int) -> tuple[Any, float]:
    """Return a trained model and the seconds that training took."""
    import scvi

    from scgen_diffusion import model as models

    scvi.settings.seed = seed
    model_class, adata = getattr(models, variant.model_class), split.train.copy()
    model_class.setup_anndata(adata, layer="counts", condition_keys=list(split.condition_keys))
    started = clock("cpu")
    model = model_class(adata, **variant.model)
    model.train(**variant.train)
    return model, clock("cpu") - started


def draw_matching(labels: NDArray, requested: NDArray, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return, per requested label, the index of a random cell that has it; no cell twice unless there are too few."""
    drawn = np.empty(len(requested), dtype=np.intp)
    for label in np.unique(requested):
        rows, candidates = requested == label, np.flatnonzero(labels == label)
        drawn[rows] = rng.choice(candidates, rows.sum(), replace=rows.sum() > len(candidates))
    return drawn


def split_method(method: str) -> tuple[str, str]:
    """Split a method's name into the variant and what is done with it."""
    for part in (RECONSTRUCTION, IDEAL_PRIOR):
        if method.endswith(part):
            return method.removesuffix(part), part
    return method, ""


def sample_baseline(split: Split, method: str, seed: int) -> Sampled:
    """Fit a baseline and draw from it."""
    started = clock("cpu")
    counts = BASELINES[method](split.train, split.train_labels, split.held_out_labels, seed)
    return Sampled(to_dense(counts), {"fit_and_sample_minutes": (clock("cpu") - started) / 60})


class Study:
    """Measures methods on one data set and seed, and stores each as soon as it is done."""

    def __init__(self, path: Path, dataset: str, seed: int, variants: dict[str, Variant], n_genes: int) -> None:
        self.path, self.dataset, self.seed, self.variants = path, dataset, seed, variants
        self.split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed, n_genes=n_genes)
        split = self.split
        self.judge = Judge(
            split.train.layers["counts"],
            split.train_labels,
            split.held_out.layers["counts"],
            split.held_out_labels,
            seed=seed,
        )
        self.runs = ModelRuns(split, seed, variants)
        self.floor = self._stored_floor() or self._measure_floor()

    def measure(self, method: str) -> None:
        """Sample by one method, judge the cells and store the figures."""
        logger.info("%s, seed %d, %s", self.dataset, self.seed, method)
        is_baseline = method in BASELINES
        sampled = sample_baseline(self.split, method, self.seed) if is_baseline else self.runs.sample(method)
        figures = self.judge.measure(sampled.counts, self.split.held_out_labels) | sampled.costs
        self._store(method, figures, "" if is_baseline else self.variants[split_method(method)[0]].describe())

    def _measure_floor(self) -> dict[str, float]:
        logger.info("%s, seed %d, floor", self.dataset, self.seed)
        self.floor = self.judge.floor()
        self._store(FLOOR, self.floor, "")
        return self.floor

    def _stored_floor(self) -> dict[str, float]:
        table = read_table(self.path)
        if table.empty:
            return {}
        rows = table[(table["dataset"] == self.dataset) & (table["seed"] == self.seed) & (table["method"] == FLOOR)]
        return dict(zip(rows["metric"], rows["value"], strict=True))

    def _store(self, method: str, figures: dict[str, float], settings: str) -> None:
        table = judgement_table(figures, self.floor, dataset=self.dataset, seed=self.seed, method=method)
        table = table.assign(
            settings=settings,
            machine=describe_machine(),
            versions=describe_versions("torch", "scvi-tools", "scikit-learn", "scgen-diffusion"),
            date=today(),
        )
        store_rows(self.path, table, KEYS)


def pending(path: Path, dataset: str, seed: int, methods: Sequence[str], variants: dict[str, Variant]) -> list[str]:
    """Return the methods that have no stored result for this data set and seed.

    Raises
    ------
    ValueError
        If a stored result has the same name, but other settings.
    """
    table = read_table(path)
    if table.empty:
        return list(methods)
    table = table[(table["dataset"] == dataset) & (table["seed"] == seed)]
    stored = dict(zip(table["method"], table["settings"].fillna(""), strict=True))
    for method in methods:
        settings = "" if method in BASELINES else variants[split_method(method)[0]].describe()
        if stored.get(method, settings) != settings:
            msg = f"`{method}` is stored with the settings {stored[method]}, not {settings}: name it otherwise, or pass --force."
            raise ValueError(msg)
    return [method for method in methods if method not in stored]


def summarise(table: pd.DataFrame) -> str:
    """Write one markdown table per data set: means over seeds, the floor, the goal, and whether it is met."""
    parts = [
        "# Quality of generated cells",
        "",
        "Means over the seeds of each method. **Bold**: the goal is met. Written by `python -m benchmarks.quality.goals`.",
        "",
    ]
    for dataset, rows in table.groupby("dataset", sort=False):
        parts += [f"## {dataset}", "", _summarise_one(rows), ""]
    parts += [f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.", ""]
    return "\n".join(parts)


def _summarise_one(rows: pd.DataFrame) -> str:
    values = rows.pivot_table(index="metric", columns="method", values="value", sort=False)
    floors = values[FLOOR] if FLOOR in values else pd.Series(float("nan"), index=values.index)
    methods = [method for method in values.columns if method != FLOOR]
    n_seeds = rows.groupby("method")["seed"].nunique()
    lines = [["seeds", str(n_seeds.get(FLOOR, "")), "", *(str(n_seeds[method]) for method in methods)]]
    n_met = dict.fromkeys(methods, 0)
    for metric, row in values.iterrows():
        goal, floor = GOALS.get(metric), floors[metric]
        cells = []
        for method in methods:
            met = goal is not None and goal.met(row[method], floor)
            n_met[method] += met
            cells.append(_number(row[method], bold=met))
        lines.append([metric, _number(floor), "" if goal is None else goal.describe(floor), *cells])
    n_goals = sum(metric in GOALS for metric in values.index)
    lines.append(["goals met", "", str(n_goals), *(str(n_met[method]) for method in methods)])
    return markdown_table(["figure", "floor", "goal", *methods], lines)


def _number(value: float, *, bold: bool = False) -> str:
    if np.isnan(value):
        return ""
    text = f"{value:.4g}" if abs(value) >= 1 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
    return f"**{text}**" if bold else text


def run(arguments: argparse.Namespace) -> None:
    """Measure what is asked for and not yet stored, then write the summary."""
    defaults = {name: Variant(model_class=name) for name in MODELS}
    variants = defaults | dict(Variant.parse(text) for text in arguments.variants)
    methods = list(dict.fromkeys([*arguments.methods, *(name for name in variants if name not in defaults)]))
    check_methods(methods, variants)
    path = arguments.results / "quality.csv"
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            wanted = methods if arguments.force else pending(path, dataset, seed, methods, variants)
            if not wanted:
                continue
            study = Study(path, dataset, seed, variants, arguments.n_genes)
            for method in wanted:
                study.measure(method)
    summary = summarise(read_table(path))
    write_text(arguments.results / "quality.md", summary)
    logger.info("%s", summary)


def check_methods(methods: Sequence[str], variants: dict[str, Variant]) -> None:
    """Raise if a method is neither a baseline nor something that can be done with a variant."""
    unknown = [method for method in methods if method not in BASELINES and split_method(method)[0] not in variants]
    if unknown:
        known = [*BASELINES, *(f"{name}{part}" for name in variants for part in parts_of(variants[name]))]
        msg = f"Unknown methods {unknown}; known: {known}."
        raise ValueError(msg)
    for method in methods:
        name, part = split_method(method)
        if method not in BASELINES and part not in parts_of(variants[name]):
            msg = f"`{method}` needs an autoencoder, which {variants[name].model_class} does not have; only SCLDM does."
            raise ValueError(msg)


def parts_of(variant: Variant) -> tuple[str, ...]:
    """Return what can be done with a variant, as endings of a method's name."""
    return ("", RECONSTRUCTION, IDEAL_PRIOR) if variant.has_autoencoder else ("",)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=CONDITION_KEYS, default=list(CONDITION_KEYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=list(DEFAULT_METHODS), help="default: %(default)s")
    parser.add_argument("--variants", nargs="*", default=[], metavar="NAME=JSON", help="model variants to measure too")
    parser.add_argument("--n-genes", type=int, default=2_000, help="most variable genes kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of quality.csv and quality.md")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: its own choice")
    parser.add_argument("--force", action="store_true", help="measure again what is stored")
    return parser.parse_args(arguments)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    run(arguments)


if __name__ == "__main__":
    main()
