"""How do quality, minutes and memory depend on the numbers of cells, genes and types? Asked of a known world.

    python -m benchmarks.studies.learning_curves                                   # all that is missing
    python -m benchmarks.studies.learning_curves --cells 2000 --methods SCLDM      # a part
    python -m benchmarks.studies.learning_curves --cells 8000 --types 30,100       # other worlds

Cells come from `benchmarks.studies.world`. Small training sets are the first cells of the large ones. Every method
trains and draws in its own process with one thread. Its cells are compared with fresh cells of the world, one for each
and of the same type, and so is a second fresh draw: the real value. All use one space of comparison, fitted to other
cells. Models learn all genes of a world, and the genes of the default world are judged, so that worlds compare.
Adds to ``results/learning_curves.csv`` and writes ``docs/_static/learning_curves.png``.
"""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.quality.methods import COSTS_KEY, KNOWN, choose_methods, draw, write_cells
from benchmarks.quality.report import IN_SHORT
from benchmarks.quality.splits import Split, judge
from benchmarks.runner import in_fresh_process, options, run, start
from benchmarks.studies.world import HELD_OUT, N_GENES, N_TYPES, RARE, REAL_CELLS, SPACE, TRAIN, World
from benchmarks.tables import REAL, ROOT

if TYPE_CHECKING:
    from benchmarks.quality.methods import Variant

PICTURE = ROOT / "docs" / "_static" / "learning_curves.png"
KEYS = ("method", "cells", "steps", "genes", "types")
METHODS = ("SCLDM", "SCMDM", "SCMDM-white_box", "scVI-prior")
#: Numbers of training steps: rows of others are records.
DEFAULT = "default"
CELLS = (2_000, 8_000, 32_000)
PART = 2_000  # cells per file
N_JUDGED, N_RARE, N_SPACE = 1_000, 200, 4_000
#: Figures of `evaluate`, and their names in tables.
FIGURES = {metric: name for metric, name in IN_SHORT.items() if metric != "cpu_minutes"}
FIGURES |= {"nearer_than_held_out": "too near", "copied_cells": "copies"}
FIGURES_OF_RARE = ("auc_boosting", "precision", "recall")
COSTS = {"train_minutes": "minutes", "peak_memory_gib": "peak GiB"}


def write_world(folder: Path, n_cells: int, n_genes: int = N_GENES, n_types: int = N_TYPES) -> None:
    """Write the training cells, the cells to compare with, the real value, and the cells and genes that give the space."""
    world = World.fit(n_genes=n_genes, n_types=n_types)
    world.write(folder / "train", n_cells, TRAIN, PART)
    rare = [world.draw(N_RARE, HELD_OUT, name) for name in RARE]
    held_out = ad.concat([world.draw(N_JUDGED, HELD_OUT), *rare])
    write_cells(held_out, folder / "held_out.h5ad")
    write_cells(world.draw_like(held_out.obs["cell_type"].to_list(), REAL_CELLS), folder / "real.h5ad")
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
        found = judge(part, counts[rows], seed=0, metrics=names, n_repeats=0)
        tables.append(found[["metric", "value", "low", "high"]].assign(group=group))
    if COSTS_KEY in cells.uns:
        costs = [{"metric": name, "group": "all", "value": float(cells.uns[COSTS_KEY][name])} for name in COSTS]
        tables.append(pd.DataFrame(costs))
    return pd.concat(tables, ignore_index=True)


def draw_one(folder: Path, method: str, n_cells: int, variant: Variant | None, path: Path) -> None:
    """Train and draw; a killed training is resumed, and then has no costs."""
    checkpoints = path.with_suffix(".checkpoints")
    is_resumed = checkpoints.exists()
    if variant is not None:
        variant = {**variant, "train": {**variant.get("train", {}), "checkpoint_dir": str(checkpoints)}}
    cells = draw(read_split(folder, n_cells), 0, method, variant)
    if is_resumed:
        del cells.uns[COSTS_KEY]
    write_cells(cells, path)
    shutil.rmtree(checkpoints, ignore_errors=True)


def study(
    method: str, cells: int, genes: int, types: int, *, variant: Variant | None, folder: Path, most: int
) -> pd.DataFrame:
    """Draw the cells of a method if they are not there, and judge them. `most` cells of a world are written."""
    is_default = (genes, types) == (N_GENES, N_TYPES)
    folder = folder / ("world" if is_default else f"world-{genes}-genes-{types}-types")
    if not (folder / "train" / f"part-{most // PART - 1:04}.h5ad").exists():
        write_world(folder, most, genes, types)
    path = folder / ("real.h5ad" if method == REAL else f"{method}-{cells}-{DEFAULT}.h5ad")
    if not path.exists():
        in_fresh_process(draw_one, folder, method, cells, variant, path)
    return figures(read_split(folder, cells), with_layer(folder / "space.h5ad"), ad.read_h5ad(path))


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
    lines = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cells", nargs="+", type=int, default=list(CELLS), help=f"multiples of {PART}")
    parser.add_argument("--genes", nargs="+", type=int, default=[N_GENES], help="the source has 4,000")
    parser.add_argument("--types", nargs="+", type=int, default=[N_TYPES], help="more: subtypes of the frequent ones")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=KNOWN)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    chosen = start(parser)
    if any(n_cells < PART or n_cells % PART for n_cells in chosen.cells):
        parser.error(f"--cells must be multiples of {PART}, but found {chosen.cells}")
    variants = {REAL: None, **choose_methods(chosen.methods)}
    cases = [
        {"method": method, "cells": n_cells, "steps": DEFAULT, "genes": genes, "types": types}
        for genes, types, n_cells, method in product(chosen.genes, chosen.types, chosen.cells, variants)
    ]

    def measure(method: str, steps: str, **size: int) -> pd.DataFrame:
        variant = variants[method]
        return study(method, **size, variant=variant, folder=chosen.folder.resolve(), most=max(chosen.cells))

    path = chosen.results / "learning_curves.csv"
    table = run(path, cases, measure)

    draw_picture(table, chosen.picture)


if __name__ == "__main__":
    main()
