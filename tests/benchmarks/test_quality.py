"""The quality benchmark: what is held out, that cells go from a method to the tables, and who is called first."""

from functools import partial

import anndata
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


# --- splits -----------------------------------------------------------------------------------------------------------


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


def test_few_training_cells_are_of_every_label_and_the_others_are_spare(cells, split):
    few = splits.split_cells(cells, ("cell_type", "condition"), seed=0, n_genes=20, n_train=6)
    assert (few.train.n_obs, few.spare.n_obs) == (6, 294)
    assert set(few.train_labels) == {"a|x", "b|x", "a|y", "b|y"}
    assert {*few.train.obs_names, *few.spare.obs_names} == set(split.train.obs_names)
    assert list(few.held_out.obs_names) == list(split.held_out.obs_names)
    with pytest.raises(ValueError, match="only 300 training cells"):
        splits.split_cells(cells, ("cell_type", "condition"), seed=0, n_train=300)


def test_spare_cells_give_the_space_so_that_all_training_cells_are_compared(cells):
    few = splits.split_cells(cells, ("cell_type",), seed=0, n_genes=20, n_train=100)
    drawn = drawing.BASELINES["shuffled"](few.train, few.train_labels, few.held_out_labels, seed=0)
    found = splits.judge(few, drawn, 0, metrics=["w2"], n_floor=1, n_bootstrap=0)
    assert found.attrs["n_cells"]["all"] == 100  # half of them would give the space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pbmc3k", ("pbmc3k", None)),
        ("paul15:1000", ("paul15", 1000)),
    ],
)
def test_names_of_data_sets_may_have_a_size(text, expected):
    assert splits.parse_dataset(text) == expected


@pytest.mark.parametrize("text", ["pbmc4k", "pbmc3k:few", "pbmc3k:"])
def test_unknown_data_sets_are_errors_that_list_the_known_ones(text):
    with pytest.raises(ValueError, match="Unknown data set .* Known: .*'kang_ifnb'"):
        splits.parse_dataset(text)


def test_sets_without_a_loader_are_read_from_a_folder(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHMARK_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"worm_embryo.h5ad does not exist. Set BENCHMARK_DATA_DIR .*monocle3"):
        splits.load("worm_embryo")
    cells.X = cells.layers.pop("counts")
    cells.write_h5ad(tmp_path / "worm_embryo.h5ad")
    found = splits.load("worm_embryo")
    np.testing.assert_array_equal(found.layers["counts"], found.X)


def test_cells_of_a_section_that_a_file_holds_twice_are_read_once(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHMARK_DATA_DIR", str(tmp_path))
    cells.X = cells.layers.pop("counts")
    cells.obsm["spatial"] = np.c_[100.0 * np.arange(cells.n_obs), np.zeros(cells.n_obs)]
    cells.obsm["spatial"][-1] = cells.obsm["spatial"][0] + 0.5
    cells.write_h5ad(tmp_path / "osmfish_cortex.h5ad")
    assert list(splits.load("osmfish_cortex").obs_names) == list(cells.obs_names[:-1])


def test_every_set_says_what_it_was_used_for_and_those_held_back_are_never_judged_by_default():
    from scgen_diffusion import datasets

    for dataset in splits.DATASETS.values():
        assert dataset.use in {splits.CHOSEN_ON, splits.UNSEEN, splits.HELD_BACK}
        assert dataset.origin if not dataset.loader else hasattr(datasets, dataset.loader)
    uses = {splits.DATASETS[name].use for name in quality.DATASETS}
    assert uses == {splits.CHOSEN_ON, splits.UNSEEN}
    assert len(quality.DATASETS) >= 6


def test_cells_drawn_for_labels_have_them_and_are_distinct_while_they_last():
    labels = np.array(["a", "a", "a", "b"])
    drawn = drawing.draw_matching(labels, np.array(["b", "a", "a", "b", "a"]), np.random.default_rng(0))
    assert labels[drawn].tolist() == ["b", "a", "a", "b", "a"]
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 3]


# --- from a method to the tables --------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, tmp_path, cells):
    """Run the very command on made-up cells, the drawing in this process."""
    monkeypatch.setattr(splits, "load", lambda _: cells)
    quick = partial(splits.judge, metrics=["w2", "gene_zero_error"], n_floor=1, n_bootstrap=5)
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


def test_several_trainings_share_the_cells():
    draws = [np.full((7, 2), n) for n in range(3)]
    mixed = drawing.mix(draws, seed=0).toarray()
    assert sorted(mixed[:, 0]) == [0, 0, 0, 1, 1, 2, 2]
    cells = np.arange(14).reshape(7, 2)
    assert (drawing.mix([cells] * 3, seed=0).toarray() == cells).all()


def test_a_model_of_the_whole_panel_is_judged_on_the_genes_of_the_split(run, tmp_path, cells, monkeypatch):
    def load_split(_, seed, n_genes=10):
        return splits.split_cells(cells, ("cell_type",), seed=seed, n_genes=n_genes)

    def generate(model, split, seed):
        assert split.train.n_vars == cells.n_vars > 10
        return split.held_out

    monkeypatch.setattr(drawing, "load_split", load_split)
    monkeypatch.setattr(drawing, "train_model", lambda *_: None)
    monkeypatch.setattr(drawing, "generate", generate)
    run("--steps", "draw", "--methods", "SCLDM-whole-panel")
    drawn = anndata.read_h5ad(tmp_path / "pbmc3k-0-SCLDM-whole-panel.h5ad")
    held_out = load_split("", 0).held_out
    assert list(drawn.var_names) == list(held_out.var_names)
    np.testing.assert_array_equal(drawn.X.toarray(), splits.to_dense(held_out.layers["counts"]))


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


