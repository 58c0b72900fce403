"""Help, options, errors, warnings and signals: what users and calling scripts see."""

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pandas as pd
import pytest

import scgen_diffusion as sgd
from scgen_diffusion._arguments import warn_user
from scgen_diffusion.cli import cli
from scgen_diffusion.cli._options import command, flag, setting, value
from scgen_diffusion.cli._terminal import Terminal
from scgen_diffusion.data import check_same_genes

COMMANDS = ["train", "generate", "predict", "evaluate", "report", "info"]
HEAVY = {"torch", "scvi", "anndata", "numpy", "pandas", "lightning", "h5py"}
PAGE = Path(sgd.__file__).parents[2] / "docs" / "how_to" / "command_line.md"


def names_of(command):
    return {param.name for param in cli.commands[command].params}


def test_help_needs_no_library_that_takes_seconds_to_import(run_python):
    script = (
        "import runpy, sys\nsys.argv[1:] = ['train', '--help']\n"
        "try:\n    runpy.run_module('scgen_diffusion', run_name='__main__')\n"  # python -m scgen_diffusion train --help
        "except SystemExit as end:\n    assert end.code == 0\n"
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


def test_without_a_command_the_help_is_shown(call):
    code, _, err = call()
    assert code == 2
    assert all(command in err for command in [*COMMANDS, "Exit codes:"])
    assert call("--version") == (0, f"scgen-diffusion {sgd.__version__}\n", "")


def test_options_on_the_page_of_the_command_line_exist():
    page = PAGE.read_text(encoding="utf-8")
    known = {name for command in COMMANDS for param in cli.commands[command].params for name in param.opts}
    named = set(re.findall(r"(?<=[\s`])--[a-z][a-z-]+", page))
    assert len(named) > 10
    assert named <= known | {"--help"}
    assert set(re.findall(r"^\| `([a-z-]+) ", page, re.MULTILINE)) == set(COMMANDS)


FUNCTIONS = {  # which take the options by their own names
    "train": [
        sgd.model.SCLDM.setup_anndata, sgd.model.MULTISCLDM.setup_mudata, sgd.data.CellFiles.__init__,
        sgd.model.SCLDM.load_query_data, sgd.model.SCLDM.train,
    ],
    "generate": [sgd.model.SCLDM.generate, sgd.model.SCLDM.generate_to],
    "predict": [sgd.model.SCLDM.predict_perturbation, sgd.model.SCLDM.predict_perturbation_to],
    "evaluate": [sgd.metrics.evaluate],
    "report": [sgd.report.write],
}  # fmt: skip
OF_THE_COMMAND_LINE = {
    "quiet", "verbose", "cells", "out", "overwrite", "backed", "where", "model", "architecture", "reference", "recipe",
    "trainer", "seed", "condition_table", "accelerator", "devices",
    "num_nodes", "strategy",
}  # fmt: skip


@pytest.mark.parametrize("command", FUNCTIONS)
def test_options_have_the_names_of_arguments_in_python(command):
    arguments = {name for function in FUNCTIONS[command] for name in inspect.signature(function).parameters}
    assert names_of(command) - arguments <= OF_THE_COMMAND_LINE


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("3", 3), ("-2", -2), ("1e-3", 1e-3), ("1" * 400, int("1" * 400)), ("true", True), ("False", False),
        ("[0.9, 0.99]", [0.9, 0.99]), ('"True"', "True"), ('"0"', "0"), ("both", "both"), ("none", "none"),
        ("1\nb=2", "1\nb=2"), ("2020-01-01", "2020-01-01"), ("", ""),
    ],
)  # fmt: skip
def test_values_are_read_as_toml_or_else_as_text(written, read):
    assert value(written) == read
    assert type(value(written)) is type(read)
    assert setting(written) == (None if read == "none" else read)


@pytest.fixture
def call_function(call, monkeypatch):
    """Call the command line with a command that is a given function."""

    def call_function(function, *arguments):
        monkeypatch.setitem(cli.commands, "work", command("work", "Work.", flag("--overwrite", ""))(function))
        return call("work", *arguments)

    return call_function


def raising(error):
    def work(terminal):
        raise error

    return work


def test_what_our_checks_refuse_is_a_wrong_request(call_function):
    code, out, err = call_function(lambda terminal: check_same_genes(pd.Index(["a"]), pd.Index(["b"])))
    assert (code, out) == (2, "")
    assert err.startswith("Error: adata.var_names")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising(OSError(28, "No space left", "x.zarr")), "OSError: [Errno 28] No space left: 'x.zarr'"),
        (raising(MemoryError()), "MemoryError: no reason is given"),
        (raising(ValueError("shapes\nmore")), "ValueError: shapes"),
        (lambda terminal: check_same_genes(5, 5), "TypeError: 'int' object is not iterable"),
    ],
)
def test_errors_from_elsewhere_are_failures_of_one_line(call_function, function, message):
    assert call_function(function) == (1, "", f"Error: {message} (--verbose shows where)\n")
    code, _, err = call_function(function, "--verbose")
    assert (code, "Traceback" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "word"), [(["work", "--overwriet"], "--overwrite"), (["wrok"], "wrok"), (["work", "a"], "argument")]
)
def test_mistakes_on_the_command_line_are_named(call_function, call, arguments, word):
    call_function(lambda terminal: None)
    code, _, err = call(*arguments)
    assert (code, word in err) == (2, True)


def test_our_log_and_our_warnings_are_shown_and_those_of_others_are_not(call_function):
    def work(terminal):
        logging.getLogger("scgen_diffusion.train").info("Training.")
        logging.getLogger("scgen_diffusion.train").debug("Details.")
        logging.getLogger("scgen_diffusion.train").warning("Careful.")
        warnings.warn("from here", stacklevel=1)
        warn_user("of ours")

    *_, err = call_function(work)
    assert err == "Training.\nscgen-diffusion: warning: Careful.\nscgen-diffusion: warning: of ours\n"
    *_, err = call_function(work, "-v")
    assert "Details." in err
    assert "warning: from here" in err
    assert call_function(work, "-q")[2] == ""


def interrupted(terminal):
    terminal.on_interrupt = "The same command goes on."
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()


def interrupted_in_lightning(terminal):
    try:
        interrupted(terminal)
    except KeyboardInterrupt:
        raise SystemExit(1) from None


@pytest.mark.parametrize("work", [interrupted, interrupted_in_lightning])
def test_an_interrupt_ends_the_work_with_the_usual_code(call_function, work):
    assert call_function(work) == (130, "", "Error: Interrupted. The same command goes on.\n")


def test_the_exit_of_sigterm_is_told_and_that_of_a_library_is_let_through(call_function):
    assert call_function(raising(SystemExit(143))) == (143, "", "Error: Terminated.\n")
    with pytest.raises(SystemExit), Terminal().at_work():
        raise SystemExit(5)


def test_a_process_heeds_sigterm(tmp_path):
    script = (
        "import os, signal\nfrom scgen_diffusion.cli import _models, run\n"
        "def end(*_, **__):\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "_models.check_place = end\nrun()"
    )
    line = [sys.executable, "-c", script, "train", str(tmp_path), "-o", str(tmp_path / "model")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "Error: Terminated.\n")
