"""The user guide names the defaults of the code."""

import ast
import inspect
import re

import pytest
from benchmarks.tables import ROOT

from scgen_diffusion.diffusion import FLOW_SAMPLERS
from scgen_diffusion.model import SCLDM
from scgen_diffusion.module import build_architecture
from scgen_diffusion.train import RECIPES

SCLDM_OPTIONS = vars(build_architecture("default")) | {
    **{name: p.default for name, p in inspect.signature(SCLDM.__init__).parameters.items()},
    **{name: p.default for name, p in inspect.signature(SCLDM.generate).parameters.items()},
    "library_size": build_architecture("default").library_size,
    "n_steps": FLOW_SAMPLERS[SCLDM.default_sampler].default_n_steps,
    "max_epochs": inspect.signature(SCLDM.train).parameters["max_epochs"].default,
}
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
        r"\\rho \\sim \\mathcal\{U\}\(([\d.]+), 1\)",
        [RECIPES["default"].autoencoder.keep_at_least],
    ),
    (
        "scldm_mathematics.md",
        r"hides conditions with probability ([\d.]*\d)",
        [RECIPES["default"].prior.drop_probability],
    ),
]


def text_of(page):
    return (ROOT / "docs" / "user_guide" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "options"), [("scldm.md", SCLDM_OPTIONS)])
def test_tables_of_options_name_the_defaults(page, options):
    shown = {name: ast.literal_eval(value) for name, value in ROW.findall(text_of(page))}
    assert shown
    assert shown == {name: options[name] for name in shown}


@pytest.mark.parametrize(("page", "pattern", "numbers"), SENTENCES)
def test_numbers_in_sentences_are_the_defaults(page, pattern, numbers):
    found = re.findall(pattern, text_of(page))
    assert len(found) == 1, f"{page} has {len(found)} sentences like {pattern!r}."
    shown = [found[0]] if isinstance(found[0], str) else list(found[0])
    assert [float(number) for number in shown] == numbers
