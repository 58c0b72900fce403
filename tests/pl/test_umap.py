"""Real and synthetic cells in one UMAP: what is where, in which colours, and what is wrong."""

from __future__ import annotations

import warnings

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb, to_rgba

import scgen_diffusion as sgd
from scgen_diffusion.pl._umap import geometric_median, place

LABELS = ["T", "B", "NK"]
COLORS = ["#ff0000", "#00ff00", "#0000ff"]


@pytest.fixture
def first_components(monkeypatch):
    """Put the first two principal components in the place of UMAP, which takes seconds."""
    monkeypatch.setattr("scgen_diffusion.pl._umap.umap_of", lambda values, **_: values[:, :2].copy())


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


def drawn_points(ax):
    """Return coordinates and colours in the order of the coordinates."""
    points = ax.collections[0]
    order = np.lexsort(points.get_offsets().T)
    return np.asarray(points.get_offsets())[order], points.get_facecolors()[order][:, :3]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts() if text.get_text()]


def test_the_three_panels_hold_equal_numbers_of_both_sets_within_the_same_limits(first_components):
    axes = sgd.pl.umap(make_cells(60), make_cells(45, seed=1), show=False)

    sizes = [len(ax.collections[0].get_offsets()) for ax in axes]
    assert sizes == [45, 45, 90]
    both = np.concatenate([drawn_points(ax)[0] for ax in axes[:2]])
    np.testing.assert_allclose(drawn_points(axes[2])[0], both[np.lexsort(both.T)])
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    assert axes[0].get_xlim()[0] < both[:, 0].min() < both[:, 0].max() < axes[0].get_xlim()[1]
    assert [ax.get_title() for ax in axes] == ["real (45 cells)", "synthetic (45 cells)", "both (90 cells)"]
    assert legend_texts(axes[2]) == ["real", "synthetic"]


@pytest.mark.parametrize("by_label", [False, True])
def test_labels_have_the_colours_of_uns_in_both_sets(first_components, by_label):
    real, synthetic = make_cells(), make_cells(seed=1)
    del synthetic.uns["cell_type_colors"]
    if by_label:
        real.uns["cell_type_colors"] = dict(reversed([*zip(LABELS, COLORS, strict=True)]))

    axes = sgd.pl.umap(real, synthetic, color="cell_type", show=False)

    for ax in axes[:2]:
        shares = pd.Series([tuple(color) for color in drawn_points(ax)[1]]).value_counts()
        assert dict(shares) == {to_rgb(color): 20 for color in COLORS}
    assert legend_texts(axes[2]) == ["cell_type", *LABELS, "both", "real", "synthetic"]
    marks = [handle.get_color() for handle in axes[2].get_legend().legend_handles]
    assert marks[1:4] == COLORS


def test_a_label_that_real_cells_lack_takes_no_colour_of_another(first_components):
    cells = make_cells()
    cells.uns["cell_type_colors"] = ["#1f77b4", "#ff7f0e", "#2ca02c"]  # scanpy's first
    real = cells[cells.obs["cell_type"] != "T"].copy()

    axes = sgd.pl.umap(real, cells, color="cell_type", show=False)

    marks = {handle.get_label(): handle.get_color() for handle in axes[2].get_legend().legend_handles}
    assert [marks["B"], marks["NK"]] == ["#ff7f0e", "#2ca02c"]
    assert len({marks[label] for label in LABELS}) == 3


def test_a_column_with_the_name_of_a_panel_keeps_its_legend(first_components):
    sides = [make_cells(seed=seed) for seed in (0, 1)]
    for cells in sides:
        cells.obs["both"] = cells.obs["cell_type"]

    axes = sgd.pl.umap(*sides, color="both", show=False)

    assert legend_texts(axes[2]) == ["both", *LABELS, "both", "real", "synthetic"]


