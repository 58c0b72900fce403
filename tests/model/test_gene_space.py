"""Gene-space models: options, training, what comes out, and what it does and does not depend on."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from builders import TINY_GENE_SPACE, same_cells, seeded

from scgen_diffusion.diffusion import FLOW_SAMPLERS, DDIMSampler
from scgen_diffusion.model import SCMDM, SCRDIT, WBDIT
from scgen_diffusion.model._training import split_cells

pytestmark = pytest.mark.usefixtures("small_blocks", "seed_0")


N_GENES = 12


@pytest.fixture(scope="module")
def cells(trained_gene_space):
    return trained_gene_space.generate(60, seed=0)


@pytest.mark.filterwarnings("ignore")  # a stirred network's noise may be read as large data
@pytest.mark.parametrize(
    ("cls", "parts"),
    [
        *((SCRDIT, {"backbone": b, "head": h}) for b in ("dit", "unet") for h in ("regression", "spike_and_slab")),
        *((WBDIT, {"head": head}) for head in ("regression", "spike_and_slab")),
        *((SCMDM, {"backbone": b}) for b in ("mlp", "dit", "white_box")),
        (SCRDIT, {"target": "noise", "zero_value": -3, "scaling": "none"}),
        (SCRDIT, {"condition_strategy": "mutually_exclusive", "ema_decay": np.float64(0.5)}),
    ],
    ids=str,
)
def test_all_parts_generate_and_survive_a_file(make_trained, tmp_path, cls, parts):
    model = make_trained(cls=cls, **parts)
    model.save(tmp_path / "m")
    loaded = cls.load(tmp_path / "m")

    one, other = (model.generate(20, {"cell_type": kind}, seed=0, n_steps=3).X for kind in ("NK", "B cell"))

    assert np.isfinite(one.data).all()
    assert 0 < one.nnz < 20 * N_GENES
    assert (one != other).nnz  # the network heeds its condition
    assert loaded.architecture == model.architecture
    for counts in (None, True):
        assert same_cells(*(some.generate(5, seed=0, n_steps=3, counts=counts) for some in (model, loaded)))


@pytest.mark.parametrize(("cls", "backbone"), [(SCRDIT, "white_box"), (WBDIT, "dit"), (SCRDIT, "mlp")])
def test_a_network_of_another_model_is_refused(make_model, cls, backbone):
    with pytest.raises(ValueError, match="backbone"):
        make_model(cls=cls, backbone=backbone)


def test_what_is_nearer_to_zero_than_to_any_value_becomes_zero(trained_gene_space, monkeypatch):
    cells = trained_gene_space.generate(50, seed=0).X.toarray()
    monkeypatch.setattr(trained_gene_space.module, "cut_zeros", lambda profile, smallest=None: profile)
    free = trained_gene_space.generate(50, seed=0).X.toarray()

    cut = trained_gene_space.module.smallest_value.item() / 2
    assert cut > 0
    assert (free < 0).any()
    np.testing.assert_array_equal(cells, np.where(free > cut, free, 0))


@pytest.mark.parametrize(
    "request_",
    [
        *({"sampler": sampler} for sampler in ("dpmsolver", "euler", FLOW_SAMPLERS["euler"])),
        {"n_steps": 1001},
        {"library_size": 1000},
    ],
)
def test_a_request_that_only_other_models_or_outputs_answer_is_refused(trained_gene_space, request_):
    with pytest.raises(ValueError, match=next(iter(request_))):
        trained_gene_space.generate(**{"n_cells": 3, **request_})
    with pytest.raises(ValueError, match="sampler"):  # which cannot be led to given cells
        trained_gene_space.predict_perturbation(condition=CONDITION, sampler="dpm_solver")


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
        (SCRDIT, {}),
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


def test_a_model_of_log_values_needs_totals_to_give_counts(make_trained, make_cells):
    model = make_trained(make_cells(values="log1p"), cls=SCRDIT, setup={"values": "log1p"})
    totals, request = [100, 1000, 10_000], {"n_steps": 3, "seed": 0}

    cells = model.generate(3, seed=0, counts=True, library_size=totals)
    same, counts = (model.predict_perturbation(**request, **how) for how in ({}, {"counts": True, "library_size": 100}))

    assert (np.abs(np.asarray(cells.X.sum(1))[:, 0] - totals) < N_GENES).all()
    assert (cells.X.data == cells.X.data.round()).all()
    np.testing.assert_allclose(same.X.toarray(), model.adata.X, rtol=0, atol=1e-4)
    assert set(counts.X.sum(1).A1) == {100}
    for refused in (
        lambda: model.generate(3, counts=True),
        lambda: model.predict_perturbation(counts=True),
    ):
        with pytest.raises(ValueError, match="library_size"):
            refused()
    with pytest.raises(ValueError, match="logarithms"):
        model.predict_perturbation(make_cells(), CONDITION)


def test_cells_depend_neither_on_batch_size_nor_on_which_others_are_there(trained_gene_space):
    request = {"condition": CONDITION, "seed": 5, "n_steps": 3}
    whole = trained_gene_space.predict_perturbation(**request)

    other = trained_gene_space.predict_perturbation(**request, batch_size=20)
    few = trained_gene_space.predict_perturbation(trained_gene_space.adata[:5].copy(), **request)

    assert same_cells(whole, other)
    np.testing.assert_allclose(few.X.toarray(), whole.X[:5].toarray(), rtol=1e-4, atol=1e-4)


def two_types(n_cells=256, n_genes=12, seed=0):
    """Build cells of two types, one shallow and one deep, that express disjoint halves of the genes."""
    rng = np.random.default_rng(seed)
    of_b = rng.random(n_cells) < 0.5
    rates = np.where((np.arange(n_genes) < n_genes // 2) != of_b[:, None], 1.0, 0.0) * rng.gamma(5.0, 0.2, n_genes)
    depth = np.where(of_b, 400, 40)[:, None] * rng.lognormal(0, 0.1, (n_cells, 1))
    counts = rng.poisson(rates / rates.sum(1, keepdims=True) * depth).astype(np.float32)
    obs = pd.DataFrame({"kind": np.where(of_b, "b", "a")}, index=[str(cell) for cell in range(n_cells)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene_{gene}" for gene in range(n_genes)]))


@pytest.fixture(scope="module", params=[(SCRDIT, "regression"), (WBDIT, "spike_and_slab")], ids=str)
def learned(request, make_model, quick):
    """Train a model until it knows both types."""
    cls, head = request.param
    options = {"head": head, "width": 32, "patch_size": 4, "ema_decay": 0.98}
    with seeded(2):
        torch.manual_seed(2)
        model = make_model(two_types(1024), cls=cls, condition_keys=["kind"], **options)
        model.train(12, plan_kwargs={"learning_rate": 5e-3}, **{**quick, "batch_size": 64})
    return model


def share_of_first_half(cells):
    x = np.expm1(cells.X.toarray())
    return x[:, :6].sum(1) / x.sum(1)


@pytest.mark.filterwarnings("error::UserWarning")  # a model that learned warns of nothing
def test_a_trained_model_expresses_the_genes_and_totals_of_the_requested_type(learned):
    of_a, of_b = (learned.generate(100, {"kind": kind}, seed=0) for kind in "ab")
    free = share_of_first_half(learned.generate(200, {"kind": "a"}, seed=0, guidance_scale=0))
    totals = [np.median(learned.generate(100, {"kind": k}, seed=0, counts=True).X.sum(1).A1) for k in "ab"]

    assert share_of_first_half(of_a).mean() > 0.85  # 1 in the training cells
    assert share_of_first_half(of_b).mean() < 0.15  # 0
    assert (of_a.X[:, 6:].toarray() == 0).mean() > 0.6  # exact zeros
    assert 0.2 < np.mean(free > 0.5) < 0.8  # without guidance both types are generated
    assert totals == pytest.approx([40, 400], rel=0.25)


def test_every_loss_is_recorded_and_falls(learned):
    metrics = ("diffusion_loss", "diffusion_denoising_loss", "diffusion_library_size_loss")
    assert set(learned.history) == {f"{name}_{subset}" for name in metrics for subset in ("train", "validation")}
    for name, frame in learned.history.items():
        assert frame.notna().all().all(), name
        if not name.startswith("diffusion_library_size_loss_v"):
            assert frame[name].iloc[-5:].mean() < frame[name].iloc[:3].mean(), name


@pytest.mark.filterwarnings("ignore")  # two steps are not enough to learn anything
def test_the_published_size_is_trained_by_the_published_recipe(gene_space_class, quick):
    sizes = {name: TINY_GENE_SPACE[name] for name in ("patch_size", "width", "n_layers", "n_heads")}
    gene_space_class.setup_anndata(adata := two_types(), condition_keys=["kind"])
    published = gene_space_class(adata, size="published", **sizes)
    published.train(1, limit_train_batches=2, **{**quick, "batch_size": None})

    recipe = published.recipes_["diffusion"]
    assert (recipe["batch_size"], recipe["n_epochs"], recipe["schedule"]) == (16, 1600, "constant")
    assert (published.architecture.target, published.architecture.ema_decay) == ("noise", 0.0)
    assert published.generate(2, seed=0, n_steps=5).n_obs == 2


def test_only_training_cells_set_the_scale(make_model, quick):
    """A gene that only validation cells express stays at zero."""
    adata = two_types(96)
    model = make_model(adata, cls=SCRDIT, condition_keys=["kind"], scaling="gene")
    train, validation, _ = split_cells(96, None, None)
    adata.X[train, 3] = 0
    adata.X[validation, 3] = 50

    model.train(1, **quick)

    assert model.module.shift[3] == 0
    assert (model.module.shift[:3] > 0).all()


@pytest.mark.parametrize("values", ["counts", "log1p"])
def test_training_continues_where_it_ended(make_trained, make_cells, quick, values):
    model = make_trained(make_cells(values=values), cls=SCRDIT, setup={"values": values})
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}

    model.train(1, plan_kwargs={"learning_rate": 0.0}, **quick)

    changed = [name for name, tensor in model.module.state_dict().items() if not torch.equal(tensor, before[name])]
    assert all(name.startswith("averaged_network") for name in changed)


def test_a_single_value_that_is_no_number_is_an_error(trained_gene_space, monkeypatch):
    profiles = torch.ones(16, 12)
    profiles[:, 3] = torch.nan
    monkeypatch.setattr(trained_gene_space.module, "expected_profiles", lambda *_, **__: profiles.clone())

    for counts in (False, True):
        with pytest.raises(FloatingPointError):
            trained_gene_space.generate(5, seed=0, counts=counts)
