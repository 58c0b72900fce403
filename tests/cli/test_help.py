"""Help: quick, complete, and true to the Python interface."""

import dataclasses
import inspect
import re
from pathlib import Path

import click
import pytest

import scgen_diffusion as sgd
from scgen_diffusion.cli import cli

COMMANDS = ["train", "generate", "predict", "evaluate", "evaluate-perturbation", "report", "info"]
HEAVY = {"torch", "scvi", "anndata", "numpy", "pandas", "lightning", "h5py"}
PAGE = Path(sgd.__file__).parents[2] / "docs" / "how_to" / "command_line.md"


def names_of(command):
    return {param.name for param in cli.commands[command].params}


def test_the_precisions_offered_are_those_that_training_takes():
    from scgen_diffusion.cli import _train
    from scgen_diffusion.train import _runner

    assert _train.PRECISIONS == _runner.PRECISIONS


def test_help_needs_no_library_that_takes_seconds_to_import(run_python):
    script = (
        "import runpy, sys\nsys.argv[1:] = ['train', '--help']\n"
        "try:\n    runpy.run_module('scgen_diffusion', run_name='__main__')\n"  # python -m scgen_diffusion train --help
        "except SystemExit as end:\n    assert end.code == 0\n"
        "from click.shell_completion import ShellComplete\nfrom scgen_diffusion.cli import cli\n"
        "offered = ShellComplete(cli, {}, 'x', 'y').get_completions(['train', '--model'], '')\n"
        "assert [item.value for item in offered] == ['SCLDM', 'MULTISCLDM', 'SCRDIT', 'WBDIT']\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)))"
    )
    assert "HEAVY []" in run_python(script)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    for param in cli.commands[command].params:
        if isinstance(param, click.Option):
            assert param.help, param.name
            assert param.opts[0] in out
    examples = re.findall(r"^ +(scgen-diffusion .+)", cli.commands[command].function.__doc__, re.MULTILINE)
    assert all(f"  {example}\n" in out for example in examples)


def test_without_a_command_the_help_is_shown(call):
    code, _, err = call()
    assert code == 2
    assert all(command in err for command in COMMANDS)
    assert "Exit codes:" in err


def test_the_version_is_that_of_the_package(call):
    assert call("--version") == (0, f"scgen-diffusion {sgd.__version__}\n", "")


def test_options_on_the_page_of_the_command_line_exist():
    page = PAGE.read_text(encoding="utf-8")
    known = {name for command in COMMANDS for param in cli.commands[command].params for name in param.opts}
    named = set(re.findall(r"(?<=[\s`])--[a-z][a-z-]+", page))
    assert len(named) > 10
    assert named <= known | {"--help"}
    assert set(re.findall(r"^\| `([a-z-]+) ", page, re.MULTILINE)) == set(COMMANDS)


RENAMED = {
    "condition_keys": "condition",
    "continuous_condition_keys": "continuous_condition",
    "set_condition_keys": "set_condition",
    "control_values": "control",
    "condition_embeddings": "condition_embedding",
    "modalities": "modality",
    "layers": "layer",
    "plan_kwargs": "recipe",
    "trainer_kwargs": "trainer",
    "save_anndata": "save_cells",
    "metrics": "metric",
    "paths": "cells",
    "genes": "shared_genes",
    "others": "other",
    "match_keys": "match",
    "adata": "cells",
    "adata_control": "cells",
    "reference_model": "reference",
    "device": "devices",
    "indices": "where",
    "sample": "expected",
    "mdata": "cells",
    "datamodule": "cells",
    "dir_path": "out",
    "path": "out",
    "real_test": "real",
}
BEYOND = {  # what makes no sense on a command line, or follows from it
    "self", "cls", "kwargs", "registry", "prefix", "anndata_write_kwargs", "show_progress", "space", "scales",
}  # fmt: skip
OF_THE_OTHER = {  # arguments of `evaluate` that make sense for cells, or for perturbations
    "evaluate": {"control", "perturbation_key", "separator", "match_keys", "others"},
    "evaluate-perturbation": {"n_bootstrap"},
}
FUNCTIONS = {
    "train": [
        sgd.model.SCLDM.setup_anndata,
        sgd.model.MULTISCLDM.setup_mudata,
        sgd.model.SCLDM.__init__,
        sgd.model.SCLDM.train,
        sgd.model.SCRDIT.train,
        sgd.model.SCLDM.save,
        sgd.model.SCLDM.load_query_data,
        sgd.data.CellFiles.__init__,
    ],
    "generate": [sgd.model.SCLDM.generate_to, sgd.model.SCRDIT.generate_to],
    "predict": [sgd.model.SCLDM.predict_perturbation_to, sgd.model.MULTISCLDM.predict_perturbation_to],
    "evaluate": [sgd.metrics.evaluate],
    "evaluate-perturbation": [sgd.metrics.evaluate],
    "report": [sgd.report.write],
}


@pytest.mark.parametrize(("command", "function"), [(c, f) for c, functions in FUNCTIONS.items() for f in functions])
def test_every_argument_of_the_python_interface_is_an_option(command, function):
    beyond = BEYOND | OF_THE_OTHER.get(command, set())
    arguments = [RENAMED.get(name, name) for name in inspect.signature(function).parameters if name not in beyond]
    assert [name for name in arguments if name not in names_of(command)] == []


@pytest.mark.parametrize("cls", [sgd.module.SCLDMArchitecture, sgd.module.GeneSpaceArchitecture])
def test_no_option_hides_one_of_the_architecture(cls):
    assert "size" not in {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_default_of_the_python_interface_is_restated(command):
    context = click.Context(cli.commands[command], resilient_parsing=True)
    defaults = {p.name: p.get_default(context) for p in cli.commands[command].params if isinstance(p, click.Option)}
    stated = {name: value for name, value in defaults.items() if value in (0, "SCLDM") and value is not False}
    assert set(stated) <= {"seed", "model"}
    assert all(name in stated or not value or "unset" in repr(value).lower() for name, value in defaults.items())


@pytest.mark.parametrize("command", ["evaluate", "evaluate-perturbation", "report"])
def test_defaults_in_the_help_are_those_of_the_python_interface(command):
    told = {p.name: re.search(r"default: (\d+)", getattr(p, "help", None) or "") for p in cli.commands[command].params}
    stated = {name: int(found[1]) for name, found in told.items() if found}
    defaults = inspect.signature(FUNCTIONS[command][0]).parameters
    assert "max_cells" in stated
    assert stated == {name: defaults[name].default for name in stated}


def test_a_model_and_its_parts_are_found_though_the_package_imports_them_late(run_python):
    script = (
        "import sys, scgen_diffusion as sgd\nassert 'torch' not in sys.modules\n"
        "assert {'model', 'report', '__version__'} <= set(dir(sgd))\n"
        "assert sgd.diffusion.LinearInterpolant and sgd.__version__\n"  # of all parts, the quickest to import
        "try:\n    sgd.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    assert "module 'scgen_diffusion' has no attribute 'nothing'" in run_python(script)
