"""UMAPs and sampling paths show the cells where they are, in the colours of their labels, genes and numbers."""

from __future__ import annotations

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

import scgen_diffusion as sgd

LABELS = ["T", "B", "NK"]
COLORS = ["#ff0000", "#00ff00", "#0000ff"]


@pytest.fixture
def first_components(monkeypatch):
    """Put the first two principal components in the place of UMAP, which takes seconds."""
    monkeypatch.setattr("scgen_diffusion.pl._embeddings.umap_of", lambda values, **_: values[:, :2].copy())


def make_cells(n_cells=60, *, seed=0, n_genes=20, labels=LABELS):
    """Build cells whose label decides which genes they express."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n_cells) % len(labels)
    means = np.full((len(LABELS), n_genes), 1.0)
    for code in range(len(LABELS)):
        means[code, 5 * code : 5 * code + 5] = 20
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(codes, categories=labels), "age": np.arange(n_cells, dtype=float)},
        index=[f"{seed}_{number}" for number in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene_{g}" for g in range(n_genes)])
    cells = anndata.AnnData(rng.poisson(means[codes]).astype(np.float32), obs=obs, var=var)
    cells.uns["cell_type_colors"] = COLORS[: len(labels)]
    return cells


def draw(real=None, synthetic=None, **options):
    real, synthetic = make_cells() if real is None else real, make_cells(seed=1) if synthetic is None else synthetic
    return sgd.pl.umap(real, synthetic, show=False, **options)


def drawn_points(ax):
    """Return coordinates and colours in the order of the coordinates."""
    points = ax.collections[0]
    order = np.lexsort(points.get_offsets().T)
    return np.asarray(points.get_offsets())[order], points.get_facecolors()[order][:, :3]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts() if text.get_text()]


def test_the_three_panels_hold_equal_numbers_of_both_sets_within_the_same_limits(first_components):
    axes = draw(make_cells(60), make_cells(45, seed=1))

    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [45, 45, 90]
    both = np.concatenate([drawn_points(ax)[0] for ax in axes[:2]])
    np.testing.assert_allclose(drawn_points(axes[2])[0], both[np.lexsort(both.T)])
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    assert axes[0].get_xlim()[0] < both[:, 0].min() < both[:, 0].max() < axes[0].get_xlim()[1]
    assert [ax.get_title() for ax in axes] == ["real (45 cells)", "synthetic (45 cells)", "both (90 cells)"]
    assert legend_texts(axes[2]) == ["real", "synthetic"]


def test_a_part_of_the_cells_is_drawn_and_the_same_for_a_seed_and_another_order_of_genes(first_components):
    axes, other = (draw(max_cells=30, seed=seed)[2] for seed in (0, 1))
    again = draw(synthetic=make_cells(seed=1)[:, ::-1], max_cells=30, seed=0)[2]

    assert axes.get_title() == "both (60 cells)"
    np.testing.assert_allclose(drawn_points(axes)[0], drawn_points(again)[0])
    assert (drawn_points(axes)[0] != drawn_points(other)[0]).any()


@pytest.mark.slow  # umap-learn compiles itself first
def test_scanpys_umap_draws_an_island_for_every_label():
    points, colors = drawn_points(draw(color="cell_type")[1])

    islands = [points[(colors == to_rgb(color)).all(axis=1)] for color in COLORS]
    widths = max(np.ptp(island, axis=0).max() for island in islands)
    gaps = [np.linalg.norm(islands[a].mean(axis=0) - islands[b].mean(axis=0)) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > widths


@pytest.mark.slow
def test_cells_around_the_mean_of_all_lie_among_themselves():
    real, noise = make_cells(), make_cells(seed=1)
    noise.X = np.random.default_rng(0).poisson(real.X.mean(axis=0), noise.shape).astype(np.float32)

    own, drawn = (drawn_points(ax)[0] for ax in draw(real, noise)[:2])

    to_real, to_noise = (np.linalg.norm(drawn[:, None] - others, axis=2) for others in (own, drawn))
    np.fill_diagonal(to_noise, np.inf)
    assert (to_noise.min(axis=1) < to_real.min(axis=1)).mean() > 0.9


def test_the_users_cells_and_axes_are_used_as_they_are(first_components):
    cells = [make_cells(seed=seed) for seed in range(2)]
    before = [adata.copy() for adata in cells]
    _, axs = plt.subplots(1, 3, figsize=(9, 3))

    axes = draw(*cells, color="cell_type", max_cells=40, axs=axs)

    assert axes == list(axs)
    assert tuple(axs[0].figure.get_size_inches()) == (9, 3)
    for adata, copy in zip(cells, before, strict=True):
        np.testing.assert_array_equal(adata.X, copy.X)
        assert list(adata.obs) == list(copy.obs)
        assert not [*adata.obsm, *adata.obsp]
        assert list(adata.uns) == ["cell_type_colors"]


def test_labels_have_the_colours_of_uns_in_both_sets(first_components):
    synthetic = make_cells(seed=1)
    del synthetic.uns["cell_type_colors"]

    axes = draw(synthetic=synthetic, color="cell_type")

    for ax in axes[:2]:
        shares = pd.Series([tuple(color) for color in drawn_points(ax)[1]]).value_counts()
        assert dict(shares) == {to_rgb(color): 20 for color in COLORS}
    assert legend_texts(axes[2]) == [*LABELS, "real", "synthetic"]
    assert axes[2].get_legend().get_title().get_text() == "cell_type"
    marks = [handle.get_color() for handle in axes[2].get_legend().legend_handles]
    assert marks[:3] == COLORS
    points, colors = drawn_points(axes[0])  # and each point that of its own label
    center = {color: points[(colors == to_rgb(color)).all(axis=1)].mean(axis=0) for color in COLORS}
    nearest = [min(center, key=lambda color: np.linalg.norm(point - center[color])) for point in points]
    assert [to_rgb(color) for color in nearest] == [tuple(color) for color in colors]


def test_a_label_that_real_cells_lack_takes_no_colour_of_another(first_components):
    cells = make_cells()
    cells.uns["cell_type_colors"] = ["#1f77b4", "#ff7f0e", "#2ca02c"]  # scanpy's first
    real = cells[cells.obs["cell_type"] != "T"].copy()

    axes = draw(real, cells, color="cell_type")

    marks = {handle.get_label(): handle.get_color() for handle in axes[2].get_legend().legend_handles}
    assert [marks["B"], marks["NK"]] == ["#ff7f0e", "#2ca02c"]
    assert len({marks[label] for label in LABELS}) == 3


def test_labels_of_one_set_only_and_missing_ones_are_named(first_components):
    synthetic = make_cells(seed=1, labels=["T", "B", "new"])
    synthetic.obs.loc[synthetic.obs_names[:3], "cell_type"] = np.nan

    axes = draw(synthetic=synthetic, color="cell_type")

    assert legend_texts(axes[2])[:5] == [*LABELS, "new", "no label"]
    assert to_rgb("lightgray") in {tuple(color) for color in drawn_points(axes[1])[1]}


def test_genes_and_numbers_are_coloured_on_one_scale(first_components):
    real, synthetic = make_cells(), make_cells(seed=1)
    synthetic.obs["age"] += 100

    axes = draw(real, synthetic, color=["gene_3", "age"])

    bars = axes[0].figure.axes[6:]
    assert [bar.get_ylabel() for bar in bars] == ["gene_3", "age"]
    np.testing.assert_allclose(bars[1].get_ylim(), (0, 159))
    values = [sgd.metrics.expression_of(cells).values[:, [3]].toarray().ravel() for cells in (real, synthetic)]
    norm = plt.Normalize(min(map(min, values)), max(map(max, values)))
    for ax, own in zip(axes[:2], values, strict=True):
        expected = plt.get_cmap("viridis")(norm(own))[:, :3]
        np.testing.assert_allclose(np.sort(drawn_points(ax)[1], axis=0), np.sort(expected, axis=0), atol=1e-6)
    assert drawn_points(axes[3])[1].max(axis=0)[0] < 0.3  # viridis begins dark: the real ones are the smaller


def test_missing_numbers_are_grey_and_a_column_of_them_is_refused(first_components):
    real, synthetic = make_cells(), make_cells(seed=1)
    synthetic.obs["age"] = synthetic.obs["age"].astype("Int64")
    synthetic.obs.loc[synthetic.obs_names[:10], "age"] = pd.NA
    real.obs.loc[real.obs_names[:2], "age"] = np.nan

    axes = draw(real, synthetic, color="age")

    assert [(drawn_points(ax)[1] == to_rgb("lightgray")).all(axis=1).sum() for ax in axes[:2]] == [2, 10]
    assert len(np.unique(drawn_points(axes[0])[1], axis=0)) > 50
    real.obs["age"] = synthetic.obs["age"] = np.nan
    with pytest.raises(ValueError, match="`color`"):
        draw(real, synthetic, color="age")


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"color": "celltype"}, KeyError, "cell_type"),
        ({"max_cells": 1}, ValueError, "max_cells"),
        ({"axs": []}, ValueError, "axs"),
        ({"synthetic": make_cells().X}, TypeError, "synthetic"),
        ({"synthetic": make_cells()[:, 2:]}, ValueError, "synthetic"),
        (
            {"synthetic": anndata.AnnData(make_cells().X, var=make_cells().var), "color": "cell_type"},
            KeyError,
            "synthetic.obs",
        ),
    ],
)
def test_a_umap_of_what_does_not_fit_is_refused(options, error, name):
    with pytest.raises(error, match=name):
        draw(**options)
