"""The table of all metrics: its content, its baselines, and its errors."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scgen_diffusion.data import CellFiles
from scgen_diffusion.metrics import CATALOGUE, ComparisonSpace, evaluate
from scgen_diffusion.metrics._comparison import interval
from scgen_diffusion.report import summary

N_GENES = 40
OF_CELLS = [name for name, metric in CATALOGUE.items() if "all" in metric.scopes and metric.min_features <= N_GENES]
QUICK = ["w2", "mmd2", "recall", "gene_mean_error", "library_size_ks"]
BOUNDS_COLUMNS = ["value", "real", "shuffled", "low", "high"]


def cells(n_cells, *, seed, labels="ab", n_genes=N_GENES, effect=0.5):
    """Draw counts of some labels that share one hidden programme."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(0).gamma(1.0, 1.0, (26, n_genes)) + 0.1
    loadings = np.random.default_rng(1).standard_normal(n_genes) * effect
    codes = np.arange(n_cells) % len(labels)
    rates = profiles[[ord(label) - ord("a") for label in labels]][codes] * np.exp(
        rng.standard_normal((n_cells, 1)) * loadings
    )
    rates *= rng.lognormal(6.0, 0.3, (n_cells, 1)) / rates.sum(1, keepdims=True)
    obs = pd.DataFrame(
        {"type": np.array(list(labels))[codes], "batch": np.where(codes % 2, "x", "y")},
        index=[f"s{seed}_{number}" for number in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"g{number}" for number in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=var)


def table(real=None, synthetic=None, *, train="own", metrics=QUICK, n_repeats=2, n_bootstrap=5, **options):
    real = cells(120, seed=1) if real is None else real
    synthetic = cells(120, seed=2) if synthetic is None else synthetic
    train = cells(240, seed=3) if isinstance(train, str) else train
    return evaluate(
        real, synthetic, train=train, metrics=metrics, n_repeats=n_repeats, n_bootstrap=n_bootstrap, **options
    )


def figure(found, metric, column="value", group="all"):
    return found[(found["metric"] == metric) & (found["group"] == group)][column].item()


@pytest.fixture(scope="module")
def full():
    """Every metric on small cells, in groups."""
    return table(
        cells(80, seed=1), cells(80, seed=2), train=cells(180, seed=3), metrics=None, groupby="type", n_bootstrap=5
    )


# --- content ----------------------------------------------------------------------------------------------------------


def test_all_cells_have_every_metric_in_the_catalogues_order(full):
    assert list(full.columns) == ["metric", "group", *BOUNDS_COLUMNS, "better"]
    assert full.loc[full["group"] == "all", "metric"].tolist() == OF_CELLS


def test_a_row_does_not_depend_on_the_other_metrics(full):
    sets = cells(80, seed=1), cells(80, seed=2)
    alone = table(*sets, train=cells(180, seed=3), metrics=["recall", "auc_neighbours"], groupby="type", n_bootstrap=5)
    together = full[full["metric"].isin(["recall", "auc_neighbours"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together)


def test_every_figure_of_all_cells_is_known(full):
    known = full[full["group"] == "all"].set_index("metric")
    assert known[["value", "real", "low", "high"]].notna().all(axis=None)
    assert {*known.index[known["shuffled"].isna()]} == {name for name in OF_CELLS if CATALOGUE[name].of_all}


def test_values_lie_in_their_bounds_and_in_their_interval(full):
    known = full.dropna(subset=["value", "low", "high"])
    assert (known["low"] <= known["value"] + 1e-12).all()
    assert (known["value"] <= known["high"] + 1e-12).all()
    for metric, rows in known.groupby("metric"):
        low, high = CATALOGUE[metric].bounds
        assert rows[BOUNDS_COLUMNS].min(axis=None) >= low
        assert rows[BOUNDS_COLUMNS].max(axis=None) <= high


def test_groups_have_rows_of_what_can_be_measured_in_them(full):
    names = {m.name for m in CATALOGUE.values() if "group" in m.scopes or m.by_group is not None} & {*OF_CELLS}
    for group in "ab":
        assert set(full.loc[full["group"] == group, "metric"]) == names
    n_cells = full.attrs["n_cells"]
    assert n_cells.pop("all") == 80
    assert all(30 <= n <= 40 for n in n_cells.values())  # as many as there are in every set


def test_cells_of_the_same_distribution_score_like_the_real_value(full):
    for metric in ("w2", "precision", "recall", "coverage", "tstr_f1", "trts_accuracy"):
        assert figure(full, metric) == pytest.approx(figure(full, metric, "real"), rel=0.3), metric  # 80 cells
    for metric in ("auc_logistic", "auc_neighbours", "auc_boosting", "auc_genes", "membership_auc"):
        assert figure(full, metric, "real") == pytest.approx(0.5, abs=0.2), metric  # the standard error is 0.046
    assert figure(full, "dcr_ratio", "real") == pytest.approx(1, abs=0.15)
    assert figure(full, "copied_cells") == figure(full, "copied_cells", "real") == 0


def test_shuffled_genes_keep_their_margins_and_lose_their_correlation(full):
    for group in ("all", "a", "b"):  # genes are shuffled within groups
        shuffled, real = (figure(full, "gene_mean_error", column, group) for column in ("shuffled", "real"))
        assert shuffled == pytest.approx(real, rel=0.5)
    assert abs(figure(full, "within_label_correlation", "shuffled")) < 0.2
    assert figure(full, "within_label_correlation", "real") > 0.5
    assert figure(full, "library_size_ks", "shuffled") < 0.3


def test_without_training_cells_their_metrics_are_left_out_and_a_half_of_the_real_ones_is_the_real_value():
    found = table(cells(200, seed=1), train=None, metrics=None, n_repeats=1, n_bootstrap=0)
    needy = {metric.name for metric in CATALOGUE.values() if {"train", "groupby"} & set(metric.needs)}
    assert found["metric"].tolist() == [name for name in OF_CELLS if name not in needy]
    assert found["real"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)


def test_log_normalised_cells_have_no_metrics_of_counts():
    real, synthetic, train = (in_logarithms(cells(n, seed=n), None) for n in (120, 121, 240))
    assert table(real, synthetic, train=train, metrics="dcr_ratio")["value"].notna().all()
    with pytest.raises(ValueError, match="'library_size_ks'"):
        table(real, synthetic, train=train, metrics="library_size_ks")


def in_logarithms(adata, base):
    """Return the cells log-normalised, as scanpy leaves them."""
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged, base=base)
    return logged


@pytest.mark.parametrize("base", [2, 10])
def test_logarithms_to_another_base_give_the_same_table(base):
    sets = [cells(n, seed=n) for n in (120, 121, 240)]
    metrics = ["w2", "gene_mean_error", "gene_variance_error", "dcr_ratio"]
    real, synthetic, train = (in_logarithms(adata, base) for adata in sets)
    expected = table(*sets[:2], train=sets[2], metrics=metrics)
    # single precision of the logarithms
    pd.testing.assert_frame_equal(table(real, synthetic, train=train, metrics=metrics), expected, rtol=1e-3)
    pd.testing.assert_frame_equal(table(real, sets[1], train=sets[2], metrics=metrics), expected, rtol=1e-3)


def test_counts_beside_a_left_over_entry_of_logarithms_are_counts():
    real, synthetic, train = (cells(n, seed=n) for n in (120, 121, 240))
    expected = table(real, synthetic, train=train, n_bootstrap=0)
    for adata in (real, synthetic, train):
        adata.uns["log1p"] = {"base": None}
    with pytest.warns(UserWarning, match="`synthetic.uns.*counts"):
        found = table(real, synthetic, train=train, n_bootstrap=0)
    pd.testing.assert_frame_equal(found, expected)


# --- what the figures see ---------------------------------------------------------------------------------------------


def test_a_group_that_was_dropped_is_visible():
    real, synthetic, train = cells(240, seed=1, labels="abc"), cells(240, seed=2), cells(480, seed=3, labels="abc")
    found = table(real, synthetic, train=train, groupby="type", metrics=[*QUICK, "group_share_difference"])
    dropped = found[found["group"] == "c"].set_index("metric")
    assert dropped.loc[QUICK, BOUNDS_COLUMNS].isna().all(axis=None)
    assert dropped.loc["group_share_difference", "value"] == pytest.approx(1 / 3, abs=0.01)
    assert figure(found, "group_share_difference") == pytest.approx(1 / 3, abs=0.01)
    assert figure(found, "group_share_difference", "real") < 0.1
    assert found.attrs["n_cells"]["c"] == 0
    assert found.attrs["n_labelled"] == {"all": (240, 240), "a": (80, 120), "b": (80, 120), "c": (80, 0)}
    assert json.loads(json.dumps(found.attrs))["n_labelled"]["b"] == [80, 120]  # as parquet keeps them


@pytest.mark.parametrize(("metric", "labels"), [("mmd_per_label", "abcdef"), ("marker_overlap", "abcdefghijkl")])
def test_half_samples_keep_labels_that_have_just_enough_cells(metric, labels):
    # 30 cells a label, of which an MMD needs 20, and 15, of which markers need 10
    sets = [cells(n_cells, seed=seed, labels=labels, n_genes=120) for seed, n_cells in enumerate([180, 180, 400])]
    found = table(*sets[:2], train=sets[2], groupby="type", metrics=metric, n_repeats=0, n_bootstrap=10)
    reach = (figure(found, metric, "high") - figure(found, metric, "low")) / 2
    assert 0.005 < reach < 0.04  # 1.96 standard deviations between draws are 0.006 and 0.024


def test_a_group_that_was_invented_is_visible_in_the_shares_alone():
    real, synthetic, train = cells(120, seed=1), cells(120, seed=2, labels="abc"), cells(240, seed=3)
    found = table(real, synthetic, train=train, groupby="type", metrics=[*QUICK, "group_share_difference"])
    invented = found[found["group"] == "c"]
    assert invented["metric"].tolist() == ["group_share_difference"]
    assert invented["value"].item() == pytest.approx(1 / 3, abs=0.01)
    assert invented["real"].item() == 0  # no real cell has it


def test_groups_with_few_real_cells_have_no_rows():
    found = table(cells(100, seed=1, labels="abcd"), train=cells(400, seed=3, labels="abcd"), groupby="type")
    assert set(found["group"]) == {"all"}
    assert found.attrs["n_cells"] == {"all": 100, "a": 0, "b": 0, "c": 0, "d": 0}


@pytest.mark.parametrize("n_synthetic", [800, 400])
def test_shares_of_labels_are_counted_in_all_cells(n_synthetic):
    labels = "abcdefghijklmnopqrst"
    sets = {"real": (800, labels), "synthetic": (n_synthetic, labels), "train": (1600, labels)}
    sets = {name: cells(n, seed=n, labels=own) for name, (n, own) in sets.items()}
    options = {"groupby": "type", "max_cells": 50, "metrics": ["group_share_difference"], "n_bootstrap": 10}

    equal = table(**sets, **options)
    assert equal.attrs["n_labelled"]["a"] == (40, n_synthetic // 20)
    assert equal["value"].max() == pytest.approx(0, abs=1e-12)  # of 50 cells by chance: 0.25
    assert 0.02 < figure(equal, "group_share_difference", "real") < 0.15
    assert figure(equal, "group_share_difference", "high") < 0.15

    sets["synthetic"].obs["type"] = np.where(np.arange(n_synthetic) % 10, sets["synthetic"].obs["type"], "a")
    other = table(**sets, **options)
    assert figure(other, "group_share_difference") == pytest.approx(0.05)  # half of those changed were "a" before
    assert figure(other, "group_share_difference", group="a") == pytest.approx(0.05)


@pytest.mark.parametrize("train", [1400, None])
def test_labels_of_which_few_cells_are_drawn_are_compared_by_cells_of_their_own(train):
    labels, names = "abcdefghij", ["marker_overlap", "marker_slope", "mmd_per_label"]
    real, synthetic = (cells(n, seed=n, labels=labels, n_genes=120) for n in (700 if train else 1400, 701))
    train = train and cells(train, seed=3, labels=labels, n_genes=120)
    judge = lambda synthetic: table(real, synthetic, train=train, groupby="type", max_cells=50, metrics=names)

    found = judge(synthetic)
    assert found[BOUNDS_COLUMNS].notna().all(axis=None)
    assert set(found.loc[found["metric"] == "marker_overlap", "group"]) == {"all", *labels}
    for metric, tolerance in {"marker_overlap": 0.03, "marker_slope": 0.05, "mmd_per_label": 0.01}.items():
        assert figure(found, metric) == pytest.approx(figure(found, metric, "real"), abs=tolerance)

    swapped = synthetic.copy()
    swapped.obs["type"] = swapped.obs["type"].replace({"a": "b", "b": "a"})
    found = judge(swapped)
    assert figure(found, "marker_overlap", group="a") < 0.6 < figure(found, "marker_overlap", group="c")
    assert figure(found, "mmd_per_label") > 0.05

    missing = judge(synthetic[synthetic.obs["type"] != "a"].copy())
    assert figure(missing, "marker_overlap", group="a") == 0
    assert figure(missing, "marker_overlap") < 0.91  # nine of ten labels
    assert np.isnan([figure(missing, metric) for metric in ("marker_slope", "mmd_per_label")]).all()


def test_several_columns_are_joined_and_values_with_the_joining_sign_stay_apart():
    sets = [cells(n, seed=seed) for n, seed in ((120, 1), (120, 2), (240, 3))]
    for adata in sets:
        first = (adata.obs["type"] == "a").to_numpy()
        adata.obs["one"], adata.obs["two"] = np.where(first, "x|y", "x"), np.where(first, "z", "y|z")
    found = table(*sets[:2], train=sets[2], groupby=["one", "two"], metrics=["w2", "group_share_difference"])
    assert set(found["group"]) == {"all", r"x\|y|z", r"x|y\|z"}
    assert set(table(*sets[:2], train=sets[2], groupby="one", metrics=["w2"])["group"]) == {"all", "x|y", "x"}


def test_copies_of_training_cells_are_seen():
    train = cells(240, seed=3)
    copies = train[:120].copy()
    copies.obs_names = [f"copy_{n}" for n in range(120)]
    names = ["dcr_ratio", "nearer_than_held_out", "copied_cells", "duplicate_share", "membership_auc"]
    found = table(synthetic=copies, train=train, metrics=names)
    assert figure(found, "dcr_ratio") == 0
    assert figure(found, "nearer_than_held_out") == figure(found, "copied_cells") == 1
    assert figure(found, "dcr_ratio", "real") == pytest.approx(1, abs=0.15)
    assert figure(found, "copied_cells", "real") == figure(found, "duplicate_share") == 0
    assert figure(found, "membership_auc") > 0.65  # half of the training cells were copied


COPIES = ["copied_cells", "duplicate_share", "copied_test_cells"]


def with_copies(*parts):
    together = ad.concat(parts, index_unique="-")
    together.obs_names = [f"c{together.n_obs}_{number}" for number in range(together.n_obs)]
    return together


@pytest.mark.parametrize("is_backed", [False, True])
def test_a_few_copies_among_many_cells_are_all_counted(tmp_path, is_backed):
    real, train, drawn = cells(60, seed=1), cells(240, seed=3), cells(580, seed=2)
    synthetic = with_copies(drawn, train[:6], real[:4], drawn[:5], train[200:205])
    if is_backed:
        synthetic.write_h5ad(tmp_path / "synthetic.h5ad")
        synthetic = ad.read_h5ad(tmp_path / "synthetic.h5ad", backed="r")
    found = table(real, synthetic, train=train, metrics=COPIES)
    assert figure(found, "copied_cells") == 11 / 600
    assert figure(found, "copied_test_cells") == 4 / 600
    assert figure(found, "duplicate_share") == 10 / 600
    assert found["real"].tolist() == [0, 0, 0]
    assert summary(found).of_level("warning") == ["copied_cells", "duplicate_share"]


def test_real_values_of_copies_are_counted_in_all_real_cells():
    real, train = cells(120, seed=1), cells(240, seed=3)
    leaked = with_copies(real, train[:6])
    with pytest.warns(UserWarning, match="At least 4.8% .*`real_test`"):
        found = table(leaked, cells(120, seed=2), train=with_copies(train, train[:5]), metrics=COPIES)
    assert figure(found, "copied_cells", "real") == found.attrs["leaked"] == 6 / 126
    # of 245 training cells, two copies of five and one of a sixth
    assert figure(found, "copied_test_cells", "real") == 11 / 245
    assert 0 < figure(found, "duplicate_share", "real") < 10 / 245  # among 120 of them, there are fewer twins
    of_real = table(
        with_copies(cells(150, seed=1), cells(150, seed=1)[:3]), cells(60, seed=2), train=None, metrics=COPIES[1:]
    )
    assert figure(of_real, "copied_test_cells", "real") == 6 / 153


def test_the_interval_of_no_copies_depends_on_the_number_of_cells():
    few, many = (table(synthetic=cells(n, seed=2), metrics="copied_cells") for n in (120, 1_200))
    assert figure(few, "copied_cells", "low") == figure(many, "copied_cells", "low") == 0
    # the upper limit of Wilson's interval of 0 of n is z² / (n + z²)
    assert figure(few, "copied_cells", "high") == pytest.approx(3.8415 / 123.8415, rel=1e-4)
    assert figure(many, "copied_cells", "high") == pytest.approx(3.8415 / 1203.8415, rel=1e-4)
    bare = table(metrics="copied_cells", n_bootstrap=0, n_repeats=0)
    assert bare[["real", "low", "high"]].isna().all(axis=None)


def test_counts_and_logarithms_have_no_copies_of_each_other():
    real, train = in_logarithms(cells(120, seed=1), None), in_logarithms(cells(240, seed=3), None)
    found = table(real, cells(120, seed=2), train=train, metrics=["copied_cells", "copied_test_cells"])
    assert found[["value", "real", "low", "high"]].isna().all(axis=None)
    synthetic = with_copies(in_logarithms(cells(60, seed=2), None), real[:20])
    synthetic.uns = real.uns
    assert figure(table(real, synthetic, train=train, metrics="copied_test_cells"), "copied_test_cells") == 0.25


def test_a_few_changed_copies_among_all_synthetic_cells_are_found_even_beside_other_values():
    # the comparison draws 120 of the 1,500 cells
    real, synthetic, train = (cells(n, seed=seed, n_genes=200) for n, seed in ((120, 1), (1500, 2), (600, 3)))
    changed = train[:12].copy()
    changed.X = changed.X.copy()
    changed.X.data[changed.X.indptr[:-1]] += 1  # one count each
    synthetic = in_logarithms(ad.concat([synthetic, changed]), None)
    for with_copies, least, most in ((synthetic, 8, 12), (synthetic[:1500], 0, 0)):
        found = table(real, with_copies, train=train, metrics=["near_copies", "nearer_than_held_out"])
        assert least <= round(1512 * figure(found, "near_copies")) <= most
        assert figure(found, "near_copies", "real") == 0
        assert ("near_copies" in summary(found).of_level("warning")) == (most > 0)


@pytest.mark.parametrize(("n_genes", "total", "n_empty"), [(10, 30, 0), (20, 20, 0), (60, 300, 12)])
def test_sparse_and_empty_cells_are_no_near_copies(n_genes, total, n_empty):
    def draw(n, seed):
        shares = np.random.default_rng(0).dirichlet(np.ones(n_genes))
        counts = np.random.default_rng(seed).poisson(total * shares, (n, n_genes)).astype(np.float32)
        counts[:n_empty] = 0
        return ad.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=[f"{seed} {row}" for row in range(n)]))

    for seed in (10, 20, 30):
        found = table(draw(400, seed + 1), draw(1500, seed + 2), train=draw(800, seed + 3), metrics="near_copies")
        assert summary(found).of_level("ok") == ["near_copies"]


def test_a_layer_that_concat_filled_with_zeros_is_noticed():
    real, synthetic = cells(150, seed=1), cells(120, seed=2)
    real.layers["counts"] = real.X.copy()
    both = ad.concat([real, synthetic], join="outer")
    with pytest.warns(UserWarning, match="`synthetic` has values in `X`"):
        table(both[:150].copy(), both[150:].copy(), metrics=["gene_mean_error"])


def test_the_attack_uses_all_synthetic_cells_not_only_those_compared():
    train = cells(400, seed=3)
    found = table(cells(60, seed=1), train.copy(), train=train, metrics=["membership_auc", "copied_cells"])
    assert figure(found, "membership_auc") == figure(found, "membership_auc", "high") == 1  # every member was copied
    assert figure(found, "membership_auc", "real") == pytest.approx(0.5, abs=0.25)


def test_the_cells_that_the_components_were_chosen_on_take_no_part_in_the_attack():
    # with 30 components of 150 cells, these lie further out than any others: an AUC far below a half, whatever the
    # synthetic cells are
    sets = [cells(n, seed=seed, n_genes=400) for n, seed in ((150, 1), (150, 2), (300, 3))]
    found = table(*sets[:2], train=sets[2], metrics=["membership_auc"])
    for column in ("value", "real"):
        assert figure(found, "membership_auc", column) == pytest.approx(0.5, abs=0.12)  # standard error 0.03


# --- the cells behind it ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_table_whatever_the_order_of_synthetic_genes_and_another_seed_another():
    first, second, third = table(seed=0), table(synthetic=cells(120, seed=2)[:, ::-1].copy(), seed=0), table(seed=1)
    pd.testing.assert_frame_equal(first, second)
    assert not first["value"].equals(third["value"])


def test_the_sets_and_the_global_random_numbers_are_left_as_they_are():
    real, synthetic, train = cells(120, seed=1), cells(120, seed=2), cells(240, seed=3)
    before, state = [adata.copy() for adata in (real, synthetic, train)], np.random.get_state()[1].copy()
    table(real, synthetic, train=train, metrics=["auc_neighbours", "membership_auc", *QUICK], groupby="type")
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    for adata, copy in zip((real, synthetic, train), before, strict=True):
        assert (adata.X != copy.X).nnz == 0
        assert list(adata.obs.columns) == list(copy.obs.columns)
        assert not adata.obsm
        assert not adata.uns


def test_arrays_are_counts():
    sets = [cells(n, seed=n) for n in (120, 121, 240)]
    of_arrays = evaluate(*(s.X.toarray() for s in sets[:2]), train=sets[2].X, metrics=QUICK, n_repeats=1, n_bootstrap=0)
    pd.testing.assert_frame_equal(
        of_arrays, evaluate(*sets[:2], train=sets[2], metrics=QUICK, n_repeats=1, n_bootstrap=0)
    )


def test_training_cells_in_files_give_the_same_table(tmp_path):
    train = cells(240, seed=3)
    train[:100, ::-1].copy().write_h5ad(tmp_path / "first.h5ad")
    train[100:].copy().write_h5ad(tmp_path / "second.h5ad")
    metrics = [*QUICK, "dcr_ratio", "copied_cells"]

    found = table(
        train=CellFiles([tmp_path / "first.h5ad", tmp_path / "second.h5ad"]), metrics=metrics, groupby=["type", "batch"]
    )

    # genes in the order of the first file, but those of the real cells count
    pd.testing.assert_frame_equal(found, table(train=train, metrics=metrics, groupby=["type", "batch"]))


def test_training_cells_in_files_are_checked_like_others(tmp_path):
    cells(150, seed=3)[:, :-1].copy().write_h5ad(tmp_path / "cells.h5ad")
    fewer_genes = CellFiles(tmp_path / "cells.h5ad")

    with pytest.raises(ValueError, match="`train` lacks 1 of the 40 genes of the real cells"):
        table(train=fewer_genes)
    with pytest.raises(TypeError, match="`train`.*CellFiles"):
        table(train=fewer_genes, control=cells(60, seed=4), perturbation_key="type")


def test_real_counts_may_lie_in_a_layer_that_generated_cells_lack():
    real, synthetic, train = cells(120, seed=1), cells(120, seed=2), cells(240, seed=3)
    expected = table(real, synthetic, train=train)
    for adata in (real, train):
        adata.layers["raw"] = adata.X.copy()
        adata.X = adata.X * 0.5
    pd.testing.assert_frame_equal(table(real, synthetic, train=train, layer="raw"), expected)


def test_both_sides_have_as_many_cells_as_the_smallest_set_and_a_given_space_leaves_all_training_cells():
    assert table(synthetic=cells(70, seed=2)).attrs["n_cells"] == {"all": 70}
    assert table(train=cells(110, seed=3)).attrs["n_cells"] == {"all": 55}
    assert table(train=None, real=cells(180, seed=1)).attrs["n_cells"] == {"all": 60}
    assert table(max_cells=50).attrs["n_cells"] == {"all": 50}
    space = ComparisonSpace.fit(cells(200, seed=9))
    assert table(train=cells(110, seed=3), space=space).attrs["n_cells"] == {"all": 110}
    assert table(real=cells(180, seed=1), train=None, space=space).attrs["n_cells"] == {"all": 90}


def test_sparse_cells_are_never_made_dense_as_a_whole(monkeypatch):
    largest = []
    toarray = sp.csr_matrix.toarray
    monkeypatch.setattr(
        sp.csr_matrix, "toarray", lambda self, *a, **k: largest.append(np.prod(self.shape)) or toarray(self, *a, **k)
    )
    table(
        *(cells(600, seed=seed, n_genes=2500) for seed in (1, 2)),
        train=cells(200, seed=3, n_genes=2500),
        metrics=["gene_mean_error", "auc_logistic", "within_label_correlation"],
        max_cells=50,
        n_repeats=1,
        n_bootstrap=5,
    )
    assert max(largest) <= 100 * 2000  # drawn cells in the space's genes


# --- intervals --------------------------------------------------------------------------------------------------------


def test_half_samples_give_the_standard_error_of_a_mean():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    halves = [rng.permutation(values)[:200].mean() for _ in range(4000)]
    low, high = interval(values.mean(), halves, (-np.inf, np.inf))
    # 1.96 standard errors of the mean of 400 cells on either side; 4 000 halves know it to 1 %
    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=0.05)


