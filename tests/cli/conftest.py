"""Running the command line in the process of the tests, on small cells and a model trained once."""

from __future__ import annotations

import logging
import signal

import pytest
import scvi

from scgen_diffusion.cli import main


@pytest.fixture(autouse=True)
def _as_it_was():
    """Give back what a process of its own would take with it: the seed, and handlers of signals."""
    seed, handlers = (
        scvi.settings.seed,
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
    )
    yield
    scvi.settings._seed = seed
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


@pytest.fixture(scope="session")
def small(tiny):
    """Return options of ``train`` by which it takes an instant."""
    sizes = [part for name, value in tiny.items() for part in ("--set", f"{name}={value}")]
    return [*sizes, "--max-epochs", "1", "--batch-size", "32", "--accelerator", "cpu"]