def test_a_missing_file_is_noticed_before_anything_is_drawn(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHMARK_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="worm_embryo"):
        run("--methods", "shuffled", "--datasets", "pbmc3k", "worm_embryo")
    assert not list(tmp_path.iterdir())


def test_small_variants_of_a_set_are_judged_beside_it(run, tmp_path):
    run("--methods", "shuffled")
    rows = run("--methods", "shuffled", "--datasets", "pbmc3k:120")
    assert list(rows["dataset"].unique()) == ["pbmc3k", "pbmc3k:120"]
    assert "**pbmc3k:120** (some defaults were chosen on it)" in (tmp_path / "goals.md").read_text()
    with pytest.raises(ValueError, match="Unknown data set 'pbmc4k'"):
        run("--datasets", "pbmc4k")


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


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("better", "expected"), [("lower", [0.0, 0.5]), ("higher", [0.5, 0.0]), ("floor", [0.5, 0.5])])
def test_only_the_bad_side_of_the_floor_counts(better, expected):
    rows = pd.DataFrame({"value": [0.5, 1.5], "floor": 1.0, "better": better})
    np.testing.assert_allclose(report.shortfall(rows), expected)


def test_methods_not_significantly_different_from_the_best_are_best_too():
    values = {"best": 0.50, "near": 0.52, "far": 0.60}
    rows = pd.DataFrame({"value": values, "floor": 0.0, "error": 0.01, "better": "lower"})
    assert report.leaders(rows).to_dict() == {"best": True, "near": True, "far": False}


def test_a_metric_without_values_has_no_leader_and_meets_no_goal():
    table = stored(a=2.0).assign(metric="mmd_per_label", value=np.nan, floor=np.nan, low=np.nan, high=np.nan)
    assert "| mmd_per_label | lower |  | 9 |  |" in report.summarise(table, ["a"])
    assert "| goals met |  | 1 | 1 | 0 |" in report.summarise_goals(pd.concat([stored(a=9.0), table]), ["a"])


def test_means_and_errors_are_over_seeds():
    means = report.means_over_seeds(stored(a=2.0)).iloc[0]
    assert (means["value"], means["n_seeds"]) == (2.5, 2)
    # intervals of width 2 are 2 / 3.92 standard deviations; the spread of 2 and 3 is 0.707, the larger of both
    assert means["error"] == pytest.approx(np.sqrt(0.5) / np.sqrt(2))


def test_summary_marks_the_first_in_bold():
    assert "| w2 | lower | 1 | 9 | **2.5** | 30.5 |" in report.summarise(stored(a=2.0, b=30.0), ["a", "b"])


def test_goals_are_limits_on_means_beside_the_floor():
    text = report.summarise_goals(stored(bad=1.0, good=0.5), ["good", "bad"])
    assert "| w2 | 1 | <= 1.05 | <= 1.05 | **1** | 1.5 |" in text
    assert "| goals met |  | 1 | 1 | 1 | 0 |" in text


def test_goals_are_summed_up_over_the_sets_that_no_default_was_chosen_on():
    values = {"pbmc3k": (9.0, 1.0), "mixology_celllines": (1.0, 1.0), "vangalen_aml": (2.0, 3.0)}
    parts = [stored(a=value).assign(dataset=name, floor=floor) for name, (value, floor) in values.items()]
    table = pd.concat([*parts, stored(b=1.0).assign(dataset="vangalen_aml")])
    text = report.summarise_goals(table, ["a", "b"])
    assert "| figure | a |\n" in text, "a method with one such set has no mean over sets"
    assert "| data sets | 2 |" in text
    assert "| w2 | **2** (2) |" in text, "(1.5 + 2.5) / 2 over seeds and sets; at most 1.05 times the floor"
    assert "no default was chosen" not in report.summarise_goals(parts[0], ["a"])


def test_gene_space_models_and_their_variants_have_goals_of_their_own():
    table = stored(SCLDM=0.08, WBDIT=0.08, wide=0.08).assign(metric="auc_genes", settings="")
    table.loc[table["method"] == "wide", "settings"] = '{"class": "WBDIT", "model": {"width": 256}}'
    text = report.summarise_goals(table, ["SCLDM", "WBDIT", "wide"])
    assert "| auc_genes | 1 | <= 0.55 | <= 0.6 | 0.58 | **0.58** | **0.58** |" in text


@pytest.mark.parametrize(
    ("metric", "value", "floor", "met", "met_in_gene_space"),
    [
        ("auc_genes", 0.55, 0.5, True, True),
        ("auc_genes", 0.60, 0.5, False, True),
        ("auc_boosting", 0.61, 0.5, False, False),
        ("recall", 0.88, 0.9, True, True),
        ("recall", 0.85, 0.9, False, True),
        ("precision", 0.83, 0.9, False, False),
        ("mmd2", 0.0009, -0.001, True, True),
        ("mmd_per_label", 0.0011, 0.0, False, False),
        ("within_label_correlation", 0.76, 0.8, True, True),
        ("transfer_f1", 0.73, 0.75, False, True),
        ("library_size_ks", 0.06, 0.031, True, True),
        ("nearest_train_ratio", 0.89, np.nan, False, False),
        ("nearest_train_ratio", 1.16, np.nan, False, False),
        ("nearer_than_held_out", 0.021, 0.01, False, False),
        ("precision", np.nan, 0.9, False, False),
    ],
)
def test_goals_are_those_of_the_project(metric, value, floor, met, met_in_gene_space):
    found = []
    for goals in (report.GOALS, report.GENE_SPACE_GOALS):
        low, high = goals[metric](floor)
        found.append(low <= value <= high)
    assert found == [met, met_in_gene_space]
