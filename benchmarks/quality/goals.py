"""Which goals do the generated cells reach? Every method on every data set and seed, beside its floor.

    python -m benchmarks.quality.goals --datasets pbmc3k paul15 --seeds 0 1 2 --methods SCLDM SCRDIT WBDIT copula
    python -m benchmarks.quality.goals --methods --variants 'wide={"class": "WBDIT", "width": 256}'

Results are added to ``results/quality.csv`` one (data set, seed, method) at a time; what is there already is skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.drawing import MODELS, draw_matching, generate, train_model
from benchmarks.quality.judge import GOALS, Judge, judgement_table
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells, to_dense
from benchmarks.speed.meters import clock
from benchmarks.tables import (
    describe_source,
    markdown_table,
    read_table,
    store_rows,
    stored_keys,
    write_text,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("benchmarks.quality")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "method")
FLOOR = "floor"
RECONSTRUCTION, IDEAL_PRIOR = "-reconstruction", "-ideal-prior"  # what else can be done with an autoencoder

#: Class and arguments of a model: ``{"class": ..., "model": {...}, "train": {...}, "generate": {...}}``.
Variant = dict[str, Any]


def parse_variant(text: str) -> tuple[str, Variant]:
    """Read ``name={"class": ..., "model": {...}, "train": {...}, "generate": {...}}``; other keys go to the model."""
    name, _, value = text.partition("=")
    given = json.loads(value or "{}")
    variant = {"class": given.pop("class", "SCLDM")}
    if variant["class"] not in MODELS:
        msg = f"The class of the variant `{name}` must be one of {list(MODELS)}, but found {variant['class']!r}."
        raise ValueError(msg)
    variant |= {part: given.pop(part, {}) for part in ("model", "train", "generate")}
    variant["model"] |= given
    return name, variant


def known_methods(variants: dict[str, Variant]) -> dict[str, tuple[Variant | None, str]]:
    """Return all methods: the baselines, and what can be done with each variant."""
    found: dict[str, tuple[Variant | None, str]] = dict.fromkeys(BASELINES, (None, ""))
    for name, variant in variants.items():
        parts = ("", RECONSTRUCTION, IDEAL_PRIOR) if variant["class"] == "SCLDM" else ("",)
        found |= {name + part: (variant, part) for part in parts}
    return found


def draw(split: Split, variant: Variant, part: str, model: Any, seed: int) -> NDArray:
    """Draw a cell per held-out cell from a trained model, or decode held-out or training cells."""
    if part == RECONSTRUCTION:
        return to_dense(model.get_reconstruction(split.held_out, seed=seed).X)
    if part == IDEAL_PRIOR:  # the latents of training cells are what a perfect prior would return
        rows = draw_matching(split.train_labels, split.held_out_labels, np.random.default_rng(seed))
        cells = split.train[rows].copy()
        cells.obs_names_make_unique()
        return to_dense(model.get_reconstruction(cells, seed=seed).X)
    return to_dense(generate(model, split, seed, **variant["generate"]).X)


def study(path: Path, dataset: str, seed: int, methods: dict[str, tuple[Variant | None, str]], n_genes: int) -> None:
    """Draw by every method, judge the cells, and store the figures of each as soon as they are there."""
    split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed, n_genes=n_genes)
    judge = Judge.of(split, seed)

    def store(method: str, figures: dict[str, float], settings: str = "") -> None:
        table = judgement_table(figures, floor, dataset=dataset, seed=seed, method=method)
        source = describe_source("torch", "scvi-tools", "scikit-learn", "scgen-diffusion")
        store_rows(path, table.assign(settings=settings, **source), KEYS)

    stored = read_table(path)
    if not stored.empty:
        rows = stored[list(KEYS)].eq([dataset, seed, FLOOR]).all(axis=1)
        stored = stored[rows]
    floor = judge.floor() if stored.empty else dict(zip(stored["metric"], stored["value"], strict=True))
    if stored.empty:
        store(FLOOR, floor)
    trained: dict[str, tuple[Any, float]] = {}
    for method, (variant, part) in methods.items():
        logger.info("%s, seed %d, %s", dataset, seed, method)
        if variant is None:
            started = clock("cpu")
            counts = to_dense(BASELINES[method](split.train, split.train_labels, split.held_out_labels, seed))
            costs = {"fit_and_sample_minutes": (clock("cpu") - started) / 60}
        else:
            name = method.removesuffix(part)
            if name not in trained:
                trained[name] = train_model(
                    split, variant["class"], seed, model=variant["model"], train=variant["train"]
                )
            model, seconds = trained[name]
            started = clock("cpu")
            counts = draw(split, variant, part, model, seed)
            costs = {
                "train_minutes": seconds / 60,
                "generated_cells_per_second": len(counts) / (clock("cpu") - started),
            }
        settings = "" if variant is None else json.dumps(variant, sort_keys=True)
        store(method, judge.measure(counts, split.held_out_labels) | costs, settings)


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
    added = dict(parse_variant(text) for text in arguments.variants)
    known = known_methods(dict(parse_variant(f'{name}={{"class": "{name}"}}') for name in MODELS) | added)
    methods = list(dict.fromkeys([*arguments.methods, *added]))
    if unknown := sorted(set(methods) - set(known)):
        msg = f"Unknown methods {unknown}; known: {list(known)}."
        raise ValueError(msg)
    path = arguments.results / "quality.csv"
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            done = set() if arguments.force else stored_keys(path, KEYS)
            wanted = {method: known[method] for method in methods if (dataset, seed, method) not in done}
            if wanted:
                study(path, dataset, seed, wanted, arguments.n_genes)
    summary = summarise(read_table(path))
    write_text(arguments.results / "quality.md", summary)
    logger.info("%s", summary)


def main() -> None:
    """Run from the command line."""
    default = ["SCLDM", f"SCLDM{RECONSTRUCTION}", f"SCLDM{IDEAL_PRIOR}", "SCRDIT", "WBDIT", *BASELINES]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets", nargs="+", choices=CONDITION_KEYS, default=["pbmc3k", "kang_ifnb", "paul15", "pbmc68k_reduced"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=default)
    parser.add_argument("--variants", nargs="*", default=[], metavar="NAME=JSON", help="other arguments of a model")
    parser.add_argument("--n-genes", type=int, default=2_000, help="most variable genes kept")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; with 1, minutes are CPU minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true", help="measure again what is stored")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run(arguments)


if __name__ == "__main__":
    main()
