"""Marker genes: scanpy's ranking, fold changes that were put in, and agreement that is known."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion import datasets
from scgen_diffusion.metrics import marker_agreement, marker_genes

N_GENES = 60
LABELS = ("a", "b", "c")


def make_cells(n_per_label=150, *, fold=4.0, seed=0, labels=LABELS, names=LABELS):
    """Build cells in which the label at position p of ``LABELS`` has ``fold`` times as much of genes 10 p to 10 p + 9."""
    rng = np.random.default_rng(seed)
    rates = np.full((len(labels), N_GENES), 5.0)
    for row, label in enumerate(labels):
        first = 10 * LABELS.index(label)
        rates[row, first : first + 10] *= fold
    codes = np.repeat(np.arange(len(labels)), n_per_label)
    counts = sp.csr_matrix(rng.poisson(rates[codes]).astype(np.float32))
    obs = pd.DataFrame({"cell_type": np.array(names)[codes]}, index=[f"cell_{i}" for i in range(len(codes))])
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{g}" for g in range(N_GENES)]))


def test_markers_are_the_genes_that_were_raised():
    found = marker_genes(make_cells(), "cell_type", n_genes=10)
    for position, label in enumerate(LABELS):
        mine = found[found["label"] == label]
        assert set(mine["gene"]) == {f"g{g}" for g in range(10 * position, 10 * position + 10)}
        assert list(mine["rank"]) == list(range(1, 11))
        assert (np.diff(mine["score"]) <= 0).all()


def test_log_fold_changes_are_those_that_were_put_in():
    found = marker_genes(make_cells(2_000, fold=4.0), "cell_type", n_genes=10)
    # all labels have the same total, so profiles keep the factor, against a mean of 5 and 5 in the others; one count in 10 000 is added
    assert found["log_fold_change"].mean() == pytest.approx(2.0, abs=0.03)


def test_scores_are_those_of_scanpy():
    cells = datasets.pbmc68k_reduced()
    found = marker_genes(cells, "cell_type", n_genes=20)
    reference = AnnData(cells.layers["counts"].astype(np.float32), obs=cells.obs.copy(), var=cells.var[[]].copy())
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scanpy fragments a table
        sc.tl.rank_genes_groups(reference, "cell_type", method="t-test", n_genes=20)
    for label, mine in found.groupby("label"):
        theirs = sc.get.rank_genes_groups_df(reference, group=label)
        np.testing.assert_allclose(mine["score"], theirs["scores"], rtol=1e-4)  # scanpy sums in float32
        assert len(set(mine["gene"]) ^ set(theirs["names"])) <= 2  # ties at the end of the list


def test_cells_are_left_alone_and_nothing_is_said(capsys, recwarn):
    cells = make_cells()
    before = cells.copy()
    marker_genes(cells, "cell_type")
    marker_agreement(cells, cells, groupby="cell_type")
    assert (cells.X != before.X).nnz == 0
    assert list(cells.uns) == []
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert capsys.readouterr() == ("", "")
    assert not [str(warning.message) for warning in recwarn if "site-packages" not in warning.filename]


def test_cells_of_one_label_have_no_markers():
    found = marker_genes(make_cells(labels=("a",), names=("a",)), "cell_type")
    assert len(found) == 0
    assert "gene" in found


def test_real_cells_agree_with_themselves_in_any_order():
    cells = make_cells()
    found = marker_agreement(cells, cells[::-1, ::-1].copy(), groupby="cell_type", n_genes=10)
    np.testing.assert_allclose(found[["overlap", "slope", "correlation"]], 1.0)
    assert list(found.index) == list(LABELS)
    assert (found["n_real"] == 150).all()


def test_labels_that_are_less_distinct_have_a_smaller_slope():
    found = marker_agreement(
        make_cells(2_000, fold=4.0), make_cells(2_000, fold=2.0, seed=1), groupby="cell_type", n_genes=10
    )
    np.testing.assert_array_equal(found["overlap"], 1.0)
    np.testing.assert_allclose(found["slope"], 0.5, atol=0.03)  # log 2 / log 4


def test_swapped_labels_have_no_marker_in_common():
    swapped = make_cells(seed=1, names=("b", "a", "c"))
    found = marker_agreement(make_cells(), swapped, groupby="cell_type", n_genes=10)
    np.testing.assert_array_equal(found["overlap"], [0, 0, 1])
    assert (found.loc[["a", "b"], "slope"] < 0).all()
    assert (found.loc[["a", "b"], "correlation"] < 0).all()


def test_a_label_that_was_not_generated_is_undefined_and_a_rare_one_left_out():
    real = make_cells()
    kept = np.r_[0:150, 150:300, 300:309]  # nine cells of c
    found = marker_agreement(real[kept].copy(), make_cells(labels=("a", "c"), names=("a", "c")), groupby="cell_type")
    assert list(found.index) == ["a", "b"]
    assert found.loc["b", "n_synthetic"] == 0
    assert found.loc["b", ["overlap", "slope", "correlation"]].isna().all()
    assert found.loc["a"].notna().all()


def test_a_missing_column_is_named():
    cells = make_cells()
    with pytest.raises(KeyError, match=r"`synthetic.obs` has no column 'cell_type'.*'celltype'"):
        marker_agreement(cells, make_renamed(cells), groupby="cell_type")


def make_renamed(cells):
    renamed = cells.copy()
    renamed.obs.columns = ["celltype"]
    return renamed


def test_a_cell_without_label_is_an_error():
    cells = make_cells()
    cells.obs.loc[cells.obs_names[:3], "cell_type"] = None
    with pytest.raises(ValueError, match="no label for 3 of 450 cells"):
        marker_genes(cells, "cell_type")
