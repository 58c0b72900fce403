"""The study of perturbation metrics: what is spoiled, and what its table says."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

study = pytest.importorskip("sensitivity_perturbation")


def cells(value, n_cells=40, n_genes=25, **obs):
    counts = sp.csr_matrix(np.random.default_rng(value).poisson(value, (n_cells, n_genes)) + 1, dtype=np.float32)
    table = pd.DataFrame(obs, index=[f"{value}_{i}" for i in range(n_cells)])
    return ad.AnnData(counts, obs=table, layers={"counts": counts.copy()})


def test_every_second_cell_is_a_control_cell():
    stimulated, control = cells(9), cells(2, n_cells=15)
    before = stimulated.copy()
    changed = study.half_untouched(stimulated, control, np.random.default_rng(0)).layers["counts"].toarray()
    np.testing.assert_array_equal(changed[1::2], before.X.toarray()[1::2])
    known = {tuple(row) for row in control.X.toarray()}
    assert all(tuple(row) in known for row in changed[::2])
    np.testing.assert_array_equal(stimulated.X.toarray(), before.X.toarray())


@pytest.fixture(scope="module")
def adata():
    """Build two cell types, control and stimulated."""
    rng = np.random.default_rng(0)
    parts = []
    for number, (cell_type, condition) in enumerate((t, c) for t in ("B", "NK") for c in ("control", "stimulated")):
        part = cells(4 + number, cell_type=cell_type, condition=condition)
        if condition == "stimulated":
            part.layers["counts"] = sp.csr_matrix(part.layers["counts"].toarray() * rng.integers(1, 4, 25))
            part.X = part.layers["counts"].copy()
        parts.append(part)
    return ad.concat(parts)


def test_one_half_of_the_cells_plays_the_prediction_and_every_other_column_is_spoiled(adata):
    table = study.judge(adata, "B", 1)
    assert set(study.COLUMNS) <= set(table.columns)
    assert set(table["group"]) == {"B"}
    assert set(table["seed"]) == {1}
    energy = table.set_index("metric").loc["energy_distance"]
    assert energy["value"] < energy["half untouched"] < energy["no_change"]


def test_the_report_has_a_row_per_metric_with_means_over_types_and_splits(adata):
    tables = [study.judge(adata, "B", seed) for seed in (0, 1)]
    lines = study.report(pd.concat(tables)).splitlines()
    assert "1 cell types, 2 splits" in lines[0]
    w2 = next(line for line in lines if "`w2` ↓" in line)
    means = pd.concat(tables).groupby("metric")[["floor", "value"]].mean().loc["w2"]
    assert w2.split(" | ")[1:3] == [f"{value:.3f}" for value in means]
