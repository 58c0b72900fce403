"""The quality benchmark: what is held out, who is called first, and the runner."""

import numpy as np
import pandas as pd
import pytest

quality = pytest.importorskip("benchmarks.quality.__main__")
baselines = pytest.importorskip("benchmarks.quality.baselines")
methods = pytest.importorskip("benchmarks.quality.methods")
report = pytest.importorskip("benchmarks.quality.report")
splits = pytest.importorskip("benchmarks.quality.splits")
runner = pytest.importorskip("benchmarks.runner")


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


def test_split_holds_a_quarter_of_every_label_out(split):
    assert not set(split.train.obs_names) & set(split.held_out.obs_names)
    train, held_out = (pd.Series(labels).value_counts() for labels in (split.train_labels, split.held_out_labels))
    assert (held_out / (train + held_out)).to_dict() == dict.fromkeys(("a|x", "b|x", "a|y", "b|y"), 0.25)


def test_few_training_cells_are_of_every_label_and_the_others_are_spare(cells, split):
    few = splits.split_cells(cells, ("cell_type", "condition"), seed=0, n_genes=20, n_train=6)
    assert (few.train.n_obs, few.spare.n_obs) == (6, 294)
    assert set(few.train_labels) == {"a|x", "b|x", "a|y", "b|y"}
    assert {*few.train.obs_names, *few.spare.obs_names} == set(split.train.obs_names)
    assert list(few.held_out.obs_names) == list(split.held_out.obs_names)
    with pytest.raises(ValueError, match="n_train"):
        splits.split_cells(cells, ("cell_type", "condition"), seed=0, n_train=300)


def test_donors_are_held_out_as_wholes(cells):
    cells.obs["donor"] = pd.Categorical([f"d{i % 8}" for i in range(cells.n_obs)])
    split = splits.split_cells(cells, ("condition",), seed=0, n_genes=20, apart="donor")
    assert (split.train.obs["donor"].nunique(), split.held_out.obs["donor"].nunique()) == (6, 2)
    assert not set(split.train.obs["donor"]) & set(split.held_out.obs["donor"])
    assert splits.parse_dataset("kang_control_8donors:donor") == ("kang_control_8donors", "donor")
    with pytest.raises(ValueError, match="dataset"):
        splits.parse_dataset("kang_control_8donors:sex")


def test_the_best_is_bold_and_what_is_not_significantly_worse_has_a_mark():
    rng = np.random.default_rng(0)
    values = {"SCLDM": 0.4, "scVI": 0.5, "copula": 0.7}  # 0.5 is as good as it gets
    rows = pd.DataFrame(
        [
            {"dataset": name, "seed": seed, "method": method, "value": value + 0.01 * rng.standard_normal()}
            for name in ("a", "b", "c")
            for seed in range(3)
            for method, value in values.items()
        ]
    ).assign(metric="auc_genes", real=0.5, better="lower", settings="", commit="abc", date="2100-01-01")
    rows.loc[rows["method"] == "SCLDM", "settings"] = '{"class": "SCLDM"}'
    rows.loc[0, "date"] = "2020-01-01"  # before the cells of SCLDM last changed

    lines = report.quality_table(rows, {"3 sets": ["a", "b", "c"]}, list(values), {"auc_genes": "AUC"}).splitlines()[2:]

    assert lines == [
        "| **3 sets**: real cells | 0.50 |",
        "| SCLDM † | **0.40** |",
        "| scVI, mixture per label | 0.50 ≈ |",
        "| copula per label | 0.70 |",
    ]
    few = report.quality_table(rows, {"a": ["a"]}, list(values), {"auc_genes": "AUC"})
    assert "**0" not in few  # three pairs are too few for a test
    assert "≈" not in few


def test_stored_cases_are_not_measured_again(tmp_path):
    calls = []

    def measure(seed, method):
        calls.append((seed, method))
        return None if method == "missing" else pd.DataFrame({"value": [1.0]})

    cases = [{"seed": seed, "method": method} for seed in (0, 1) for method in ("a", "missing")]
    for _ in range(2):
        table = runner.run(tmp_path / "table.csv", cases, measure)
    assert calls == [(0, "a"), (0, "missing"), (1, "a"), (1, "missing"), (0, "missing"), (1, "missing")]
    assert set(table) == {"value", "seed", "method", "machine", "versions", "commit", "date"}
    assert len(table) == 2
