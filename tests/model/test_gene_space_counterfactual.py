"""``predict_perturbation`` of the gene-space models: what is special about profiles with exact zeros."""

from __future__ import annotations

import numpy as np
import pytest
from builders import same_cells

from scgen_diffusion.diffusion import DDIMSampler
from scgen_diffusion.model import SCRDIT, WBDIT

pytestmark = pytest.mark.usefixtures("small_blocks")

SPIKE_AND_SLAB = {"target": "data", "head": "spike_and_slab", "scaling": "gene"}
CONDITION = {"dose": 1}


@pytest.mark.parametrize("sampler", [None, "ddpm", "ddim", DDIMSampler(eta=0.5)])
def test_a_cell_under_its_own_condition_comes_back(trained_gene_space, sampler):
    cells, x = trained_gene_space.predict_perturbation(sampler=sampler, n_steps=3, seed=0), trained_gene_space.adata.X

    np.testing.assert_allclose(cells.X.toarray(), np.log1p(x / x.sum(1, keepdims=True) * 1e4), rtol=0, atol=1e-4)
    assert ((cells.X.toarray() == 0) == (x == 0)).all()
    assert "log1p" in cells.uns
    assert cells.uns["scgen_diffusion"]["library_size"] == "none"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (WBDIT, SPIKE_AND_SLAB),
        (WBDIT, {"backbone": "dit"}),
        (SCRDIT, {"target": "noise", "zero_value": -10.0, "scaling": "none"}),  # as published
    ],
)
def test_counts_come_back_from_every_architecture(make_trained, cls, options):
    model = make_trained(cls=cls, **options)
    request = {"counts": True, "n_steps": 3, "seed": 0}

    same = model.predict_perturbation(**request)
    other = model.predict_perturbation(condition=CONDITION, **request)

    np.testing.assert_array_equal(same.X.toarray(), model.adata.X)
    np.testing.assert_array_equal(other.X.sum(1).A1, model.adata.X.sum(1))  # each keeps its own total
    assert (other.X != same.X).nnz > 0


def test_cells_depend_neither_on_batch_size_nor_on_which_others_are_there(trained_gene_space):
    request = {"condition": CONDITION, "seed": 5, "n_steps": 3}
    whole = trained_gene_space.predict_perturbation(**request)

    other = trained_gene_space.predict_perturbation(**request, batch_size=20)
    few = trained_gene_space.predict_perturbation(trained_gene_space.adata[:5].copy(), **request)

    assert same_cells(whole, other)
    np.testing.assert_allclose(few.X.toarray(), whole.X[:5].toarray(), rtol=1e-4, atol=1e-4)


def test_a_model_of_log_values_needs_totals_to_give_counts(make_trained, make_cells):
    model = make_trained(make_cells(values="log1p"), cls=SCRDIT, setup={"values": "log1p"})

    same = model.predict_perturbation(n_steps=3, seed=0)
    counts = model.predict_perturbation(n_steps=3, seed=0, counts=True, library_size=100)

    np.testing.assert_allclose(same.X.toarray(), model.adata.X, rtol=0, atol=1e-4)
    assert set(counts.X.sum(1).A1) == {100}
    with pytest.raises(ValueError, match="library"):
        model.predict_perturbation(counts=True)
    with pytest.raises(ValueError, match="logarithms"):
        model.predict_perturbation(make_cells(), CONDITION)


@pytest.mark.parametrize("sampler", ["dpm_solver", "dpm_solver_3m"])
def test_samplers_that_cannot_be_led_are_refused(trained_gene_space, sampler):
    with pytest.raises(ValueError, match="sampler"):
        trained_gene_space.predict_perturbation(condition=CONDITION, sampler=sampler)
