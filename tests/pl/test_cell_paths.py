"""Paths of followed cells go through the places of their cells, in the colour of where they end."""

from __future__ import annotations

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgba

import scgen_diffusion as sgd


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def cells():
    """Six cells on a line: two precursors, then two of B, then one T cell and one of B."""
    obs = pd.DataFrame({"kind": pd.Categorical(["early", "precursor", "B", "B", "T", "B"])}, index=list("abcdef"))
    cells = anndata.AnnData(np.ones((6, 2), dtype=np.float32), obs=obs)
    cells.obsm["X_umap"] = np.column_stack([np.arange(6.0), np.zeros(6)])
    return cells


@pytest.fixture
def paths():
    return pd.DataFrame({1.0: ["c", None], 2.0: ["e", "f"]}, index=["a", "b"])


def drawn(ax):
    """Return the ends of each path's arrow, and its colour."""
    arrows = [text.arrow_patch for text in ax.texts]
    ends = [(tuple(text.xyann), tuple(text.xy)) for text in ax.texts]
    return dict(zip(ends, [arrow.get_edgecolor() for arrow in arrows], strict=True))


def test_a_path_ends_at_its_last_cell_in_that_cells_colour(cells, paths):
    palette = {"early": "grey", "precursor": "black", "B": "red", "T": "blue"}

    (ax,) = sgd.pl.cell_paths(cells, paths, color="kind", palette=palette, show=False)

    found = drawn(ax)
    assert {ends: color[:3] for ends, color in found.items()} == {
        ((2.0, 0.0), (4.0, 0.0)): to_rgba("blue")[:3],
        ((1.0, 0.0), (5.0, 0.0)): to_rgba("red")[:3],  # it has no cell in the first step
    }
    lines = [line.get_xdata().tolist() for line in ax.lines]
    assert sorted(lines) == [[0.0, 2.0], [1.0]]


def test_groups_have_panels_and_no_more_paths_than_asked_for(cells, paths):
    axes = sgd.pl.cell_paths(cells, paths, color="kind", groupby="kind", show=False)

    assert [ax.get_title() for ax in axes] == ["from early", "from precursor"]
    assert [len(ax.texts) for ax in axes] == [1, 1]
    (ax,) = sgd.pl.cell_paths(cells, paths, color="kind", max_paths=1, show=False)
    assert len(ax.texts) == 1


def test_groups_fill_rows_of_four_and_the_legend_stands_beside_the_first():
    cells = anndata.AnnData(obs=pd.DataFrame({"kind": list("abcdefghij")}, index=list("abcdefghij")))
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(10, 2))
    paths = pd.DataFrame({1.0: list("fghij")}, index=list("abcde"))

    axes = sgd.pl.cell_paths(cells, paths, color="kind", groupby="kind", show=False)

    assert axes[0].get_subplotspec().get_gridspec().ncols == 4
    assert [ax.get_ylabel() for ax in axes] == ["UMAP 2", "", "", "", "UMAP 2"]
    assert [ax.get_legend() is not None for ax in axes] == [False, False, False, True, False]


def test_names_that_occur_twice_and_missing_coordinates_are_refused(cells, paths):
    twice = cells.copy()
    twice.obs_names = list("abcdee")
    cells.obsm["X_umap"][2] = np.nan
    for refused in (twice, cells):
        with pytest.raises(ValueError, match="unique `obs_names`, and coordinates of every cell"):
            sgd.pl.cell_paths(refused, paths, color="kind", show=False)


def test_what_is_missing_is_named(cells, paths):
    with pytest.raises(KeyError, match=r"lacks 1 cells of `paths`, such as 'f'"):
        sgd.pl.cell_paths(cells[:5], paths, color="kind", show=False)
    with pytest.raises(KeyError, match="no column 'type'"):
        sgd.pl.cell_paths(cells, paths, color="type", show=False)
    del cells.obsm["X_umap"]
    with pytest.raises(KeyError, match=r"no 'X_umap'.*sc.tl.umap"):
        sgd.pl.cell_paths(cells, paths, color="kind", show=False)
