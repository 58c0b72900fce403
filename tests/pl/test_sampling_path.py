"""Plots of sampling paths show the cells where they are, at their times, in the colours of their labels."""

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
from matplotlib.colors import to_rgba

import scgen_diffusion as sgd

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
    values = x if log1p else np.floor(np.expm1(x) * 10)
    return anndata.AnnData(
        sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=GENES), uns={"log1p": {}} if log1p else {}
    )


def drawn_cells(ax):
    """Return the points of the cells on their way, which are drawn on top."""
    return np.asarray(ax.collections[-1].get_offsets())


def same_points(one, other):
    """Tell whether sets of points are the same, in whatever order."""
    return np.allclose(one[np.lexsort(one.T)], other[np.lexsort(other.T)], atol=1e-4)


def components(reference, values):
    """Return the first two principal components of the reference, of other values."""
    centred = reference - reference.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    return (values - reference.mean(0)) @ axes.T


def up_to_signs(found, expected):
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, signs * expected, atol=0.02)  # the decomposition is randomised


def test_numbers_have_a_scale_instead_of_a_legend_of_every_number():
    path = make_path()
    ages = np.append(np.linspace(10, 80, N_CELLS - 1), np.inf)  # the last one is drawn as missing
    path.obs["age"] = np.tile(ages, len(TIMES))

    axes = sgd.pl.sampling_path(path, reference=make_reference(), color="age", n_panels=2, show=False)

    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["real cells"]
    bar = axes[0].figure.axes[2]
    assert bar.get_xlabel() == "age"
    np.testing.assert_allclose(bar.get_xlim(), (10, 80))
    assert len(np.unique(axes[0].collections[-1].get_facecolors(), axis=0)) == N_CELLS


def test_a_path_of_several_modalities_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"`path` must be an AnnData, but found MuData.*`path\['rna'\]`"):
        sgd.pl.sampling_path(MuData({"rna": make_path()}))


def test_few_frames_are_all_shown():
    path = make_path()
    few = path[path.obs["frame"] != path.obs["frame"].max()].copy()

    assert len(sgd.pl.sampling_path(few, show=False)) == few.obs["frame"].nunique() < 5


def test_panels_go_from_noise_to_cells_and_say_when():
    axes = sgd.pl.sampling_path(make_path(), n_panels=3, show=False)

    assert [ax.get_title() for ax in axes] == ["noise, $t = 0.00$", "$t = 0.50$", "cells, $t = 1.00$"]
    assert [ax.get_ylabel() for ax in axes] == ["PC 2", "", ""]
    assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1


def test_cells_are_where_the_principal_components_of_the_real_cells_put_them():
    path, reference = make_path(), make_reference()

    axes = sgd.pl.sampling_path(path, reference=reference, n_panels=4, show=False)

    real = reference.X.toarray()
    for ax, time in zip(axes, TIMES, strict=True):
        expected = components(real, path[path.obs["time"] == time].X)
        found = drawn_cells(ax)
        order = np.random.default_rng(0).permutation(N_CELLS)  # of the names, in the order of the alphabet
        names = np.unique(path.obs["cell"].astype(str))[order]
        up_to_signs(found, expected[[int(name.removeprefix("synthetic_")) for name in names]])
        up_to_signs(np.asarray(ax.collections[0].get_offsets()), components(real, real))


def test_counts_of_real_cells_are_normalised_as_models_do():
    reference = make_reference(log1p=False)

    axes = sgd.pl.sampling_path(make_path(), reference=reference, show=False, n_panels=2)

    counts = reference.X.toarray()
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    up_to_signs(np.asarray(axes[0].collections[0].get_offsets()), components(values, values))


def test_logarithms_of_real_cells_to_another_base_are_made_natural():
    reference = make_reference()
    values = reference.X.toarray()
    reference.X, reference.uns["log1p"] = reference.X / np.log(2), {"base": 2}

    axes = sgd.pl.sampling_path(make_path(), reference=reference, show=False, n_panels=2)

    up_to_signs(np.asarray(axes[0].collections[0].get_offsets()), components(values, values))


def test_genes_of_the_reference_are_put_in_the_order_of_the_path():
    reference = make_reference()

    axes = [
        sgd.pl.sampling_path(make_path(), reference=cells, show=False, n_panels=2)
        for cells in (reference, reference[:, ::-1].copy())
    ]

    up_to_signs(drawn_cells(axes[0][1]), drawn_cells(axes[1][1]))


def test_without_a_reference_the_plane_is_that_of_the_finished_cells():
    path = make_path()

    axes = sgd.pl.sampling_path(path, n_panels=2, show=False)

    assert all(len(ax.collections[0].get_offsets()) == 0 for ax in axes)
    np.testing.assert_allclose(drawn_cells(axes[-1]).mean(0), 0, atol=1e-4)
    assert drawn_cells(axes[-1]).std(0)[0] > drawn_cells(axes[0]).std(0)[0]


