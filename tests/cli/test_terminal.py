"""Errors, warnings and signals: what users and calling scripts see."""

import logging
import os
import signal
import subprocess
import sys
import warnings

import pytest

from scgen_diffusion._arguments import warn_user
from scgen_diffusion.cli import cli
from scgen_diffusion.cli._command import command, flag, option
from scgen_diffusion.cli._terminal import ExitCode, Stop, Terminal
from scgen_diffusion.data import check_same_genes


@pytest.fixture
def call_function(call, monkeypatch):
    """Call the command line with a command that is a given function."""

    def call_function(function, *arguments):
        options = [option(name, "") for name in ("--max-epochs", "--control", "--unlabeled-category", "--condition")]
        made = command("work", [], {"Flags": [flag("--flag", "A flag."), *options]}, short_help="Work.")(function)
        monkeypatch.setitem(cli.commands, "work", made)
        return call("work", *arguments)

    return call_function


def raising(error):
    def work(terminal, options):
        raise error

    return work


def of_ours(terminal, options):
    import pandas as pd

    check_same_genes(pd.Index(["a"]), pd.Index(["b"]))


def test_work_that_ends_well_gives_zero(call_function):
    assert call_function(lambda terminal, options: terminal.result("done")) == (0, "done\n", "")


def test_what_our_checks_refuse_is_a_wrong_request(call_function):
    code, out, err = call_function(of_ours)
    assert (code, out) == (2, "")
    assert err.startswith("scgen-diffusion: error: The genes differ from the 1 of the model")
    assert "Traceback" not in err


def test_the_same_error_from_elsewhere_is_a_failure(call_function):
    code, _, err = call_function(raising(ValueError("shapes do not match\nmore of it")))
    assert code == 1
    assert err == "scgen-diffusion: error: ValueError: shapes do not match (--verbose shows where)\n"


@pytest.mark.parametrize("argument", [None, 5])
def test_what_python_finds_in_our_code_is_a_bug_to_report(call_function, argument):
    code, _, err = call_function(lambda terminal, options: check_same_genes(argument, argument))
    assert code == 1
    assert "Traceback" in err
    assert "This is a bug in scgen-diffusion; please report it with the lines above." in err.splitlines()[-1]


def test_verbose_shows_where(call_function):
    code, _, err = call_function(raising(ValueError("shapes")), "--verbose")
    assert code == 1
    assert "Traceback" in err
    assert "in work" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(28, "No space left on device", "x.zarr"),
            "x.zarr: No space left on device. Make room and run the same command again.",
        ),
        (OSError(28, "Writing failed (about 1 GiB).\nand more"), "Writing failed (about 1 GiB)."),
        (PermissionError(13, "Permission denied"), "Permission denied."),
        (MemoryError(), "out of memory (--verbose shows where)"),
        (RuntimeError("CUDA error: a\nb"), "RuntimeError: CUDA error: a (--verbose shows where)"),
    ],
)
def test_errors_of_the_system_are_one_line(call_function, error, message):
    assert call_function(raising(error)) == (1, "", f"scgen-diffusion: error: {message}\n")


def test_a_key_error_of_ours_is_shown_without_its_quotation_marks(call_function, make_cells):
    from scgen_diffusion.model import SCLDM

    code, _, err = call_function(lambda terminal, options: SCLDM.setup_anndata(make_cells(), layer="x"))
    assert code == 2
    assert err.startswith("scgen-diffusion: error: `layer` 'x' is not in adata.layers. Known: none.")


def test_cells_that_are_not_good_enough_have_an_exit_code_of_their_own(call_function):
    code, _, err = call_function(raising(Stop("Not good enough.", ExitCode.NOT_GOOD_ENOUGH)))
    assert (code, err) == (3, "scgen-diffusion: Not good enough.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["work", "--flga"], "scgen-diffusion work: error: No such option '--flga'. Did you mean '--flag'?"),
        (["wrok"], "scgen-diffusion: error: No such command 'wrok'"),
        (["work", "--quiet", "--verbose"], "scgen-diffusion work: error: --quiet and --verbose exclude each other."),
    ],
)
def test_mistakes_on_the_command_line_are_named(call_function, call, arguments, message):
    call_function(lambda terminal, options: None)
    code, _, err = call(*arguments)
    assert code == 2
    assert message.replace("'", "") in err.replace("'", "")
    assert "--help'." in err


