"""``generate_to`` refuses what is not what was begun or finished, and says what differs."""

from __future__ import annotations

import pytest
import torch

REQUEST = {"n_cells": 600, "seed": 5, "sampler": "euler", "n_steps": 1, "shard_size": 128}


@pytest.fixture(scope="module")
def begun(trained, tmp_path_factory):
    """Return the path of a file that one of two ranks has begun."""
    return trained.generate_to(tmp_path_factory.mktemp("begun") / "cells.h5ad", **REQUEST, rank=0, n_ranks=2)


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
    "guidance": {"guidance_scale": 2.0},
    "shard_size": {"shard_size": 256},
}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES)
def test_other_arguments_are_refused_by_name(trained, begun, finished, name, change):
    named = rf"What differs: `{name.removeprefix('no ')}`[^;`]*\."  # and nothing else
    with pytest.raises(ValueError, match=rf"begun with other arguments.*{named}.*remove .*\.cells\.h5ad\.parts"):
        trained.generate_to(begun, **{**REQUEST, **change})
    assert not begun.exists()

    before = finished.read_bytes()
    with pytest.raises(FileExistsError, match=rf"exists already.*{named}.*overwrite=True"):
        trained.generate_to(finished, **{**REQUEST, **change})
    assert finished.read_bytes() == before


@torch.no_grad()
def test_another_model_is_refused(trained, saved_model, finished):
    other = type(trained).load(saved_model, adata=False, accelerator="cpu")
    next(other.module.parameters()).add_(1e-3)

    with pytest.raises(FileExistsError, match="the weights"):
        other.generate_to(finished, **REQUEST)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 2, "n_ranks": 2}, r"`rank` must be a whole number from 0 to 1 \(`n_ranks` - 1\), but found 2"),
        ({"rank": -1}, "`rank`.*-1"),
        ({"n_ranks": 0}, "`n_ranks`.*0"),
        ({"n_ranks": 1.5}, "`n_ranks`.*1.5"),
        ({"shard_size": 0}, "`shard_size`.*0"),
        ({"path": "cells.loom"}, r"`path` must end in \.zarr or \.h5ad, but found 'cells.loom'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(trained, arguments, words):
    with pytest.raises(ValueError, match=words):
        trained.generate_to(**{"path": "cells.zarr", **REQUEST, **arguments})
