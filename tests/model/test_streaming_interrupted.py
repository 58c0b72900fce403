"""``generate_to`` that is killed, resumed, shared by processes, or out of space."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import time
import warnings

import anndata
import numpy as np
import pytest

from scgen_diffusion.generation import CellGenerator

GENERATE = {"n_cells": 600, "seed": 5, "sampler": "euler", "n_steps": 1}
REQUEST = {**GENERATE, "shard_size": 128}
N_PARTS = 5


@pytest.fixture(params=[".zarr", ".h5ad"])
def goal(request, tmp_path):
    return tmp_path / f"cells{request.param}"


@pytest.fixture
def h5ad(tmp_path):
    """Return a goal for what does not depend on the format."""
    return tmp_path / "cells.h5ad"


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    """Return the cells of an uninterrupted run."""
    path = trained.generate_to(tmp_path_factory.mktemp("whole") / "cells.h5ad", **REQUEST)
    return anndata.read_h5ad(path)


def read(path):
    return (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)


def assert_whole(path, expected):
    """Raise unless the file holds the expected cells, and nothing else is left in its folder."""
    found = read(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.obs.equals(expected.obs)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def start(function):
    """Start a function in a process of its own, which shares what is imported and trained already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are idle here
        process = multiprocessing.get_context("fork").Process(target=function)
        process.start()
    return process


def folder_of(goal):
    return goal.with_name(f".{goal.name}.parts")


def parts_of(goal):
    return sorted(folder_of(goal).glob("part-*"))


def wait_for(process, is_so):
    """Wait until a process has come so far, or is over."""
    while process.is_alive() and not is_so():
        time.sleep(0.0005)


MOMENTS = {
    "the first file": lambda goal: any(goal.parent.glob(".*")),
    "one part": lambda goal: len(parts_of(goal)) == 1,
    "being at a part": lambda goal: any(folder_of(goal).glob(".part-*")),
    "all parts": lambda goal: len(parts_of(goal)) == N_PARTS,
    "joining": lambda goal: any(folder_of(goal).glob("whole-*")),
    "having joined": lambda goal: not folder_of(goal).exists(),
}


@pytest.mark.parametrize(
    ("goal", "options"),
    [(".h5ad", {}), (".zarr", {"overwrite": True})],
    indirect=["goal"],
    ids=["new-h5ad", "overwrite-zarr"],
)
def test_kills_at_any_moment_change_nothing(trained, goal, expected, options):
    if options:
        trained.generate_to(goal, 3, seed=1)
    rng = random.Random(0)
    moments = [*MOMENTS.values(), *[lambda _, end=rng.uniform(0, 0.3): time.monotonic() - began > end] * 2]
    n_killed = 0
    for moment in moments:
        began = time.monotonic()
        process = start(lambda: trained.generate_to(goal, **REQUEST, **options))
        wait_for(process, lambda moment=moment: moment(goal))
        process.kill()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
        if goal.exists():
            assert read(goal).n_obs in (3, 600)  # whole, if it is there

    assert trained.generate_to(goal, **REQUEST, **options) == goal

    assert n_killed >= 3
    assert_whole(goal, expected)


def test_a_resumed_call_counts_what_is_done(trained, h5ad, expected, capsys):
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2)
    done = {part: part.stat().st_mtime_ns for part in parts_of(h5ad)}
    trained.generate_to(h5ad, **REQUEST, rank=1, n_ranks=3)
    assert len(parts_of(h5ad)) == N_PARTS - 1
    assert {part: part.stat().st_mtime_ns for part in done} == done  # nothing is made twice
    capsys.readouterr()

    trained.generate_to(h5ad, **REQUEST, show_progress=True)

    assert "472/600" in capsys.readouterr().err
    assert_whole(h5ad, expected)


def test_without_a_seed_a_resumed_call_keeps_the_first_one(trained, h5ad):
    request = {**REQUEST, "seed": None}
    trained.generate_to(h5ad, **request, rank=0, n_ranks=2)
    begun = (folder_of(h5ad) / "request.json").read_text()

    trained.generate_to(h5ad, **request)

    cells = read(h5ad)
    seed = int(cells.uns["scgen_diffusion"]["seed"])
    assert f'"seed": {seed}' in begun
    again = trained.generate(**{**GENERATE, "seed": seed})
    np.testing.assert_array_equal(cells.X.toarray(), again.X.toarray())


@pytest.mark.parametrize(("order", "goal"), [((0, 1), ".h5ad"), ((1, 0), ".zarr")], indirect=["goal"], ids=str)
def test_ranks_one_after_the_other_make_the_same_file(trained, goal, expected, order):
    for rank in order:
        assert not goal.exists()
        trained.generate_to(goal, **REQUEST, rank=rank, n_ranks=2)

    assert_whole(goal, expected)


def test_processes_at_once_make_one_file(trained, h5ad, expected):
    processes = [
        start(lambda rank=rank: trained.generate_to(h5ad, **REQUEST, rank=rank, n_ranks=3)) for rank in range(3)
    ]
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_whole(h5ad, expected)


