"""Running the command line in the process of the tests, on small cells and a model trained once."""

from __future__ import annotations

import logging
import signal

import pytest
import scvi

from scgen_diffusion.cli import main
from scgen_diffusion.cli._terminal import TALKATIVE


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Give back what a process of its own would take with it: the seed, levels of logs and handlers of signals."""
    monkeypatch.setenv("TQDM_DISABLE", "")  # which `--quiet` sets
    seed, levels = scvi.settings.seed, {name: logging.getLogger(name).level for name in TALKATIVE}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    scvi.settings._seed = seed
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert not logging.getLogger("scgen_diffusion").handlers


@pytest.fixture
def cells_file(make_cells, tmp_path):
    """Write small cells, with their counts in a layer too."""
    cells = make_cells()
    cells.layers["raw"] = cells.X.copy()
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture
def call(capsys):
    """Call the command line; return exit code, stdout and stderr."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(call):
    """Call the command line with a wrong request, which is told in one line that holds some words."""

    def refused(words, *arguments):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), err
        assert words in err.splitlines()[-1]
        assert "Traceback" not in err

    return refused


@pytest.fixture(scope="session")
def small(tiny):
    """Return options of ``train`` by which it takes an instant."""
    sizes = [part for name, value in tiny.items() for part in ("--set", f"{name}={value}")]
    return [*sizes, "--max-epochs", "1", "--batch-size", "32", "--accelerator", "cpu"]
