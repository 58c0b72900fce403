"""The quality study: what is held out, what is trained, what is stored."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

quality = pytest.importorskip("benchmarks.quality.goals")
tables = pytest.importorskip("benchmarks.tables")
splits = pytest.importorskip("benchmarks.quality.splits")


def labelled_cells(n_cells=200, n_genes=30):
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(rng.gamma(1.0, 2.0, n_genes), (n_cells, n_genes)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["b", "a"] * (n_cells // 2)),
            "condition": pd.Categorical(["x"] * (n_cells - 40) + ["y"] * 40),
        },
        index=[f"cell-{i}" for i in range(n_cells)],
    )
    return ad.AnnData(np.log1p(counts), obs=obs, layers={"counts": counts})


def split(seed=0):
    return splits.split_cells(labelled_cells(), ("cell_type", "condition"), seed=seed, n_genes=20)


def rows(method, value, seed=0):
    return pd.DataFrame({"dataset": "d", "seed": seed, "method": method, "metric": ["m", "n"], "value": value})


def test_split_holds_a_quarter_of_every_label_out():
    parts = split()
    assert not set(parts.train.obs_names) & set(parts.held_out.obs_names)
    train, held_out = (pd.Series(labels).value_counts() for labels in (parts.train_labels, parts.held_out_labels))
    assert (held_out / (train + held_out)).to_dict() == dict.fromkeys(("a|x", "b|x", "a|y", "b|y"), 0.25)


def test_split_keeps_the_most_variable_genes_in_their_order():
    parts = split()
    adata = labelled_cells()[parts.train.obs_names]
    variance = pd.Series(splits.log_normalise(adata.layers["counts"]).var(axis=0), index=adata.var_names)
    assert list(parts.train.var_names) == [
        gene for gene in variance.index if variance[gene] >= variance.nlargest(20).min()
    ]


def test_split_holds_counts_and_not_the_values_of_x():
    parts = split()
    np.testing.assert_array_equal(parts.train.layers["counts"].data % 1, 0)


def test_labels_join_all_condition_keys():
    assert set(split().held_out_labels) == {"a|x", "b|x", "a|y", "b|y"}


def test_variant_arguments_go_to_the_model_unless_told_otherwise():
    name, variant = quality.Variant.parse('small={"n_latent": 4, "train": {"max_epochs": 2}}')
    assert name == "small"
    assert variant == quality.Variant(model={"n_latent": 4}, train={"max_epochs": 2})


def test_only_a_model_with_an_autoencoder_reconstructs():
    variants = {name: quality.Variant(model_class=name) for name in quality.MODELS}
    quality.check_methods(["SCLDM-reconstruction", "SCRDIT", "copula"], variants)
    with pytest.raises(ValueError, match="WBDIT.*only SCLDM"):
        quality.check_methods(["WBDIT-ideal-prior"], variants)


def test_a_gene_space_model_is_trained_and_drawn_from():
    parts = splits.split_cells(labelled_cells(n_genes=220), ("cell_type",), seed=0, n_genes=210)
    quick = quality.Variant(model_class="WBDIT", train={"max_epochs": 1, "enable_progress_bar": False})
    sampled = quality.ModelRuns(parts, 0, {"WBDIT": quick}).sample("WBDIT")
    assert sampled.counts.shape == parts.held_out.shape
    np.testing.assert_array_equal(sampled.counts % 1, 0)


def test_cells_drawn_for_labels_have_them_and_are_distinct_while_they_last():
    labels = np.array(["a", "a", "a", "b"])
    drawn = quality.draw_matching(labels, np.array(["b", "a", "a", "b", "a"]), np.random.default_rng(0))
    assert labels[drawn].tolist() == ["b", "a", "a", "b", "a"]
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 3]


def test_stored_rows_are_added_and_replaced_by_key(tmp_path):
    path = tmp_path / "new" / "table.csv"
    for table in (rows("one", 1.0), rows("two", 2.0), rows("one", 3.0), rows("one", 4.0, seed=1)):
        tables.store_rows(path, table, ("dataset", "seed", "method"))
    stored = tables.read_table(path)
    assert stored.groupby(["method", "seed"])["value"].agg(list).to_dict() == {
        ("one", 0): [3.0, 3.0],
        ("one", 1): [4.0, 4.0],
        ("two", 0): [2.0, 2.0],
    }


def test_done_methods_are_not_pending(tmp_path):
    path, variants = tmp_path / "quality.csv", {"SCLDM": quality.Variant()}
    tables.store_rows(path, rows("copula", 1.0).assign(settings=""))
    assert quality.pending(path, "d", 0, ["copula", "SCLDM"], variants) == ["SCLDM"]
    assert quality.pending(path, "d", 1, ["copula", "SCLDM"], variants) == ["copula", "SCLDM"]


def test_a_variant_that_changed_under_its_name_is_refused(tmp_path):
    path = tmp_path / "quality.csv"
    tables.store_rows(path, rows("small", 1.0).assign(settings=quality.Variant(model={"n_latent": 4}).describe()))
    with pytest.raises(ValueError, match="name it otherwise"):
        quality.pending(path, "d", 0, ["small"], {"small": quality.Variant(model={"n_latent": 2})})


def test_summary_marks_goals_by_means_over_seeds():
    table = pd.DataFrame(
        {
            "dataset": "d",
            "seed": [0, 1, 0, 1],
            "method": ["floor", "floor", "good", "good"],
            "metric": "recall",
            "value": [0.8, 1.0, 0.80, 0.95],
            "versions": "v",
            "machine": "m",
        }
    )
    summary = quality.summarise(table)
    assert "| recall | 0.900 | >= 0.855 | **0.875** |" in summary
    assert "| goals met |  | 1 | 1 |" in summary
