"""What WBDIT tells of its inside: measures with known answers, loadings of planted genes, and fitting tables."""

from __future__ import annotations

import math

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from scgen_diffusion import interpret
from scgen_diffusion.interpret._noised_cells import noised_cells
from scgen_diffusion.model import SCRDIT, WBDIT

SIZES = {"patch_size": 3, "n_layers": 2, "n_global_tokens": 0, "target": "noise", "head": "regression"}
HEADS = ["L0H0", "L0H1", "L1H0", "L1H1"]
N_PATCHES = 4  # 12 genes in patches of 3
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # matrix products of other shapes add in another order, in single precision


@pytest.fixture(scope="module")
def make_opened(make_trained):
    """Build a small model that was trained for an epoch."""
    return lambda adata=None, **options: make_trained(adata, cls=WBDIT, **SIZES | options)


@pytest.fixture(scope="module")
def opened(make_opened):
    """Train one model for all tests; they must not change it."""
    return make_opened()


@pytest.fixture
def emptied(make_opened):
    """Build a model whose attention and sparse halves see the same token everywhere, and tell how to set it.

    The modulation alone decides: it scales the tokens by zero, and shifts them to the given one.
    """
    model = make_opened()
    network = model.module.averaged_network.module.backbone.network

    @torch.no_grad()
    def set_token(token):
        for block in network.blocks:
            block.modulation[-1].weight.zero_()
            chunks = torch.zeros(6, 8)
            chunks[[0, 3]] = torch.as_tensor(token, dtype=torch.float32)  # shift
            chunks[[1, 4]] = -1  # scale
            block.modulation[-1].bias.copy_(chunks.flatten())

    return model, network, set_token


def value_of(table, statistic, layer=0, head="all"):
    """Return a statistic that is the same at all times and in all groups."""
    rows = table.query("statistic == @statistic and layer == @layer and head == @head")
    assert len(rows)
    assert np.ptp(rows["value"]) < 1e-5
    return rows["value"].iloc[0]


def test_a_head_sees_what_lies_in_its_subspace_and_nothing_else(emptied):
    model, network, set_token = emptied
    set_token([1.0, 2.0, 0, 0, 0, 0, 0, 0])
    with torch.no_grad():
        network.blocks[0].attention.project.weight.copy_(torch.eye(8))  # head 0: the first four directions

    table = interpret.layer_statistics(model, times=[10], seed=0)

    expected = 0.5 * math.log(1 + 4 * (5 / 8) / 0.25)
    assert value_of(table, "subspace_coding_rate_before", head="L0H0") == pytest.approx(expected, rel=1e-6)
    assert value_of(table, "subspace_coding_rate_before", head="L0H1") == pytest.approx(0, abs=1e-9)
    assert value_of(table, "subspace_coding_rate_before") == pytest.approx(expected, rel=1e-6)


def test_the_sparse_code_is_measured_against_the_dictionary(emptied):
    model, network, set_token = emptied
    set_token([3.0, -1, -1, -1, 0, 0, 0, 0])
    with torch.no_grad():
        # the tokens are their own code: nothing to descend
        network.blocks[0].feed_forward.dictionary.copy_(torch.eye(8))

    table = interpret.layer_statistics(model, times=[10], seed=0)

    code = 3 - 0.1 * 0.1  # what is positive, less step size times threshold
    assert value_of(table, "sparsity") == pytest.approx(7 / 8)
    assert value_of(table, "l0_norm") == pytest.approx(1)
    assert value_of(table, "l1_norm") == pytest.approx(code, rel=1e-6)
    assert value_of(table, "sparse_coding_loss_before") == pytest.approx(0.1 * 6, rel=1e-5)
    assert value_of(table, "sparse_coding_loss_after") == pytest.approx((0.01**2 + 3) / 2 + 0.1 * code, rel=1e-5)


def test_before_and_after_differ_by_what_the_attention_did(emptied):
    model, network, set_token = emptied
    set_token(np.zeros(8))
    with torch.no_grad():
        modulation = network.blocks[0].modulation[-1].bias.view(6, 8)
        modulation[1] = 0  # the attention sees normalised tokens
        closed = interpret.layer_statistics(model, times=[10], seed=0)
        modulation[2] = 1  # and what it makes of them is added
        opened = interpret.layer_statistics(model, times=[10], seed=0)

    assert value_of(closed, "coding_rate_after") == pytest.approx(value_of(closed, "coding_rate_before"), rel=1e-9)
    assert value_of(opened, "coding_rate_before") == pytest.approx(value_of(closed, "coding_rate_before"), rel=1e-9)
    assert value_of(opened, "coding_rate_after") != pytest.approx(value_of(closed, "coding_rate_before"), rel=1e-3)
    assert value_of(opened, "attention_step") > 0


