"""UMAPs and sampling paths show the cells where they are, in the colours of their labels, genes and numbers."""

from __future__ import annotations

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from mudata import MuData

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb, to_rgba

import scgen_diffusion as sgd
from scgen_diffusion.pl._embeddings import geometric_median, place

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


# --- where cells are --------------------------------------------------------------------------------------------------


def test_the_three_panels_hold_equal_numbers_of_both_sets_within_the_same_limits(first_components):
    axes = draw(make_cells(60), make_cells(45, seed=1))

    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [45, 45, 90]
    both = np.concatenate([drawn_points(ax)[0] for ax in axes[:2]])
    np.testing.assert_allclose(drawn_points(axes[2])[0], both[np.lexsort(both.T)])
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    assert axes[0].get_xlim()[0] < both[:, 0].min() < both[:, 0].max() < axes[0].get_xlim()[1]
    assert [ax.get_title() for ax in axes] == ["real (45 cells)", "synthetic (45 cells)", "both (90 cells)"]
    assert legend_texts(axes[2]) == ["real", "synthetic"]


def test_a_part_of_the_cells_is_drawn_and_the_same_for_a_seed(first_components):
    axes, again, other = (draw(max_cells=30, seed=seed)[2] for seed in (0, 0, 1))

    assert axes.get_title() == "both (60 cells)"
    np.testing.assert_array_equal(drawn_points(axes)[0], drawn_points(again)[0])
    assert (drawn_points(axes)[0] != drawn_points(other)[0]).any()


def test_genes_may_come_in_another_order(first_components):
    axes, turned = draw(), draw(synthetic=make_cells(seed=1)[:, ::-1])

    np.testing.assert_allclose(drawn_points(axes[1])[0], drawn_points(turned[1])[0])


def test_noise_lies_apart_from_real_cells_unless_it_is_placed_on_them_which_the_titles_say(first_components):
    synthetic = make_cells(seed=1)[::3].copy()  # T cells
    synthetic.X[:, 5:] = 0  # that express no other gene

    apart, hidden = (draw(synthetic=synthetic, **how) for how in ({}, {"fit": "real"}))

    shares = []
    for axes in (apart, hidden):
        real_xy, synthetic_xy, _ = (drawn_points(ax)[0] for ax in axes)
        margin = 0.05 * np.ptp(real_xy, axis=0)  # points are drawn a little off their places
        is_inside = (synthetic_xy >= real_xy.min(0) - margin) & (synthetic_xy <= real_xy.max(0) + margin)
        shares.append(is_inside.all(axis=1).mean())
    assert shares == [0, 1]
    assert ["nearest real cells" in ax.get_title() for ax in (*apart, *hidden)] == [False] * 3 + [True] * 3


def test_held_out_cells_are_placed_where_real_cells_are(first_components):
    train, real, synthetic = (make_cells(300, seed=seed) for seed in range(3))

    axes = draw(real, synthetic, train=train, fit="real")

    real_xy, synthetic_xy = (drawn_points(ax)[0] for ax in axes[:2])
    np.testing.assert_allclose(real_xy.mean(axis=0), synthetic_xy.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(real_xy.std(axis=0), synthetic_xy.std(axis=0), rtol=0.1)


def test_cells_are_placed_with_most_of_their_nearest_neighbours_and_not_by_themselves():
    fitted = np.array([[0.0], [0.1], [0.2], [1.8], [1.9]])
    coordinates = np.array([[0.0, 0], [0, 1], [1, 0], [100, 100], [101, 100]])
    assert (place(np.array([[1.0]]), fitted, coordinates) < 1).all()  # the mean would be 40
    fitted = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert (place(None, fitted, np.column_stack([fitted, fitted]))[:, 0] != fitted[:, 0]).all()


def test_cells_with_the_same_neighbours_are_placed_beside_each_other(first_components):
    real = make_cells(12)

    axes = draw(real, real[np.repeat(0, 5)], fit="real")

    points = drawn_points(axes[1])[0]
    apart = np.abs(points - points[0]).max(axis=1)[1:]
    assert (0 < apart).all()
    assert apart.max() < 0.05 * np.ptp(axes[1].get_xlim())


def test_the_geometric_median_of_a_triangle_is_its_fermat_point():
    triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    line = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])

    np.testing.assert_allclose(geometric_median(np.stack([triangle, line])), [[0.5, np.sqrt(3) / 6], [1, 0]], atol=0.01)


