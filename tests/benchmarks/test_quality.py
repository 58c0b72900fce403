"""The quality study: what is held out, what is trained, what is stored."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

drawing = pytest.importorskip("benchmarks.quality.drawing")
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


def test_cells_drawn_for_labels_have_them_and_are_distinct_while_they_last():
    labels = np.array(["a", "a", "a", "b"])
    drawn = drawing.draw_matching(labels, np.array(["b", "a", "a", "b", "a"]), np.random.default_rng(0))
    assert labels[drawn].tolist() == ["b", "a", "a", "b", "a"]
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 3]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the very command on made-up cells."""
    monkeypatch.setattr(quality, "load", lambda _: labelled_cells(n_genes=220))

    def run(*options):
        monkeypatch.setattr(
            "sys.argv", ["goals", "--datasets", "pbmc3k", "--seeds", "0", "--results", str(tmp_path), *options]
        )
        quality.main()
        return pd.read_csv(tmp_path / "quality.csv")

    return run


def test_methods_and_variants_are_trained_drawn_from_and_judged_once(run):
    quick = 'quick={"class": "WBDIT", "train": {"max_epochs": 1, "enable_progress_bar": false}}'
    rows = run("--methods", "shuffled", "--variants", quick)
    assert list(rows["method"].unique()) == ["floor", "shuffled", "quick"]
    assert rows.set_index(["method", "metric"])["value"]["quick", "train_minutes"] > 0
    pd.testing.assert_frame_equal(run("--methods", "shuffled"), rows)  # what is stored is not measured again


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--methods", "WBDIT-ideal-prior"], r"WBDIT-ideal-prior.*known.*SCLDM-ideal-prior"),
        (["--methods", "--variants", 'wide={"class": "DIT"}'], "SCRDIT"),
    ],
)
def test_unknown_methods_and_models_are_errors_that_list_the_known_ones(run, options, match):
    with pytest.raises(ValueError, match=match):
        run(*options)
