"""``generate_to`` that is killed, resumed, shared by two processes, out of space, or asked for something else."""

import multiprocessing
import random
import signal
import time
import warnings
from contextlib import nullcontext

import anndata
import numpy as np
import pytest
import torch
from builders import contents, full_disk, read_cells

from scgen_diffusion.diffusion import DDIMSampler
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
def finished(trained, tmp_path_factory):
    """Return a finished file, which a test must not change."""
    return trained.generate_to(tmp_path_factory.mktemp("finished") / "cells.h5ad", **REQUEST)


@pytest.fixture(scope="module")
def expected(finished):
    """Return the cells of an uninterrupted run."""
    return anndata.read_h5ad(finished)


def assert_whole(path, expected):
    """Raise unless the file holds the expected cells, and nothing else is left in its folder."""
    found = read_cells(path)
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


def parts_of(goal, pattern="part-*"):
    return sorted(goal.parent.glob(f".{goal.name}.*.parts/{pattern}"))


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
    "being at a part": lambda goal: any(parts_of(goal, ".part-*")),
    "all parts": lambda goal: len(parts_of(goal)) == N_PARTS,
    "joining": lambda goal: goal.with_name(f".{goal.name}.part").exists(),
    "having joined": lambda goal: not parts_of(goal, "seed"),
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
            assert read_cells(goal).n_obs in (3, 600)  # whole, if it is there

    assert trained.generate_to(goal, **REQUEST, **options) == goal

    assert n_killed >= 3
    assert_whole(goal, expected)


def test_a_resumed_call_keeps_what_is_done_also_of_a_loaded_model(
    trained, saved_model, h5ad, expected, stop_after, capsys, monkeypatch
):
    done = {part: part.stat().st_mtime_ns for part in stop_after(3, h5ad, **REQUEST)}
    assert len(done) == 3
    assert {part: part.stat().st_mtime_ns for part in stop_after(4, h5ad, **REQUEST) if part in done} == done
    capsys.readouterr()
    monkeypatch.setattr("scgen_diffusion.model._jobs.SECONDS_WITHOUT_BAR", 0)

    type(trained).load(saved_model, adata=False).generate_to(h5ad, **REQUEST)

    assert "512/600" in capsys.readouterr().err
    assert_whole(h5ad, expected)
    monkeypatch.setattr(CellGenerator, "cells", None)
    assert trained.generate_to(h5ad, **REQUEST) == h5ad  # the finished call returns at once


def test_parts_of_other_arguments_stay_until_a_file_is_finished(trained, h5ad, expected, stop_after):
    other = {**REQUEST, "seed": 2}
    begun = stop_after(2, h5ad, **other)
    assert len(stop_after(1, h5ad, **REQUEST)) == 3
    assert set(begun) < set(stop_after(3, h5ad, **other))

    trained.generate_to(h5ad, **REQUEST)

    assert_whole(h5ad, expected)


def test_without_a_seed_a_resumed_call_keeps_the_first_one(trained, h5ad, stop_after):
    request = {**REQUEST, "seed": None}
    stop_after(2, h5ad, **request)
    (begun,) = parts_of(h5ad, "seed")
    begun = int(begun.read_text())

    trained.generate_to(h5ad, **request)

    cells = read_cells(h5ad)
    seed = int(cells.uns["scgen_diffusion"]["seed"])
    assert seed == begun
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


def test_folders_that_are_missing_or_none_are_named_before_any_work(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(CellGenerator, "cells", None)
    (tmp_path / "file").touch()

    for folder, error in (("missing", FileNotFoundError), ("file", NotADirectoryError)):
        with pytest.raises(error, match=folder):
            trained.generate_to(tmp_path / folder / "cells.zarr", **REQUEST)


def test_a_part_that_the_file_system_refuses_is_explained(trained, h5ad, expected):
    with pytest.raises(OSError, match="File too large"), full_disk(3_000):
        trained.generate_to(h5ad, **REQUEST)
    assert not parts_of(h5ad)
    trained.generate_to(h5ad, **REQUEST)
    assert_whole(h5ad, expected)


CHANGES = {
    "n_cells": {"n_cells": 599},
    "seed": {"seed": 6},
    "no seed": {"seed": None},
    "condition": {"condition": {"cell_type": "NK"}},
    "sampler": {"sampler": "midpoint"},
    "n_steps": {"n_steps": 2},
    "library_size": {"library_size": 70},
    "guidance_scale": {"guidance_scale": 2.0},
    "shard_size": {"shard_size": 256},
}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES)
def test_other_arguments_are_refused_by_name(trained, finished, name, change):
    named = rf"`{name.removeprefix('no ')}`"
    before = finished.read_bytes()
    expected = pytest.raises(FileExistsError, match=named)
    with nullcontext() if name == "shard_size" else expected:  # the cells of a finished file do not depend on it
        trained.generate_to(finished, **{**REQUEST, **change})
    assert finished.read_bytes() == before


@torch.no_grad()
def test_another_model_is_refused_and_the_same_request_in_other_words_is_not(trained, saved_model, finished):
    before = finished.stat().st_mtime_ns
    numbers = {name: np.int64(REQUEST[name]) for name in ("n_cells", "seed", "n_steps")}
    trained.generate_to(finished, **{**REQUEST, **numbers, "guidance_scale": {"cell_type": 1.0}})
    assert finished.stat().st_mtime_ns == before

    other = type(trained).load(saved_model, adata=False, accelerator="cpu")
    next(other.module.parameters()).add_(1e-3)
    with pytest.raises(FileExistsError, match="weights"):
        other.generate_to(finished, **REQUEST)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("devices", {"devices": "two"}),
        ("accelerator", {"accelerator": "abacus", "devices": 1}),
        ("strategy", {"strategy": "luck"}),
        ("shard_size", {"shard_size": 0}),
        ("path", {"path": "cells.loom"}),
        ("n_steps", {"n_steps": 0}),
        ("sampler", {"sampler": DDIMSampler()}),
    ],
)
def test_bad_arguments_are_refused_by_name_and_leave_nothing_behind(trained, tmp_path, named, arguments):
    path = tmp_path / arguments.pop("path", "cells.h5ad")
    with pytest.raises(ValueError, match=named):
        trained.generate_to(path, **{**REQUEST, **arguments})
    assert not list(tmp_path.iterdir())


def write_folder_of_notes(cells, path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


FOREIGN = {
    "text": ("cells.h5ad", lambda cells, path: path.write_text("mine")),
    "folder": ("cells.zarr", write_folder_of_notes),
    "other cells": ("cells.zarr", anndata.AnnData.write_zarr),
    "cells of generate": ("cells.h5ad", anndata.AnnData.write_h5ad),  # may since have been joined with real ones
}


@pytest.mark.parametrize(("name", "write"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("link", [False, True], ids=["itself", "link"])
def test_what_generate_to_did_not_write_is_never_replaced(trained, tmp_path, name, write, link):
    goal = tmp_path / name
    if link:
        (tmp_path / "elsewhere").mkdir()
        goal.symlink_to(tmp_path / "elsewhere" / name)
    write(trained.generate(3, seed=1), goal.resolve())
    before = contents(tmp_path)

    with pytest.raises(FileExistsError, match="never replaced"):
        trained.generate_to(goal, **REQUEST, overwrite=True)

    assert contents(tmp_path) == before