def test_there_is_a_row_for_every_time_group_layer_statistic_and_head(opened):
    table = interpret.layer_statistics(opened, times=[0, 999], groupby="cell_type", seed=0)

    assert list(table) == ["time", "noise_level", "group", "layer", "statistic", "head", "value", "std", "n_cells"]
    assert not table.duplicated(["time", "group", "layer", "statistic", "head"]).any()
    assert set(table["group"]) == {"B cell", "T cell", "NK", "rare"}  # not the one without cells
    rates = table[table["statistic"] == "subspace_coding_rate_before"]
    by_head = rates.pivot(index=["time", "group", "layer"], columns="head", values="value")
    np.testing.assert_allclose(by_head["all"], by_head[HEADS].sum(axis=1), rtol=1e-6)
    assert len(table) == 2 * 4 * 2 * (11 + 2 * 2)
    assert set(table.query("statistic == 'subspace_coding_rate_after'")["head"]) == {"all", *HEADS}
    sizes = opened.adata.obs["cell_type"].value_counts()
    assert table["n_cells"].equals(table["group"].map(sizes).astype(int))
    levels = table.groupby("time")["noise_level"].first()
    assert levels[0] == pytest.approx(0.01)  # sqrt(beta_0)
    assert levels[999] > 0.999


def test_the_mean_of_a_group_is_that_of_its_cells(opened):
    types = opened.adata.obs["cell_type"]
    table = interpret.layer_statistics(opened, times=[250], groupby="cell_type", seed=0)
    cells = interpret.head_coding_rates(opened, time=250, seed=0)

    rows = table.query("statistic == 'subspace_coding_rate_before' and head == 'L1H0'").set_index("group")
    by_type = cells["L1H0"].groupby(types.to_numpy(), observed=True)
    np.testing.assert_allclose(rows["value"], by_type.mean()[rows.index], rtol=1e-5)
    np.testing.assert_allclose(rows["std"], by_type.std()[rows.index], rtol=1e-3)
    assert math.isnan(rows.loc["rare", "std"])  # it has one cell


def test_measures_do_not_depend_on_the_batch_size_or_on_other_cells(opened, monkeypatch):
    whole = interpret.head_coding_rates(opened, seed=0)
    some = interpret.head_coding_rates(opened, indices=[5, 2, 80], seed=0)
    assert list(whole) == HEADS
    assert some.index.tolist() == ["cell_5", "cell_2", "cell_80"]
    np.testing.assert_allclose(some, whole.iloc[[5, 2, 80]], **CLOSE)

    table, loadings = interpret.layer_statistics(opened, times=[100], seed=0), interpret.head_loadings(opened, seed=0)
    effects = interpret.head_effects(opened, seed=0)
    monkeypatch.setattr("scgen_diffusion.interpret._noised_cells.TOKENS_AT_A_TIME", 7 * N_PATCHES)
    batches = noised_cells(opened, opened.adata, np.arange(20), conditional=True, seed=0)
    assert [len(batch.rows) for batch in batches] == [7, 7, 6]
    np.testing.assert_allclose(interpret.head_coding_rates(opened, seed=0), whole, **CLOSE)
    np.testing.assert_allclose(
        interpret.layer_statistics(opened, times=[100], seed=0)["value"], table["value"], **CLOSE
    )
    np.testing.assert_allclose(interpret.head_loadings(opened, seed=0), loadings, **CLOSE)
    np.testing.assert_allclose(interpret.head_effects(opened, seed=0), effects, **CLOSE)


@pytest.mark.parametrize("method", ["layer_statistics", "head_coding_rates", "head_loadings", "head_effects"])
def test_the_seed_alone_decides(opened, method):
    one, same, other = (getattr(interpret, method)(opened, seed=seed) for seed in (1, 1, 2))

    pd.testing.assert_frame_equal(one, same)
    assert not np.allclose(one.select_dtypes("number"), other.select_dtypes("number"), equal_nan=True)


