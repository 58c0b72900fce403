"""How do quality, minutes and memory depend on the numbers of cells, genes and types? Asked of a known world.

    python -m benchmarks.studies.learning_curves                                   # all that is missing
    python -m benchmarks.studies.learning_curves --cells 2000 --methods SCLDM      # a part
    python -m benchmarks.studies.learning_curves --methods SCLDM --steps "twice the steps"    # other lengths
    python -m benchmarks.studies.learning_curves --cells 8000 --types 30 100       # other worlds
    python -m benchmarks.studies.learning_curves --cells 32000 --methods SCLDM-published --steps "a tenth of the steps"

Cells come from `benchmarks.studies.world`. Small training sets are the first cells of the large ones. Every method
trains and draws in its own process with one thread. Its cells are compared with fresh cells of the world, one for each
and of the same type, and so is a second fresh draw: the floor. All use one space of comparison, fitted to other cells.
Models learn all genes of a world, and the genes of the default world are judged, so that worlds compare.
Adds to ``results/learning_curves.csv`` and writes ``results/learning_curves.md`` and
``docs/_static/learning_curves.png``.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.drawing import COSTS_KEY, MODELS, draw, write_cells
from benchmarks.quality.report import IN_SHORT
from benchmarks.quality.splits import Split, judge
from benchmarks.studies.held_out import REAL, RESULTS
from benchmarks.studies.world import FLOOR, HELD_OUT, N_GENES, N_TYPES, RARE, SOURCE, SPACE, TRAIN, World
from benchmarks.tables import ROOT, describe_source, markdown_table, read_table, store_rows, stored_keys, write_text
from scgen_diffusion.model._training import split_cells
from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES

if TYPE_CHECKING:
    from benchmarks.quality.drawing import Variant

logger = logging.getLogger("benchmarks.learning_curves")

PICTURE = ROOT / "docs" / "_static" / "learning_curves.png"
KEYS = ("method", "cells", "steps", "genes", "types")
METHODS = ("SCLDM", "SCRDIT", "WBDIT", "scVI")
PUBLISHED = "SCLDM-published"  # the architecture and the training of the paper, in bfloat16
DEFAULT = "default"
#: Numbers of training steps: factors of the defaults, by stage, in one round.
STEPS: dict[str, dict[str, float]] = {
    DEFAULT: {},
    "one round of the autoencoder": {"autoencoder": 1},
    "twice the autoencoder's steps": {"autoencoder": 2},
    "twice the prior's steps": {"prior": 2},
    "a tenth of the steps": {"autoencoder": 0.1, "prior": 0.1, "diffusion": 0.1},
    "twice the steps": {"autoencoder": 2, "prior": 2, "diffusion": 2},
}
CELLS = (2_000, 8_000, 32_000)
PART = 2_000  # cells per file
N_JUDGED, N_RARE, N_SPACE = 1_000, 200, 4_000
#: Figures of `evaluate`, and their names in tables.
FIGURES = {metric: name for metric, name in IN_SHORT.items() if metric != "cpu_minutes"}
FIGURES |= {"nearer_than_held_out": "too near", "copied_cells": "copies"}
FIGURES_OF_RARE = ("auc_boosting", "precision", "recall")
COSTS = {"train_minutes": "minutes", "peak_memory_gib": "peak GiB"}


def write_world(folder: Path, n_cells: int, n_genes: int = N_GENES, n_types: int = N_TYPES) -> None:
    """Write the training cells, the cells to compare with, the floor, and the cells and genes that give the space."""
    world = World.fit(n_genes=n_genes, n_types=n_types)
    world.write(folder / "train", n_cells, TRAIN, PART)
    rare = [world.draw(N_RARE, HELD_OUT, name) for name in RARE]
    held_out = ad.concat([world.draw(N_JUDGED, HELD_OUT), *rare])
    write_cells(held_out, folder / "held_out.h5ad")
    write_cells(world.draw_like(held_out.obs["cell_type"].to_list(), FLOOR), folder / "floor.h5ad")
    judged = world.genes if n_genes <= N_GENES else World.fit(n_genes=N_GENES).genes
    write_cells(world.draw(N_SPACE, SPACE)[:, judged].copy(), folder / "space.h5ad")


def read_split(folder: Path, n_cells: int) -> Split:
    """Read the first training cells and all that is held out."""
    parts = [with_layer(folder / "train" / f"part-{number:04}.h5ad") for number in range(n_cells // PART)]
    train = parts[0] if len(parts) == 1 else ad.concat(parts)
    return Split(train, with_layer(folder / "held_out.h5ad"), ("cell_type",))


def with_layer(path: Path) -> ad.AnnData:
    """Read cells of the world, with their counts in the layer that the benchmarks expect."""
    cells = ad.read_h5ad(path)
    cells.layers["counts"] = cells.X
    return cells


def variant_of(method: str, n_cells: int, steps: str) -> Variant | None:
    """Return the method's defaults, with other numbers of training steps."""
    if method not in (*MODELS, PUBLISHED):
        return None
    if method in ("SCLDM", PUBLISHED):
        recipe = RECIPES["published" if method == PUBLISHED else "default"]
        stages = {"autoencoder": recipe.autoencoder, "prior": recipe.prior}
    else:
        stages = {"diffusion": DIFFUSION_RECIPES[method]["mlp" if method == "SCRDIT" else "transformer"]}
    n_trained = len(split_cells(n_cells, None, None)[0])  # the others validate
    factors = {name: factor for name, factor in STEPS[steps].items() if name in stages}
    epochs = {name: round(factor * stages[name].max_epochs(n_trained)) for name, factor in factors.items()}
    train = {"max_epochs": epochs} if epochs else {}
    if method == PUBLISHED:
        return {"class": "SCLDM", "model": {"size": "published"}, "train": {"precision": "bf16-mixed", **train}}
    return {"class": method, "train": train} if train else {"class": method}


