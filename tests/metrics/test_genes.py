"""Statistics, correlations and markers of genes: answers written by hand, and what holds whatever the cells are."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import ttest_ind

from scgen_diffusion import datasets
from scgen_diffusion.metrics import (
    Expression,
    expression_of,
    gene_correlation_similarity,
    gene_correlation_slope,
    gene_correlations,
    gene_differences,
    gene_profile_errors,
    gene_statistics,
    library_size_ks,
    marker_agreement,
    marker_genes,
    mean_variance_error,
)
from scgen_diffusion.metrics._genes import group_differences


def cells_of(counts, genes=None):
    genes = [f"gene_{g}" for g in range(counts.shape[1])] if genes is None else genes
    return AnnData(sp.csr_matrix(counts, dtype=np.float32), var=pd.DataFrame(index=genes))


def some_counts(n_cells=200, n_genes=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 2.0, n_genes), (n_cells, n_genes)) + (np.arange(n_genes) == 0)


def cells_with_moments(mean, variance, n_cells=4):
    """Build log-normalised cells whose genes have exactly these means and variances: half above, half below."""
    signs = np.resize([1.0, -1.0], n_cells)[:, None]
    return Expression(sp.csr_matrix(mean + signs * np.sqrt(variance)), None)


def power_law(n_genes=101):
    means = np.geomspace(0.1, 10, n_genes)
    return means, 0.01 * means**1.5


def test_statistics_of_a_hand_made_matrix():
    found = gene_statistics(cells_of(np.array([[1, 1], [0, 2], [2, 0], [0, 0]]), ["a", "b"]))
    half, all_ = np.log1p(5_000), np.log1p(10_000)
    column = [half, 0, all_, 0]
    # gene b has the same values in other cells; float32 values
    np.testing.assert_allclose(found["mean"], np.mean(column), rtol=1e-6)
    np.testing.assert_allclose(found["variance"], np.var(column), rtol=1e-6)
    np.testing.assert_array_equal(found["zero_fraction"], [0.5, 0.5])
    assert list(found.index) == ["a", "b"]


def test_whole_panels_are_never_dense():
    """A dense matrix of these cells would take 80 GB."""
    positions = np.arange(100_000)
    counts = sp.csr_matrix((np.ones(100_000), (positions, positions[::-1])))
    np.testing.assert_allclose(gene_statistics(counts)["zero_fraction"], 1 - 1e-5)
    assert library_size_ks(counts, counts) == 0


def test_profile_errors_are_mean_absolute_differences():
    real, synthetic = some_counts(), some_counts(seed=1)[:150]
    errors = gene_profile_errors(real, synthetic)
    a, b = (np.log1p(x / x.sum(1, keepdims=True) * 1e4) for x in (real, synthetic))
    # values are stored in float32
    assert errors["gene_mean_error"] == pytest.approx(np.abs(a.mean(0) - b.mean(0)).mean(), rel=1e-5)
    assert errors["gene_variance_error"] == pytest.approx(np.abs(a.var(0) - b.var(0)).mean(), rel=1e-5)
    assert errors["gene_zero_error"] == pytest.approx(np.abs((real == 0).mean(0) - (synthetic == 0).mean(0)).mean())


def test_profile_errors_of_the_same_cells_are_zero_in_any_order_of_cells_and_genes():
    real = cells_of(some_counts())
    shuffled = real[::-1, ::-1].copy()
    assert gene_profile_errors(real, shuffled) == pytest.approx(dict.fromkeys(gene_profile_errors(real, real), 0))


def labelled(n_cells):
    """Cells of two labels, a with three times as many as b."""
    cells = cells_of(some_counts(n_cells))
    cells.obs["label"] = np.where(np.arange(n_cells) % 4 > 0, "a", "b")
    return cells


def test_gene_differences_are_welch_t_of_each_label_the_clearest_first():
    cells = labelled(400)
    real, synthetic = cells[:200], cells[200:].copy()
    counts = synthetic.X.toarray()
    counts[synthetic.obs["label"] == "b", 7] = 0
    synthetic.X = counts

    table = gene_differences(real, synthetic, groupby="label")

    assert table.loc[0, ["group", "gene", "synthetic", "synthetic_share"]].tolist() == ["b", real.var_names[7], 0, 0]
    assert (table["t"].abs().diff().iloc[1:] <= 0).all()
    assert len(table) == 2 * real.n_vars
    of_a = table[table["group"] == "a"].set_index("gene").loc[real.var_names]
    x, y = real.X.toarray()[real.obs["label"] == "a"], counts[synthetic.obs["label"] == "a"]
    a, b = (np.log1p(counts / counts.sum(1, keepdims=True) * 1e4) for counts in (x, y))
    expected = np.nan_to_num(ttest_ind(b, a, equal_var=False).statistic)  # NaN for genes without counts
    np.testing.assert_allclose(of_a["t"], expected, rtol=1e-3, atol=1e-4)  # values are stored in float32
    np.testing.assert_allclose(of_a["real"], a.mean(0), rtol=1e-5)
    np.testing.assert_allclose(of_a["real_share"], (x > 0).mean(0), rtol=1e-6)


def test_gene_differences_need_thirty_cells_of_a_label():
    real, few = labelled(200), labelled(100)
    assert set(gene_differences(real, few, groupby="label")["group"]) == {"a"}
    with pytest.raises(ValueError, match="groupby.*30 cells"):
        gene_differences(real, few[:20], groupby="label")
    with pytest.raises(ValueError, match="groupby.*30 cells"):
        gene_differences(real, few[:20])


def test_variance_times_a_factor_is_its_logarithm_at_equal_mean():
    means, variances = power_law()
    error = mean_variance_error(cells_with_moments(means, variances), cells_with_moments(means, variances / 4))
    assert error == pytest.approx(np.log10(4), rel=1e-6)


def test_genes_keep_their_distance_from_the_trend_where_they_move_along_it():
    means, variances = power_law(2001)
    distance = 10 ** np.random.default_rng(0).normal(0, 0.2, 2001)
    real = cells_with_moments(means, distance * variances)
    moved = cells_with_moments(np.roll(means, 700), distance * np.roll(variances, 700))
    assert mean_variance_error(real, moved) < 0.05  # the trend is the median of 101 genes; each is off by 0.2


def test_mean_variance_error_sees_cells_that_are_all_alike_unless_real_ones_are():
    counts = some_counts()
    # no variance counts as 1e-8, far below any gene's
    assert mean_variance_error(counts, np.tile(counts[:1], (50, 1))) > 3
    assert np.isnan(mean_variance_error(np.ones((5, 4)), some_counts(5, 4)))


def test_correlations_of_a_factor_model():
    """Two genes share a factor with weights w: their correlation is w^2; the third is alone."""
    rng = np.random.default_rng(0)
    factor, noise = rng.normal(size=(40_000, 1)), rng.normal(size=(40_000, 3))
    weights = np.array([0.8, 0.8, 0.0])
    found = gene_correlations(weights * factor + np.sqrt(1 - weights**2) * noise)
    np.testing.assert_allclose(found, [0.64, 0, 0], atol=0.02)  # four standard errors, 1 / sqrt(40 000) each


def test_labels_take_differences_between_labels_away():
    labels = np.repeat(["a", "b"], 5_000)
    values = np.random.default_rng(0).normal(size=(10_000, 2)) + 10 * (labels == "b")[:, None]
    assert gene_correlations(values)[0] > 0.9
    assert abs(gene_correlations(values, labels)[0]) < 0.04  # four standard errors


def test_a_gene_that_does_not_vary_is_correlated_with_none():
    values = np.random.default_rng(0).normal(size=(50, 3))
    values[:, 1] = 7.0
    found = gene_correlations(values)
    assert found[0] == 0
    assert found[2] == 0
    assert found[1] != 0


def blocks(rng, n_cells=4_000, n_genes=20):
    factors = rng.normal(size=(n_cells, 2))
    return factors.repeat(n_genes // 2, axis=1) + rng.normal(size=(n_cells, n_genes))


def test_similarity_is_high_for_new_cells_and_gone_for_shuffled_genes():
    rng = np.random.default_rng(0)
    real, new = blocks(rng), blocks(rng)
    assert gene_correlation_similarity(real, new) > 0.98
    # 190 pairs of correlation 0: four standard errors, 1 / sqrt(190) each
    assert abs(gene_correlation_similarity(real, rng.permuted(new, axis=0))) < 0.3


def sparse_blocks(seed, labels, strength=1.0):
    """Draw few counts of 60 genes; within a label, each half of them has a common factor of log-normal rates."""
    rng = np.random.default_rng(seed)
    factors = strength * rng.normal(size=(len(labels), 2)).repeat(30, axis=1)
    return np.log1p(rng.poisson(np.exp(factors - strength**2 / 2 - 0.5 + 2 * (labels == "b")[:, None])))


@pytest.mark.parametrize("n_cells", [300, 1_000])
def test_slope_is_one_for_new_cells_however_noisy_correlations_are(n_cells):
    labels = np.resize(["a", "b"], n_cells)
    found = [
        gene_correlation_slope(sparse_blocks(seed, labels, 0.3), sparse_blocks(99 - seed, labels, 0.3), labels, labels)
        for seed in range(10)
    ]
    assert abs(np.mean(found) - 1) < 3 * np.std(found) / np.sqrt(len(found)) < 0.15


def test_slope_is_the_ratio_of_correlations():
    labels = np.resize(["a", "b"], 4_000)
    real, weaker = sparse_blocks(0, labels), sparse_blocks(1, labels, 0.5)
    pairs = gene_correlations(real, labels) > 0.1
    ratio = gene_correlations(weaker, labels)[pairs].mean() / gene_correlations(real, labels)[pairs].mean()
    assert ratio < 0.7
    assert gene_correlation_slope(real, weaker, labels, labels) == pytest.approx(ratio, rel=0.05)
    assert gene_correlation_slope(weaker, real, labels, labels) == pytest.approx(1 / ratio, rel=0.05)


def test_slope_of_shuffled_genes_is_zero():
    labels = np.resize(["a", "b"], 2_000)
    real, rng = sparse_blocks(0, labels), np.random.default_rng(1)
    shuffled = np.empty_like(real)
    for label in ("a", "b"):
        shuffled[labels == label] = rng.permuted(real[labels == label], axis=0)
    assert abs(gene_correlation_slope(real, shuffled, labels, labels)) < 0.05  # 1 770 pairs, errors of 1 / sqrt(2 000)


def test_slope_is_unknown_without_correlations():
    assert np.isnan(gene_correlation_slope(np.ones((10, 5)), np.ones((10, 5))))
    labels = np.resize(["a", "b"], 100)
    found = [
        gene_correlation_slope(sparse_blocks(seed, labels, 0), sparse_blocks(99 - seed, labels), labels, labels)
        for seed in range(20)
    ]
    assert np.isnan(found).sum() >= 15
    assert np.nanmax(np.abs([0, *found])) < 20  # beside correlations of strength 1


def test_library_size_ks_is_the_largest_gap_between_shares():
    def ks(*totals):
        return library_size_ks(*(np.array(own)[:, None] for own in totals))

    assert ks([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert ks([1, 2], [10, 20]) == 1
    assert ks([1, 2, 3], [3, 2, 1]) == 0
    normalised = AnnData(np.log1p(some_counts()), uns={"log1p": {}})
    assert np.isnan(library_size_ks(some_counts(), normalised))  # logarithms have none


def test_library_sizes_are_those_of_the_same_genes_and_generated_cells_may_lack_the_layer():
    real, synthetic = cells_of(some_counts()), cells_of(some_counts(seed=1))
    expected = library_size_ks(real, synthetic)
    real.layers["raw"], real.X = real.X.copy(), np.log1p(real.X)
    assert library_size_ks(real, synthetic[:, ::-1].copy(), layer="raw") == expected
    with pytest.raises(ValueError, match="`synthetic` lacks 50 of the 60 genes"):
        library_size_ks(real, synthetic[:, :10].copy(), layer="raw")
    with pytest.raises(ValueError, match="60 genes and `synthetic` 59"):
        library_size_ks(some_counts(), some_counts()[:, 1:])


N_GENES = 60
LABELS = ("a", "b", "c")


def make_cells(n_per_label=150, *, fold=4.0, seed=0, labels=LABELS, names=LABELS):
    """Build cells in which label p of ``LABELS`` has ``fold`` times as much of genes 10 p to 10 p + 9."""
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
    # all labels have the same total, so profiles keep the factor, against a mean of 5 and 5 in the others; one count in
    # 10 000 is added
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


def test_cells_of_one_label_have_no_markers():
    found = marker_genes(make_cells(labels=("a",), names=("a",)), "cell_type")
    assert len(found) == 0
    assert "gene" in found


def test_cells_added_for_a_rare_label_are_no_others_of_the_other_labels():
    expression = expression_of(np.random.default_rng(0).poisson(3.0, (70, 8)).astype(float))
    labels = np.repeat(["a", "b", "a"], [10, 30, 30])
    found = group_differences(expression, labels, n_of_all=40)
    of_b, of_a = group_differences(expression[np.arange(40)], labels[:40]), group_differences(expression, labels)
    for kind in ("scores", "changes"):
        np.testing.assert_allclose(getattr(found, kind).loc["b"], getattr(of_b, kind).loc["b"])
        np.testing.assert_allclose(getattr(found, kind).loc["a"], getattr(of_a, kind).loc["a"])


@pytest.mark.parametrize("n_genes", [10, 1000])  # more than there are
def test_real_cells_agree_with_themselves_in_any_order(n_genes):
    cells = make_cells()
    found = marker_agreement(cells, cells[::-1, ::-1].copy(), groupby="cell_type", n_genes=n_genes)
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


def test_a_label_that_was_not_generated_lacks_its_markers_and_a_rare_one_is_left_out():
    real = make_cells()
    kept = np.r_[0:150, 150:300, 300:309]  # nine cells of c
    found = marker_agreement(real[kept].copy(), make_cells(labels=("a", "c"), names=("a", "c")), groupby="cell_type")
    assert list(found.index) == ["a", "b"]
    assert found.loc["b", "n_synthetic"] == 0
    assert found.loc["b", "overlap"] == 0
    assert found.loc["b", ["slope", "correlation"]].isna().all()
    assert found.loc["a"].notna().all()
