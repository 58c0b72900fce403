"""Short tables of the studies for the documentation; `python -m benchmarks.pages` writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.studies.end_to_end import costs_of, quality_of
from benchmarks.studies.held_out import REAL
from benchmarks.studies.hours import GENERATE, OTHER_HOUR, PROPORTIONAL, RIVALS, TRANSPORT
from benchmarks.studies.known_world import GENERATED
from benchmarks.studies.known_world import REAL as REAL_CELLS
from benchmarks.studies.learning_curves import COSTS, DEFAULT, METHODS, columns_of, of_default_world
from benchmarks.studies.many_labels import GROUPS
from benchmarks.studies.new_types import NEW, OLD, REPLAY, WITH_THEM
from benchmarks.studies.world import N_GENES
from benchmarks.tables import ROOT, markdown_table, mean_with_interval, read_table
from scgen_diffusion.module import TRAINABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Blocks = dict[tuple[str, str], str]
HOW_MANY_CELLS = "docs/user_guide/how_many_cells.md"


def guidance(table: pd.DataFrame) -> Blocks:
    """Write scales, intervals and rescaling on two data sets, and the guidance of one key."""
    rows = {
        REAL: "floor",
        "scale 0": "scale 0",
        "scale 1": "scale 1",
        "scale 1.5": "scale 1.5",
        "scale 2": "scale 2",
        "scale 5": "scale 5",
        "scale 2, `interval=(0.5, 1)`": "scale 2 from 0.5 to 1",
        "scale 2, `rescale=1`": "scale 2, rescaled by 1",
    }
    metrics = {"precision": "precision", "recall": "recall", "f1 of cell_type": "F1"}
    columns = {
        f"{dataset}: {name}": (dataset, metric)
        for dataset in ("pbmc3k", "kang_ifnb")
        for metric, name in metrics.items()
    }
    means = table[table["training"].isin(["joint", "floor"])]
    means = means.pivot_table(index="guidance", columns=["dataset", "metric"], values="value")
    scales = _table(means, rows, columns)

    of_keys = {
        REAL: ("floor", "floor"),
        '`"joint"`, scale 1': ("joint", "scale 1"),
        '`"mutually_exclusive"`, scale 1': ("mutually_exclusive", "scale 1"),
        '`"additive"`, scale 1': ("additive", "additive, scale 1"),
        '`"additive"`, condition 2': ("additive", "additive, scale 2 for condition"),
        '`"additive"`, condition 0': ("additive", "additive, scale 0 for condition"),
    }
    metrics = {
        "precision": "precision",
        "recall": "recall",
        "spread": "spread",
        "f1 of cell_type": "F1, cell type",
        "f1 of condition": "F1, condition",
    }
    means = table[table["dataset"] == "kang_ifnb"]
    means = means.pivot_table(index=["training", "guidance"], columns="metric", values="value")
    page = "docs/user_guide/guidance.md"
    keys = _table(means, of_keys, {name: metric for metric, name in metrics.items()})
    return {(page, "guidance: scales"): scales, (page, "guidance: keys"): keys}


PERTURBATION_METHODS = {
    "floor": REAL,
    "scldm_transport": "SCLDM, transport",
    "latent_arithmetic": "latent arithmetic",
    "scvi_arithmetic": "scVI arithmetic",
    "scgen": "scGen",
    "cpa": "CPA",
    "cellflow": "CellFlow",
    "mean_shift": "mean shift",
    "linear_additive": "linear additive",
    "no_change": "no change",
}
PERTURBATION_METRICS = {
    "energy_distance": "energy distance",
    "mean_change_correlation": "correlation",
    "mean_change_slope": "slope",
    "mean_change_debiased_error": "squared error",
    "variance_error": "variances",
}


def perturbation(table: pd.DataFrame) -> Blocks:
    """Write the means over the left-out types that all methods predicted, and the energy distance of each type."""
    page = "docs/user_guide/perturbations.md"
    by_type = table.groupby(["metric", "method", "cell_type"])["value"].mean().unstack()
    common = by_type.loc["energy_distance"].loc[list(PERTURBATION_METHODS)].dropna(axis=1).columns
    means = by_type[common].mean(axis=1, skipna=False).unstack("metric")
    methods = {name: method for method, name in PERTURBATION_METHODS.items()}
    overall = _table(means, methods, {name: metric for metric, name in PERTURBATION_METRICS.items()})
    shown = {
        "SCLDM, transport": "scldm_transport",
        "latent arithmetic": "latent_arithmetic",
        "mean shift": "mean_shift",
        "`generate`": "scldm_generate",
    }
    energy = by_type.loc["energy_distance"].T
    types = _table(energy, {name: name for name in energy.index}, {REAL: "floor"} | shown, corner="left-out type")
    return {(page, "perturbation"): overall, (page, "perturbation: types"): types}


COMBINATION_METHODS = {
    REAL: "floor",
    "SCLDM, transport": "scldm_transport",
    "sum of both effects": "additive",
    "CPA": "cpa",
    "CellFlow": "cellflow",
    "mean shift": "mean_shift",
    "no change": "no_change",
}


def perturbation_combinations(table: pd.DataFrame) -> Blocks:
    """Write the means over pairs of genes and seeds."""
    means = table.pivot_table(index="method", columns="metric", values="value")
    metrics = ("energy_distance", "mean_change_correlation", "mean_change_debiased_error", "variance_error")
    shown = {PERTURBATION_METRICS[metric]: metric for metric in metrics}
    text = _table(means, COMBINATION_METHODS, shown, corner="pairs of genes", write="{:.3f}")
    return {("docs/user_guide/perturbations.md", "perturbation_combinations"): text}


HOUR_METHODS = (REAL, TRANSPORT, GENERATE, OTHER_HOUR, PROPORTIONAL, *RIVALS, "no change")


def hours(table: pd.DataFrame) -> Blocks:
    """Write the figures of each hour left out."""
    metrics = {
        "energy distance": "energy_distance",
        "correlation": "mean_change_correlation",
        "slope": "mean_change_slope",
    }
    columns = {f"{hour:g} h: {name}": (metric, hour) for hour in (1.0, 3.0) for name, metric in metrics.items()}
    means = table.pivot_table(index="method", columns="left_out", values=list(metrics.values()))
    text = _table(means, {name: name for name in HOUR_METHODS}, columns, corner="cells of the hour left out")
    return {("docs/user_guide/numbers.md", "hours"): text}


def perturbation_trust(table: pd.DataFrame) -> Blocks:
    """Write what intervals hold and find by what was left out, and what absurd requests are called."""
    page = "docs/user_guide/perturbations.md"
    columns = {"coverage": "coverage", "half width": "half_width_top", "change": "change_top", "error": "error"}
    genes = {"genes found": "found", "right direction": "found_rightly"}
    types, pairs, none = (
        table[table["case"] == case] for case in ("type left out", "pair of genes left out", "no effect")
    )
    groups = dict(iter(types.groupby("name")))
    groups |= {"pairs of genes, mean": pairs, "no effect, mean of eight types": none}
    lines = []
    for name, rows in groups.items():
        means = rows[[*columns.values(), *genes.values()]].mean()
        figures = [f"{means[column]:.2f}" for column in columns.values()]
        figures += [f"{means[column]:.0f}" for column in genes.values()]
        lines.append([name, _words(rows["verdict"]), *("" if text == "nan" else text for text in figures)])
    header = ["left out", "verdict", *columns, *genes]
    requests = {
        "control cells of another experiment": "control cells of `pbmc3k`",
        "only one other type seen perturbed": "only one other type seen perturbed",
        "shuffled genes": "genes of all cells shuffled",
    }
    words = table.groupby("case")["verdict"].agg(_words)
    kinds = {f"{name}: {words[case]}": case for case, name in requests.items() if case in words}
    by_case = table.groupby("case")[["coverage", "error"]].mean()
    return {
        (page, "perturbation_trust: coverage"): markdown_table(header, lines),
        (page, "perturbation_trust: verdicts"): _table(
            by_case, kinds, {"error": "error", "coverage": "coverage"}, corner="request: verdict"
        ),
    }


def _words(verdicts: pd.Series) -> str:
    """Count the verdicts if they differ."""
    found = verdicts.value_counts()
    return found.index[0] if len(found) == 1 else ", ".join(f"{n} {verdict}" for verdict, n in found.items())


def memory(table: pd.DataFrame) -> Blocks:
    """Write the peak memory of training on .h5ad by the number of cells."""
    rows = {
        "open and check": ("SCLDM", "open and check"),
        "SCLDM, autoencoder": ("SCLDM", "autoencoder"),
        "SCLDM, prior": ("SCLDM", "prior"),
        "SCRDIT": ("SCRDIT", "train"),
    }
    peaks = table[table["source"] == "h5ad"]
    peaks = peaks.pivot_table(index=["system", "stage"], columns="cells", values="peak_mib")
    columns = {f"{size:,} cells": size for size in peaks.columns}
    text = _table(peaks, rows, columns, corner="peak memory, MiB", write="{:,.0f}")
    return {("docs/how_to/larger_than_memory.md", "memory"): text}


def end_to_end(table: pd.DataFrame) -> Blocks:
    """Write what the steps from files to a report cost with 200 000 and a million cells, and how good the cells are."""
    blocks = {}
    for cells in (200_000, 1_000_000):
        rows = table[(table["cells"] == cells) & (table["genes"] == N_GENES) & (table["processes"] == 1)]
        blocks["docs/how_to/atlas.md", f"end_to_end: costs of {cells}"] = costs_of(rows)
        blocks["docs/how_to/atlas.md", f"end_to_end: quality of {cells}"] = quality_of(rows)
    return blocks


def learning_curves(table: pd.DataFrame) -> Blocks:
    """Write quality, minutes and memory by number of cells, and by numbers of genes and types."""
    worlds = columns_of(table)
    wide = of_default_world(worlds)
    floor = wide.xs(REAL, level="method").iloc[[0]]
    models = wide.loc[[key for method in METHODS for key in sorted(wide.index) if key[0] == method]]
    models.index = [f"{method}, {cells:,}" for method, cells in models.index]
    shown = pd.concat([floor.set_axis([REAL]), models])
    costs = list(COSTS.values())
    left_out = [*costs, "F1", "distance", "copies"]  # hardly differ
    columns = {name: name for name in shown if name not in left_out}
    quality = _table(shown, {name: name for name in shown.index}, columns, corner="training cells")
    minutes, peak = (wide[name].dropna().unstack("method").sort_index() for name in costs)
    lines = [
        [f"{cells:,}", *(_cost(values.get(method, {}).get(cells)) for method in METHODS for values in (minutes, peak))]
        for cells in minutes.index
    ]
    header = ["training cells", *(f"{method}: {name}" for method in METHODS for name in ("minutes", "GiB"))]
    rows = {
        f"{name}, {genes:,} genes, {types} types": (method, 8_000, DEFAULT, genes, types)
        for genes, types in sorted({key[3:] for key in worlds.index})
        for method, name in {**{name: name for name in (REAL, *METHODS)}, "NB-copula": "NB copula per label"}.items()
    }
    rows = {name: key for name, key in rows.items() if key in worlds.index}
    columns = {name: name for name in [*columns, *costs] if not name.endswith("type")}
    genes_and_types = _table(worlds, rows, columns, corner="8,000 training cells")
    return {
        (HOW_MANY_CELLS, "learning_curves: quality"): quality,
        (HOW_MANY_CELLS, "learning_curves: costs"): markdown_table(header, lines),
        (HOW_MANY_CELLS, "learning_curves: genes and types"): genes_and_types,
    }


def _cost(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def streaming(table: pd.DataFrame) -> Blocks:
    """Write the peak memory of generating into a file by the number of cells."""
    peaks = table.pivot_table(index="cells", columns="way", values="peak_mib")
    columns = {
        "`generate_to`, .zarr": "zarr",
        "`generate_to`, .h5ad": "h5ad",
        "`generate`": "in memory",
        "`predict_perturbation_to`": "predictions",
    }
    rows = {f"{size:,} cells": size for size in peaks.index}
    text = _table(peaks, rows, columns, corner="peak memory, MiB", write="{:,.0f}")
    return {("docs/how_to/streaming.md", "streaming"): text}


def multimodal(table: pd.DataFrame) -> Blocks:
    """Write how good generated RNA and proteins are and by SCLDM on the RNA alone."""
    rows = {
        "RNA: AUC, PCs": ("rna", "auc_boosting"),
        "RNA: AUC, genes": ("rna", "auc_genes"),
        "RNA: precision": ("rna", "precision"),
        "RNA: recall": ("rna", "recall"),
        "RNA: correlation": ("rna", "within_label_correlation"),
        "proteins: AUC, PCs": ("prot", "auc_boosting"),
        "proteins: AUC, single proteins": ("prot", "auc_genes"),
        "proteins: precision": ("prot", "precision"),
        "proteins: recall": ("prot", "recall"),
        "proteins: correlation": ("prot", "within_label_correlation"),
        "both: AUC, PCs": ("rna+prot", "auc_boosting"),
        "genes with proteins: error of correlations": ("rna+prot", "cross_correlation_error"),
    }
    means = table[table["dataset"] == "pbmc10k_citeseq"]
    means = means.pivot_table(index=["part", "metric"], columns="method", values="value")
    columns = {REAL: "floor", "MULTISCLDM": "multimodal", "SCLDM, RNA only": "RNA only"}
    return {("docs/how_to/multimodal.md", "multimodal"): _table(means, rows, columns)}


def tissue(table: pd.DataFrame) -> Blocks:
    """Write the main figures of all ways to fill a tissue section."""
    rows = {name: name for name in table["method"].unique()}
    columns = {
        "energy distance in a tile": "energy_distance",
        "AUC": "auc",
        "region found": "region",
        "Moran's I: correlation": "moran_correlation",
        "Moran's I: share": "moran_ratio",
    }
    means = table.groupby("method")[list(columns.values())].mean()
    return {("docs/user_guide/numbers.md", "tissue"): _table(means, rows, columns, corner="cells in the holes")}


def time_course(table: pd.DataFrame) -> Blocks:
    """Write the main figures of all ways to fill a window of time."""
    columns = {
        f"{name}: {figure}": (column, window)
        for window, name in (("inside", "inner window"), ("last", "last window"))
        for figure, column in (("energy distance", "energy_distance"), ("AUC", "auc"), ("error of types", "type_error"))
    }
    means = table.pivot_table(index="method", columns="window", values=["energy_distance", "auc", "type_error"])
    rows = {name: name for name in table["method"].unique()}
    page = "docs/user_guide/numbers.md"
    return {(page, "time_course"): _table(means, rows, columns, corner="cells in the windows")}


def doses(table: pd.DataFrame) -> Blocks:
    """Write the main figures of all ways to tell the cells of a dose between others, with intervals."""
    columns = {
        "error of means": "error",
        "error of log10 EC50": "ec50_error",
        "change at the highest dose": "size",
        "coverage": "coverage",
    }
    means = table.groupby("method")[list(columns.values())].agg(mean_with_interval)
    order = table.groupby("method")["error"].mean().sort_values().index
    text = _table(means, {name: name for name in order}, columns, corner="method", write="{}")
    return {("docs/user_guide/numbers.md", "doses"): text}


def label_limit(table: pd.DataFrame) -> Blocks:
    """Write what copies would score in `mmd_per_label`, beside real cells and the models."""
    scores = read_table(ROOT / "benchmarks" / "quality" / "results" / "compare.csv")
    scores = scores[scores["metric"] == "mmd_per_label"]
    limits = table.groupby("dataset", sort=False)["value"].mean()
    means = scores.pivot_table(index="dataset", columns="method", values="value")
    means["floor"] = scores.groupby("dataset")["floor"].mean()
    means["copies"] = means["floor"] + limits
    columns = {REAL: "floor", "copies, expected": "copies", **{name: name for name in ("SCLDM", "SCRDIT", "WBDIT")}}
    text = _table(means, {name: name for name in limits.index}, columns, write="{:.4f}")
    return {("docs/user_guide/metrics.md", "label limit"): text}


def many_labels(table: pd.DataFrame) -> Blocks:
    """Write how often type and donor are right, by number of training cells of the combination."""
    means = table.pivot_table(index=["model", "cells"], columns="n_train", values="confirmed")
    rows = {
        "real cells": ("SCLDM", REAL_CELLS),
        **{name: (name, GENERATED) for name in ("SCLDM", "SCRDIT")},
        **{f"{name}, `guidance_scale=1.5`": (name, "guidance 1.5") for name in ("SCLDM", "SCRDIT")},
        "NB copula per label": ("NB-copula", GENERATED),
    }
    text = _table(means, rows, {f"{name} training cells": name for name in GROUPS})
    return {("docs/user_guide/scldm.md", "many labels"): text}


def new_types(table: pd.DataFrame) -> Blocks:
    """Write the energy distances of new and old types."""
    means = table.pivot_table(index="cells", columns=["dataset", "type"], values="energy_distance")
    rows = {REAL: REAL, **{f'`"{name}"`': name for name in TRAINABLE}}
    rows |= {f'`"{way}"`, with generated old cells': name for name, way in REPLAY.items()}
    rows |= {"a model trained with them": WITH_THEM}
    columns = {f"{data}: {of} types": (data, of) for data in table["dataset"].unique() for of in (NEW, OLD)}
    text = _table(means, rows, columns)
    return {("docs/how_to/fine_tuning.md", "new types"): text}


def rare_types(table: pd.DataFrame) -> Blocks:
    """Write what helps a classifier that has seen ten cells of a type."""
    metrics = {"f1": "F1, linear", "f1_neighbours": "F1, neighbours", "average_precision": "average precision"}
    means = table.pivot_table(index="remedy", columns="dataset", values=list(metrics))
    columns = {f"{dataset}: {name}": (metric, dataset) for dataset in means["f1"] for metric, name in metrics.items()}
    remedies = ["nothing", "class weights", "repeated", "midway", "generated", "reconstructed"]
    return {("docs/how_to/rare_types.md", "rare types"): _table(means, {name: name for name in remedies}, columns)}


def _table(
    values: pd.DataFrame,
    rows: Mapping[str, object],
    columns: Mapping[str, object],
    *,
    corner: str = "",
    write: str = "{:.2f}",
) -> str:
    """Write some rows and columns under other names; what was not measured stays empty."""
    lines = []
    for name, row in rows.items():
        found = [values[column].get(row) for column in columns.values()]
        lines.append(
            [name, *("" if pd.isna(value) else re.sub(r"^-(?=[0.]+$)", "", write.format(value)) for value in found)]
        )
    return markdown_table([corner, *columns], lines)


#: By the file of results.
BLOCKS: dict[str, Callable[[pd.DataFrame], Blocks]] = {
    "guidance": guidance,
    "perturbation": perturbation,
    "perturbation_trust": perturbation_trust,
    "memory": memory,
    "end_to_end": end_to_end,
    "learning_curves": learning_curves,
    "streaming": streaming,
    "multimodal": multimodal,
    "tissue": tissue,
    "time_course": time_course,
    "hours": hours,
    "perturbation_combinations": perturbation_combinations,
    "doses": doses,
    "label_limit": label_limit,
    "many_labels": many_labels,
    "new_types": new_types,
    "rare_types": rare_types,
}
