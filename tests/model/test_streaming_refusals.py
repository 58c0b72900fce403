"""``generate_to`` refuses what is not what was begun or finished, and says what differs."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path

import anndata
import pytest
import torch

from scgen_diffusion.diffusion import FLOW_SAMPLERS, DDIMSampler
from scgen_diffusion.generation import CellGenerator
from scgen_diffusion.model._streaming import Stream

REQUEST = {"n_cells": 600, "seed": 5, "sampler": "euler", "n_steps": 1, "shard_size": 128}


@pytest.fixture(scope="module")
def begun(trained, tmp_path_factory):
    """Return the path of a file that was begun."""
    path = tmp_path_factory.mktemp("begun") / "cells.h5ad"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "join", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained.generate_to(path, **REQUEST)
    return path


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
def test_other_arguments_are_refused_by_name(trained, begun, finished, name, change):
    named = rf"What differs: `{name.removeprefix('no ')}`[^;`]*\."  # and nothing else
    with pytest.raises(ValueError, match=rf"begun with other arguments.*{named}.*remove .*\.cells\.h5ad\.parts"):
        trained.generate_to(begun, **{**REQUEST, **change})
    assert not begun.exists()

    before = finished.read_bytes()
    expected = pytest.raises(FileExistsError, match=rf"already exists.*{named}.*overwrite=True")
    with nullcontext() if name == "shard_size" else expected:  # the cells of a finished file do not depend on it
        trained.generate_to(finished, **{**REQUEST, **change})
    assert finished.read_bytes() == before


def test_the_same_request_in_other_words_is_the_same(trained, tmp_path):
    request = {**REQUEST, "n_cells": 5, "guidance_scale": 1, "library_size": 70}
    goal = trained.generate_to(tmp_path / "cells.h5ad", **request)
    before = goal.stat().st_mtime_ns

    again = {"guidance_scale": {"cell_type": 1.0}, "library_size": [70.0] * 5}
    trained.generate_to(goal, **{**request, **again})

    assert goal.stat().st_mtime_ns == before


@torch.no_grad()
def test_another_model_is_refused(trained, saved_model, finished):
    other = type(trained).load(saved_model, adata=False, accelerator="cpu")
    next(other.module.parameters()).add_(1e-3)

    with pytest.raises(FileExistsError, match="the weights"):
        other.generate_to(finished, **REQUEST)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": "two"}, "`devices`"),
        ({"accelerator": "abacus", "devices": 1}, "accelerator"),
        ({"strategy": "luck"}, "strategy"),
        ({"shard_size": 0}, "`shard_size`.*0"),
        ({"path": "cells.loom"}, r"`path` must end in \.zarr or \.h5ad, but found 'cells.loom'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(trained, arguments, words):
    with pytest.raises(ValueError, match=words):
        trained.generate_to(**{"path": "cells.zarr", **REQUEST, **arguments})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "heun", "n_steps": 0}, "`n_steps`.*0"),
        ({"sampler": DDIMSampler()}, "`sampler` is a DDIMSampler, which does not fit.*'euler', 'midpoint'"),
    ],
    ids=["no steps", "other family"],
)
def test_options_that_a_flow_does_not_have_leave_nothing_behind(trained, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        trained.generate_to(tmp_path / "cells.h5ad", n_cells=3, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 2000}, "`n_steps` must be a whole number from 1 to the path's 1000 timesteps, but found 2000"),
        ({"sampler": FLOW_SAMPLERS["heun"]}, "`sampler` is a FixedStepSampler, which does not fit.*'ddpm', 'ddim'"),
    ],
    ids=["too many steps", "other family"],
)
def test_options_that_denoising_diffusion_does_not_have_leave_nothing_behind(
    trained_gene_space, tmp_path, options, words
):
    with pytest.raises(ValueError, match=words):
        trained_gene_space.generate_to(tmp_path / "cells.h5ad", n_cells=3, **options)
    assert not list(tmp_path.iterdir())


def other_cells(make_cells, path):
    """Write cells that no model made."""
    cells = make_cells()
    cells.write_zarr(path) if path.suffix == ".zarr" else cells.write_h5ad(path)


def folder_of_notes(_, path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def text(_, path):
    path.write_text("mine")


@pytest.mark.parametrize("name", ["cells.zarr", "cells.h5ad"])
@pytest.mark.parametrize("write", [other_cells, folder_of_notes, text])
@pytest.mark.parametrize("link", [False, True], ids=["itself", "link"])
def test_what_this_package_did_not_write_is_never_replaced(
    trained, make_cells, tmp_path, monkeypatch, name, write, link
):
    monkeypatch.setattr(CellGenerator, "cells", None)
    goal = tmp_path / name
    if link:
        (tmp_path / "elsewhere").mkdir()
        goal.symlink_to(tmp_path / "elsewhere" / name)
    write(make_cells, goal.resolve())
    before = contents(tmp_path)

    with pytest.raises(FileExistsError, match=r"such a file is never replaced\. Choose another path"):
        trained.generate_to(goal, **REQUEST, overwrite=True)

    assert contents(tmp_path) == before


def test_files_of_generate_to_alone_are_replaced_on_request(trained, tmp_path):
    goal = tmp_path / "cells.h5ad"
    trained.generate(3, seed=1).write_h5ad(goal)  # may since have been joined with real cells
    with pytest.raises(FileExistsError, match="was not written by `generate_to`.*such a file is never replaced"):
        trained.generate_to(goal, **REQUEST, overwrite=True)

    goal.unlink()
    trained.generate_to(goal, 3, seed=1)
    trained.generate_to(goal, **REQUEST, overwrite=True)
    assert anndata.read_h5ad(goal).n_obs == REQUEST["n_cells"]


def test_a_link_is_replaced_and_its_file_stays(trained, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    old, link = tmp_path / "elsewhere" / "cells.h5ad", tmp_path / "cells.h5ad"
    trained.generate_to(old, 5, seed=1)
    link.symlink_to(old)

    assert trained.generate_to(link, 3, seed=1, overwrite=True) == link

    assert not link.is_symlink()
    assert (anndata.read_h5ad(link).n_obs, anndata.read_h5ad(old).n_obs) == (3, 5)


def test_cells_beside_other_files_are_not_replaced(trained, tmp_path):
    goal = trained.generate_to(tmp_path / "cells.zarr", 3, seed=1)
    (goal / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match=r"other files too \(notes\.txt\); such a folder is never replaced"):
        trained.generate_to(goal, **REQUEST, overwrite=True)

    (goal / "notes.txt").unlink()
    trained.generate_to(goal, **REQUEST, overwrite=True)
    assert anndata.read_zarr(goal).n_obs == REQUEST["n_cells"]


def test_a_folder_that_cannot_be_made_is_an_error(trained, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # as in /proc, whose folders exist and take no others
    with pytest.raises(FileNotFoundError, match="No such file"):
        trained.generate_to(tmp_path / "cells.h5ad", 5)


def contents(folder):
    """Return all files below a folder, and what they hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
