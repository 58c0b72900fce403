"""Plots of perturbations show the numbers of the table and of the cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

import scgen_diffusion as sgd
from scgen_diffusion.metrics import effects, evaluate, gene_changes, mean_change_correlation

BLUE = to_rgb("#0072B2")


def cells(seed, *, effect=0.0, n_cells=80, n_genes=30, perturbation="drug"):
    """Build cells of two types, of which five genes rise and five fall."""
    rng = np.random.default_rng(seed)
    change = np.zeros(n_genes)
    change[:5], change[5:10] = effect, -effect
    obs = pd.DataFrame(
        {"cell_type": np.repeat(["B", "T"], n_cells // 2), "treatment": perturbation},
        index=[f"{seed}_{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene_{g}" for g in range(n_genes)])
    return ad.AnnData(rng.poisson(20 * np.exp(change), (n_cells, n_genes)).astype(np.float32), obs=obs, var=var)


CONTROL, REAL, PREDICTED = cells(0, perturbation="none"), cells(1, effect=0.5), cells(2, effect=0.3)


def names_in(ax):
    return {text.get_text() for text in ax.texts if text.get_text().startswith("gene_")}


def test_every_gene_is_where_its_changes_are_with_the_top_ones_in_blue_and_the_correlations_of_the_metric():
    ax = sgd.pl.mean_change(REAL, PREDICTED, CONTROL, n_top=10, n_names=4, show=False)
    table = gene_changes(REAL, PREDICTED, CONTROL)
    of_all, of_top = ax.collections
    np.testing.assert_allclose(of_all.get_offsets(), table[["real", "predicted"]])
    np.testing.assert_allclose(of_top.get_offsets(), table[["real", "predicted"]][:10])
    np.testing.assert_allclose(of_top.get_facecolors()[0, :3], BLUE)
    assert set(table.index[:10]) == {f"gene_{g}" for g in range(10)}
    assert names_in(ax) == set(table.index[:4])
    figures = [mean_change_correlation(*effects(REAL, PREDICTED, CONTROL), n_top=n) for n in (None, 10)]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"all genes: r = {figures[0]:.2f}", f"top 10 genes: r = {figures[1]:.2f}"]
    assert (ax.get_xlim(), ax.get_aspect()) == (ax.get_ylim(), 1)  # the diagonal has 45 degrees


@pytest.fixture(scope="module")
def table():
    """Judge two seeds, in both cell types."""
    options = {"control": CONTROL, "perturbation_key": "treatment", "groupby": "cell_type", "n_repeats": 1}
    others = [{"arithmetic": cells(5 + seed, effect=0.2)} for seed in (0, 1)]
    tables = [evaluate(REAL, PREDICTED, **options, seed=seed, others=others[seed]) for seed in (0, 1)]
    return pd.concat(tables, ignore_index=True)


def points_in(ax):
    """Return the means of each method, `(methods, cases)`."""
    return np.array([line.get_xdata() for line in ax.lines if line.get_marker() != "None"])


def test_every_method_has_the_mean_of_its_seeds_in_every_case(table):
    (ax,) = sgd.pl.perturbation_scores(table, metrics=["energy_distance"], show=False)
    means = table[table["metric"] == "energy_distance"].groupby("group")[["value", "arithmetic", "no_change"]].mean()
    np.testing.assert_allclose(points_in(ax), means.loc[["B", "T"]].to_numpy().T)
    lines = [segment[0, 0] for segment in ax.collections[0].get_segments()]
    real_values = table[table["metric"] == "energy_distance"].groupby("group")["real"].mean()
    np.testing.assert_allclose(lines, real_values.loc[["B", "T"]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["B", "T"]
    assert [text.get_text() for text in ax.get_legend().get_texts()][:3] == ["predicted", "arithmetic", "no change"]
    assert ax.get_title() == "energy_distance ↓"


def test_metrics_cases_and_methods_can_be_chosen_and_called(table):
    axes = sgd.pl.perturbation_scores(
        table,
        metrics=["mean_change_error", "de_direction"],
        cases=["T"],
        methods={"value": "SCLDM", "no_change": "control"},
        show=False,
    )
    assert [ax.get_title() for ax in axes] == ["mean_change_error ↓", "de_direction ↑"]
    assert points_in(axes[0]).shape == (2, 1)
    texts = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert (texts[:2], texts[-2:]) == (["SCLDM", "control"], ["↓ lower is better", "↑ higher is better"])


def test_cases_are_named_by_the_columns_that_differ(table):
    other = table.assign(perturbation="other")
    (ax,) = sgd.pl.perturbation_scores(
        pd.concat([table, other], ignore_index=True), metrics=["mean_change_error"], show=False
    )
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["drug, B", "drug, T", "other, B", "other, T"]
    for group, name in (("B", "drug, B"), ("all", "drug")):
        one = table[table["group"] == "B"].assign(group=group)
        (ax,) = sgd.pl.perturbation_scores(one, metrics=["mean_change_error"], show=False)
        assert [label.get_text() for label in ax.get_yticklabels()] == [name]


@pytest.mark.parametrize(
    ("options", "error", "name"), [({"n_top": 0}, ValueError, "n_top"), ({"n_names": -1}, ValueError, "n_names")]
)
def test_changes_that_cannot_be_drawn_are_refused(options, error, name):
    sets = {"real": REAL, "predicted": PREDICTED, "control": CONTROL}
    with pytest.raises(error, match=name):
        sgd.pl.mean_change(**sets | options, show=False)


@pytest.mark.parametrize(
    ("change", "options", "name"),
    [
        (lambda table: table, {"metrics": ["w3"]}, "metrics"),
        (lambda table: table, {"cases": ["NK"]}, "cases"),
        (lambda table: table, {"methods": ["real"]}, "methods"),
        (lambda table: table[:0], {}, "metrics"),
        (lambda table: table.drop(columns="perturbation"), {}, "table"),
    ],
)
def test_scores_that_cannot_be_drawn_are_refused(table, change, options, name):
    with pytest.raises(ValueError, match=name):
        sgd.pl.perturbation_scores(change(table), show=False, **options)
