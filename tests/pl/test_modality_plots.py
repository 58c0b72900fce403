"""Plots of several modalities: correlations across them, and the plots of one modality on each."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import mudata as md
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

import scgen_diffusion as sgd
from scgen_diffusion.metrics import cross_modality_correlation

GENES, PROTEINS = ["CD4", "CD8A", "NCAM1", "ACTB"], ["CD4", "CD8a", "CD56"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def cells(seed, n_cells=120):
    """Build cells whose proteins follow the first three transcripts."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(3.0, 5.0, (n_cells, len(GENES)))
    obs = pd.DataFrame({"kind": np.repeat(["a", "b"], n_cells // 2)}, index=[f"{seed}_{i}" for i in range(n_cells)])
    parts = {"rna": (rng.poisson(rate), GENES), "prot": (rng.poisson(9 * rate[:, :3]), PROTEINS)}
    return md.MuData(
        {
            name: ad.AnnData(x.astype(np.float32), obs=obs.copy(), var=pd.DataFrame(index=var))
            for name, (x, var) in parts.items()
        }
    )


def points_of(ax):
    """Return real and synthetic correlations, from the bottom upwards."""
    return [np.asarray(collection.get_offsets()) for collection in ax.collections[-2:]]


def test_every_pair_is_where_its_correlations_are_in_the_order_of_the_real_ones():
    pairs = [("NCAM1", "CD56"), ("CD4", "CD4"), ("ACTB", "CD4")]
    ax = sgd.pl.modality_correlation(cells(0), cells(1), pairs, show=False)
    found = cross_modality_correlation(cells(0), cells(1), pairs)
    expected = found.pairs.sort_values("real")
    for points, name in zip(points_of(ax), ("real", "synthetic"), strict=True):
        np.testing.assert_allclose(points[:, 0], expected[name])
        np.testing.assert_array_equal(points[:, 1], [0, 1, 2])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "ACTB – CD4"
    assert set(labels[1:]) == {"CD4", "NCAM1 – CD56"}
    assert f"{found.summary['value'].iloc[0]:.2f}" in ax.get_title()
    assert ax.get_xlabel() == "correlation of rna and prot"


def test_features_of_the_same_name_are_drawn_by_default_within_groups_if_asked():
    ax = sgd.pl.modality_correlation(cells(0), cells(1), groupby="kind", show=False)
    assert {label.get_text() for label in ax.get_yticklabels()} == {"CD4", "CD8A"}
    assert "within kind" in ax.get_xlabel()
    ax = sgd.pl.modality_correlation(cells(0), cells(1), groupby=["kind"], show=False)
    assert ax.get_xlabel().endswith("\nwithin kind")


def test_without_a_pair_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="`pairs` must have 1 to 60 pairs, but found 0"):
        sgd.pl.modality_correlation(cells(0), cells(1), [], show=False)


@pytest.mark.usefixtures("without_umap")
@pytest.mark.parametrize("modality", ["rna", "prot"])
def test_the_plots_of_real_and_synthetic_cells_take_one_modality(modality):
    real, synthetic = cells(0)[modality], cells(1)[modality]
    assert len(sgd.pl.umap(real, synthetic, color="kind", show=False)) == 3
    assert len(sgd.pl.umap(real, synthetic, color="CD4", show=False)) == 3
    assert len(sgd.pl.gene_correlation(real, synthetic, show=False)) == 2
    assert len(sgd.pl.zero_fraction(real, synthetic, show=False)) == 2
    assert sgd.pl.mean_variance(real, synthetic, show=False).get_title()
    assert sgd.pl.library_size(real, synthetic, show=False)


def test_the_table_of_one_modality_is_drawn():
    table = sgd.metrics.evaluate(cells(0, 180), cells(1), metrics=["w2", "gene_mean_error"], n_floor=1, n_bootstrap=0)
    ax = sgd.pl.scores(table[table["modality"] == "prot"], show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["w2 ↓", "gene_mean_error ↓"]