def figures(split: Split, space: ad.AnnData, cells: ad.AnnData) -> pd.DataFrame:
    """Judge the cells in proportion, then those of each rare type, by the genes of the space."""
    train, held_out = split.train[:, space.var_names], split.held_out[:, space.var_names]
    counts = cells[:, space.var_names].X
    groups = {"all": np.arange(N_JUDGED)}
    groups |= {name: N_JUDGED + number * N_RARE + np.arange(N_RARE) for number, name in enumerate(RARE)}
    tables = []
    for group, rows in groups.items():
        part = Split(train, held_out[rows].copy(), split.condition_keys, space)
        names = list(FIGURES if group == "all" else FIGURES_OF_RARE)
        found = judge(part, counts[rows], seed=0, metrics=names, n_floor=0)
        tables.append(found[["metric", "value", "low", "high"]].assign(group=group))
    if COSTS_KEY in cells.uns:
        costs = [{"metric": name, "group": "all", "value": float(cells.uns[COSTS_KEY][name])} for name in COSTS]
        tables.append(pd.DataFrame(costs))
    return pd.concat(tables, ignore_index=True)


def run(arguments: argparse.Namespace, n_genes: int, n_types: int) -> None:
    """Draw and judge what is missing of one world, smallest sets first."""
    path, folder = arguments.results / "learning_curves.csv", arguments.folder
    if (n_genes, n_types) != (N_GENES, N_TYPES):
        folder = folder.with_name(f"{folder.name}-{n_genes}-genes-{n_types}-types")
    if not (folder / "train" / f"part-{max(arguments.cells) // PART - 1:04}.h5ad").exists():
        logger.info("writing the world's cells to %s", folder)
        write_world(folder, max(arguments.cells), n_genes, n_types)
    space = with_layer(folder / "space.h5ad")
    for n_cells, steps, method in product(arguments.cells, arguments.steps, [REAL, *arguments.methods]):
        if steps != DEFAULT and variant_of(method, n_cells, steps) == variant_of(method, n_cells, DEFAULT):
            continue  # the method lacks these stages
        key = dict(zip(KEYS, (method, n_cells, steps, n_genes, n_types), strict=True))
        if tuple(key.values()) in stored_keys(path, KEYS):
            continue
        drawn = folder / f"{method}-{n_cells}-{steps}.h5ad"
        if method == REAL:
            drawn = folder / "floor.h5ad"
        elif not drawn.exists():
            logger.info("%s", key)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.studies.learning_curves"]
            command += ["--folder", folder, "--draw", method, str(n_cells), steps, drawn]
            subprocess.run(command, check=True, cwd=ROOT)
        table = figures(read_split(folder, n_cells), space, ad.read_h5ad(drawn))
        source = describe_source("torch", "scvi-tools", "scgen-diffusion")
        store_rows(path, table.assign(**key, **source), KEYS)
        logger.info("%s", table.to_string())


def draw_apart(folder: Path, method: str, n_cells: int, steps: str, path: Path) -> None:
    """Train and draw in this process, which must be fresh; a killed one is resumed, and then has no costs."""
    torch.set_num_threads(1)
    variant, checkpoints = variant_of(method, n_cells, steps), path.with_suffix(".checkpoints")
    is_resumed = checkpoints.exists()
    if variant is not None:
        variant = {**variant, "train": {**variant.get("train", {}), "checkpoint_dir": str(checkpoints)}}
    cells = draw(read_split(folder, n_cells), 0, method, variant)
    if is_resumed:
        del cells.uns[COSTS_KEY]
    write_cells(cells, path)
    shutil.rmtree(checkpoints, ignore_errors=True)


