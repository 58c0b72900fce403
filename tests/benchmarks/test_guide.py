"""The user guide names the defaults of the code."""

import ast
import inspect
import re

import pytest
from benchmarks.tables import ROOT

from scgen_diffusion.diffusion import FLOW_SAMPLERS, Masking, VariancePreserving, samplers_for
from scgen_diffusion.model import SCLDM, SCMDM, SCRDIT, WBDIT
from scgen_diffusion.module import SCMDM_ARCHITECTURES, SCRDIT_ARCHITECTURES, WBDIT_ARCHITECTURES, SCLDMArchitecture


def defaults_of(*functions):
    return {name: p.default for function in functions for name, p in inspect.signature(function).parameters.items()}


SCLDM_OPTIONS = defaults_of(SCLDM.train, SCLDM.generate, SCLDM.__init__) | {
    "n_steps": FLOW_SAMPLERS[SCLDM.default_sampler].default_n_steps,
    **vars(SCLDMArchitecture()),
}
SAMPLERS = samplers_for(VariancePreserving()) | samplers_for(Masking())


def options_of(model, architectures, sampler):
    return defaults_of(model.train, model.generate, model.__init__) | {
        "sampler": sampler,
        "n_steps": SAMPLERS[sampler].default_n_steps,
        **vars(architectures["default"]),
    }


SCRDIT_OPTIONS = options_of(SCRDIT, SCRDIT_ARCHITECTURES, "dpm_solver_3m")
WBDIT_OPTIONS = options_of(WBDIT, WBDIT_ARCHITECTURES, "dpm_solver_3m")
SCMDM_OPTIONS = options_of(SCMDM, SCMDM_ARCHITECTURES, SCMDM.default_sampler)
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \|", re.MULTILINE)


def text_of(page):
    return (ROOT / "docs" / "user_guide" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "section", "options"),
    [
        ("scldm.md", "", SCLDM_OPTIONS),
        ("scrdit.md", "", SCRDIT_OPTIONS),
        ("wbdit.md", "", WBDIT_OPTIONS),
        ("scmdm.md", "", SCMDM_OPTIONS),
    ],
)
def test_tables_of_options_name_the_defaults(page, section, options):
    text = text_of(page)
    text = text[text.index(section) :].removeprefix(section).partition("\n## ")[0] if section else text
    shown = {name: ast.literal_eval(value) for name, value in ROW.findall(text)}
    assert shown
    assert shown == {name: options[name] for name in shown}


def test_table_of_samplers_names_their_steps():
    rows = re.findall(r"^\| `\"(\w+)\"` \|.*\| ([\d,]+) \|$", text_of("scrdit_mathematics.md"), re.MULTILINE)
    assert {name: int(n.replace(",", "")) for name, n in rows} == {
        name: s.default_n_steps for name, s in SAMPLERS.items()
    }
