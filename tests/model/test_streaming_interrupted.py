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
from pathlib import Path

import anndata
import numpy as np
import pytest

from scgen_diffusion.data import PartFolder
from scgen_diffusion.generation import CellGenerator
from scgen_diffusion.model import _streaming

GENERATE = {"n_cells": 600, "seed": 5, "sampler": "euler", "n_steps": 1}
REQUEST = {**GENERATE, "shard_size": 128}
N_PARTS = 5
STEPS = (
    "fsync",
    "rename",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
)  # of the file system, by which all is done or not done


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


def start(function, *arguments):
    """Start a function in a process of its own, which shares what is imported and trained already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are idle here
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
    return process


def generate_and_die(model, path, n_steps, options):
    """Generate, and be killed just before the given step that changes the file system."""
    count = 0

    def killed_before(step):
        def counted(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == n_steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **keywords)

        return counted

    for name in STEPS:
        setattr(os, name, killed_before(getattr(os, name)))
    model.generate_to(path, **{**REQUEST, **options})


@pytest.mark.parametrize("options", [{}, {"overwrite": True}], ids=["new", "overwrite"])
def test_a_kill_before_any_step_of_the_file_system_changes_nothing(trained, goal, expected, options):
    if options:
        trained.generate_to(goal, 3, seed=1)
    rng = random.Random(0)
    was_killed = []
    for _ in range(5):
        process = start(generate_and_die, trained, goal, rng.randint(1, 9), options)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        was_killed.append(process.exitcode != 0)
        if goal.exists():
            assert read(goal).n_obs in (3, 600)  # whole, if it is there

    assert trained.generate_to(goal, **REQUEST, **options) == goal

    assert sum(was_killed) >= 3
    assert_whole(goal, expected)


@pytest.mark.parametrize(
    ("moment", "goal"),
    [("write", ".h5ad"), ("read", ".zarr"), ("write_cells", ".h5ad"), ("put_in_place", ".zarr"), ("remove", ".h5ad")],
    indirect=["goal"],
)
def test_a_kill_at_any_stage_changes_nothing(trained, goal, expected, moment):
    where = _streaming if hasattr(_streaming, moment) and moment != "remove" else PartFolder

    def die(model, path):
        calls = iter(range(10))
        act = getattr(where, moment)

        def killed_in(*arguments, **keywords):
            if next(calls) == (2 if moment in ("write", "read") else 0):
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **keywords)

        setattr(where, moment, killed_in)
        model.generate_to(path, **REQUEST)

    process = start(die, trained, goal)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert goal.exists() == (moment == "remove")

    trained.generate_to(goal, **REQUEST)

    assert_whole(goal, expected)


def test_kills_at_random_times_change_nothing(trained, tmp_path, expected):
    goal = tmp_path / "cells.zarr"
    rng = random.Random(1)
    for _ in range(4):
        process = start(lambda: trained.generate_to(goal, **REQUEST))
        time.sleep(rng.uniform(0.02, 0.4))
        process.kill()
        process.join()

    trained.generate_to(goal, **REQUEST)

    assert_whole(goal, expected)


def test_an_interrupted_call_keeps_its_parts_and_counts_them_as_done(trained, h5ad, expected, monkeypatch, capsys):
    write, made = PartFolder.write, []

    def interrupted(self, number, part):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        write(self, number, part)

    monkeypatch.setattr(PartFolder, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.generate_to(h5ad, **REQUEST)
    monkeypatch.setattr(PartFolder, "write", lambda *arguments: made.append(arguments[1]) or write(*arguments))
    capsys.readouterr()
    trained.generate_to(h5ad, **REQUEST, show_progress=True)

    assert made == [0, 1, 2, 3, 4]  # none twice
    assert "256/600" in capsys.readouterr().err
    assert_whole(h5ad, expected)


def test_without_a_seed_the_one_that_was_drawn_is_gone_on_with(trained, tmp_path):
    goal = tmp_path / "cells.h5ad"
    request = {**REQUEST, "seed": None}
    trained.generate_to(goal, **request, rank=0, n_ranks=2)
    begun = (tmp_path / ".cells.h5ad.parts" / "request" / "manifest.json").read_text()

    trained.generate_to(goal, **request)

    cells = read(goal)
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


def test_two_processes_at_once_put_the_file_together_exactly_once(trained, goal, expected, tmp_path_factory):
    log = tmp_path_factory.mktemp("log")
    barrier = multiprocessing.get_context("fork").Barrier(2)

    def generate(rank):
        model_class, write_cells = type(trained), _streaming.write_cells
        put_together = model_class._put_together

        def put_together_at_once(*arguments):
            barrier.wait(30)  # both have made their parts
            return put_together(*arguments)

        def counted(*arguments):
            (log / f"written by {rank}").touch()
            return write_cells(*arguments)

        model_class._put_together, _streaming.write_cells = put_together_at_once, counted
        trained.generate_to(goal, **REQUEST, rank=rank, n_ranks=2)

    processes = [start(generate, rank) for rank in range(2)]
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(log.iterdir())) == 1
    assert_whole(goal, expected)


def test_a_rank_whose_work_is_done_returns_at_once(trained, h5ad, expected, monkeypatch):
    trained.generate_to(h5ad, **REQUEST)
    monkeypatch.setattr(CellGenerator, "cells", None)

    for rank in range(3):
        assert trained.generate_to(h5ad, **REQUEST, rank=rank, n_ranks=3) == h5ad

    assert_whole(h5ad, expected)


def test_a_dead_process_turn_is_taken_over(trained, h5ad, expected):
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2)
    process = start(lambda: PartFolder(h5ad.with_name(f".{h5ad.name}.parts"), {}).take_turn(wait=False))
    process.join()

    trained.generate_to(h5ad, **REQUEST, rank=1, n_ranks=2)

    assert_whole(h5ad, expected)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_part_is_noticed_and_made_again(trained, h5ad, expected, damage):
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2)
    part = h5ad.with_name(f".{h5ad.name}.parts") / "part-000002.npz"
    content = bytearray(part.read_bytes())
    if damage == "flip":
        content[200] ^= 1
    part.write_bytes({"cut": content[:-100], "flip": content, "empty": b""}[damage])

    trained.generate_to(h5ad, **REQUEST, rank=1, n_ranks=2)

    assert_whole(h5ad, expected)


def test_a_loaded_model_goes_on(trained, saved_model, h5ad, expected):
    trained.generate_to(h5ad, **REQUEST, rank=0, n_ranks=2)

    type(trained).load(saved_model, adata=False).generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_what_was_begun_with_other_arguments_can_be_given_up(trained, h5ad, expected):
    trained.generate_to(h5ad, **{**REQUEST, "seed": 1}, rank=0, n_ranks=2)

    trained.generate_to(h5ad, **REQUEST, overwrite=True)

    assert_whole(h5ad, expected)


def test_a_folder_that_is_missing_or_none_is_told_of_before_any_work(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(CellGenerator, "cells", None)
    (tmp_path / "file").touch()

    with pytest.raises(FileNotFoundError, match="The folder .*missing of `path` does not exist"):
        trained.generate_to(tmp_path / "missing" / "cells.zarr", **REQUEST)
    with pytest.raises(NotADirectoryError, match="file, in which `path` shall lie, is not a folder"):
        trained.generate_to(tmp_path / "file" / "cells.zarr", **REQUEST)


def test_a_folder_that_cannot_be_written_to_is_told_of_before_any_work(trained, goal, monkeypatch):
    monkeypatch.setattr(CellGenerator, "cells", None)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="cannot be written to; choose another"):
        trained.generate_to(goal, **REQUEST)
    monkeypatch.undo()

    monkeypatch.setattr(CellGenerator, "cells", None)
    monkeypatch.setattr(Path, "mkdir", refused(errno.EACCES))
    with pytest.raises(PermissionError, match="Making a folder for finished cells in .* Permission denied"):
        trained.generate_to(goal, **REQUEST)
    assert not list(goal.parent.iterdir())


def refused(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("call", "goal"),
    [(2, ".h5ad"), (4, ".h5ad"), (7, ".h5ad"), (7, ".zarr")],
    indirect=["goal"],
    ids=["first part", "third part", "whole h5ad", "whole zarr"],
)
def test_a_full_disk_is_told_of_and_no_work_is_lost(trained, goal, expected, monkeypatch, call):
    fsync, calls = os.fsync, iter(range(1, 1000))
    full = refused(errno.ENOSPC)
    monkeypatch.setattr(os, "fsync", lambda file: full() if next(calls) >= call else fsync(file))

    with pytest.raises(
        OSError, match=r"No space left on device\. About .*B are needed there, .*iB are free.*call again"
    ) as told:
        trained.generate_to(goal, **REQUEST)

    assert told.value.errno == errno.ENOSPC
    assert not goal.exists()
    folder = goal.with_name(f".{goal.name}.parts")
    assert len(list(folder.glob("part-*"))) == min(call - 2, N_PARTS)
    assert not [entry for entry in folder.iterdir() if entry.name.startswith((".part", "whole"))]
    monkeypatch.undo()
    trained.generate_to(goal, **REQUEST)
    assert_whole(goal, expected)


@pytest.mark.parametrize("limit", [2_000, 60_000], ids=["part", "whole"])
def test_files_that_may_not_grow_are_told_of_by_the_system_itself(trained, tmp_path, expected, limit):
    goal = tmp_path / "cells.h5ad"

    def generate():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            trained.generate_to(goal, **REQUEST)
        except OSError as error:
            os._exit(3 if error.errno == errno.EFBIG and "File too large" in str(error) else 4)

    process = start(generate)
    process.join()

    assert process.exitcode == 3
    assert not goal.exists()
    trained.generate_to(goal, **REQUEST)
    assert_whole(goal, expected)