def test_a_point_has_the_colour_of_its_own_label(first_components):
    real = make_cells()

    ax = sgd.pl.umap(real, make_cells(seed=1), color="cell_type", show=False)[0]

    points, colors = drawn_points(ax)
    center = {
        label: points[(colors == to_rgb(color)).all(axis=1)].mean(axis=0)
        for label, color in zip(LABELS, COLORS, strict=True)
    }
    nearest = [min(center, key=lambda label: np.linalg.norm(point - center[label])) for point in points]
    assert [to_rgb(COLORS[LABELS.index(label)]) for label in nearest] == [tuple(color) for color in colors]


def test_a_palette_goes_before_uns(first_components):
    palette = {"T": "black", "B": "white", "NK": "gray"}

    by_name = sgd.pl.umap(make_cells(), make_cells(seed=1), color="cell_type", palette=palette, show=False)
    in_order = sgd.pl.umap(
        make_cells(), make_cells(seed=1), color="cell_type", palette=list(palette.values()), show=False
    )

    for axes in (by_name, in_order):
        assert {tuple(color) for color in drawn_points(axes[0])[1]} == {to_rgb(color) for color in palette.values()}


def test_labels_of_one_set_only_and_missing_ones_are_named(first_components):
    synthetic = make_cells(seed=1, labels=["T", "B", "new"])
    synthetic.obs.loc[synthetic.obs_names[:3], "cell_type"] = np.nan

    axes = sgd.pl.umap(make_cells(), synthetic, color="cell_type", show=False)

    assert legend_texts(axes[2])[1:6] == [*LABELS, "new", "no label"]
    assert to_rgb("lightgray") in {tuple(color) for color in drawn_points(axes[1])[1]}


def test_genes_and_numbers_are_coloured_on_one_scale(first_components):
    real, synthetic = make_cells(), make_cells(seed=1)
    synthetic.obs["age"] += 100

    of_gene = sgd.pl.umap(real, synthetic, color="gene_3", show=False)
    of_number = sgd.pl.umap(real, synthetic, color="age", show=False)

    bars = [axes[0].figure.axes[3] for axes in (of_gene, of_number)]
    assert [bar.get_ylabel() for bar in bars] == ["gene_3", "age"]
    np.testing.assert_allclose(bars[1].get_ylim(), (0, 159))
    values = [sgd.metrics.expression_of(cells).values[:, [3]].toarray().ravel() for cells in (real, synthetic)]
    norm = plt.Normalize(min(map(min, values)), max(map(max, values)))
    for ax, own in zip(of_gene[:2], values, strict=True):
        expected = plt.get_cmap("viridis")(norm(own))[:, :3]
        np.testing.assert_allclose(np.sort(drawn_points(ax)[1], axis=0), np.sort(expected, axis=0), atol=1e-6)
    assert drawn_points(of_number[0])[1].max(axis=0)[0] < 0.3  # viridis begins dark: the real ones are the smaller


def test_missing_and_infinite_numbers_are_grey_and_a_column_of_them_is_refused(first_components):
    real, synthetic = make_cells(), make_cells(seed=1)
    synthetic.obs["age"] = synthetic.obs["age"].astype("Int64")
    synthetic.obs.loc[synthetic.obs_names[:10], "age"] = pd.NA
    real.obs.loc[real.obs_names[:2], "age"] = [np.inf, -np.inf]

    axes = sgd.pl.umap(real, synthetic, color="age", show=False)

    greys = [(drawn_points(ax)[1] == to_rgb("lightgray")).all(axis=1).sum() for ax in axes[:2]]
    assert greys == [2, 10]
    assert len(np.unique(drawn_points(axes[0])[1], axis=0)) > 50
    assert legend_texts(axes[2]) == ["age", "no number", "both", "real", "synthetic"]
    real.obs["age"] = synthetic.obs["age"] = np.nan
    with pytest.raises(ValueError, match="`color` 'age' has no number"):
        sgd.pl.umap(real, synthetic, color="age", show=False)


