"""The quality benchmark: what is held out, that cells go from a method to the tables, and who is called first."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

quality = pytest.importorskip("benchmarks.quality.__main__")
drawing = pytest.importorskip("benchmarks.quality.drawing")
report = pytest.importorskip("benchmarks.quality.report")
splits = pytest.importorskip("benchmarks.quality.splits")
tables = pytest.importorskip("benchmarks.tables")


@pytest.fixture
def cells(make_cells):
    """Cells of four labels, two of them rarer."""
    adata = make_cells(400, 30)
    adata.layers["counts"], adata.X = adata.X, np.log1p(adata.X)
    adata.obs["cell_type"] = pd.Categorical(["b", "a"] * 200)
    adata.obs["condition"] = pd.Categorical(["x"] * 320 + ["y"] * 80)
    return adata


@pytest.fixture
def split(cells):
    return splits.split_cells(cells, ("cell_type", "condition"), seed=0, n_genes=20)


def stored(**values):
    """A table as it is stored: one metric, two seeds."""
    rows = [
        {"dataset": "d", "seed": seed, "method": method, "metric": "w2", "group": "all", "value": value + seed}
        | {"floor": 1.0, "shuffled": 9.0, "low": value - 1, "high": value + 1, "better": "lower"}
        | {"versions": "v", "machine": "m"}
        for method, value in values.items()
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


# --- splits ---------------------------------------------------------------------------------------------------------------


def test_split_holds_a_quarter_of_every_label_out(split):
    assert not set(split.train.obs_names) & set(split.held_out.obs_names)
    train, held_out = (pd.Series(labels).value_counts() for labels in (split.train_labels, split.held_out_labels))
    assert (held_out / (train + held_out)).to_dict() == dict.fromkeys(("a|x", "b|x", "a|y", "b|y"), 0.25)


def test_split_keeps_the_counts_of_the_most_variable_genes_in_their_order(split, cells):
    adata = cells[split.train.obs_names]
    variance = pd.Series(splits.log_normalise(adata.layers["counts"]).var(axis=0), index=adata.var_names)
    kept = [gene for gene in variance.index if variance[gene] >= variance.nlargest(20).min()]
    assert list(split.train.var_names) == kept
    np.testing.assert_array_equal(split.train.layers["counts"], adata[:, kept].layers["counts"])


def test_cells_drawn_for_labels_have_them_and_are_distinct_while_they_last():
    labels = np.array(["a", "a", "a", "b"])
    drawn = drawing.draw_matching(labels, np.array(["b", "a", "a", "b", "a"]), np.random.default_rng(0))
    assert labels[drawn].tolist() == ["b", "a", "a", "b", "a"]
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 3]


# --- from a method to the tables ------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, tmp_path, cells):
    """Run the very command on made-up cells, the drawing in this process."""
    monkeypatch.setattr(quality, "load", lambda _: cells)
    monkeypatch.setattr(drawing, "load", lambda _: cells)
    quick = partial(splits.judge, metrics=["w2", "gene_zero_error"], n_floor=1, n_bootstrap=2)
    monkeypatch.setattr(quality, "judge", quick)

    def draw_here(command, **_):
        monkeypatch.setattr("sys.argv", [str(part) for part in command[2:]])
        drawing.main()

    monkeypatch.setattr(quality.subprocess, "run", draw_here)

    def run(*options):
        where = ["--datasets", "pbmc3k", "--seeds", "0", "--cells", str(tmp_path), "--results", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["quality", *where, *options])
        quality.main()
        return tables.read_table(tmp_path / "compare.csv")

    return run


def test_methods_and_variants_are_drawn_and_judged_once_with_their_costs(run, tmp_path):
    train = '"train": {"max_epochs": 1, "enable_progress_bar": false}'
    methods = (
        "shuffled",
        f'quick={{"class": "WBDIT", "width": 16, {train}}}',
        f'again={{"draw": "ideal-prior", {train}}}',
    )
    assert run("--steps", "draw", "--methods", *methods).empty
    rows = run("--steps", "judge", "--methods", *methods)
    assert list(rows["method"].unique()) == ["shuffled", "quick", "again"]
    values = rows.set_index(["method", "metric"])["value"]
    assert values["quick", "cpu_minutes"] > 0
    assert values["shuffled", "gene_zero_error"] < values["quick", "gene_zero_error"]
    assert '"width": 16' in rows["settings"][rows["method"] == "quick"].iloc[0]
    assert "shuffled | quick | again |" in (tmp_path / "compare.md").read_text()
    assert "| goals met |" in (tmp_path / "goals.md").read_text()
    for path in tmp_path.glob("*.h5ad"):
        path.unlink()
    pd.testing.assert_frame_equal(run("--methods", "shuffled"), rows)  # what is stored is not measured again


@pytest.mark.parametrize(
    ("method", "match"), [("WBDIT-ideal-prior", "SCLDM-ideal-prior"), ('x={"class": "DIT"}', "SCRDIT")]
)
def test_unknown_methods_and_models_are_errors_that_list_the_known_ones(run, method, match):
    with pytest.raises(ValueError, match=match):
        run("--methods", method)


def test_stored_rows_are_added_and_replaced_by_key(tmp_path):
    def rows(method, value, seed=0):
        return pd.DataFrame({"dataset": "d", "seed": seed, "method": method, "metric": ["m", "n"], "value": value})

    path = tmp_path / "new" / "table.csv"
    for table in (rows("one", 1.0), rows("two", 2.0), rows("one", 3.0), rows("one", 4.0, seed=1)):
        tables.store_rows(path, table, ("dataset", "seed", "method"))
    stored = tables.read_table(path).groupby(["method", "seed"])["value"].agg(list).to_dict()
    assert stored == {("one", 0): [3.0, 3.0], ("one", 1): [4.0, 4.0], ("two", 0): [2.0, 2.0]}


# --- the tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("better", "expected"), [("lower", [0.0, 0.5]), ("higher", [0.5, 0.0]), ("floor", [0.5, 0.5])])
def test_only_the_bad_side_of_the_floor_counts(better, expected):
    rows = pd.DataFrame({"value": [0.5, 1.5], "floor": 1.0, "better": better})
    np.testing.assert_allclose(report.shortfall(rows), expected)


def test_methods_not_significantly_different_from_the_best_are_best_too():
    values = {"best": 0.50, "near": 0.52, "far": 0.60}
    rows = pd.DataFrame({"value": values, "floor": 0.0, "error": 0.01, "better": "lower"})
    assert report.leaders(rows).to_dict() == {"best": True, "near": True, "far": False}


def test_means_and_errors_are_over_seeds():
    means = report.means_over_seeds(stored(a=2.0)).iloc[0]
    assert (means["value"], means["n_seeds"]) == (2.5, 2)
    # intervals of width 2 are 2 / 3.92 standard deviations; the spread of 2 and 3 is 0.707, the larger of both
    assert means["error"] == pytest.approx(np.sqrt(0.5) / np.sqrt(2))


def test_summary_marks_the_first_in_bold():
    assert "| w2 | lower | 1 | 9 | **2.5** | 30.5 |" in report.summarise(stored(a=2.0, b=30.0), ["a", "b"])


def test_goals_are_limits_on_means_beside_the_floor():
    text = report.summarise_goals(stored(bad=1.0, good=0.5), ["good", "bad"])
    assert "| w2 | 1 | <= 1.05 | **1** | 1.5 |" in text
    assert "| goals met |  | 1 | 1 | 0 |" in text


@pytest.mark.parametrize(
    ("metric", "value", "floor", "met"),
    [
        ("auc_genes", 0.60, 0.5, True),
        ("auc_genes", 0.61, 0.5, False),
        ("recall", 0.85, 0.9, False),
        ("mmd2", 0.0009, -0.001, True),
        ("library_size_ks", 0.06, 0.031, True),
        ("nearest_train_ratio", 0.89, np.nan, False),
        ("nearest_train_ratio", 1.16, np.nan, False),
        ("precision", np.nan, 0.9, False),
    ],
)
def test_goals_are_those_of_the_project(metric, value, floor, met):
    low, high = report.GOALS[metric](floor)
    assert (low <= value <= high) is met
