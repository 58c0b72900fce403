"""Tables of the user guide that come from the code: defaults, training lengths, sizes and metrics."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.tables import markdown_table
from scgen_diffusion import metrics
from scgen_diffusion.metrics import CATALOGUE
from scgen_diffusion.module import (
    SCLDM_ARCHITECTURES,
    SCMDM_ARCHITECTURES,
    SCRDIT_ARCHITECTURES,
    WBDIT_ARCHITECTURES,
    MoleculeModule,
    ProfileModule,
)
from scgen_diffusion.nn import Classes
from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scgen_diffusion.train import Recipe

GUIDE = "docs/user_guide"
#: For the table of network sizes.
N_GENES, N_CLASSES = 2_000, 8
#: Models over all genes: their modules and architectures.
GENE_SPACE: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "SCRDIT": (ProfileModule, SCRDIT_ARCHITECTURES),
    "WBDIT": (ProfileModule, WBDIT_ARCHITECTURES),
    "SCMDM": (MoleculeModule, SCMDM_ARCHITECTURES),
}
#: Of metrics, in the order of the page.
TOPICS = list(dict.fromkeys(metric.topic for metric in CATALOGUE.values()))


def page_blocks() -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    scldm = {size: asdict(architecture) for size, architecture in SCLDM_ARCHITECTURES.items()}
    scrdit = {size: asdict(architecture) for size, architecture in SCRDIT_ARCHITECTURES.items()}
    scrdit["default"] |= {"patch_size": "genes / 10, at most 200", "width": 128}
    recipes = {size: {"diffusion": recipe} for size, recipe in DIFFUSION_RECIPES["SCRDIT"].items()}
    return {
        (f"{GUIDE}/scldm_mathematics.md", "architecture"): option_table(scldm),
        (f"{GUIDE}/scldm_mathematics.md", "recipe"): recipe_table(
            {size: {stage: RECIPES[size][stage] for stage in ("autoencoder", "prior")} for size in RECIPES}
        ),
        (f"{GUIDE}/scrdit_mathematics.md", "architecture"): option_table(scrdit),
        (f"{GUIDE}/scrdit_mathematics.md", "recipe"): recipe_table(recipes),
        (f"{GUIDE}/wbdit_mathematics.md", "network size"): network_size_table(),
        **{(f"{GUIDE}/metrics.md", topic): metric_table(topic) for topic in TOPICS},
    }


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
    sizes = [(name, *of, size) for name, of in GENE_SPACE.items() for size in of[1]]
    for name, module, architectures, size in sizes:
        with torch.device("meta"):
            network = module(N_GENES, (Classes(N_CLASSES),), architecture=architectures[size]).network
        parameters = list(network.parameters())
        inner = sum(p.numel() for p in parameters if not any(length % N_GENES == 0 for length in p.shape))
        lines.append([f"{name}, {size}", _millions(sum(p.numel() for p in parameters)), _millions(inner)])
    return markdown_table(["", "parameters", "of these, not per gene"], lines)


def metric_table(topic: str) -> str:
    """Write what the metrics of a topic measure, from their docstrings."""
    lines = []
    for name, metric in CATALOGUE.items():
        if metric.topic != topic or name.endswith("_top_100"):  # a sentence of the page names those
            continue
        best = f"near {metric.ideal:g}" if metric.ideal and metric.better == "real" else metric.better
        text = re.sub("``(.*?)``", _link, metric.text)
        lines.append([_link(name), text, best])
    return _left(["metric", "measures", "better"], lines)


def _link(name: re.Match | str) -> str:
    """Write the name of a metric with a link to the function of this name, if there is one."""
    name = name if isinstance(name, str) else name[1]
    return f"{{func}}`~scgen_diffusion.metrics.{name}`" if name in metrics.__all__ else f"`{name}`"


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