def test_many_labels_widen_the_figure_and_not_the_figure_of_the_user(first_components):
    cells = make_cells(120), make_cells(120, seed=1)
    for adata in cells:
        adata.obs["many"] = [f"memory T cell {number % 60}" for number in range(120)]
    _, axs = plt.subplots(1, 3, figsize=(9, 3))

    axes = [sgd.pl.umap(*cells, color=color, show=False) for color in ("cell_type", "many")]
    given = sgd.pl.umap(*cells, color="many", axs=axs, show=False)

    for figure in (axes[0][0].figure, axes[1][0].figure):
        figure.draw_without_rendering()
    few, many = (ax[0].get_window_extent() for ax in axes)
    assert many.width > 0.9 * few.width
    assert many.height > 0.9 * few.height
    assert tuple(given[0].figure.get_size_inches()) == (9, 3)


def test_labels_that_share_a_colour_are_reported(first_components):
    real, synthetic = make_cells(120), make_cells(120, seed=1)
    for adata in (real, synthetic):
        adata.obs["many"] = [f"T{number}" for number in range(120)]

    with pytest.warns(UserWarning, match="'many' has 120 labels, but there are only 102 colours"):
        sgd.pl.umap(real, synthetic, color="many", show=False)
    with warnings.catch_warnings(action="error", category=UserWarning):
        sgd.pl.umap(real, synthetic[:100], color="cell_type", show=False)
        sgd.pl.umap(real[:100], synthetic[:100], color="many", show=False)
        sgd.pl.umap(real, synthetic, color="many", palette=["red"] * 120, show=False)


def test_three_cells_are_too_few_for_a_umap():
    with pytest.raises(ValueError, match="needs at least 4 cells to be fitted to, but found 3"):
        sgd.pl.umap(make_cells(3), make_cells(seed=1), fit="real", show=False)


def test_a_part_of_the_cells_is_drawn_and_the_same_for_a_seed(first_components):
    cells = make_cells(60), make_cells(45, seed=1)

    axes, again, other = (sgd.pl.umap(*cells, max_cells=30, seed=seed, show=False) for seed in (0, 0, 1))

    assert [ax.get_title() for ax in axes] == ["real (30 cells)", "synthetic (30 cells)", "both (60 cells)"]
    np.testing.assert_array_equal(drawn_points(axes[2])[0], drawn_points(again[2])[0])
    assert (drawn_points(axes[2])[0] != drawn_points(other[2])[0]).any()


def test_genes_may_come_in_another_order(first_components):
    real, synthetic = make_cells(), make_cells(seed=1)

    axes = sgd.pl.umap(real, synthetic, show=False)
    turned = sgd.pl.umap(real, synthetic[:, ::-1], show=False)

    np.testing.assert_allclose(drawn_points(axes[1])[0], drawn_points(turned[1])[0])


def test_the_users_cells_are_left_as_they_are(first_components):
    cells = [make_cells(), make_cells(seed=1), make_cells(seed=2)]
    before = [adata.copy() for adata in cells]

    sgd.pl.umap(*cells[:2], train=cells[2], color="cell_type", max_cells=40, show=False)

    for adata, copy in zip(cells, before, strict=True):
        np.testing.assert_array_equal(adata.X, copy.X)
        assert list(adata.obs) == list(copy.obs)
        assert not len(adata.obsm)
        assert not len(adata.obsp)
        assert list(adata.uns) == ["cell_type_colors"]


def test_without_training_cells_a_real_cell_is_not_placed_by_itself():
    fitted = np.array([[0.0], [1.0], [10.0], [11.0]])

    placed = place(None, fitted, np.column_stack([fitted, fitted]))

    assert (placed[:, 0] != fitted[:, 0]).all()


def test_cells_with_the_same_neighbours_are_drawn_beside_each_other(first_components):
    real = make_cells(12)

    axes = sgd.pl.umap(real, real[np.repeat(0, 5)], fit="real", show=False)

    points = drawn_points(axes[1])[0]
    apart = np.abs(points - points[0]).max(axis=1)[1:]
    width = np.ptp(axes[1].get_xlim())
    assert (0 < apart).all()
    assert apart.max() < 0.05 * width