def test_cells_have_the_colours_of_their_labels_in_all_panels():
    path, reference = make_path(), make_reference()
    reference.uns["cell_type_colors"] = ["#112233", "#aa0000"]

    axes = sgd.pl.sampling_path(path, reference=reference, color="cell_type", show=False, n_panels=2)

    n_t = (path.obs["cell_type"][:N_CELLS] == "T").sum()
    for ax in axes:
        colors = ax.collections[-1].get_facecolors()
        assert (colors == to_rgba("#aa0000")).all(1).sum() == n_t
        assert (colors == to_rgba("#112233")).all(1).sum() == N_CELLS - n_t
    on_the_right = drawn_cells(axes[-1])[:, 0] > 0
    is_t = (axes[-1].collections[-1].get_facecolors() == to_rgba("#aa0000")).all(1)
    assert (on_the_right == is_t).all() or (on_the_right != is_t).all()
    texts = [text.get_text() for text in axes[-1].get_legend().get_texts()]
    assert texts == ["cell_type", "B", "T", "real cells"]


def test_a_label_has_its_colour_in_an_embedding_though_the_reference_has_more_labels():
    path, reference = make_path(), make_reference()
    reference.obs["cell_type"] = np.where(np.arange(reference.n_obs) % 2, "A", reference.obs["cell_type"].astype(str))

    ax = sgd.pl.sampling_path(path, reference=reference, color="cell_type", n_panels=2, show=False)[0]

    _, second, third = sc.pl.palettes.default_20[:3]  # the first one is that of A
    assert {tuple(color) for color in ax.collections[-1].get_facecolors()} == {to_rgba(second), to_rgba(third)}
    assert [text.get_text() for text in ax.figure.axes[-1].get_legend().get_texts()] == [
        "cell_type",
        "B",
        "T",
        "real cells",
    ]


def test_labels_that_the_reference_does_not_have_are_coloured_all_the_same():
    reference = make_reference()
    del reference.obs["cell_type"]

    axes = sgd.pl.sampling_path(
        make_path(), reference=reference, color="cell_type", palette={"B": "red", "T": "blue"}, n_panels=2, show=False
    )

    assert {tuple(color) for color in axes[0].collections[-1].get_facecolors()} == {to_rgba("red"), to_rgba("blue")}


def test_the_estimate_can_be_drawn():
    path = make_path()

    axes = sgd.pl.sampling_path(path, values="estimate", n_panels=3, show=False)

    assert same_points(drawn_cells(axes[0]), drawn_cells(axes[2]))  # the builder's estimate is the cell from the start


def test_rows_may_come_in_any_order_sparse_and_in_part():
    path = make_path(sparse=True)
    rows = np.random.default_rng(3).permutation(path.n_obs)
    some = path[path.obs["cell_type"] == "B"].copy()

    axes = [sgd.pl.sampling_path(p, show=False, n_panels=2) for p in (make_path(), path[rows].copy())]

    up_to_signs(drawn_cells(axes[0][1]), drawn_cells(axes[1][1]))
    assert len(drawn_cells(sgd.pl.sampling_path(some, n_panels=2, show=False)[0])) == some.n_obs / len(TIMES)


def test_a_figure_can_be_saved_on_given_axes(tmp_path):
    _, axs = plt.subplots(1, 2)

    axes = sgd.pl.sampling_path(make_path(), n_panels=2, axs=axs, show=False, save=tmp_path / "path.png")

    assert axes == list(axs)
    assert (tmp_path / "path.png").stat().st_size > 1000


# --- what is refused --------------------------------------------------------------------------------------------------


def without(column):
    path = make_path()
    del path.obs[column]
    return path


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sgd.pl.sampling_path(without("frame")), ValueError, "get_sampling_path.*no column 'frame'"),
        (lambda: sgd.pl.sampling_path(make_path()[:-1]), ValueError, "same cells.*119 rows of 30 cells in 4 frames"),
        (lambda: sgd.pl.sampling_path(make_path()[:N_CELLS]), ValueError, "at least two frames"),
        (lambda: sgd.pl.sampling_path(make_path(), n_panels=5), ValueError, "number from 2 to 4, but found 5"),
        (lambda: sgd.pl.sampling_path(make_path(), n_panels=1), ValueError, "`n_panels` must be a whole number"),
        (lambda: sgd.pl.sampling_path(make_path(), n_panels=2.5), ValueError, "whole number from 2.*found 2.5"),
        (lambda: sgd.pl.sampling_path(make_path(), color="dose", n_panels=4), KeyError, "obs` has no column 'dose'"),
        (lambda: sgd.pl.sampling_path(make_path(), values="noise"), ValueError, "`values` has the unknown value"),
        (
            lambda: sgd.pl.sampling_path(make_path(), reference=make_reference()[:, :10].copy(), n_panels=4),
            ValueError,
            "`reference` lacks 10 of the 20 genes",
        ),
        (
            lambda: sgd.pl.sampling_path(make_path(), reference=make_reference(n=2), n_panels=4),
            ValueError,
            "at least 3 cells",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_is_given_stays_as_it_is():
    path, reference = make_path(), make_reference()

    sgd.pl.sampling_path(path, reference=reference, color="cell_type", n_panels=2, show=False)

    assert np.array_equal(path.X, make_path().X)
    assert list(reference.obsm) == list(reference.varm) == []
