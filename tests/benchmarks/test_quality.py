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


def test_what_is_as_good_as_real_cells_and_what_is_within_the_errors_comes_first():
    rows = pd.DataFrame({"value": [0.4, 0.52, 0.7], "real": 0.5, "error": 0.02, "better": "lower"}, index=list("abc"))
    assert report.leaders(rows).tolist() == [True, True, False]


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