def test_cells_are_placed_with_most_of_their_neighbours():
    fitted = np.array([[0.0], [0.1], [0.2], [1.8], [1.9]])
    coordinates = np.array([[0.0, 0], [0, 1], [1, 0], [100, 100], [101, 100]])

    placed = place(np.array([[1.0]]), fitted, coordinates)

    assert (placed < 1).all()  # the mean would be 40


def test_the_geometric_median_of_a_triangle_is_its_fermat_point():
    triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    line = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])

    medians = geometric_median(np.stack([triangle, line]))

    np.testing.assert_allclose(medians, [[0.5, np.sqrt(3) / 6], [1, 0]], atol=0.01)


def test_held_out_cells_land_where_real_cells_are(first_components):
    train, real, synthetic = (make_cells(300, seed=seed) for seed in range(3))

    axes = sgd.pl.umap(real, synthetic, train=train, fit="real", show=False)

    real_xy, synthetic_xy = (drawn_points(ax)[0] for ax in axes[:2])
    np.testing.assert_allclose(real_xy.mean(axis=0), synthetic_xy.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(real_xy.std(axis=0), synthetic_xy.std(axis=0), rtol=0.1)


def test_noise_lies_apart_from_real_cells_unless_it_is_placed_on_them_which_the_titles_say(first_components):
    real = make_cells()
    synthetic = make_cells(seed=1)[::3].copy()  # T cells
    synthetic.X[:, 5:] = 0  # that express no other gene

    apart, hidden = (sgd.pl.umap(real, synthetic, **how, show=False) for how in ({}, {"fit": "real"}))

    shares = []
    for axes in (apart, hidden):
        real_xy, synthetic_xy, _ = (drawn_points(ax)[0] for ax in axes)
        margin = 0.05 * np.ptp(real_xy, axis=0)  # points are drawn a little off their places
        is_inside = (synthetic_xy >= real_xy.min(0) - margin) & (synthetic_xy <= real_xy.max(0) + margin)
        shares.append(is_inside.all(axis=1).mean())
    assert shares == [0, 1]
    assert ["nearest real cells" in ax.get_title() for ax in (*apart, *hidden)] == [False] * 3 + [True] * 3


@pytest.mark.slow  # umap-learn compiles itself first
def test_scanpys_umap_draws_an_island_for_every_label(tmp_path):
    axes = sgd.pl.umap(make_cells(), make_cells(seed=1), color="cell_type", show=False, save=tmp_path / "umap.png")

    points, colors = drawn_points(axes[1])
    islands = [points[(colors == to_rgb(color)).all(axis=1)] for color in COLORS]
    widths = max(np.ptp(island, axis=0).max() for island in islands)
    gaps = [np.linalg.norm(islands[a].mean(axis=0) - islands[b].mean(axis=0)) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > widths
    assert (tmp_path / "umap.png").stat().st_size > 1000


def test_given_axes_are_drawn_on(first_components):
    _, axs = plt.subplots(1, 3)

    assert sgd.pl.umap(make_cells(), make_cells(seed=1), axs=axs, show=False) == list(axs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"color": "celltype"}, KeyError, "`color` 'celltype' is neither a column of `real.obs` nor a gene.*cell_type"),
        ({"color": "Gene_3"}, KeyError, "nor a gene. Known, closest first: 'gene_3'"),
        ({"color": "cell_type", "palette": {"T": "red"}}, ValueError, "`palette` has no colour for 'B'"),
        (
            {"color": "cell_type", "palette": ["red"]},
            ValueError,
            "`palette` has no colour for 'B', a label of 'cell_type'",
        ),
        ({"color": "cell_type", "palette": ["red", "blue", "no colour"]}, ValueError, "palette"),
        ({"fit": "train"}, ValueError, "`fit` .*'train'.*real"),
        ({"max_cells": 1}, ValueError, "`max_cells` must be a whole number of at least 2"),
        ({"layer": "raw"}, KeyError, "`real` has no layer 'raw'"),
        ({"axs": []}, ValueError, "one axis per panel, 3, but found 0"),
        ({"n_neighbors": 1}, ValueError, "`n_neighbors` must be a whole number of at least 2, but found 1"),
    ],
)
def test_errors_say_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        sgd.pl.umap(make_cells(), make_cells(seed=1), **options)


