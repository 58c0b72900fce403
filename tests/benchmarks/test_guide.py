"""The user guide names the defaults of the code."""

import ast
import inspect
import re

import pytest
from benchmarks.tables import ROOT

from scgen_diffusion.diffusion import FLOW_SAMPLERS, PATHS, Masking, samplers_for
from scgen_diffusion.metrics import ComparisonSpace, evaluate
from scgen_diffusion.model import SCLDM, SCRDIT
from scgen_diffusion.model._gene_space import default_sampler
from scgen_diffusion.module import build_architecture, build_gene_space_architecture
from scgen_diffusion.module._gene_space import SMALLEST_SCALE
from scgen_diffusion.module._multimodal import LARGE_PANEL
from scgen_diffusion.module._profile_networks import LARGEST_WEIGHT
from scgen_diffusion.train import MANY_GENES, RECIPES
from scgen_diffusion.train._initialise import MOST_AXES
from scgen_diffusion.train._recipes import FEW_COUNTS, LEAST_KL_WEIGHT, MOST_STEPS


def defaults_of(*functions):
    return {name: p.default for function in functions for name, p in inspect.signature(function).parameters.items()}


SCLDM_OPTIONS = defaults_of(SCLDM.train, SCLDM.generate, SCLDM.__init__) | {
    "n_steps": FLOW_SAMPLERS[SCLDM.default_sampler].default_n_steps,
    **vars(build_architecture("default")),
}
SAMPLERS = samplers_for(PATHS["vp_linear"]) | samplers_for(Masking())


def gene_space_options(model, values):
    architecture = build_gene_space_architecture(model, "default", values=values)
    sampler = default_sampler(architecture)
    return defaults_of(SCRDIT.train, SCRDIT.generate, SCRDIT.__init__) | {
        "sampler": sampler,
        "n_steps": SAMPLERS[sampler].default_n_steps,
        **vars(architecture),
    }


SCRDIT_OPTIONS, WBDIT_OPTIONS = (gene_space_options(model, "counts") for model in ("SCRDIT", "WBDIT"))
PROFILE_OPTIONS = gene_space_options("SCRDIT", "log1p")
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \|", re.MULTILINE)

#: Page, sentence with one group per number, and these numbers.
SENTENCES = [
    (
        "scldm.md",
        r"compresses each cell into (\d+) numbers",
        [SCLDM_OPTIONS["n_latent_tokens"] * SCLDM_OPTIONS["n_latent"]],
    ),
    (
        "scldm_mathematics.md",
        r"\\beta\$ rises from 0 to ([\d.]+) over the first third",
        [RECIPES["default"].autoencoder.kl_weight],
    ),
    (
        "scldm_mathematics.md",
        r"\\frac\{G\}\{(\d+)\},\\ \\frac\{(\d+)\^2\}\{c\^2\}.*k = \\min\(1 / r,\\ (\d+)\)",
        [MANY_GENES, FEW_COUNTS, MOST_STEPS],
    ),
    (
        "scldm_mathematics.md",
        r"\\max\(([\d.]+)\\, r,\\ ([\d.]+)\)",
        [RECIPES["default"].autoencoder.kl_weight, LEAST_KL_WEIGHT],
    ),
    (
        "scldm.md",
        r"fewer than ([\d,]+) genes and on average more than (\d+) counts[\s\S]*up to (\d+) times as many steps",
        [MANY_GENES, FEW_COUNTS, MOST_STEPS],
    ),
    (
        "scldm_mathematics.md",
        r"\\rho \\sim \\mathcal\{U\}\(([\d.]+), 1\)",
        [RECIPES["default"].autoencoder.keep_at_least],
    ),
    (
        "scldm_mathematics.md",
        r"hides conditions with probability ([\d.]*\d)",
        [RECIPES["default"].prior.drop_probability],
    ),
    ("scldm_mathematics.md", r"Panels of fewer than (\d+) features", [LARGE_PANEL]),
    ("scrdit_mathematics.md", r"\$d_g\$ is at least ([\d.]*\d)", [SMALLEST_SCALE]),
    ("scrdit_mathematics.md", r"The first (\d+) rows of", [MOST_AXES]),
    ("scrdit_mathematics.md", r"\\min\(1 / \\sigma_t\^2,\\ (\d+)\)", [LARGEST_WEIGHT]),
    ("scrdit_mathematics.md", r"So (\d+) steps are enough", [PROFILE_OPTIONS["n_steps"]]),
    ("scrdit_mathematics.md", r"DPM-Solver\+\+ in (\d+) \|", [PROFILE_OPTIONS["n_steps"]]),
    ("speed.md", r"gene-space models generate in (\d+) steps", [SCRDIT_OPTIONS["n_steps"]]),
    ("metrics.md", r"at most ([\d,]+) \(`max_cells`\)", [defaults_of(evaluate)["max_cells"]]),
    (
        "metrics.md",
        r"use (\d+) principal components of the\s+([\d,]+) most variable genes",
        [defaults_of(ComparisonSpace.fit)[name] for name in ("n_components", "n_genes")],
    ),
]


def text_of(page):
    return (ROOT / "docs" / "user_guide" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "section", "options"),
    [
        ("scldm.md", "", SCLDM_OPTIONS),
        ("scrdit.md", "## Options", SCRDIT_OPTIONS),
        ("scrdit.md", "## Noisy profiles", PROFILE_OPTIONS),
        ("wbdit.md", "", WBDIT_OPTIONS),
    ],
)
def test_tables_of_options_name_the_defaults(page, section, options):
    text = text_of(page)
    text = text[text.index(section) :].removeprefix(section).partition("\n## ")[0] if section else text
    shown = {name: ast.literal_eval(value) for name, value in ROW.findall(text)}
    assert shown
    assert shown == {name: options[name] for name in shown}


@pytest.mark.parametrize(("page", "pattern", "numbers"), SENTENCES)
def test_numbers_in_sentences_are_the_defaults(page, pattern, numbers):
    found = re.findall(pattern.replace(" ", r"\s+"), text_of(page))  # lines may break anywhere
    assert len(found) == 1, f"{page} has {len(found)} sentences like {pattern!r}."
    shown = [found[0]] if isinstance(found[0], str) else list(found[0])
    assert [float(number.replace(",", "")) for number in shown] == numbers


def test_table_of_samplers_names_their_steps():
    rows = re.findall(r"^\| `\"(\w+)\"` \|.*\| (\d+) \|$", text_of("scrdit_mathematics.md"), re.MULTILINE)
    assert {name: int(n) for name, n in rows} == {name: s.default_n_steps for name, s in SAMPLERS.items()}
