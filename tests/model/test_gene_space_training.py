"""Training the gene-space models: what they learn, interruption and resumption, and the order of genes."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from builders import seeded

from scgen_diffusion.model import SCRDIT, WBDIT
from scgen_diffusion.model._training import split_cells
from scgen_diffusion.module import library_features
from scgen_diffusion.nn import log_profile

pytestmark = pytest.mark.usefixtures("seed_0")


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


def test_totals_of_small_groups_do_not_pile_up_at_the_least_and_largest_of_the_group(make_trained, make_cells):
    cells = make_cells()
    cells.X *= 20  # few totals are equal by rounding
    model = make_trained(cells[cells.obs["cell_type"] != "rare"].copy(), cls=SCRDIT)
    module, n_draws = model.module, 50
    condition = module.condition_tensor(model._registered_codes).repeat_interleave(n_draws, 0)
    profile = log_profile(torch.from_numpy(model.adata.X), "counts").repeat_interleave(n_draws, 0)
    uniform = torch.rand(len(profile), generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        totals = module.library_size.draw("latent", condition, library_features(profile), uniform)

    least, _, _, largest = module.library_size.bounds(condition)
    at_an_end = (totals <= least) | (totals >= largest)
    assert at_an_end.float().mean() < 0.05  # one draw per cell would give a fifth in groups of ten


def test_every_loss_is_recorded_and_falls(learned):
    metrics = ("diffusion_loss", "diffusion_denoising_loss", "diffusion_library_size_loss")
    assert set(learned.history) == {f"{name}_{subset}" for name in metrics for subset in ("train", "validation")}
    for name, frame in learned.history.items():
        assert frame.notna().all().all(), name
        if not name.startswith("diffusion_library_size_loss_v"):
            assert frame[name].iloc[-5:].mean() < frame[name].iloc[:3].mean(), name


@pytest.mark.filterwarnings("ignore")  # two steps are not enough to learn anything
def test_the_published_size_is_trained_by_the_published_recipe(gene_space_class, tiny_gene_space, quick):
    sizes = {name: tiny_gene_space[name] for name in ("patch_size", "width", "n_layers", "n_heads")}
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
    assert all(name.startswith(("averaged_network", "library_size.predicted")) for name in changed)