def test_training_cells_must_have_the_layer_that_generated_cells_may_lack():
    real = make_cells()
    real.layers["raw"] = real.X
    with pytest.raises(KeyError, match="`train` has no layer 'raw'"):
        sgd.pl.umap(real, make_cells(seed=1), train=make_cells(seed=2), layer="raw")


def test_several_colors_have_a_row_of_panels_each():
    real, synthetic = make_cells(), make_cells(seed=1)

    axes = sgd.pl.umap(real, synthetic, color=["cell_type", "gene_3"], show=False)

    alone = [sgd.pl.umap(real, synthetic, color=color, show=False) for color in ("cell_type", "gene_3")]
    for ax, expected in zip(axes, [*alone[0], *alone[1]], strict=True):
        for found, wanted in zip(drawn_points(ax), drawn_points(expected), strict=True):
            np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="one axis per panel, 6, but found 3"):
        sgd.pl.umap(real, synthetic, color=["cell_type", "gene_3"], axs=alone[0], show=False)
    with pytest.raises(TypeError, match="`color` must name a column of `obs` or a gene, or list several, but found 3"):
        sgd.pl.umap(real, synthetic, color=3)


def test_cells_that_cannot_be_compared_are_refused():
    with pytest.raises(TypeError, match="`palette` must map labels to colours, or list colours, but found 'tab20'"):
        sgd.pl.umap(make_cells(), make_cells(seed=1), color="cell_type", palette="tab20")
    with pytest.raises(TypeError, match="`synthetic` must be an AnnData, but found ndarray"):
        sgd.pl.umap(make_cells(), make_cells().X)
    with pytest.raises(ValueError, match="`synthetic` lacks 2 of the 20 genes"):
        sgd.pl.umap(make_cells(), make_cells(seed=1)[:, 2:])
    with pytest.raises(KeyError, match="neither a column of `synthetic.obs` nor a gene"):
        sgd.pl.umap(make_cells(), anndata.AnnData(make_cells().X, var=make_cells().var), color="cell_type")


@pytest.mark.parametrize("rows", [np.eye(3), np.eye(3).tolist(), np.column_stack([np.eye(3), [0.25, 0.5, 0.75]])])
def test_rows_of_numbers_are_colours(first_components, rows):
    real = make_cells()
    real.uns["cell_type_colors"] = rows

    stored = sgd.pl.umap(real, make_cells(seed=1), color="cell_type", show=False)[0]
    given = sgd.pl.umap(make_cells(), make_cells(seed=1), color="cell_type", palette=rows, show=False)[0]

    for ax in (stored, given):
        assert {tuple(color) for color in ax.collections[0].get_facecolors()} == {to_rgba(row) for row in rows}


@pytest.mark.parametrize(
    "stored",
    [
        ["#ff0000", "no colour", "#0000ff"],
        ["#ff0000", "#00ff00"],
        {"T": "#ff0000", "B": "no colour"},
        np.full((3, 3), 255),
        np.full((3, 3), np.nan),
        np.ones((3, 2)),
        np.ones(3),
        [None, "#ff0000", "#0000ff"],
        "red",
        0,
        np.array("red"),
        np.array([b"red"] * 3),
        pd.DataFrame({"r": [0, 1, 0]}),
    ],
)
def test_stored_colours_that_are_none_or_too_few_give_way_to_those_of_scanpy(first_components, stored):
    real, plain = make_cells(), make_cells()
    real.uns["cell_type_colors"] = stored
    del plain.uns["cell_type_colors"]

    drawn, expected = (sgd.pl.umap(c, make_cells(seed=1), color="cell_type", show=False)[0] for c in (real, plain))

    np.testing.assert_array_equal(drawn_points(drawn)[1], drawn_points(expected)[1])