def columns_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per key, and one column per figure, named as in tables."""
    wide = table.pivot_table(index=list(KEYS), columns=["group", "metric"], values="value", sort=False)
    shown = {("all", metric): name for metric, name in FIGURES.items()}
    shown |= {(group, "auc_boosting"): f"AUC, {100 * share:g} % type" for group, share in RARE.items()}
    shown |= {("all", metric): name for metric, name in COSTS.items()}
    return pd.DataFrame({name: wide[column] for column, name in shown.items() if column in wide})


def of_default_world(wide: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the default steps and world, by method and cells."""
    levels = {"steps": DEFAULT, "genes": N_GENES, "types": N_TYPES}
    own = np.logical_and.reduce([wide.index.get_level_values(name) == value for name, value in levels.items()])
    return wide[own].droplevel(list(levels))


def summarise(table: pd.DataFrame) -> str:
    """Write the table of all figures."""
    wide = columns_of(table).sort_index(level=["genes", "types", "cells"], sort_remaining=False)
    rows = []
    for (method, cells, steps, genes, types), row in zip(wide.index, wide.to_numpy(), strict=True):
        name = [f"{method}, {cells:,} cells"] + [steps] * (steps != DEFAULT)
        name += [f"{genes:,} genes"] * (genes != N_GENES) + [f"{types} types"] * (types != N_TYPES)
        rows.append([", ".join(name), *map(_number, row)])
    rare = ", ".join(f"{name} {100 * share:g} %" for name, share in RARE.items())
    return "\n".join(
        [
            "# Learning curves",
            "",
            f"`python -m benchmarks.studies.learning_curves`. Simulated cells like those of `{SOURCE}`, {N_GENES:,} "
            f"genes and {N_TYPES} types unless the row says otherwise, 8 donors, {N_JUDGED:,} cells judged in "
            f"proportion and {N_RARE} of each rare type ({rare}). Models know the type, not the donor. Of more genes, "
            f"those {N_GENES:,} are judged. One seed. Minutes of training are processor time of one core. "
            "`real cells` are a second draw of the world.",
            "",
            markdown_table(["", *wide.columns], rows),
            "",
            f"Newest rows: {'; '.join(table[['machine', 'versions', 'date']].iloc[-1])}. Others: `learning_curves.csv`.",
            "",
        ]
    )


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def draw_picture(table: pd.DataFrame, path: Path) -> None:
    """Draw quality and costs against the number of cells; nothing without rows of the default world."""
    wide = of_default_world(columns_of(table))
    if wide.empty:
        return
    rare = [name for name in wide if name.endswith("type")]
    shown = ["AUC, PCs", "AUC, genes", "recall", "correlation", *rare, *COSTS.values()]
    panels = [name for name in shown if name in wide]
    figure, axes = plt.subplots(2, -(-len(panels) // 2), figsize=(13, 5.6), layout="constrained")
    for ax, name in zip(axes.flat, panels, strict=False):
        for method in METHODS:
            if method in wide.index:
                ax.plot(wide.loc[method, name].sort_index(), marker="o", label=method)
        if name not in COSTS.values():
            ax.axhline(wide.loc[REAL, name].mean(), color="0.5", ls="--", label=REAL)
        ax.set(title=name, xscale="log", xlabel="training cells")
        ticks = sorted(set(wide.index.get_level_values("cells")))
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(color="0.92")
        ax.margins(y=0.1)
        if name in COSTS.values():
            ax.set_ylim(bottom=0)
    lines = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", type=int, default=list(CELLS), help=f"multiples of {PART}")
    parser.add_argument("--genes", nargs="+", type=int, default=[N_GENES], help="the source has 4,000")
    parser.add_argument(
        "--types", nargs="+", type=int, default=[N_TYPES], help="more are subtypes of the frequent ones"
    )
    known = [*MODELS, PUBLISHED, *BASELINES]
    parser.add_argument("--methods", nargs="+", choices=known, default=list(METHODS))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=[DEFAULT], help="numbers of training steps")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "cells" / "world", help="folder of cells")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--draw", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if any(n_cells < PART or n_cells % PART for n_cells in arguments.cells):
        parser.error(f"--cells must be multiples of {PART}, but found {arguments.cells}")
    arguments.folder = arguments.folder.resolve()
    if arguments.draw:
        method, n_cells, steps, path = arguments.draw
        draw_apart(arguments.folder, method, int(n_cells), steps, Path(path))
        return
    for n_genes, n_types in product(arguments.genes, arguments.types):
        run(arguments, n_genes, n_types)
    table = read_table(arguments.results / "learning_curves.csv")
    write_text(arguments.results / "learning_curves.md", summarise(table))
    draw_picture(table, arguments.picture)


if __name__ == "__main__":
    main()
