"""Guidance as users ask for it: scales, intervals and rescaling."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import torch

from scgen_diffusion.diffusion import CONDITION_STRATEGIES, Guidance

KEYS = ["cell_type", "dose", "treated"]
REQUEST = {"n_cells": 12, "condition": {"cell_type": "NK", "dose": 10, "treated": True}, "seed": 0}

# Models this small, with few steps, leave the range of the training values.
pytestmark = pytest.mark.filterwarnings("ignore:Sampling seems to have diverged")


def same_cells(one, other):
    return (one.X != other.X).nnz == 0


@pytest.fixture(scope="module")
def additive(make_trained):
    return make_trained(condition_keys=KEYS, condition_strategy="additive")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"scale": {"doses": 1.0}}, "doses"),
        ({"scale": {"dose": np.nan}}, "guidance_scale"),
        ({"scale": "2"}, "guidance_scale"),
        ({"interval": (0.8, 0.2)}, "interval"),
        ({"rescale": 2}, "rescale"),
    ],
)
def test_a_bad_request_is_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        Guidance(**options).resolve(CONDITION_STRATEGIES["additive"], KEYS)


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


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_an_interval_and_rescaling_change_cells_only_where_they_should(additive, scale):
    def cells(**how):
        return additive.generate(**REQUEST, guidance_scale=Guidance(scale, **how))

    plain = cells()
    assert same_cells(plain, cells(interval=(0.0, 1.0), rescale=0.0))
    for how in ({"interval": (0.2, 0.6)}, {"rescale": 0.7}):
        assert same_cells(plain, cells(**how)) == (scale == 1.0)


def test_guidance_of_gene_space_models_knows_their_path(trained_gene_space, monkeypatch):
    network, rows = type(trained_gene_space.module.averaged_network), []
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda self, x, *rest: rows.append(len(x)) or forward(self, x, *rest))

    guidance = Guidance(2.0, interval=(0.25, 0.6))
    trained_gene_space.generate(5, seed=0, guidance_scale=guidance, sampler="ddim", n_steps=10)

    # Path times 0, 0.1, ..., 0.9, of which 0.3, 0.4, 0.5 and 0.6 need two predictions.
    assert [n // rows[0] for n in rows] == [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]


def test_provenance_records_guidance_and_can_be_written(additive, tmp_path):
    how = Guidance({"dose": 2.0}, interval=(0.2, 0.8), rescale=0.7)
    plain, guided = additive.generate(**REQUEST), additive.generate(**REQUEST, guidance_scale=how)
    guided.write_h5ad(tmp_path / "cells.h5ad")

    for cells, told in (
        (plain, (1.0, "additive", [0, 1], 0)),
        (guided, ({"dose": 2.0}, "additive", [0.2, 0.8], 0.7)),
        (anndata.read_h5ad(tmp_path / "cells.h5ad"), ({"dose": 2.0}, "additive", [0.2, 0.8], 0.7)),
    ):
        scale, composition, interval, rescale = (
            cells.uns["scgen_diffusion"][name]
            for name in ("guidance_scale", "composition", "guidance_interval", "guidance_rescale")
        )
        assert (scale, composition, list(interval), rescale) == told
