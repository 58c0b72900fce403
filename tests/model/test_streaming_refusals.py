"""``generate_to`` refuses what is not what was begun or finished, and says what differs."""

from __future__ import annotations

from contextlib import nullcontext

import anndata
import numpy as np
import pytest
import torch

from scgen_diffusion.diffusion import DDIMSampler

REQUEST = {"n_cells": 600, "seed": 5, "sampler": "euler", "n_steps": 1, "shard_size": 128}


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """Return a finished file, which a test must not change."""
    return trained.generate_to(tmp_path_factory.mktemp("finished") / "cells.h5ad", **REQUEST)


CHANGES = {
    "n_cells": {"n_cells": 599},
    "seed": {"seed": 6},
    "no seed": {"seed": None},
    "condition": {"condition": {"cell_type": "NK"}},
    "sampler": {"sampler": "heun"},
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


def test_a_link_is_replaced_and_its_file_stays(trained, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    old, link = tmp_path / "elsewhere" / "cells.h5ad", tmp_path / "cells.h5ad"
    trained.generate_to(old, 5, seed=1)
    link.symlink_to(old)

    assert trained.generate_to(link, 3, seed=1, overwrite=True) == link

    assert not link.is_symlink()
    assert (anndata.read_h5ad(link).n_obs, anndata.read_h5ad(old).n_obs) == (3, 5)


def contents(folder):
    """Return all files below a folder, and what they hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