def test_our_log_and_our_warnings_are_shown_and_those_of_others_are_not(call_function):
    def work(terminal, options):
        logging.getLogger("scgen_diffusion.train").info("Training.")
        logging.getLogger("scgen_diffusion.train").debug("Details.")
        logging.getLogger("scgen_diffusion.train").warning("Careful.")
        warnings.warn("from here", stacklevel=1)
        warn_user("of ours")

    *_, err = call_function(work)
    assert err == "Training.\nscgen-diffusion: warning: Careful.\nscgen-diffusion: warning: of ours\n"
    *_, err = call_function(work, "-v")
    assert "Details." in err
    assert "UserWarning: from here" in err
    *_, err = call_function(work, "-q")
    assert err == ""


@pytest.mark.parametrize(
    ("in_python", "advice"),
    [
        ("Next: model.train_prior() and model.train_transport(), as it was", "Next: train again, as it was"),
        ("Leave `max_epochs` out", "Leave --max-epochs out"),
        ("It is not trained. `train_transport` trains it alone.", "It is not trained."),
        (
            "The model has none yet; call train_transport() first.",
            "The model has none yet; run `scgen-diffusion train` first.",
        ),
        ("It needs `control_values` in `setup_anndata`.", "It needs --control."),
        ("Give `condition_keys='a'`, `flag=True` or `x`.", "Give --condition='a', --flag or `x`."),
        ("Give the text 'it\\'s'.", "Give the text 'it\\'s'."),
        (
            "'a' is not a column. Known, closest first: 'b', 'a=1'.",
            "'a' is not a column. Known, closest first: 'b', 'a=1'. In KEY=VALUE, the key ends at the first '='; "
            "rename a column that has one.",
        ),
        (
            "the unknown value 'NK' for 'type'. Known, closest first: 'NK=1'.",
            "the unknown value 'NK' for 'type'. Known, closest first: 'NK=1'.",
        ),
        (
            "No cell has the control value 0 in obs['drug']. Give the text '0'.",
            """No cell has the control value 0 in drug. Give text: --control 'drug="0"'.""",
        ),
    ],
)
def test_advice_for_python_becomes_advice_for_the_command_line(call_function, in_python, advice):
    def work(terminal, options):
        logging.getLogger("scgen_diffusion.train").info(in_python)
        warn_user(in_python)

    *_, err = call_function(work)
    assert err == f"{advice}\nscgen-diffusion: warning: {advice}\n"


def test_an_interrupt_ends_the_work_with_the_usual_code(call_function):
    def work(terminal, options):
        terminal.on_interrupt = "The same command goes on."
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    assert call_function(work) == (130, "", "scgen-diffusion: Interrupted. The same command goes on.\n")


def test_an_exit_that_a_library_makes_of_an_interrupt_is_one(call_function):
    def work(terminal, options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            raise SystemExit(1) from None

    assert call_function(work)[0] == 130


def test_the_exit_of_a_run_that_another_of_its_processes_ended_is_that_of_sigterm(call_function):
    code, _, err = call_function(raising(SystemExit(143)))
    assert (code, err) == (143, "scgen-diffusion: Terminated.\n")


def test_a_library_that_exits_by_itself_may():
    with pytest.raises(SystemExit), Terminal().at_work():
        raise SystemExit(5)


def test_a_process_heeds_sigterm_and_a_limit_of_threads_which_numba_would_lift(tmp_path):
    script = (
        "import os, signal\nfrom scgen_diffusion.cli import _train, run\n"
        "def seed(*_, **__):\n    print(os.environ['NUMBA_NUM_THREADS'])\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "_train._check_options = seed\nrun()"
    )
    command = [sys.executable, "-c", script, "train", str(tmp_path), "-o", str(tmp_path / "model")]
    environment = {**os.environ, "OMP_NUM_THREADS": "3,1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("NUMBA_NUM_THREADS", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "3\n", "scgen-diffusion: Terminated.\n")
