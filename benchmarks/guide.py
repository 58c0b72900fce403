"""Tables of the user guide: defaults and training lengths from the code, and what the studies of samplers found."""

from __future__ import annotations

from dataclasses import asdict, fields
from itertools import product
from typing import TYPE_CHECKING

import torch

from benchmarks.studies.sensitivity import SEEN, effects
from benchmarks.tables import ROOT, markdown_table, read_table
from scgen_diffusion.metrics import CATALOGUE, DESCRIPTIONS, IDEALS
from scgen_diffusion.module import build_architecture, build_gene_space_architecture, gene_space_module
from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scgen_diffusion.train import Recipe

GUIDE = "docs/user_guide"
STUDIES = ROOT / "benchmarks" / "studies" / "results"
N_TRAINING_CELLS = (500, 2_000, 10_000, 100_000, 1_000_000)
#: For the table of network sizes.
N_GENES, N_CLASSES = 2_000, 8
#: Values that depend on the data, in words.
DEPENDS_ON_DATA = {"patch_size": "genes / 10, at most 200", "width": "128; 256 for 20,000 cells or more on a GPU"}
#: Columns of SCRDIT's tables, and rows of that of network sizes.
PROFILES = 'default, `path="vp_linear"`'
SCRDIT = {
    "default": {"size": "default"},
    PROFILES: {"size": "default", "values": "log1p"},
    "published": {"size": "published"},
}
#: Rows of the samplers' tables.
SCLDM_SAMPLERS = [("euler", 10), ("euler", 50), ("midpoint", 5), ("midpoint", 10), ("heun", 10)]
#: Faults of the study of sensitivity, in words.
FAULTS = {
    "dropout 10 %": "10 % of the values set to zero",
    "totals halved": "half of the counts lost",
    "totals doubled": "all counts doubled",
    "ambient 20 %": "20 % ambient RNA",
    "genes shuffled": "genes shuffled among all cells",
    "shuffled in labels": "genes shuffled within labels",
    "means only": "cells drawn from their label's mean",
    "averages of 3": "averages of three cells",
    "type dropped": "a cell type is missing",
    "types swapped": "two labels swapped",
    "duplicates 1 %": "1 % duplicates",
    "copies 1 %": "1 % copies of training cells",
    "near copies 50 %": "50 % copies, with some counts changed",
}
N_NAMED = 4
#: Of metrics, in the order of the page.
TOPICS = list(dict.fromkeys(description.topic for description in DESCRIPTIONS.values()))


def page_blocks() -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    stages = {stage: getattr(RECIPES["default"], stage) for stage in ("autoencoder", "prior", "transport")}
    diffusion = {"diffusion": DIFFUSION_RECIPES["SCRDIT"]["mlp"]}
    scldm = {size: asdict(build_architecture(size)) for size in ("default", "published")}
    scrdit = {name: asdict(build_gene_space_architecture("SCRDIT", **how)) for name, how in SCRDIT.items()}
    scrdit[PROFILES] |= DEPENDS_ON_DATA
    scrdit["default"]["patch_size"] = DEPENDS_ON_DATA["patch_size"]
    recipes = [DIFFUSION_RECIPES["SCRDIT"][name] for name in ("mlp", "profiles", "published")]
    return {
        (f"{GUIDE}/scldm.md", "training length"): length_table(stages),
        (f"{GUIDE}/scldm_mathematics.md", "architecture"): option_table(scldm),
        (f"{GUIDE}/scldm_mathematics.md", "recipe"): recipe_table(
            {size: {stage: getattr(RECIPES[size], stage) for stage in ("autoencoder", "prior")} for size in RECIPES}
        ),
        (f"{GUIDE}/scldm_mathematics.md", "samplers"): sampler_table("SCLDM", shown=SCLDM_SAMPLERS),
        (f"{GUIDE}/scrdit.md", "training length"): length_table(diffusion),
        (f"{GUIDE}/scrdit_mathematics.md", "architecture"): option_table(scrdit),
        (f"{GUIDE}/scrdit_mathematics.md", "recipe"): recipe_table(
            {name: {"diffusion": recipe} for name, recipe in zip(SCRDIT, recipes, strict=True)}
        ),
        (f"{GUIDE}/scrdit_mathematics.md", "samplers"): sampler_table("SCRDIT-profiles"),
        (f"{GUIDE}/scrdit_mathematics.md", "unmasking"): sampler_table("SCRDIT"),
        (f"{GUIDE}/wbdit_mathematics.md", "network size"): network_size_table(),
        **{(f"{GUIDE}/metrics.md", topic): metric_table(topic) for topic in TOPICS},
        (f"{GUIDE}/metrics.md", "faults"): fault_table(),
        (f"{GUIDE}/speed.md", "speed: threads"): thread_table(),
    }


def length_table(stages: Mapping[str, Recipe]) -> str:
    """Write the default epochs and steps of each stage, by number of training cells."""
    lines = []
    for n_cells in N_TRAINING_CELLS:
        epochs = [(recipe.max_epochs(n_cells), recipe.steps_per_epoch(n_cells)) for recipe in stages.values()]
        lines.append([_grouped(n_cells), *(f"{n:,} ({_grouped(n * steps)})" for n, steps in epochs)])
    header = ["training cells", *(f"{stage}: epochs (steps)" for stage in stages)]
    return markdown_table(header if len(stages) > 1 else ["training cells", "epochs (steps)"], lines)


def option_table(options: Mapping[str, Mapping[str, object]]) -> str:
    """Write the options that architectures have different values of."""
    rows = {name: [values[name] for values in options.values()] for name in options["default"]}
    differing = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    return _left(["option", *options], [[f"`{name}`", *map(_value, row)] for name, row in differing.items()])