def test_intervals_of_few_half_samples_hold_the_true_value_as_often():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((4000, 11))  # a value and ten half-samples, of equal variance

    found = np.array([interval(value, halves, (-np.inf, np.inf)) for value, *halves in spread])

    # chance has a standard deviation of 0.0034; the normal quantile would give 0.92
    assert ((found[:, 0] < 0) & (found[:, 1] > 0)).mean() == pytest.approx(0.95, abs=0.012)


def test_intervals_of_a_classifier_are_as_wide_as_its_auc_varies_between_draws_of_cells():
    options = {"metrics": ["auc_logistic"], "n_repeats": 0, "n_bootstrap": 10}
    space = ComparisonSpace.fit(cells(240, seed=3))
    found = [
        table(cells(120, seed=100 + seed), cells(120, seed=200 + seed), space=space, **options).iloc[0]
        for seed in range(24)
    ]
    reach = np.mean([row["high"] - row["low"] for row in found]) / 2
    spread = np.std([row["value"] for row in found], ddof=1)
    # 2.26 is the quantile of Student's t for ten half-samples; 24 draws know their deviation to 15 %
    assert reach / 2.26 == pytest.approx(spread, rel=0.25)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": ["w3"]}, ValueError, "`metrics`.*'w3'"),
        ({"metrics": "marker_slope"}, ValueError, "'marker_slope'.*`groupby`"),
        ({"metrics": ["copied_cells"], "train": None, "real": cells(150, seed=1)}, ValueError, "`train`"),
        ({"groupby": "typ"}, KeyError, "'typ'.*'type'"),
        ({"layer": "raw"}, KeyError, "'raw' .*real_test"),
        ({"real": cells(49, seed=1)}, ValueError, "`real_test` has 49 cells"),
        ({"real": cells(149, seed=1), "train": None}, ValueError, "`real_test` has 149 cells"),
        ({"synthetic": cells(49, seed=2)}, ValueError, "`synthetic` has 49 cells"),
        ({"train": cells(99, seed=3)}, ValueError, "`train` has 99 cells"),
        ({"synthetic": cells(60, seed=2)[:, :30]}, ValueError, "`synthetic` lacks 10 of the 40 genes"),
        ({"max_cells": 10}, ValueError, "`max_cells`"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"seed": 2**32}, ValueError, "`seed`"),
        ({"n_bootstrap": -1}, ValueError, "`n_bootstrap`"),
        ({"n_repeats": -1}, ValueError, "`n_repeats`"),
        ({"space": ComparisonSpace.fit(cells(60, seed=9, n_genes=50))}, ValueError, "40 genes"),
    ],
)
def test_arguments_that_cannot_be_compared_raise(options, error, message):
    with pytest.raises(error, match=message):
        table(**options)


