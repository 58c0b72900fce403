"""``generate_to`` by processes on several machines, of which one is slow, stands still, or comes late."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import time
import warnings

import anndata
import numpy as np
import pytest

from scgen_diffusion.data import PartFolder, _writers_claim, _writers_parts
from scgen_diffusion.model import _streaming

REQUEST = {"n_cells": 600, "seed": 5, "sampler": "euler", "n_steps": 1, "shard_size": 128}
PATIENCE = 1.5  # seconds; a machine that is busy with other tests must not look dead within it


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr(_writers_claim, "PATIENCE", PATIENCE)


@pytest.fixture
def goal(request, tmp_path):
    return tmp_path / f"cells{getattr(request, 'param', '.h5ad')}"


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    """Return the cells of an uninterrupted run."""
    return anndata.read_h5ad(trained.generate_to(tmp_path_factory.mktemp("whole") / "cells.h5ad", **REQUEST))


def assert_whole(path, expected):
    """Raise unless the file holds the expected cells, and nothing else is left in its folder."""
    found = (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.obs.equals(expected.obs)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def start(function, *arguments):
    """Start a function in a process of its own, which shares what is imported and trained already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are idle here
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
    return process


def folder_of(goal):
    return goal.with_name(f".{goal.name}.parts")


def wait_for(is_so):
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def put_together_elsewhere(trained, goal, where, name, act):
    """Start rank 1 on another machine, where ``act()`` comes before something is done."""

    def generate():
        socket.gethostname = lambda: "another machine"
        do = getattr(where, name)
        setattr(where, name, lambda *arguments: (act(), do(*arguments))[1])
        trained.generate_to(goal, **REQUEST, rank=1, n_ranks=2)

    trained.generate_to(goal, **REQUEST, rank=0, n_ranks=2)
    process = start(generate)
    wait_for((folder_of(goal) / "turn-0" / "owner.json").exists)
    return process


def stand_still_once():
    """Stop this process until it is woken, the first time."""
    calls = iter(range(1))
    return lambda: os.kill(os.getpid(), signal.SIGSTOP) if next(calls, None) is not None else None


def test_a_slow_process_on_another_machine_keeps_its_turn(trained, goal, expected, monkeypatch):
    process = put_together_elsewhere(trained, goal, _streaming, "sync", lambda: time.sleep(2 * PATIENCE))
    monkeypatch.setattr(_streaming, "write_cells", None)  # rank 0 waits, and writes nothing

    trained.generate_to(goal, **REQUEST, rank=0, n_ranks=2)

    process.join()
    assert process.exitcode == 0
    assert_whole(goal, expected)


def test_signs_of_life_end_with_a_process_that_is_killed(trained, goal, expected):
    process = put_together_elsewhere(trained, goal, _streaming, "sync", lambda: time.sleep(600))
    process.kill()
    process.join()

    trained.generate_to(goal, **REQUEST, rank=0, n_ranks=2)

    assert_whole(goal, expected)


@pytest.mark.parametrize(
    ("where", "moment", "goal"),
    [(PartFolder, "read", ".zarr"), (_streaming, "sync", ".zarr"), (_streaming, "sync", ".h5ad")],
    indirect=["goal"],
    ids=["writing zarr", "zarr written", "h5ad written"],
)
def test_a_process_that_stood_still_finds_its_work_done_by_another(trained, goal, expected, where, moment):
    process = put_together_elsewhere(trained, goal, where, moment, stand_still_once())

    trained.generate_to(goal, **REQUEST, rank=0, n_ranks=2)
    os.kill(process.pid, signal.SIGCONT)
    process.join()

    assert process.exitcode == 0
    assert_whole(goal, expected)


def test_a_process_whose_work_was_taken_over_puts_nothing_in_place(trained, goal, expected, monkeypatch):
    trained.generate_to(goal, **REQUEST, rank=0, n_ranks=2)
    with monkeypatch.context() as patch:
        patch.setattr(_streaming, "sync", lambda _: (folder_of(goal) / "turn-1").mkdir())
        trained.generate_to(goal, **REQUEST, rank=1, n_ranks=2)
        assert not goal.exists()

    trained.generate_to(goal, **REQUEST)  # the other one died: turn-1 has no owner

    assert_whole(goal, expected)


def test_an_error_of_ones_own_is_told_though_the_folder_is_gone(trained, goal, monkeypatch):
    monkeypatch.setattr(_streaming, "sync", lambda _: shutil.rmtree(folder_of(goal)))

    with pytest.raises(_writers_claim.LostTurnError):
        trained.generate_to(goal, **REQUEST)


def at_the_next(monkeypatch, where, name, act):
    """Let something happen before a function is called the next time."""
    do = getattr(where, name)

    def act_and_do(*arguments):
        monkeypatch.setattr(where, name, do)
        act()
        return do(*arguments)

    monkeypatch.setattr(where, name, act_and_do)


def test_the_folder_of_parts_may_vanish_while_it_is_joined(trained, goal, expected, monkeypatch):
    at_the_next(monkeypatch, _writers_parts, "token", lambda: shutil.rmtree(folder_of(goal)))

    trained.generate_to(goal, **REQUEST)

    assert_whole(goal, expected)


@pytest.mark.parametrize(
    ("where", "moment"), [(_writers_parts, "token"), (PartFolder, "write")], ids=["joining", "making a part"]
)
def test_a_late_process_finds_all_done(trained, goal, expected, monkeypatch, where, moment):
    def finish():
        process = start(lambda: trained.generate_to(goal, **REQUEST))
        process.join()
        assert process.exitcode == 0

    at_the_next(monkeypatch, where, moment, finish)

    assert trained.generate_to(goal, **REQUEST, rank=1, n_ranks=2) == goal

    assert_whole(goal, expected)
