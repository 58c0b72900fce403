"""Plots of figures: the table of an evaluation, and training histories."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scgen_diffusion as sgd
from scgen_diffusion.pl._scores import badness


def make_row(value, *, metric="recall", group="all", real=0.9, shuffled=0.4, better="higher", half=0.01):
    return {
        "metric": metric,
        "group": group,
        "value": value,
        "real": real,
        "shuffled": shuffled,
        "low": value - half,
        "high": value + half,
        "better": better,
    }


def make_table():
    of_w2 = {"metric": "w2", "better": "lower", "real": 10.0, "shuffled": 14.0}
    return pd.DataFrame(
        [
            make_row(11, **of_w2),
            make_row(0.65),
            make_row(14, group="B", **of_w2),
            make_row(np.nan, group="B", real=np.nan),
        ]
    )


def make_history(*, validated=True, n_epochs=30):
    epochs = np.arange(n_epochs)
    curves = {
        "autoencoder_loss_train": 1000.0 / (epochs + 1) + 10,
        "autoencoder_loss_validation": 1000.0 / (epochs + 1) + epochs + 10,
        "prior_velocity_loss_train": 2.0 - epochs / n_epochs,
        "prior_velocity_loss_validation": np.abs(epochs - 7) / 30 + 1,
        "prior_loss_train": 1.0 + epochs,  # with the head of totals
    }
    index = pd.Index(epochs, name="epoch")
    return {
        name: pd.DataFrame({name: curve}, index=index)
        for name, curve in curves.items()
        if validated or name.endswith("_train")
    }


def tick_names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (make_row(0.9), 0),
        (make_row(0.95), 0),
        (make_row(0.65), 0.5),
        (make_row(0.4), 1),
        (make_row(0.1), 1),
        (make_row(11, real=10, shuffled=14, better="lower"), 0.25),
        (make_row(9, real=10, shuffled=14, better="lower"), 0),
        (make_row(9, real=10, shuffled=14, better="real"), 0.25),
        # shuffling keeps totals: twice the real value is bad
        (make_row(0.06, real=0.04, shuffled=0.04, better="lower"), 0.5),
        (make_row(0.2, real=0.0, shuffled=0.0, better="lower", half=0), 1),  # copies, where real cells have none
        (make_row(0.0, real=0.0, shuffled=0.0, better="lower", half=0), 0),
        (make_row(0.8, real=np.nan), np.nan),
        (make_row(0.95, real=0.8, shuffled=0.0, better="real") | {"metric": "within_label_slope"}, 0),  # nearer to 1
        (make_row(0.7, real=0.9, shuffled=0.5, better="real") | {"metric": "within_label_slope"}, 0.5),
        (make_row(0.5, real=0.4, shuffled=0.9, better="lower") | {"metric": "auc_logistic"}, 0),  # guessing
        (make_row(0.6, real=1.0, shuffled=0.7, better="real") | {"metric": "density"}, 0.4),  # shuffled: dense, too
    ],
)
def test_badness_is_the_way_from_the_real_value_to_shuffled_cells(row, expected):
    np.testing.assert_allclose(badness(pd.DataFrame([row])), [expected])


def test_colours_are_badness_and_texts_are_values():
    ax = sgd.pl.scores(make_table(), show=False)

    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[0.25, 1], [0.5, np.nan]])
    assert ax.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in ax.texts] == ["11", "14", "0.65", ""]
    assert tick_names(ax.yaxis) == ["w2 ↓", "recall ↑"]
    assert tick_names(ax.xaxis) == ["all", "B"]


def test_metrics_and_groups_come_in_the_requested_order():
    ax = sgd.pl.scores(make_table(), metrics=["recall", "w2"], groups=["B"], show=False)

    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[np.nan], [1]])
    assert tick_names(ax.yaxis) == ["recall ↑", "w2 ↓"]


def test_the_table_of_evaluate_can_be_drawn(make_cells):
    real, synthetic = make_cells(200), make_cells(200, seed=1)

    table = sgd.metrics.evaluate(
        real, synthetic, metrics=["gene_mean_error", "library_size_ks"], n_repeats=1, n_bootstrap=5
    )
    ax = sgd.pl.scores(table, show=False)

    assert tick_names(ax.yaxis) == ["gene_mean_error ↓", "library_size_ks ↓"]
    assert np.isfinite(ax.images[0].get_array()).all()


def test_several_evaluations_have_a_column_each():
    other = make_table().assign(value=[10, 0.9, 12, 0.5])
    tables = pd.concat({"SCLDM": make_table(), "copula": other}, names=["model"]).reset_index("model")

    ax = sgd.pl.scores(tables, by="model", show=False)
    assert tick_names(ax.xaxis) == ["SCLDM", "copula"]
    assert [text.get_text() for text in ax.texts] == ["11", "10", "0.65", "0.9"]
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[0.25, 0], [0.5, 0]])

    of_all = tables[(tables["group"] == "all") | (tables["metric"] == "w2")]
    ax = sgd.pl.scores(of_all, by="model", groups="B", show=False)
    assert [text.get_text() for text in ax.texts] == ["14", "12", "", ""]


TWICE = pd.concat([make_table(), make_table()]).assign(model="SCLDM")
MODALITIES = pd.DataFrame([make_row(0.9), make_row(0.8)]).assign(modality=["rna", "prot"])


@pytest.mark.parametrize(
    ("table", "options", "name"),
    [
        (make_table(), {"metrics": ["W2"]}, "metrics.*w2"),
        (make_table(), {"groups": ["T"]}, "groups"),
        (make_table()[:0], {}, "metrics"),
        (make_table().drop(columns="shuffled"), {}, "table"),
        (TWICE, {}, "by"),
        (TWICE, {"by": "model"}, "by"),
        (TWICE, {"by": "value"}, "by"),
        (MODALITIES, {}, "modalities"),
    ],
)
def test_scores_that_do_not_fit_into_a_heat_map_are_refused(table, options, name):
    with pytest.raises(ValueError, match=name):
        sgd.pl.scores(table, **options, show=False)


def test_every_stage_has_a_panel_with_training_and_validation_losses_and_a_star_at_the_lowest():
    history, (_, axs) = make_history(), plt.subplots(2)

    axes = sgd.pl.training_history(SimpleNamespace(history=history), axs=axs, show=False)

    assert axes == list(axs)
    assert [ax.get_title() for ax in axes] == ["autoencoder loss", "prior velocity loss"]
    for ax, stage in zip(axes, ("autoencoder", "prior_velocity"), strict=True):
        for line, kind in zip(ax.lines, ("train", "validation"), strict=False):
            expected = history[f"{stage}_loss_{kind}"].iloc[:, 0]
            np.testing.assert_allclose(line.get_xydata(), np.column_stack([expected.index + 1, expected]))
    np.testing.assert_allclose(axes[1].lines[2].get_xydata(), [(8, 1)])
    assert axes[1].get_legend().get_texts()[-1].get_text() == "lowest: epoch 8"
    assert [ax.get_yscale() for ax in axes] == ["log", "linear"]  # where losses span more than eightfold


@pytest.mark.parametrize("history", [None, "pbmc3k"])
def test_a_history_that_cannot_be_drawn_is_refused(history):
    with pytest.raises(ValueError, match="model"):
        sgd.pl.training_history(SimpleNamespace(history=history))


def test_epochs_without_validation_are_left_out():
    history = make_history()
    history["prior_velocity_loss_validation"].iloc[1::2] = np.nan

    ax = sgd.pl.training_history(history, show=False)[1]

    assert len(ax.lines[0].get_xdata()) == 30
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), np.arange(1, 31, 2))


def test_models_without_validation_and_of_scvi_tools_are_drawn():
    without = sgd.pl.training_history(make_history(validated=False), show=False)
    of_scvi = {f"{name}_train": pd.DataFrame({"x": [3.0, 2.0]}) for name in ("elbo", "reconstruction_loss", "kl_local")}

    axes = sgd.pl.training_history(of_scvi, show=False)

    assert [len(ax.lines) for ax in without] == [1, 1]
    assert [ax.get_title() for ax in axes] == ["elbo"]
