"""Correlations across modalities: known by construction."""

import mudata as md
import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.metrics import cross_modality_correlation


@pytest.fixture
def cells(make_paired_cells):
    """Build cells."""
    return make_paired_cells


def test_linked_modalities_reach_the_floor_and_unlinked_ones_the_shuffled_cells(cells):
    right = cross_modality_correlation(cells(0), cells(1)).summary
    wrong = cross_modality_correlation(cells(0), cells(1, linked=False)).summary
    # correlations of 150 cells have a standard error of 0.08 each
    assert right["value"].to_list() == pytest.approx(right["floor"].to_list(), abs=0.05)
    assert wrong["value"].to_list() == pytest.approx(wrong["shuffled"].to_list(), abs=0.1)
    assert right.loc["cross_correlation_similarity", "value"] > 0.7
    assert abs(wrong.loc["cross_correlation_similarity", "value"]) < 0.25


def test_the_error_sees_links_that_are_too_weak_and_the_similarity_hardly_does(cells):
    found = cross_modality_correlation(cells(0, 1000), cells(1, 1000, strength=0.15), n_features=5).summary
    assert found.loc["cross_correlation_error", "value"] > 1.3 * found.loc["cross_correlation_error", "floor"]
    assert found.loc["cross_correlation_similarity", "value"] > 0.7


def test_a_pair_has_the_correlation_of_its_features(cells):
    real = cells(0)
    found = cross_modality_correlation(real, cells(1), [("g2", "p2"), ("g2", "p3")]).pairs
    totals = real["rna"].X.sum(1, keepdims=True)
    gene, protein = np.log1p(1e4 * real["rna"].X[:, 2:3] / totals), np.log1p(real["prot"].X)
    scales = {"rna": "log_normalised"}  # thirty genes would be taken for a panel
    found = cross_modality_correlation(real, cells(1), [("g2", "p2"), ("g2", "p3")], scales=scales).pairs
    expected = [np.corrcoef(gene.ravel(), protein[:, k])[0, 1] for k in (2, 3)]
    np.testing.assert_allclose(found["real"], expected, atol=1e-5)
    assert found["real"][0] > 0.6 > 0.3 > abs(found["real"][1])
    assert list(found["first"]) == ["g2", "g2"]
    assert list(found["second"]) == ["p2", "p3"]


def test_features_of_the_same_name_are_pairs_if_none_are_given(cells):
    pairs = cross_modality_correlation(cells(0), cells(1)).pairs
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [("P0", "p0"), ("P1", "p1")]
    assert (pairs["difference"] < 5 * pairs["floor"]).all()


def test_within_labels_the_difference_between_labels_is_gone(cells):
    real, synthetic = cells(0, strength=0.0, label_shift=2.0), cells(1, strength=0.0, label_shift=2.0)
    among_all = cross_modality_correlation(real, synthetic, [("g2", "p3")]).pairs["real"][0]
    within = cross_modality_correlation(real, synthetic, [("g2", "p3")], groupby="kind").pairs["real"][0]
    assert among_all > 0.8
    assert abs(within) < 0.2


def test_cells_are_paired_by_name_and_features_too(cells):
    real, synthetic = cells(0), cells(1)
    turned = md.MuData({"prot": synthetic["prot"][::-1, ::-1].copy(), "rna": synthetic["rna"].copy()})
    # whose first modality is another one decides nothing: names do
    expected, found = (cross_modality_correlation(real, other).pairs["synthetic"] for other in (synthetic, turned))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cells_without_a_modality_are_left_out(cells):
    real = cells(0)
    partly = md.MuData({"rna": real["rna"].copy(), "prot": real["prot"][:100].copy()})
    whole = md.MuData({"rna": real["rna"][:100].copy(), "prot": real["prot"][:100].copy()})
    expected, found = (cross_modality_correlation(other, cells(1)) for other in (whole, partly))
    pd.testing.assert_frame_equal(found.summary, expected.summary)


def test_the_same_seed_gives_the_same_figures(cells):
    first, second, other = (cross_modality_correlation(cells(0), cells(1), seed=seed).summary for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(other)


def test_what_is_wrong_with_the_arguments_is_said(cells):
    real, synthetic = cells(0), cells(1)
    with pytest.raises(TypeError, match="`real` must be a MuData, but is AnnData"):
        cross_modality_correlation(real["rna"], synthetic)
    with pytest.raises(KeyError, match="`synthetic` has no modality 'prot'"):
        cross_modality_correlation(real, md.MuData({"rna": synthetic["rna"]}))
    with pytest.raises(KeyError, match="`real` has no modality 'atac'"):
        cross_modality_correlation(real, synthetic, modalities=("rna", "atac"))
    with pytest.raises(ValueError, match="`modalities` must name two modalities"):
        cross_modality_correlation(real, synthetic, modalities=("rna",))
    with pytest.raises(KeyError, match="`pairs` names 'p9', which modality 'prot' lacks"):
        cross_modality_correlation(real, synthetic, [("g2", "p9")])
    with pytest.raises(KeyError, match="`real.obs` has no column 'type'"):
        cross_modality_correlation(real, synthetic, groupby="type")
    with pytest.raises(ValueError, match="at least 4 cells with both"):
        cross_modality_correlation(real[:3], synthetic)
    with pytest.raises(KeyError, match="`scales` names the unknown modality 'adt'"):
        cross_modality_correlation(real, synthetic, scales={"adt": "log1p"})
    real.obs["kind"] = real.obs["kind"].where(np.arange(real.n_obs) > 0)
    with pytest.raises(ValueError, match="has no label for 1 of 300 cells"):
        cross_modality_correlation(real, synthetic, groupby="kind")