@pytest.mark.slow  # umap-learn compiles itself first
def test_scanpys_umap_draws_an_island_for_every_label(tmp_path):
    points, colors = drawn_points(draw(color="cell_type", save=tmp_path / "umap.png")[1])

    islands = [points[(colors == to_rgb(color)).all(axis=1)] for color in COLORS]
    widths = max(np.ptp(island, axis=0).max() for island in islands)
    gaps = [np.linalg.norm(islands[a].mean(axis=0) - islands[b].mean(axis=0)) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > widths
    assert (tmp_path / "umap.png").stat().st_size > 1000


def test_the_users_cells_and_axes_are_used_as_they_are(first_components):
    cells = [make_cells(seed=seed) for seed in range(3)]
    before = [adata.copy() for adata in cells]
    _, axs = plt.subplots(1, 3, figsize=(9, 3))

    axes = draw(*cells[:2], train=cells[2], color="cell_type", max_cells=40, axs=axs)

    assert axes == list(axs)
    assert tuple(axs[0].figure.get_size_inches()) == (9, 3)
    for adata, copy in zip(cells, before, strict=True):
        np.testing.assert_array_equal(adata.X, copy.X)
        assert list(adata.obs) == list(copy.obs)
        assert not [*adata.obsm, *adata.obsp]
        assert list(adata.uns) == ["cell_type_colors"]


# --- colours ----------------------------------------------------------------------------------------------------------


def test_labels_have_the_colours_of_uns_in_both_sets(first_components):
    synthetic = make_cells(seed=1)
    del synthetic.uns["cell_type_colors"]

    axes = draw(synthetic=synthetic, color="cell_type")

    for ax in axes[:2]:
        shares = pd.Series([tuple(color) for color in drawn_points(ax)[1]]).value_counts()
        assert dict(shares) == {to_rgb(color): 20 for color in COLORS}
    assert legend_texts(axes[2]) == ["cell_type", *LABELS, "both", "real", "synthetic"]
    marks = [handle.get_color() for handle in axes[2].get_legend().legend_handles]
    assert marks[1:4] == COLORS
    points, colors = drawn_points(axes[0])  # and each point that of its own label
    center = {color: points[(colors == to_rgb(color)).all(axis=1)].mean(axis=0) for color in COLORS}
    nearest = [min(center, key=lambda color: np.linalg.norm(point - center[color])) for point in points]
    assert [to_rgb(color) for color in nearest] == [tuple(color) for color in colors]


@pytest.mark.parametrize("rows", [np.eye(3).tolist(), np.column_stack([np.eye(3), [0.25, 0.5, 0.75]])])
def test_rows_of_numbers_are_colours(first_components, rows):
    real = make_cells()
    real.uns["cell_type_colors"] = rows

    for ax in (draw(real, color="cell_type")[0], draw(color="cell_type", palette=rows)[0]):
        assert {tuple(color) for color in ax.collections[0].get_facecolors()} == {to_rgba(row) for row in rows}


@pytest.mark.parametrize("stored", [["#ff0000", "no colour", "#0000ff"], ["#ff0000", "#00ff00"], np.full((3, 3), 255)])
def test_stored_colours_that_are_none_or_too_few_give_way_to_those_of_scanpy(first_components, stored):
    real, plain = make_cells(), make_cells()
    real.uns["cell_type_colors"] = stored
    del plain.uns["cell_type_colors"]

    drawn, expected = (draw(cells, color="cell_type")[0] for cells in (real, plain))

    np.testing.assert_array_equal(drawn_points(drawn)[1], drawn_points(expected)[1])


def test_a_label_that_real_cells_lack_takes_no_colour_of_another(first_components):
    cells = make_cells()
    cells.uns["cell_type_colors"] = ["#1f77b4", "#ff7f0e", "#2ca02c"]  # scanpy's first
    real = cells[cells.obs["cell_type"] != "T"].copy()

    axes = draw(real, cells, color="cell_type")

    marks = {handle.get_label(): handle.get_color() for handle in axes[2].get_legend().legend_handles}
    assert [marks["B"], marks["NK"]] == ["#ff7f0e", "#2ca02c"]
    assert len({marks[label] for label in LABELS}) == 3


@pytest.mark.parametrize("palette", [{"T": "black", "B": "white", "NK": "gray"}, ["black", "white", "gray"]])
def test_a_palette_goes_before_uns(first_components, palette):
    axes = draw(color="cell_type", palette=palette)

    assert {tuple(color) for color in drawn_points(axes[0])[1]} == {to_rgb(c) for c in ("black", "white", "gray")}


def test_labels_of_one_set_only_and_missing_ones_are_named(first_components):
    synthetic = make_cells(seed=1, labels=["T", "B", "new"])
    synthetic.obs.loc[synthetic.obs_names[:3], "cell_type"] = np.nan

    axes = draw(synthetic=synthetic, color="cell_type")

    assert legend_texts(axes[2])[1:6] == [*LABELS, "new", "no label"]
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


def test_missing_and_infinite_numbers_are_grey_and_a_column_of_them_is_refused(first_components):
    real, synthetic = make_cells(), make_cells(seed=1)
    synthetic.obs["age"] = synthetic.obs["age"].astype("Int64")
    synthetic.obs.loc[synthetic.obs_names[:10], "age"] = pd.NA
    real.obs.loc[real.obs_names[:2], "age"] = [np.inf, -np.inf]

    axes = draw(real, synthetic, color="age")

    assert [(drawn_points(ax)[1] == to_rgb("lightgray")).all(axis=1).sum() for ax in axes[:2]] == [2, 10]
    assert len(np.unique(drawn_points(axes[0])[1], axis=0)) > 50
    assert legend_texts(axes[2]) == ["age", "no number", "both", "real", "synthetic"]
    real.obs["age"] = synthetic.obs["age"] = np.nan
    with pytest.raises(ValueError, match="`color`"):
        draw(real, synthetic, color="age")


def test_many_labels_widen_the_figure(first_components):
    cells = make_cells(120), make_cells(120, seed=1)
    for adata in cells:
        adata.obs["many"] = [f"memory T cell {number % 60}" for number in range(120)]

    axes = [draw(*cells, color=color) for color in ("cell_type", "many")]

    for figure in (axes[0][0].figure, axes[1][0].figure):
        figure.draw_without_rendering()
    few, many = (ax[0].get_window_extent() for ax in axes)
    assert many.width > 0.9 * few.width
    assert many.height > 0.9 * few.height


# --- from noise to cells ----------------------------------------------------------------------------------------------

GENES = [f"gene_{g}" for g in range(20)]
TIMES = [0.0, 0.25, 0.5, 1.0]
N_CELLS = 30


def profiles(seed, n=N_CELLS):
    """Return positive profiles of two types that differ in the first genes, and the types."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 2, n)
    x = rng.gamma(2.0, 0.3, (n, len(GENES)))
    x[:, :5] += 4 * types[:, None]
    return x.astype(np.float32), pd.Categorical.from_codes(types, ["B", "T"])


def make_path(*, sparse=False):
    """Build a path along straight lines from noise to cells."""
    cells, types = profiles(0)
    noise = np.abs(np.random.default_rng(1).normal(size=cells.shape)).astype(np.float32)
    x = np.concatenate([t * cells + (1 - t) * noise for t in TIMES]).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell": pd.Categorical(np.tile([f"synthetic_{i}" for i in range(N_CELLS)], len(TIMES))),
            "frame": np.repeat(range(len(TIMES)), N_CELLS),
            "time": np.repeat(TIMES, N_CELLS),
            "cell_type": pd.Categorical(np.tile(types, len(TIMES)), categories=["B", "T"]),
        }
    )
    obs.index = [f"row_{i}" for i in range(len(obs))]
    x = sp.csr_matrix(x) if sparse else x
    layers = {"estimate": sp.csr_matrix(np.tile(cells, (len(TIMES), 1)))}
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES), layers=layers, uns={"log1p": {}})


def make_reference(*, log1p=True, n=80):
    x, types = profiles(7, n)
    obs = pd.DataFrame({"cell_type": types}, index=[f"real_{i}" for i in range(n)])
    values, uns = (x, {"log1p": {}}) if log1p else (np.floor(np.expm1(x) * 10), {})
    return anndata.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=GENES), uns=uns)


def draw_path(path=None, **options):
    return sgd.pl.sampling_path(make_path() if path is None else path, **{"show": False, "n_panels": 2} | options)


def drawn_cells(ax):
    """Return the points of the cells on their way, which are drawn on top."""
    return np.asarray(ax.collections[-1].get_offsets())


def background(ax):
    return np.asarray(ax.collections[0].get_offsets())


def components(reference, values):
    """Return the first two principal components of the reference, of other values."""
    axes = np.linalg.svd(reference - reference.mean(0), full_matrices=False)[2][:2]
    return (values - reference.mean(0)) @ axes.T


def up_to_signs(found, expected):
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, signs * expected, atol=0.02)  # the decomposition is randomised


def test_panels_go_from_noise_to_cells_and_say_when():
    axes = draw_path(n_panels=3)

    assert [ax.get_title() for ax in axes] == ["noise, $t = 0.00$", "$t = 0.50$", "cells, $t = 1.00$"]
    assert [ax.get_ylabel() for ax in axes] == ["PC 2", "", ""]
    assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1
    assert len(draw_path(n_panels=None)) == len(TIMES)


def test_cells_are_where_the_principal_components_of_the_real_cells_put_them():
    path, reference = make_path(), make_reference()

    axes = draw_path(path, reference=reference, n_panels=4)

    real = reference.X.toarray()
    for ax, time in zip(axes, TIMES, strict=True):
        expected = components(real, path[path.obs["time"] == time].X)
        order = np.random.default_rng(0).permutation(N_CELLS)  # of the names, in the order of the alphabet
        names = np.unique(path.obs["cell"].astype(str))[order]
        up_to_signs(drawn_cells(ax), expected[[int(name.removeprefix("synthetic_")) for name in names]])
        up_to_signs(background(ax), components(real, real))


def test_real_cells_are_normalised_as_models_do_and_their_genes_put_in_order():
    counts = make_reference(log1p=False)
    values = np.log1p(1e4 * counts.X.toarray() / counts.X.toarray().sum(1, keepdims=True))
    up_to_signs(background(draw_path(reference=counts)[0]), components(values, values))

    binary, values = make_reference(), make_reference().X.toarray()
    binary.X, binary.uns["log1p"] = binary.X / np.log(2), {"base": 2}
    up_to_signs(background(draw_path(reference=binary[:, ::-1].copy())[0]), components(values, values))


def test_without_a_reference_the_plane_is_that_of_the_finished_cells():
    axes = draw_path()

    assert all(len(background(ax)) == 0 for ax in axes)
    np.testing.assert_allclose(drawn_cells(axes[-1]).mean(0), 0, atol=1e-4)
    assert drawn_cells(axes[-1]).std(0)[0] > drawn_cells(axes[0]).std(0)[0]


def test_cells_have_the_colours_of_their_labels_in_all_panels():
    path, reference = make_path(), make_reference()
    reference.uns["cell_type_colors"] = [[0.0, 0.2, 0.4], [1.0, 0.0, 0.0]]

    axes = draw_path(path, reference=reference, color="cell_type")

    n_t = (path.obs["cell_type"][:N_CELLS] == "T").sum()
    for ax in axes:
        colors = ax.collections[-1].get_facecolors()
        assert (colors == to_rgba("red")).all(1).sum() == n_t
        assert (colors == (0, 0.2, 0.4, 1)).all(1).sum() == N_CELLS - n_t
    on_the_right = drawn_cells(axes[-1])[:, 0] > 0
    is_t = (axes[-1].collections[-1].get_facecolors() == to_rgba("red")).all(1)
    assert (on_the_right == is_t).all() or (on_the_right != is_t).all()
    assert legend_texts(axes[-1]) == ["cell_type", "B", "T", "real cells"]


def test_a_label_has_its_colour_in_an_embedding_of_the_reference_whether_it_has_more_labels_or_none():
    reference = make_reference()
    reference.obs["cell_type"] = np.where(np.arange(reference.n_obs) % 2, "A", reference.obs["cell_type"].astype(str))
    ax = draw_path(reference=reference, color="cell_type")[0]
    _, second, third = sc.pl.palettes.default_20[:3]  # the first one is that of A
    assert {tuple(color) for color in ax.collections[-1].get_facecolors()} == {to_rgba(second), to_rgba(third)}
    assert legend_texts(ax.figure.axes[-1]) == ["cell_type", "B", "T", "real cells"]

    del reference.obs["cell_type"]
    ax = draw_path(reference=reference, color="cell_type", palette={"B": "red", "T": "blue"})[0]
    assert {tuple(color) for color in ax.collections[-1].get_facecolors()} == {to_rgba("red"), to_rgba("blue")}


def test_numbers_have_a_scale_instead_of_a_legend_of_every_number():
    path = make_path()
    path.obs["age"] = np.tile(np.append(np.linspace(10, 80, N_CELLS - 1), np.inf), len(TIMES))

    axes = draw_path(path, reference=make_reference(), color="age")

    assert legend_texts(axes[-1]) == ["no number", "real cells"]
    bar = axes[0].figure.axes[2]
    assert bar.get_xlabel() == "age"
    np.testing.assert_allclose(bar.get_xlim(), (10, 80))
    assert len(np.unique(axes[0].collections[-1].get_facecolors(), axis=0)) == N_CELLS


def test_the_estimate_can_be_drawn():
    first, _, last = (drawn_cells(ax) for ax in draw_path(values="estimate", n_panels=3))

    np.testing.assert_allclose(first[np.lexsort(first.T)], last[np.lexsort(last.T)], atol=1e-4)  # the builder's


def test_rows_may_come_in_any_order_sparse_and_in_part():
    path = make_path(sparse=True)
    rows = np.random.default_rng(3).permutation(path.n_obs)
    some = path[path.obs["cell_type"] == "B"].copy()

    up_to_signs(*(drawn_cells(draw_path(p)[1]) for p in (make_path(), path[rows].copy())))
    assert len(drawn_cells(draw_path(some)[0])) == some.n_obs / len(TIMES)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"color": "celltype"}, KeyError, "`color`.*cell_type"),
        ({"color": "Gene_3"}, KeyError, "`color`.*gene_3"),
        ({"color": "cell_type", "palette": {"T": "red"}}, ValueError, "palette"),
        ({"color": "cell_type", "palette": ["red"]}, ValueError, "palette"),
        ({"fit": "train"}, ValueError, "fit"),
        ({"max_cells": 1}, ValueError, "max_cells"),
        ({"axs": []}, ValueError, "axs"),
        ({"real": make_cells(3), "fit": "real"}, ValueError, "4 cells"),
        ({"synthetic": make_cells().X}, TypeError, "synthetic"),
        ({"synthetic": make_cells()[:, 2:]}, ValueError, "synthetic"),
        ({"synthetic": anndata.AnnData(make_cells().X, var=make_cells().var), "color": "cell_type"}, KeyError, "color"),
    ],
)
def test_a_umap_of_what_does_not_fit_is_refused(options, error, name):
    with pytest.raises(error, match=name):
        draw(**options)


def without(column):
    path = make_path()
    del path.obs[column]
    return path


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"path": without("frame")}, ValueError, "frame"),
        ({"path": make_path()[:-1]}, ValueError, "path"),
        ({"path": MuData({"rna": make_path()})}, TypeError, r"path\['rna'\]"),
        ({"n_panels": 5}, ValueError, "n_panels"),
        ({"n_panels": 1}, ValueError, "n_panels"),
        ({"color": "dose"}, KeyError, "dose"),
        ({"values": "noise"}, ValueError, "values"),
        ({"reference": make_reference()[:, :10].copy()}, ValueError, "reference"),
        ({"reference": make_reference(n=2)}, ValueError, "reference"),
    ],
)
def test_a_path_that_does_not_fit_is_refused(options, error, name):
    with pytest.raises(error, match=name):
        draw_path(**options)
