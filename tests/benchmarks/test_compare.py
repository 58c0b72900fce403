"""The comparison of methods: who is called first, what is drawn anew, and that a run goes from cells to a table."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

compare = pytest.importorskip("benchmarks.quality.__main__")
compare_report = pytest.importorskip("benchmarks.quality.report")
splits = pytest.importorskip("benchmarks.quality.splits")


def figures(better, floor, **values):
    """One row per method, of one metric."""
    rows = pd.DataFrame({"value": values, "floor": floor, "error": 0.01, "better": better})
    return rows.rename_axis("method")


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


@pytest.mark.parametrize(("better", "expected"), [("lower", [0.0, 0.5]), ("higher", [0.5, 0.0]), ("floor", [0.5, 0.5])])
def test_only_the_bad_side_of_the_floor_counts(better, expected):
    np.testing.assert_allclose(compare_report.shortfall(figures(better, 1.0, a=0.5, b=1.5)), expected)


def test_methods_that_errors_do_not_tell_from_the_first_are_first_too():
    first = compare_report.leaders(figures("lower", 0.0, best=0.50, near=0.52, far=0.60))
    assert first.to_dict() == {"best": True, "near": True, "far": False}


def test_means_and_errors_are_over_seeds():
    means = compare_report.means_over_seeds(stored(a=2.0)).iloc[0]
    assert (means["value"], means["n_seeds"]) == (2.5, 2)
    # intervals of width 2 are 2 / 3.92 standard deviations; the spread of 2 and 3 is 0.707, the larger of both
    assert means["error"] == pytest.approx(np.sqrt(0.5) / np.sqrt(2))


def test_summary_marks_the_first_in_bold():
    text = compare_report.summarise(stored(a=2.0, b=30.0), ["a", "b"])
    assert "| w2 | lower | 1 | 9 | **2.5** | 30.5 |" in text


def test_cells_are_judged_with_their_costs():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(rng.gamma(1.0, 2.0, 30), (400, 30)).astype(np.float32))
    obs = pd.DataFrame({"cell_type": pd.Categorical(["a", "b"] * 200)}, index=[f"cell-{i}" for i in range(400)])
    split = splits.split_cells(ad.AnnData(counts, obs=obs, layers={"counts": counts}), ("cell_type",), seed=0)
    cells = ad.AnnData(
        split.held_out.X.copy(), obs=pd.DataFrame({compare.LABEL: split.held_out_labels}), var=split.train.var
    )
    cells.uns[compare.COSTS_KEY] = dict.fromkeys(compare.COSTS, 2.0) | dict.fromkeys(compare.SOURCE, "here")
    table = compare.judge(split, cells, 0).set_index("metric")
    assert set(table["group"]) == {"all"}
    assert table.loc["cpu_minutes", "value"] == 2
    assert table.loc["w2", "value"] == pytest.approx(0, abs=1e-4)  # the held-out cells themselves, but for rounding
    assert set(table["machine"]) == {"here"}
