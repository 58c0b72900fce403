"""Gene-space models: options, what comes out, and what it does and does not depend on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy as sc
from builders import same_cells

from scgen_diffusion.diffusion import FLOW_SAMPLERS, DDIMSampler
from scgen_diffusion.model import SCRDIT, WBDIT

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patch_sizes": 3}, TypeError, "patch_size"),
        ({"width": 8, "n_heads": 3}, ValueError, "width"),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(make_model, gene_space_class, options, error, words):
    with pytest.raises(error, match=words):
        make_model(cls=gene_space_class, **options)


@pytest.mark.parametrize("n_genes", [1, 12])
def test_the_default_sizes_fit_any_number_of_genes(make_cells, gene_space_class, n_genes):
    adata = make_cells(n_genes=n_genes)
    gene_space_class.setup_anndata(adata)

    assert gene_space_class(adata).architecture.patch_size <= n_genes


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "unet", "target": "noise", "zero_value": -3, "scaling": "none"},
        {"backbone": "dit", "head": "spike_and_slab", "target": "data", "scaling": "gene"},
        {"condition_keys": [], "ema_decay": np.float64(0.5), "library_size": "normal"},
        {"condition_keys": ["treated"], "condition_strategy": "mutually_exclusive", "zero_value": np.float64(-2.0)},
    ],
    ids=["noise", "spike and slab", "unconditional", "mutually exclusive"],
)
def test_every_part_survives_a_file(make_trained, gene_space_class, tmp_path, options):
    model = make_trained(cls=gene_space_class, **options)
    model.save(tmp_path / "m")
    loaded = gene_space_class.load(tmp_path / "m")

    assert loaded.architecture == model.architecture
    for request in ({"seed": 0, "n_steps": 4}, {"seed": 0, "n_steps": 4, "counts": True}):
        assert same_cells(model.generate(5, **request), loaded.generate(5, **request))


N_GENES = 12


@pytest.fixture(scope="module")
def cells(trained_gene_space):
    return trained_gene_space.generate(60, seed=0)


def test_scanpy_knows_that_the_values_are_logarithms(cells):
    assert "log1p" in cells.uns
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # scanpy warns of raw counts, and of a second logarithm
        sc.pp.highly_variable_genes(cells.copy(), n_top_genes=3)
        sc.pp.pca(cells.copy(), n_comps=2)


@pytest.mark.filterwarnings("ignore")  # a stirred network's noise may be read as large data
@pytest.mark.parametrize(
    "parts",
    [
        *({"backbone": b, "head": h} for b in ("dit", "white_box", "unet") for h in ("regression", "spike_and_slab")),
        {"target": "noise"},
    ],
    ids=str,
)
def test_all_parts_generate(make_trained, parts):
    model = make_trained(cls=SCRDIT, **parts)

    one, other = (model.generate(20, {"cell_type": kind}, seed=0, n_steps=3).X for kind in ("NK", "B cell"))

    assert np.isfinite(one.data).all()
    assert 0 < one.nnz < 20 * N_GENES
    assert (one != other).nnz  # the network heeds its condition


def test_what_is_nearer_to_zero_than_to_any_value_becomes_zero(trained_gene_space, monkeypatch):
    cells = trained_gene_space.generate(50, seed=0).X.toarray()
    monkeypatch.setattr(trained_gene_space.module, "cut_zeros", lambda profile, smallest=None: profile)
    free = trained_gene_space.generate(50, seed=0).X.toarray()

    cut = trained_gene_space.module.smallest_value.item() / 2
    assert cut > 0
    assert (free < 0).any()
    np.testing.assert_array_equal(cells, np.where(free > cut, free, 0))


def test_randomness_on_the_way_belongs_to_the_cell(trained_gene_space):
    """Were it shared, or left out, stochastic and deterministic samplers would agree on differences between cells."""
    smooth, rough = (
        trained_gene_space.generate(20, seed=0, sampler=DDIMSampler(eta=eta), n_steps=10).X for eta in (0.0, 1.0)
    )

    difference = (smooth - rough).toarray()
    assert len({row.tobytes() for row in difference}) == 20


def test_counts_are_the_profiles_shares_of_the_total_rounded(trained_gene_space, cells):
    """The same seed gives the same profiles."""
    counts = trained_gene_space.generate(60, seed=0, counts=True, library_size=5000)
    share = np.expm1(cells.X.toarray())
    share /= share.sum(1, keepdims=True)

    assert cells.obs.reset_index(drop=True).equals(counts.obs.reset_index(drop=True))
    assert not set(cells.obs_names) & set(counts.obs_names)
    assert (np.abs(counts.X.toarray() - 5000 * share) < 1.01).all()  # to whole numbers, in single precision
    assert not counts.X.toarray()[cells.X.toarray() == 0].any()


def test_counts_from_log_values_need_totals(make_trained, make_cells):
    model = make_trained(make_cells(values="log1p"), cls=SCRDIT, setup={"values": "log1p"})
    assert "diffusion_library_size_loss_train" not in model.history
    profiles = model.generate(20, {"cell_type": "NK"}, seed=0)
    assert "log1p" in profiles.uns
    assert np.isfinite(profiles.X.data).all()
    for library_size in (None, "latent"):
        with pytest.raises(ValueError, match="library_size"):
            model.generate(3, counts=True, library_size=library_size)

    cells = model.generate(3, seed=0, counts=True, library_size=[100, 1000, 10_000])

    assert (np.abs(np.asarray(cells.X.sum(1))[:, 0] - [100, 1000, 10_000]) < N_GENES).all()
    assert (cells.X.data == cells.X.data.round()).all()


@pytest.mark.parametrize(
    "request_",
    [
        *({"sampler": sampler} for sampler in ("dpmsolver", "heun", FLOW_SAMPLERS["heun"])),
        {"n_steps": 1001},
        {"library_size": 1000},
    ],
)
def test_a_request_that_only_other_models_or_outputs_answer_is_refused(trained_gene_space, request_):
    with pytest.raises(ValueError, match=next(iter(request_))):
        trained_gene_space.generate(**{"n_cells": 3, **request_})


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
