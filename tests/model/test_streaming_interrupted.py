"""``generate_to`` that is killed, resumed, shared by two processes, or out of space."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import warnings
from types import SimpleNamespace

import anndata
import numpy as np
import pytest

from scgen_diffusion.generation import CellGenerator
from scgen_diffusion.model._streaming import Stream

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


class StoppedError(Exception):
    """Stands for whatever ends a call."""


@pytest.fixture
def stop_after(trained, monkeypatch):
    """Begin a request, and stop after some parts."""

    def run(n_parts, goal, **request):
        write = Stream.write

        def write_or_stop(stream, number, cells):
            if number == n_parts:
                raise StoppedError
            write(stream, number, cells)

        with monkeypatch.context() as patch:
            patch.setattr(Stream, "write", write_or_stop)
            with pytest.raises(StoppedError):
                trained.generate_to(goal, **request)
        return parts_of(goal)

    return run


def wait_for(process, is_so):
    """Wait until a process has come so far, or is over."""
    while process.is_alive() and not is_so():
        time.sleep(0.0005)


MOMENTS = {
    "the first file": lambda goal: any(goal.parent.glob(".*")),
    "one part": lambda goal: len(parts_of(goal)) == 1,
    "being at a part": lambda goal: any(folder_of(goal).glob(".part-*")),
    "all parts": lambda goal: len(parts_of(goal)) == N_PARTS,
    "joining": lambda goal: any(goal.parent.glob(f".{goal.name}.????????.part")),
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


def test_a_resumed_call_counts_what_is_done(trained, h5ad, expected, stop_after, capsys):
    done = {part: part.stat().st_mtime_ns for part in stop_after(3, h5ad, **REQUEST)}
    assert len(done) == 3
    assert {part: part.stat().st_mtime_ns for part in stop_after(4, h5ad, **REQUEST) if part in done} == done
    capsys.readouterr()

    trained.generate_to(h5ad, **REQUEST, show_progress=True)

    assert "512/600" in capsys.readouterr().err
    assert_whole(h5ad, expected)


def test_without_a_seed_a_resumed_call_keeps_the_first_one(trained, h5ad, stop_after):
    request = {**REQUEST, "seed": None}
    stop_after(2, h5ad, **request)
    begun = (folder_of(h5ad) / "request.json").read_text()

    trained.generate_to(h5ad, **request)

    cells = read(h5ad)
    seed = int(cells.uns["scgen_diffusion"]["seed"])
    assert f'"seed": {seed}' in begun
    again = trained.generate(**{**GENERATE, "seed": seed})
    np.testing.assert_array_equal(cells.X.toarray(), again.X.toarray())


def test_two_processes_share_the_parts_and_make_the_same_file(trained, goal, expected, run_together):
    def work(rank):
        made, write = [], Stream.write
        Stream.write = lambda stream, number, cells: made.append(number) or write(stream, number, cells)
        options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
        path = trained.generate_to(goal, **{**REQUEST, "seed": None if rank else 5}, **options)
        return made, path.exists()

    first, second = run_together(work)

    assert (first, second) == (([0, 2, 4], True), ([1, 3], True))
    assert_whole(goal, expected)


def test_two_processes_resume_what_one_began_and_one_may_have_nothing_to_do(
    h5ad, trained, expected, stop_after, run_together
):
    stop_after(4, h5ad, **REQUEST)

    run_together(lambda _: trained.generate_to(h5ad, **REQUEST, accelerator="cpu", devices=2, strategy="ddp"))

    assert_whole(h5ad, expected)


def test_one_device_takes_no_role_from_the_environment(trained, h5ad, expected, monkeypatch):
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "SLURM_PROCID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NAME": "x",
    }.items():
        monkeypatch.setenv(name, value)

    trained.generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_sigterm_ends_a_call_between_two_instructions(trained, h5ad, expected):
    process = start(lambda: trained.generate_to(h5ad, **REQUEST))
    wait_for(process, lambda: MOMENTS["one part"](h5ad))
    process.terminate()
    process.join()
    assert process.exitcode in (143, 0)

    trained.generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_a_finished_call_returns_at_once(trained, h5ad, expected, monkeypatch):
    trained.generate_to(h5ad, **REQUEST)
    monkeypatch.setattr(CellGenerator, "cells", None)

    assert trained.generate_to(h5ad, **REQUEST) == h5ad

    assert_whole(h5ad, expected)


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_part_is_named_and_can_be_made_again(trained, h5ad, expected, stop_after, damage):
    part = stop_after(3, h5ad, **REQUEST)[1]
    part.write_bytes(part.read_bytes()[:-100] if damage == "cut" else b"")

    with pytest.raises(ValueError, match=rf"{part} is damaged"):
        trained.generate_to(h5ad, **REQUEST)
    assert not h5ad.exists()
    part.unlink()
    trained.generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_a_loaded_model_resumes(trained, saved_model, h5ad, expected, stop_after):
    stop_after(2, h5ad, **REQUEST)

    type(trained).load(saved_model, adata=False).generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_files_of_other_arguments_can_be_discarded(trained, h5ad, expected, stop_after):
    stop_after(2, h5ad, **{**REQUEST, "seed": 1})

    trained.generate_to(h5ad, **REQUEST, overwrite=True)

    assert_whole(h5ad, expected)


def test_a_finished_call_leaves_the_parts_of_another_alone(trained, h5ad, stop_after):
    trained.generate_to(h5ad, 3, seed=1)
    begun = stop_after(2, h5ad, **REQUEST, overwrite=True)

    trained.generate_to(h5ad, 3, seed=1)

    assert parts_of(h5ad) == begun != []


def test_a_folder_without_a_request_can_be_used(trained, h5ad, expected):
    (folder_of(h5ad) / "x").mkdir(parents=True)  # as of a process that was killed while it removed the parts

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
    with pytest.raises(OSError, match="Permission denied"):
        trained.generate_to(tmp_path / "cells.zarr", **REQUEST)


def refused(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_part_that_the_file_system_refuses_is_explained(trained, h5ad, expected):
    def generate():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))  # as a full disk
        try:
            trained.generate_to(h5ad, **REQUEST)
        except OSError as error:
            os._exit(3 if error.errno == errno.EFBIG else 4)

    process = start(generate)
    process.join()

    assert process.exitcode == 3
    assert not parts_of(h5ad)
    trained.generate_to(h5ad, **REQUEST)
    assert_whole(h5ad, expected)


def test_a_disk_without_room_for_the_whole_is_an_error_before_it_is_written(trained, h5ad, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
        with pytest.raises(OSError, match="No space left.*GB are needed") as caught:
            trained.generate_to(h5ad, **REQUEST)

    assert caught.value.errno == errno.ENOSPC
    assert len(parts_of(h5ad)) == N_PARTS
    trained.generate_to(h5ad, **REQUEST)
    assert_whole(h5ad, expected)
