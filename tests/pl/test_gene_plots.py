"""Plots of genes and totals show the cells' numbers: means, variances, zeros, correlations, markers, totals."""

from __future__ import annotations

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.colors import to_rgb

import scgen_diffusion as sgd
from scgen_diffusion.metrics import gene_statistics, marker_genes

LABELS = ["T", "B", "NK"]
GREY, VERMILION = to_rgb("#6e6e6e"), to_rgb("#D55E00")


def make_cells(n_cells=90, *, seed=0, n_genes=20, scale=1.0):
    """Build cells whose label decides which five genes they express."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n_cells) % 3
    means = np.full((3, n_genes), 0.5)
    for code in range(3):
        means[code, 5 * code : 5 * code + 5] = 8
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(codes, categories=LABELS)}, index=[f"c{n}" for n in range(n_cells)]
    )
    counts = rng.poisson(scale * means[codes] * rng.lognormal(0, 0.5, (n_cells, 1)))
    counts[:, -1] += 1
    return anndata.AnnData(
        sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=[f"gene_{g}" for g in range(n_genes)])
    )


PAIR_PLOTS = {
    "mean_variance": sgd.pl.mean_variance,
    "zero_fraction": sgd.pl.zero_fraction,
    "library_size": sgd.pl.library_size,
    "gene_correlation": sgd.pl.gene_correlation,
    "marker_dotplot": lambda *cells, **kwargs: sgd.pl.marker_dotplot(*cells, groupby="cell_type", **kwargs),
}
every_plot = pytest.mark.parametrize("plot", PAIR_PLOTS.values(), ids=PAIR_PLOTS)


def points_of(collection, color):
    """Return the points of a colour, sorted."""
    points = np.asarray(collection.get_offsets())
    colors = np.broadcast_to(collection.get_facecolors()[:, :3], (len(points), 3))
    points = points[np.isclose(colors, color).all(axis=1)]
    return points[np.lexsort(points.T)]


def sorted_rows(table):
    values = table.to_numpy()
    return values[np.lexsort(values.T)]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# --- what all of them share -------------------------------------------------------------------------------------------


@every_plot
def test_the_users_cells_are_left_as_they_are(plot):
    cells = [make_cells(), make_cells(seed=1)]
    before = [adata.copy() for adata in cells]

    plot(*cells, show=False)

    for adata, copy in zip(cells, before, strict=True):
        assert (adata.X != copy.X).nnz == 0
        assert (list(adata.obs), list(adata.var)) == (list(copy.obs), list(copy.var))
        assert not [*adata.uns, *adata.obsm, *filter(None, adata.layers)]  # from anndata 0.13 on, None names X


@every_plot
def test_figures_are_shown(plot, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))

    assert plot(make_cells(), make_cells(seed=1), show=True) is None

    assert shown == [True]


@every_plot
def test_no_title_label_or_legend_is_cut_off(plot):
    axes = plot(make_cells(), make_cells(seed=1), show=False)

    figure = (axes[0] if isinstance(axes, list) else axes).figure
    figure.draw_without_rendering()
    texts = [text for ax in figure.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    texts += [text for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text.get_text()}
    page = figure.bbox.padded(1)  # rounding
    assert len(boxes) > 2
    assert not [text for text, box in boxes.items() if not (page.contains(*box.min) and page.contains(*box.max))]


# --- means, variances, zeros ------------------------------------------------------------------------------------------


def test_every_gene_is_drawn_at_its_mean_and_variance():
    real, synthetic = make_cells(), make_cells(seed=1)

    ax = sgd.pl.mean_variance(real, synthetic, show=False)

    for cells, color in ((real, GREY), (synthetic, VERMILION)):
        expected = sorted_rows(gene_statistics(cells)[["mean", "variance"]])
        np.testing.assert_allclose(points_of(ax.collections[0], color), expected)
    for cells, line in zip((real, synthetic), ax.lines[1::2], strict=True):  # as many bins as genes
        expected = gene_statistics(cells)[["mean", "variance"]].sort_values("mean")
        np.testing.assert_allclose(line.get_xydata(), expected)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert legend_texts(ax) == ["real\n(20 of 20 genes)", "synthetic\n(20 of 20 genes)"]


def test_genes_that_are_not_expressed_are_counted_in_the_legend():
    synthetic = make_cells(seed=1)
    synthetic.X = sp.csr_matrix(synthetic.X.toarray() * (np.arange(20) > 2))

    ax = sgd.pl.mean_variance(make_cells(), synthetic, show=False)

    assert len(points_of(ax.collections[0], VERMILION)) == 17
    assert legend_texts(ax)[1] == "synthetic\n(17 of 20 genes)"


def test_zeros_of_both_sets_are_drawn_against_each_other_and_against_the_mean():
    real, synthetic = make_cells(), make_cells(seed=1, scale=0.5)

    axes = sgd.pl.zero_fraction(real, synthetic, show=False)

    statistics = [gene_statistics(cells) for cells in (real, synthetic)]
    expected = sorted_rows(pd.concat([table["zero_fraction"] for table in statistics], axis=1))
    np.testing.assert_allclose(points_of(axes[0].collections[0], (0.25,) * 3), expected)
    for table, color in zip(statistics, (GREY, VERMILION), strict=True):
        drawn = points_of(axes[1].collections[0], color)
        np.testing.assert_allclose(drawn, sorted_rows(table[["mean", "zero_fraction"]]))
    assert axes[0].get_xlim() == axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_ylabel() == "share of zeros in synthetic cells"


# --- library sizes ----------------------------------------------------------------------------------------------------


def test_all_cells_and_every_label_have_violins_of_the_library_sizes_of_each_set():
    real, synthetic = make_cells(), make_cells(seed=1)
    ax = sgd.pl.library_size(real, synthetic, show=False)
    assert (ax.get_xscale(), names(ax.yaxis), len(ax.collections)) == ("log", ["all cells"], 2)
    assert legend_texts(ax) == ["real", "synthetic"]

    synthetic = synthetic[synthetic.obs["cell_type"] != "B"]
    real.obs.loc[real.obs_names[:4], "cell_type"] = pd.NA
    synthetic.obs.loc[synthetic.obs_names[0], "cell_type"] = pd.NA

    ax = sgd.pl.library_size(real, synthetic, groupby="cell_type", show=False)

    assert names(ax.yaxis) == [*LABELS, "no label"]
    assert len(ax.collections) == 4 + 2  # real cells of all labels, synthetic ones without B and with one unlabelled
    sizes = real.X.sum(axis=1).A1[(real.obs["cell_type"] == "B").to_numpy()]
    quartiles = [line.get_xdata()[0] for line in ax.lines]
    for quartile in np.quantile(np.log10(sizes), [0.25, 0.5, 0.75]):
        assert np.abs(np.log10(quartiles) - quartile).min() < 0.02


def test_numeric_labels_are_in_the_order_of_numbers_and_a_missing_one_changes_none():
    real, synthetic = make_cells(), make_cells(seed=1)
    synthetic.obs["dose"] = np.resize([1, 2, 10, 100], 90)
    real.obs["dose"] = synthetic.obs["dose"].astype(float).where(np.arange(90) > 3).to_numpy()

    ax = sgd.pl.library_size(real, synthetic, groupby="dose", show=False)

    assert names(ax.yaxis) == ["1", "2", "10", "100", "no label"]


# --- correlations -----------------------------------------------------------------------------------------------------


def drawn_matrix(ax):
    return ax.collections[0].get_array().filled(np.nan)


def test_correlations_are_those_of_log_normalised_values_on_one_scale():
    real, synthetic = make_cells(), make_cells(seed=1)

    axes = sgd.pl.gene_correlation(real, synthetic, n_genes=12, show=False)

    genes = names(axes[0].xaxis)
    assert len(genes) == 12
    for cells, ax in zip((real, synthetic), axes, strict=True):
        values = pd.DataFrame(sgd.metrics.expression_of(cells).values.toarray(), columns=cells.var_names)
        expected = values[genes].astype(float).corr().to_numpy()
        np.testing.assert_allclose(drawn_matrix(ax), np.where(np.eye(12), np.nan, expected), atol=1e-6)
    assert axes[0].collections[0].get_clim() == axes[1].collections[0].get_clim()
    assert axes[0].get_title() == "real"


def test_genes_that_go_together_are_neighbours():
    ax = sgd.pl.gene_correlation(make_cells(), make_cells(seed=1), n_genes=15, show=False)[0]

    programmes = [int(name.removeprefix("gene_")) // 5 for name in names(ax.xaxis)]
    assert np.count_nonzero(np.diff(programmes)) == 2

    real = make_cells()
    real.X = sp.csr_matrix(real.X[:, [0, 0, 0, 0, *range(4, 20)]])  # rounding puts distances of equals below zero
    ax = sgd.pl.gene_correlation(real, make_cells(seed=1), n_genes=15, show=False)[0]

    places = [names(ax.xaxis).index(f"gene_{number}") for number in range(4)]
    assert np.ptp(places) == 3


def test_within_labels_differences_between_labels_do_not_count():
    cells = make_cells(600), make_cells(600, seed=1)

    among_all = sgd.pl.gene_correlation(*cells, show=False)
    within = sgd.pl.gene_correlation(*cells, groupby="cell_type", show=False)

    assert np.nanmax(drawn_matrix(among_all[0])) > 0.5
    assert np.nanmax(drawn_matrix(within[0])) < 0.3
    assert within[0].figure.axes[-1].get_ylabel() == "correlation of genes\nwithin cell_type"


def test_the_title_says_how_similar_the_correlations_are():
    real = make_cells()

    same = sgd.pl.gene_correlation(real, real, n_genes=3, show=False)

    assert same[1].get_title() == "synthetic\n(similarity 1.00 in these 3 genes)"
    largest = gene_statistics(real)["variance"].nlargest(3).index
    assert set(names(same[0].yaxis)) == set(largest)


# --- markers ----------------------------------------------------------------------------------------------------------


def test_genes_are_the_markers_of_real_cells_label_by_label_and_dots_are_shares_and_means_of_the_label():
    real, synthetic = make_cells(), make_cells(seed=1, scale=0.3)

    ax = sgd.pl.marker_dotplot(real, synthetic, groupby="cell_type", n_genes=2, show=False)

    genes, dots = names(ax.xaxis), ax.collections[0]
    assert [int(gene.removeprefix("gene_")) // 5 for gene in genes] == [0, 0, 1, 1, 2, 2]
    rows = [(label, name) for label in LABELS for name in ("real", "synthetic")]
    assert names(ax.yaxis) == [f"{label}, {name} (30)" for label, name in rows]
    values = {"real": sgd.metrics.expression_of(real).values, "synthetic": sgd.metrics.expression_of(synthetic).values}
    shares, means = [], []
    for label, name in rows:
        column = values[name][(real.obs["cell_type"] == label).to_numpy()][:, real.var_names.get_indexer(genes)]
        shares.append((column > 0).mean(axis=0).A1)
        means.append(column.mean(axis=0).A1)
    order = np.argsort(np.ravel(shares))
    assert (np.diff(dots.get_sizes()[order]) >= -1e-3).all()
    expected = plt.get_cmap("Reds")(np.ravel(means) / np.max(means))
    np.testing.assert_allclose(dots.get_facecolors(), expected, atol=0.02)


def test_genes_that_all_cells_express_are_no_markers():
    """Such as those of ribosomes, which differ most clearly between types."""
    real = make_cells()
    counts = real.X.toarray()
    counts[:, 18:] = np.where(real.obs["cell_type"] == "B", [[2000], [4000]], [[4000], [2000]]).T
    real.X = sp.csr_matrix(counts)
    assert marker_genes(real, "cell_type").groupby("label")["gene"].first()["B"] == "gene_19"

    ax = sgd.pl.marker_dotplot(real, real, groupby="cell_type", n_genes=2, show=False)

    assert not {"gene_18", "gene_19"} & set(names(ax.xaxis))


# --- what is refused --------------------------------------------------------------------------------------------------


def with_column(values):
    cells = make_cells()
    cells.obs["column"] = values
    return cells


def logged():
    cells = make_cells()
    cells.X, cells.uns["log1p"] = cells.X.log1p(), {}
    return cells


def without_counts():
    cells = make_cells()
    cells.X = sp.csr_matrix(cells.shape, dtype=np.float32)
    return cells


@every_plot
def test_other_genes_and_other_things_are_refused(plot):
    with pytest.raises(ValueError, match="synthetic"):
        plot(make_cells(), make_cells(seed=1)[:, 2:])
    with pytest.raises(TypeError, match="real"):
        plot(make_cells().X.toarray(), make_cells())


ONE = with_column("x")


@pytest.mark.parametrize(
    ("plot", "cells", "options", "error", "name"),
    [
        (sgd.pl.library_size, (make_cells(), logged()), {}, ValueError, "synthetic"),
        (sgd.pl.library_size, (without_counts(), make_cells()), {}, ValueError, "real"),
        (sgd.pl.library_size, (make_cells(),) * 2, {"groupby": "type"}, KeyError, "real.*cell_type"),
        (sgd.pl.marker_dotplot, (make_cells(),) * 2, {"groupby": "cell_type", "genes": ["gen_1"]}, ValueError, "genes"),
        (sgd.pl.marker_dotplot, (make_cells(),) * 2, {"groupby": "cell_type", "genes": []}, ValueError, "genes"),
        (sgd.pl.marker_dotplot, (ONE,) * 2, {"groupby": "column"}, ValueError, "genes"),
        (sgd.pl.marker_dotplot, (with_column(np.nan),) * 2, {"groupby": "column"}, ValueError, "genes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(plot, cells, options, error, name):
    with pytest.raises(error, match=name):
        plot(*cells, show=False, **options)