def test_without_conditions_cells_need_none(opened):
    bare = anndata.AnnData(opened.adata.X[:20], var=opened.adata.var)
    n_known = len(opened._per_instance_manager_store[opened.id])

    own = interpret.head_coding_rates(opened, indices=np.arange(20), seed=0, conditional=False)
    given = interpret.head_coding_rates(opened, bare, seed=0, conditional=False)

    np.testing.assert_array_equal(given, own)
    assert not np.allclose(own, interpret.head_coding_rates(opened, indices=np.arange(20), seed=0))  # with conditions
    assert list(given.index) == list(bare.obs_names)
    assert len(opened._per_instance_manager_store[opened.id]) == n_known  # the model keeps no cells
    with pytest.raises(KeyError, match="'cell_type'"):
        interpret.head_coding_rates(opened, bare, seed=0)


def test_loadings_follow_the_scale_of_a_gene(make_opened):
    model = make_opened()
    network = model.module.averaged_network.module.backbone.network
    with torch.no_grad():
        network.project_in.weight[:, 0] *= 10

    for _, loadings in interpret.head_loadings(model, seed=0).items():
        assert loadings.nlargest(N_PATCHES).index.isin(model.var_.index[::3]).all()


def test_loadings_are_near_the_exact_derivative(opened):
    network = opened.module.averaged_network.module.backbone
    estimated = interpret.head_loadings(opened, indices=np.arange(20), time=100, n_probes=200, seed=0)

    batch = next(iter(noised_cells(opened, opened.adata, np.arange(20), conditional=True, seed=0)))
    path = opened.module.path
    t = path.time(torch.tensor(100.0)).expand(20)
    x_t = path.interpolate(batch.data, batch.noise, t)
    direction = torch.zeros(20, 12)
    direction[:, 4] = 1
    inputs = path.network_time(t), batch.condition
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels do not support forward mode
        _, exact = torch.func.jvp(lambda x: network.head_coordinates(x, *inputs), (x_t,), (direction,))
    squares = torch.stack([head.square().sum((2, 3)).mean(0) for head in exact]).flatten()

    np.testing.assert_allclose(estimated.loc["gene_4"], squares.sqrt(), rtol=0.1)  # five standard errors


def test_specificity_is_centred_over_genes_and_over_the_heads_of_a_layer(opened):
    raw = interpret.head_loadings(opened, seed=0)
    specific = interpret.head_specificity(raw)

    np.testing.assert_allclose(specific.mean(), 0, atol=1e-9)
    for heads in (HEADS[:2], HEADS[2:]):
        np.testing.assert_allclose(specific[heads].mean(axis=1), 0, atol=1e-9)
    logs = np.log2(raw[HEADS[:2]])
    expected = logs - logs.mean() - logs.mean(axis=1).to_numpy()[:, None] + logs.to_numpy().mean()
    np.testing.assert_allclose(specific[HEADS[:2]], expected, atol=1e-9)


def test_a_head_whose_output_is_ignored_has_no_effect_and_others_have(make_opened):
    model = make_opened(head="regression", target="data", scaling="none")
    backbone = model.module.averaged_network.module.backbone
    with torch.no_grad():
        backbone.network.blocks[1].attention.project_out.weight[:, :4] = 0

    effects = interpret.head_effects(model, seed=0)

    assert effects.index.names == ["group", "gene"]
    assert effects.loc["all"].index.equals(model.adata.var_names)
    assert (effects["L1H0"] == 0).all()
    assert (effects[["L0H0", "L0H1", "L1H1"]].abs().max() > 1e-4).all()


def test_effects_are_what_the_heads_alone_and_all_of_them_together_add(make_opened):
    model = make_opened(n_heads=1, head="regression", target="data", scaling="gene")
    module = model.module
    before = {name: weight.clone() for name, weight in module.averaged_network.named_parameters()}
    found = interpret.head_effects(model, indices=[3, 8], time=10, seed=0)
    assert all(torch.equal(weight, before[name]) for name, weight in module.averaged_network.named_parameters())

    batch = next(iter(noised_cells(model, model.adata, np.array([3, 8]), conditional=True, seed=0)))
    t = module.path.time(torch.tensor(10.0)).expand(2)
    inputs = module.path.interpolate(batch.data, batch.noise, t), module.path.network_time(t), batch.condition
    with torch.no_grad():
        whole = module.averaged_network(*inputs)
        for layer, column in [(1, "L1H0"), (0, "all")]:
            module.averaged_network.module.backbone.network.blocks[layer].attention.project_out.weight.zero_()
            difference = whole - module.averaged_network(*inputs)
            np.testing.assert_allclose(found.loc["all", column], (difference.mean(0) * module.scale).numpy(), **CLOSE)


