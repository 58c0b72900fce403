"""``generate`` of the gene-space models: what comes out, and what it does and does not depend on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy as sc

from scgen_diffusion.diffusion import FLOW_SAMPLERS, DDIMSampler
from scgen_diffusion.model import SCRDIT

pytestmark = pytest.mark.usefixtures("small_blocks")

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
