"""``generate`` of the gene-space models: what comes out, and what it does and does not depend on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy as sc
from builders import same_cells

from scgen_diffusion.diffusion import FLOW_SAMPLERS, DDIMSampler
from scgen_diffusion.model import SCRDIT

pytestmark = pytest.mark.usefixtures("small_blocks")

N_GENES = 12
DIFFUSION_SAMPLERS = [
    "dpm_solver_3m",
    "dpm_solver",
    "ddim",
    "ddpm",
    DDIMSampler(eta=1.0),
]


@pytest.fixture(scope="module")
def cells(trained_gene_space):
    return trained_gene_space.generate(60, seed=0)


@pytest.fixture(scope="module")
def without_counts(make_trained, make_cells):
    """Train a model on log-normalised values, which has nothing to learn totals from."""
    return make_trained(make_cells(values="log1p"), cls=SCRDIT, setup={"values": "log1p"})


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_log_values_come_back_sparse_with_exact_zeros(cells):
    assert cells.shape == (60, N_GENES)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert 0 < cells.X.nnz < 60 * N_GENES
    assert (cells.X.data > 0).all()
    assert cells.obs_names.is_unique
    assert cells.obs_names.str.contains("^(SCRDIT|WBDIT)-").all()


def test_scanpy_knows_that_the_values_are_logarithms(cells):
    assert "log1p" in cells.uns
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # scanpy warns of raw counts, and of a second logarithm
        sc.pp.highly_variable_genes(cells.copy(), n_top_genes=3)
        sc.pp.pca(cells.copy(), n_comps=2)


@pytest.mark.parametrize("head", ["regression", "spike_and_slab"])
@pytest.mark.parametrize("backbone", ["dit", "white_box", "unet"])
def test_every_backbone_generates_with_every_head(make_trained, backbone, head):
    model = make_trained(cls=SCRDIT, backbone=backbone, head=head)

    one, other = (model.generate(20, {"cell_type": kind}, seed=0, n_steps=3).X for kind in ("NK", "B cell"))

    assert np.isfinite(one.data).all()
    assert one.nnz
    assert (one != other).nnz  # the network heeds its condition


@pytest.mark.parametrize("target", ["noise", "data"])
def test_every_target_generates(make_trained, target):
    model = make_trained(cls=SCRDIT, target=target)

    with warnings.catch_warnings():  # a stirred network's noise may be read as large data
        warnings.simplefilter("ignore", UserWarning)
        cells = model.generate(10, seed=0)

    assert np.isfinite(cells.X.data).all()


@pytest.fixture
def generate_with_small_values(monkeypatch):
    """Return a function that generates profiles whose small and negative values stay."""

    def generate(model):
        with monkeypatch.context() as patch:
            patch.setattr(model.module, "cut_zeros", lambda profile, smallest=None: profile)
            return model.generate(50, seed=0).X.toarray()

    return generate


def test_what_is_nearer_to_zero_than_to_any_value_becomes_zero(trained_gene_space, generate_with_small_values):
    free, cells = generate_with_small_values(trained_gene_space), trained_gene_space.generate(50, seed=0)

    cut = trained_gene_space.module.smallest_value.item() / 2
    assert cut > 0
    assert (free < 0).any()
    np.testing.assert_array_equal(cells.X.toarray(), np.where(free > cut, free, 0))


# --- what cells depend on ---------------------------------------------------------------------------------------------


def check_independence(model, request):
    whole = model.generate(40, **request)
    for batch_size in (1, 17, 10_000):
        assert same_cells(whole, model.generate(40, **request, batch_size=batch_size)), batch_size
    for n_cells in (1, 10, 17):
        assert same_cells(whole[:n_cells], model.generate(n_cells, **request)), n_cells


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS, ids=str)
def test_cells_do_not_depend_on_batch_size_or_number_of_cells(trained_gene_space, sampler):
    check_independence(trained_gene_space, {"seed": 5, "sampler": sampler, "n_steps": 3})


def test_randomness_on_the_way_belongs_to_the_cell(trained_gene_space):
    """Were it shared, or left out, stochastic and deterministic samplers would agree on differences between cells."""
    smooth, rough = (
        trained_gene_space.generate(20, seed=0, sampler=DDIMSampler(eta=eta), n_steps=10).X for eta in (0.0, 1.0)
    )

    difference = (smooth - rough).toarray()
    assert len({row.tobytes() for row in difference}) == 20


# --- samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["regression", "spike_and_slab"])
def test_the_default_sampler_is_one_that_the_path_admits(make_trained, head):
    model = make_trained(cls=SCRDIT, head=head)

    cells = model.generate(3, seed=0)

    assert cells.uns["scgen_diffusion"]["sampler"] == model.default_sampler
    assert same_cells(cells, model.generate(3, seed=0, sampler=model.default_sampler))


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counts(trained_gene_space):
    return trained_gene_space.generate(60, seed=0, counts=True, library_size=5000)


def test_counts_come_back_sparse_and_whole(counts):
    assert counts.X.format == "csr"
    assert counts.X.dtype == np.float32
    assert (counts.X.data > 0).all()
    assert (counts.X.data == counts.X.data.round()).all()
    assert "log1p" not in counts.uns


def test_counts_are_the_profiles_shares_of_the_total_rounded(cells, counts):
    """The same seed gives the same profiles."""
    share = np.expm1(cells.X.toarray())
    share /= share.sum(1, keepdims=True)

    assert cells.obs.reset_index(drop=True).equals(counts.obs.reset_index(drop=True))
    assert not set(cells.obs_names) & set(counts.obs_names)
    assert (np.abs(counts.X.toarray() - 5000 * share) < 1.01).all()  # to whole numbers, in single precision
    assert not counts.X.toarray()[cells.X.toarray() == 0].any()


def test_sums_follow_the_totals_that_are_given(trained_gene_space):
    totals = np.repeat([50, 5000], 25)

    per_cell = trained_gene_space.generate(50, seed=0, counts=True, library_size=totals)
    one_for_all = trained_gene_space.generate(50, seed=0, counts=True, library_size=700)

    assert (np.abs(np.asarray(per_cell.X.sum(1))[:, 0] - totals) < N_GENES).all()  # each gene is rounded
    assert (np.abs(one_for_all.X.sum(1) - 700) < N_GENES).all()


# --- log-normalised training cells ------------------------------------------------------------------------------------


def test_log_values_in_are_log_values_out(without_counts):
    cells = without_counts.generate(20, {"cell_type": "NK"}, seed=0)

    assert "log1p" in cells.uns
    assert np.isfinite(cells.X.data).all()
    assert "diffusion_library_size_loss_train" not in without_counts.history


def test_counts_from_log_values_need_totals(without_counts):
    for library_size in (None, "latent"):
        with pytest.raises(ValueError, match="library_size"):
            without_counts.generate(3, counts=True, library_size=library_size)

    cells = without_counts.generate(3, seed=0, counts=True, library_size=[100, 1000, 10_000])

    assert (np.abs(np.asarray(cells.X.sum(1))[:, 0] - [100, 1000, 10_000]) < N_GENES).all()
    assert (cells.X.data == cells.X.data.round()).all()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"sampler": "dpmsolver"}, "`sampler` 'dpmsolver' is not known.*closest first: 'dpm_solver'"),
        ({"sampler": "midpoint"}, "sampler"),
        ({"n_steps": 1001}, "n_steps"),
        ({"library_size": 1000}, "Log-normalised values have no `library_size`; leave it out, or set"),
    ],
    ids=str,
)
def test_a_request_that_only_other_models_or_outputs_answer_is_refused(trained_gene_space, request_, words):
    with pytest.raises(ValueError, match=words):
        trained_gene_space.generate(**{"n_cells": 3, **request_})


def test_samplers_of_another_path_are_refused(trained_gene_space):
    for name, sampler in FLOW_SAMPLERS.items():
        with pytest.raises(ValueError, match=f"`sampler` '{name}' is not known.*'dpm_solver'"):
            trained_gene_space.generate(3, sampler=name)
        with pytest.raises(ValueError, match="sampler"):
            trained_gene_space.generate(3, sampler=sampler)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "dpm_solver_3m"),
        ({"head": "regression", "target": "noise"}, "dpm_solver"),
    ],
)
def test_the_default_sampler_is_the_one_that_suits_the_prediction(options, expected):
    from scgen_diffusion.model._gene_space import default_sampler
    from scgen_diffusion.module import GeneSpaceArchitecture

    assert default_sampler(GeneSpaceArchitecture(**options)) == expected
