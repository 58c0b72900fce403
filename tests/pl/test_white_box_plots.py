"""Plots show what is in their tables: lines, colours, names and errors."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scgen_diffusion as sgd

HEADS = ["L0H0", "L0H1", "L1H0"]
GENES = [f"gene_{g}" for g in range(30)]


def make_statistics():
    names = ["coding_rate_before", "subspace_coding_rate_before", "subspace_coding_rate_after", "sparsity"]
    rows = []
    for time, group, layer, name in product([0, 500, 999], ["B/plasma", "T"], [0, 1], names):
        value = time / 100 + layer + 10 * (group == "T") + names.index(name) / 10
        rows.append((time, time / 1000, group, layer, name, "all", value))
        rows.append((time, time / 1000, group, layer, name, f"L{layer}H0", value / 2))
    return pd.DataFrame(rows, columns=["time", "noise_level", "group", "layer", "statistic", "head", "value"])


def make_loadings(*, relative=False):
    values = np.random.default_rng(0).random((30, 3)) + 0.1
    values[[3, 7], 0] = [9, 8]
    values[[7, 11], 1] = [9, 8]
    return pd.DataFrame(values - 1 if relative else values, index=GENES, columns=HEADS)


def test_there_is_a_panel_per_layer_and_a_line_per_group():
    _, axs = plt.subplots(2)

    axes = sgd.pl.layer_statistics(make_statistics(), "sparsity", axs=axs, show=False)

    assert axes == list(axs)
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1"]
    for layer, ax in enumerate(axes):
        lines = [line.get_xydata() for line in ax.lines]
        np.testing.assert_allclose(lines[0], [(t, t / 100 + layer + 0.3) for t in (0, 500, 999)])
        np.testing.assert_allclose(lines[1], [(t, t / 100 + layer + 10.3) for t in (0, 500, 999)])
    assert axes[0].get_ylabel() == "sparsity"
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["B/plasma", "T"]


def test_before_is_solid_and_after_is_dashed():
    axes = sgd.pl.coding_rate(make_statistics(), groups=["T"], show=False)

    assert [line.get_linestyle() for line in axes[1].lines[:2]] == ["-", "--"]  # others are of the legend
    assert axes[1].lines[1].get_ydata()[0] == pytest.approx(11.2)
    names = ["subspace_coding_rate_before", "subspace_coding_rate_after"]
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == names
    assert axes[0].get_ylabel() == "value (nats)"


def test_loadings_show_the_top_genes_of_every_head_once_and_relative_ones_are_centred_at_zero():
    ax = sgd.pl.head_loadings(make_loadings()[["L0H0", "L0H1"]], n_genes=2, show=False)

    assert [label.get_text() for label in ax.get_yticklabels()] == ["gene_3", "gene_7", "gene_11"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["L0H0", "L0H1"]
    np.testing.assert_allclose(ax.collections[0].get_array()[0, 0], 9)
    assert ax.collections[0].get_clim()[0] == 0
    low, high = sgd.pl.head_loadings(make_loadings(relative=True), show=False).collections[0].get_clim()
    assert low == -high
    with pytest.raises(ValueError, match="n_genes"):
        sgd.pl.head_loadings(make_loadings(), n_genes=0)


@pytest.mark.parametrize(
    ("options", "name"), [({"statistics": "sparsty"}, "statistics.*sparsity"), ({"groups": ["NK"]}, "groups")]
)
def test_statistics_that_are_not_there_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        sgd.pl.layer_statistics(make_statistics(), **{"statistics": "sparsity", **options})