def changed(adata, **changes):
    for name, value in changes.items():
        setattr(adata, name, value(adata))
    return adata


LOGS = {"uns": lambda adata: {"log1p": {}}}


def of_type(labels):
    return {"obs": lambda adata: adata.obs.assign(type=labels)}


@pytest.mark.parametrize(
    ("sets", "error", "message"),
    [
        ({"synthetic": {"var_names": lambda a: "E" + a.var_names}}, ValueError, "`synthetic` lacks"),
        ({"synthetic": {"obs": lambda a: a.obs[[]]}}, KeyError, "`synthetic.obs`.*'type'"),
        ({"real": of_type([None] * 3 + ["a"] * 57)}, ValueError, "`real_test.obs.* 3 of 60"),
        ({"real": of_type("1"), "synthetic": of_type("1.0")}, ValueError, "`synthetic` and `real_test`.*1.0"),
        ({"real": {"X": lambda a: a.X * 0.5}}, ValueError, "`real_test`"),
        ({"synthetic": {"X": lambda a: None}}, ValueError, "`synthetic`"),
        ({"real": {"X": lambda a: a.X * 1000.5, **LOGS}}, ValueError, "`real_test"),
        ({"real": {"X": lambda a: a.X.log1p(), "uns": lambda a: {"log1p": {"base": "two"}}}}, ValueError, "'two'"),
        ({"real": {"X": lambda a: -a.X.log1p(), **LOGS}}, ValueError, "`real_test`"),
    ],
)
def test_sets_that_cannot_be_read_or_compared_raise(sets, error, message):
    sets = {name: changed(cells(60, seed=len(name)), **changes) for name, changes in sets.items()}
    with pytest.raises(error, match=message):
        table(**sets, groupby="type")


def test_correlations_are_those_of_the_hundred_most_expressed_genes():
    def linked(n_cells, seed):
        adata, rng = cells(n_cells, seed=seed, n_genes=200), np.random.default_rng(seed)
        factor = rng.normal(size=(n_cells, 1)) * np.resize([0.5, -0.5], 100)
        values = np.hstack([rng.poisson(30 * np.exp(factor)), rng.poisson(1.0, (n_cells, 100))])
        adata.X = sp.csr_matrix(values, dtype="f4")
        return adata

    found = table(linked(120, 1), linked(120, 2), train=linked(240, 3), metrics="within_label_correlation")
    assert figure(found, "within_label_correlation") > 0.8


def test_generated_cells_in_the_place_of_real_ones_are_refused():
    real, synthetic = cells(120, seed=1), cells(120, seed=2)
    synthetic.uns["scgen_diffusion"] = {"model": "SCLDM"}
    with pytest.raises(ValueError, match="`real_test` holds generated cells"):
        table(synthetic, real)