@pytest.mark.parametrize("goal", [".zarr"], indirect=True)
def test_processes_that_join_the_same_parts_at_once_do_no_harm(trained, goal, expected, monkeypatch):
    """As where the file system has no locks."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refused(errno.ENOLCK))
    begun = start(lambda: trained.generate_to(goal, **REQUEST))
    wait_for(begun, lambda: len(parts_of(goal)) == N_PARTS)
    os.kill(begun.pid, signal.SIGSTOP)

    processes = [
        start(lambda rank=rank: trained.generate_to(goal, **REQUEST, rank=rank, n_ranks=2)) for rank in range(2)
    ]
    os.kill(begun.pid, signal.SIGCONT)
    for process in [begun, *processes]:
        process.join()

    assert [process.exitcode for process in [begun, *processes]] == [0, 0, 0]
    assert_whole(goal, expected)


@pytest.mark.parametrize(("moment", "goal"), [("one part", ".h5ad"), ("joining", ".zarr")], indirect=["goal"], ids=str)
def test_a_process_that_stood_still_finds_its_work_done_by_others(trained, goal, expected, moment, monkeypatch):
    monkeypatch.setattr(
        pytest.importorskip("fcntl"), "flock", refused(errno.ENOLCK)
    )  # otherwise others would wait for it
    process = start(lambda: trained.generate_to(goal, **REQUEST))
    wait_for(process, lambda: MOMENTS[moment](goal))
    os.kill(process.pid, signal.SIGSTOP)

    trained.generate_to(goal, **REQUEST)
    os.kill(process.pid, signal.SIGCONT)
    process.join()

    assert process.exitcode == 0
    assert_whole(goal, expected)


def test_a_rank_whose_work_is_done_returns_at_once(trained, h5ad, expected, monkeypatch):
    trained.generate_to(h5ad, **REQUEST)
    monkeypatch.setattr(CellGenerator, "cells", None)

    for rank in range(3):
        assert trained.generate_to(h5ad, **REQUEST, rank=rank, n_ranks=3) == h5ad

    assert_whole(h5ad, expected)


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_part_is_named_and_can_be_made_again(trained, h5ad, expected, damage):
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2)
    part = parts_of(h5ad)[1]
    part.write_bytes(part.read_bytes()[:-100] if damage == "cut" else b"")

    with pytest.raises(ValueError, match=rf"{part} is not an \.h5ad .*Remove it and run the same call again"):
        trained.generate_to(h5ad, **REQUEST)
    assert not h5ad.exists()
    part.unlink()
    trained.generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_a_loaded_model_continues_training(trained, saved_model, h5ad, expected):
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2)

    type(trained).load(saved_model, adata=False).generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_files_of_other_arguments_can_be_discarded(trained, h5ad, expected):
    trained.generate_to(h5ad, **{**REQUEST, "seed": 1}, rank=0, n_ranks=2)

    trained.generate_to(h5ad, **REQUEST, overwrite=True)

    assert_whole(h5ad, expected)


def test_a_finished_call_leaves_the_parts_of_another_alone(trained, h5ad):
    trained.generate_to(h5ad, 3, seed=1)
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2, overwrite=True)
    begun = parts_of(h5ad)

    trained.generate_to(h5ad, 3, seed=1)

    assert parts_of(h5ad) == begun != []


def test_a_folder_without_a_request_can_be_used(trained, h5ad, expected):
    (folder_of(h5ad) / "whole-1.zarr").mkdir(parents=True)  # as of a process whose work was taken away while it wrote

    trained.generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_folders_that_are_missing_none_or_closed_are_named_before_any_work(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(CellGenerator, "cells", None)
    (tmp_path / "file").touch()

    with pytest.raises(FileNotFoundError, match="The folder .*missing of `path` does not exist"):
        trained.generate_to(tmp_path / "missing" / "cells.zarr", **REQUEST)
    with pytest.raises(NotADirectoryError, match="file, the parent of `path`, is not a folder"):
        trained.generate_to(tmp_path / "file" / "cells.zarr", **REQUEST)
    monkeypatch.setattr(os, "mkdir", refused(errno.EACCES))  # root may write anywhere
    with pytest.raises(OSError, match="Making a folder for finished cells in .* Permission denied"):
        trained.generate_to(tmp_path / "cells.zarr", **REQUEST)


def refused(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("limit", [30_000, 90_000], ids=["part", "whole"])
def test_what_the_file_system_refuses_is_explained_and_no_work_is_lost(trained, h5ad, expected, limit):
    def generate():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as a full disk
        try:
            trained.generate_to(h5ad, **REQUEST)
        except OSError as error:
            told = all(words in str(error) for words in ("File too large. About", "GB are free", "call again"))
            os._exit(3 if error.errno == errno.EFBIG and told else 4)

    process = start(generate)
    process.join()

    assert process.exitcode == 3
    assert not h5ad.exists()
    assert len(parts_of(h5ad)) == (N_PARTS if limit == 90_000 else 0)
    assert not [entry for entry in folder_of(h5ad).iterdir() if entry.name.startswith((".part", "whole"))]
    trained.generate_to(h5ad, **REQUEST)
    assert_whole(h5ad, expected)
