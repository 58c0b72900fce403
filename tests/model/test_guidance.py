"""Guidance as users ask for it."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import torch

KEYS = ["cell_type", "dose", "treated"]
REQUEST = {"n_cells": 12, "condition": {"cell_type": "NK", "dose": 10, "treated": True}, "seed": 0}

# Models this small, with few steps, leave the range of the training values.
pytestmark = pytest.mark.filterwarnings("ignore:Sampling seems to have diverged")


def same_cells(one, other):
    return (one.X != other.X).nnz == 0


@pytest.fixture(scope="module")
def additive(make_trained):
    return make_trained(condition_keys=KEYS, condition_strategy="additive")


@pytest.mark.parametrize("library_size", [200, "empirical", "latent"])
def test_scale_zero_of_a_key_takes_away_its_influence_alone(additive, monkeypatch, library_size):
    noise, draw = [], additive.module.draw_noise
    monkeypatch.setattr(additive.module, "draw_noise", lambda generators: noise.append(draw(generators)) or noise[-1])

    def cells(treated, dose, scale):
        condition = {"cell_type": "NK", "dose": dose, "treated": treated}
        return additive.generate(12, condition, seed=0, guidance_scale=scale, library_size=library_size)

    assert same_cells(cells(True, 10, {"treated": 0.0}), cells(False, 10, {"treated": 0.0}))
    assert not same_cells(cells(True, 10, 1.0), cells(False, 10, 1.0))
    assert not same_cells(cells(True, 10, {"treated": 0.0}), cells(True, 1, {"treated": 0.0}))
    cells(True, 10, 0.0)
    assert all(torch.equal(one, noise[0]) for one in noise)  # cells of one seed start from the same


def test_scale_zero_takes_away_the_influence_of_a_number_too(make_trained):
    model = make_trained(
        condition_keys=["cell_type"], setup={"continuous_condition_keys": ["dose"]}, condition_strategy="additive"
    )

    def cells(dose, scale):
        return model.generate(12, {"cell_type": "NK", "dose": dose}, seed=0, guidance_scale=scale, library_size=200)

    assert same_cells(cells(1, {"dose": 0.0}), cells(100, {"dose": 0.0}))
    assert not same_cells(cells(1, {"dose": 4.0}), cells(100, {"dose": 4.0}))
    assert np.isfinite(cells(100, {"dose": 4.0}).X.toarray()).all()


def test_provenance_records_guidance_and_can_be_written(additive, tmp_path):
    cells = additive.generate(**REQUEST, guidance_scale={"dose": 2.0})
    cells.write_h5ad(tmp_path / "cells.h5ad")

    for found in (cells, anndata.read_h5ad(tmp_path / "cells.h5ad")):
        record = found.uns["scgen_diffusion"]
        assert (record["guidance_scale"], record["composition"]) == ({"dose": 2.0}, "additive")