@pytest.mark.parametrize("target", ["noise", "data"])
def test_effects_are_on_the_predicted_cell_whatever_the_target(make_opened, target):
    model = make_opened(head="regression", target=target)

    effects = interpret.head_effects(model, groupby="cell_type", seed=0)
    overall = interpret.head_effects(model, seed=0)

    sizes = model.adata.obs["cell_type"].value_counts()
    groups = effects.index.unique("group")
    np.testing.assert_allclose(
        sum(effects.loc[g] * sizes[g] for g in groups) / 96, overall.loc["all"], rtol=1e-3, atol=1e-5
    )


def test_global_tokens_read_all_genes(make_opened):
    model = make_opened(n_global_tokens=2)
    backbone = model.module.averaged_network.module.backbone
    with torch.no_grad():
        backbone.network.project_in.weight.zero_()  # the patches are blind
        backbone.read_all_genes.weight[:, torch.arange(12) != 5] = 0  # and the global tokens see one gene

    loadings = interpret.head_loadings(model, seed=0)

    assert (loadings.loc["gene_5"] > 0).all()
    assert (loadings.drop("gene_5") == 0).all(axis=None)


def test_shuffled_weights_are_the_same_numbers_elsewhere_and_leave_the_model_alone(opened):
    before = interpret.head_loadings(opened, seed=0)

    one, same, other = (interpret.shuffle_weights(opened, seed) for seed in (1, 1, 2))

    pd.testing.assert_frame_equal(interpret.head_loadings(opened, seed=0), before)
    for name, weight in opened.module.averaged_network.named_parameters():
        shuffled = dict(one.module.averaged_network.named_parameters())[name]
        assert torch.equal(weight.flatten().sort().values, shuffled.flatten().sort().values)
    pd.testing.assert_frame_equal(interpret.head_loadings(one, seed=0), interpret.head_loadings(same, seed=0))
    assert not np.allclose(interpret.head_loadings(one, seed=0), interpret.head_loadings(other, seed=0))
    assert not np.allclose(interpret.head_loadings(one, seed=0), before)
    assert one.generate(3, seed=0).shape == (3, 12)


def test_a_cell_without_one_of_its_labels_has_no_conditions_as_in_training(make_cells, make_opened):
    cells = make_cells()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.iloc[0, cells.obs.columns.get_loc("cell_type")] = "Unknown"
    model = make_opened(cells, setup={"unlabeled_category": "Unknown"})

    of_cell = [
        interpret.layer_statistics(model, indices=[0], times=[0.5], seed=0, conditional=conditional)
        for conditional in (True, False)
    ]

    pd.testing.assert_frame_equal(*of_cell)


@pytest.mark.parametrize("name", sorted({*interpret.__all__} - {"head_specificity"}))
def test_only_trained_models_with_a_white_box_can_be_opened(make_cells, trained, trained_once, name):
    method = getattr(interpret, name)
    cells = make_cells()
    WBDIT.setup_anndata(cells)
    with pytest.raises(RuntimeError, match="train"):
        method(WBDIT(cells, **SIZES))
    for model in (trained, trained_once(SCRDIT)):
        with pytest.raises(ValueError, match="model"):
            method(model)


def test_conditions_that_training_never_showed_together_are_refused(make_opened):
    model = make_opened(condition_strategy="mutually_exclusive")
    with pytest.raises(ValueError, match="conditional"):
        interpret.layer_statistics(model, times=[0.5], seed=0)
    assert len(interpret.layer_statistics(model, times=[0.5], seed=0, conditional=False))


@pytest.mark.parametrize(
    ("method", "options", "error", "name"),
    [
        ("layer_statistics", {"times": []}, ValueError, "times"),
        ("layer_statistics", {"groupby": "cell_typ"}, KeyError, "cell_type"),
        ("layer_statistics", {"indices": []}, ValueError, "indices"),
        ("layer_statistics", {"seed": -1}, ValueError, "seed"),
        *(("head_loadings", {"time": time}, ValueError, "time") for time in (-1, 1000, "late", float("nan"), [0, 500])),
        ("head_effects", {"time": [0, 500]}, ValueError, "time"),
        ("head_coding_rates", {"time": 1000}, ValueError, "time"),
        ("head_loadings", {"n_probes": 0}, ValueError, "n_probes"),
    ],
)
def test_arguments_that_are_not_allowed_are_refused(opened, method, options, error, name):
    with pytest.raises(error, match=name):
        getattr(interpret, method)(opened, **options)