def recipe_table(recipes: Mapping[str, Mapping[str, Recipe]]) -> str:
    """Write the options of each stage's training that recipes have different values of."""
    stages = recipes["default"]
    names = dict.fromkeys(field.name for recipe in stages.values() for field in fields(recipe))
    lines = []
    for name in names:
        values = [[_setting(of[stage], name) for of in recipes.values()] for stage in stages]
        if any(value != of_stage[0] for of_stage in values for value in of_stage):
            lines.append([f"`{name}`", *(_value(value) for of_stage in values for value in of_stage)])
    header = [f"{stage}: {size}" if len(stages) > 1 else size for stage in stages for size in recipes]
    return _left(["option", *header], lines)


def _setting(recipe: Recipe, name: str) -> object:
    """Return an option of a recipe; nothing if it has no such option, or a fixed number of epochs decides."""
    return "" if name == "reference_steps" and recipe.n_epochs else getattr(recipe, name, "")


def network_size_table() -> str:
    """Write the number of parameters of the gene-space networks."""
    lines = []
    for (size, how), name in product(SCRDIT.items(), ("SCRDIT", "WBDIT")):
        with torch.device("meta"):
            architecture = build_gene_space_architecture(name, **how, n_genes=N_GENES)
            network = gene_space_module(architecture)(N_GENES, (N_CLASSES,), architecture=architecture).network
        parameters = list(network.parameters())
        inner = sum(p.numel() for p in parameters if not any(length % N_GENES == 0 for length in p.shape))
        lines.append([f"{name}, {size}", _millions(sum(p.numel() for p in parameters)), _millions(inner)])
    return markdown_table(["", "parameters", "of these, not per gene"], lines)


def metric_table(topic: str) -> str:
    """Write the metrics of a topic in words."""
    lines = []
    for name, words in DESCRIPTIONS.items():
        base, ending, _ = name.partition("_top_")
        if words.topic != topic or (ending and base in DESCRIPTIONS) or name.endswith("_top_100"):
            continue  # one row stands for a metric and what it is on the genes that change most
        shown = f"{{func}}`{name} <scgen_diffusion.metrics.{words.function}>`" if words.function else f"`{name}`"
        best = f"near {IDEALS[name]:g}" if name in IDEALS else CATALOGUE[name].better.replace("floor", "like the floor")
        lines.append([shown, words.meaning, best, words.misses])
    return _left(["metric", "measures", "better", "misses"], lines)


def fault_table() -> str:
    """Write which metrics see each fault best."""
    table = effects(read_table(STUDIES / "sensitivity.csv"))
    lines = []
    for fault, words in FAULTS.items():
        seen = table.loc[fault].sort_values(ascending=False, kind="stable")
        seen = seen[seen >= SEEN].index[:N_NAMED]
        lines.append([words, ", ".join(f"`{metric}`" for metric in seen)])
    return _left(["fault", "metrics that see it best"], lines)


def sampler_table(model: str, *, shown: Sequence[tuple[str, int]] = ()) -> str:
    """Write the quality and the cost of a model's cells by sampler, means of its data sets and drawings.

    If only some samplers and numbers of steps are shown, in this order, their error is shown as well.
    """
    rows = read_table(STUDIES / "samplers.csv")
    figures = ["auc_boosting", "auc_genes", "precision", "recall"]
    of_model = rows["model"] == model
    rows = rows[of_model | (rows["model"] == "real cells") & rows["dataset"].isin(rows.loc[of_model, "dataset"])]
    columns = [*figures, "cpu_seconds", *(["error"] if shown else [])]
    means = rows.groupby(["model", "sampler", "n_steps"], sort=False)[columns].mean().reset_index()
    ways = list(zip(means["sampler"], means["n_steps"], strict=True))
    if shown:
        means = means.iloc[[ways.index(way) for way in (*shown, ("floor", 0))]]
    else:
        means = means.sort_values("n_steps")
    fewest = means["cpu_seconds"].min()
    lines = []
    for row in means.to_dict("records"):
        is_floor = row["sampler"] == "floor"
        name = ["real cells", "", ""] if is_floor else [f"`{row['sampler']}`", f"{row['n_steps']:.0f}", ""]
        name[2] = "" if is_floor else f"{row['cpu_seconds'] / fewest:.1f}"
        error = ([""] if is_floor else [f"{row['error']:.2g}"]) if shown else []
        lines.append([*name, *error, *_two(row, *figures)])
    header = ["sampler", "steps", "relative time", "AUC, PCs", "AUC, genes", "precision", "recall"]
    return markdown_table([*header[:3], *(["error"] if shown else []), *header[3:]], lines)


def thread_table() -> str:
    """Write the speed of all processes together by processes and threads of each."""
    rows = read_table(STUDIES / "threads.csv")
    rows = rows[rows["openmp"] == "defaults"].drop_duplicates(["system", "processes", "threads"], keep="last")
    speeds = rows.pivot_table(index=["processes", "threads"], columns="system", values="cells_per_second")
    lines = [
        [str(n) for n in mix] + [f"{row[name]:,.0f}" for name in ("package", "SCRDIT")]
        for mix, row in speeds.iterrows()
    ]
    return markdown_table(["processes", "threads of each", "SCLDM, autoencoder", "SCRDIT"], lines)


def _two(row: Mapping[str, float] | pd.Series, *names: str) -> list[str]:
    return [f"{row[name]:.2f}" for name in names]


def _grouped(number: int) -> str:
    return f"{number:,}"


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} million"


def _value(value: object) -> str:
    """Write a value as Python does, numbers shortest; words as they are."""
    if value == "" or (isinstance(value, str) and " " in value):
        return str(value)
    text = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`"


def _left(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of text."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
