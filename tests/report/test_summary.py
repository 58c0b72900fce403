"""A summary names what is worse than real cells, and says nothing against real ones."""

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion import datasets
from scgen_diffusion.metrics import CATALOGUE, evaluate
from scgen_diffusion.report import summary

COLUMNS = ["metric", "group", "value", "real", "shuffled", "low", "high", "better"]

# what real cells score in each metric, what shuffled genes do, the reach of the interval, and which way is better
GOOD = {
    "w2": (7.3, 7.5, 0.1, "lower"),
    "precision": (0.92, 0.95, 0.02, "higher"),
    "recall": (0.91, 0.3, 0.02, "higher"),
    "coverage": (0.93, 0.8, 0.02, "higher"),
    "auc_boosting": (0.5, 0.9, 0.03, "lower"),
    "auc_logistic": (0.5, 0.9, 0.03, "lower"),
    "auc_neighbours": (0.5, 0.9, 0.03, "lower"),
    "gene_mean_error": (0.035, 0.036, 0.002, "lower"),
    "gene_variance_error": (0.052, 0.055, 0.002, "lower"),
    "gene_zero_error": (0.016, 0.016, 0.001, "lower"),
    "mean_variance_error": (0.05, 0.05, 0.005, "lower"),
    "within_label_correlation": (0.63, 0.01, 0.03, "higher"),
    "within_label_slope": (1.0, 0.0, 0.05, "real"),
    "cross_correlation_error": (0.08, 0.2, np.nan, "lower"),
    "library_size_ks": (0.04, 0.04, 0.02, "lower"),
    "group_share_difference": (0.04, 0.04, 0.02, "lower"),
    "marker_overlap": (0.7, 0.7, 0.05, "higher"),
    "marker_slope": (1.0, 1.0, 0.05, "real"),
    "tstr_f1": (0.9, 0.88, 0.02, "higher"),
    "trts_accuracy": (0.9, 0.9, 0.02, "higher"),
    "dcr_ratio": (1.0, 1.0, 0.02, "real"),
    "nearer_than_held_out": (0.01, 0.01, 0.01, "lower"),
    "copied_cells": (0.0, 0.0, 0.0, "lower"),
    "duplicate_share": (0.0, 0.0, 0.0, "lower"),
    "membership_auc": (0.5, 0.5, 0.02, "lower"),
    "copied_test_cells": (0.0, 0.0, 0.0, "lower"),
}


def row(metric, value=None, group="all", reach=None):
    real, shuffled, usual_reach, better = GOOD[metric]
    value, reach = real if value is None else value, usual_reach if reach is None else reach
    return [metric, group, value, real, shuffled, value - reach, value + reach, better]


def table(groups=("B", "T"), **values):
    """Return the table of real cells, but for the values given."""
    rows = [row(metric, values.get(metric)) for metric in GOOD]
    for group in groups:
        rows += [row(metric, group=group) for metric in ("w2", "precision", "recall", "group_share_difference")]
    return pd.DataFrame(rows, columns=COLUMNS)


def change(rows, metric, group="all", **figures):
    rows.loc[(rows["metric"] == metric) & (rows["group"] == group), list(figures)] = list(figures.values())
    return rows


def level_of(found, metric, group="all"):
    rows = found.table
    return rows.loc[(rows["metric"] == metric) & (rows["group"] == group), "level"].item()


def test_the_directions_here_are_those_of_the_catalogue():
    assert {name: figures[3] for name, figures in GOOD.items()} == {name: CATALOGUE[name].better for name in GOOD}
    assert GOOD.keys() | {"near_copies", "auc_genes"} == {name for name, m in CATALOGUE.items() if m.limits is not None}


def test_cells_that_score_like_real_ones_get_no_complaint():
    found = summary(table())
    assert list(found.table) == ["metric", "group", "value", "real", "level"]
    assert found.table["metric"].tolist() == list(GOOD)
    assert set(found.table["level"]) == {"ok"}
    assert found.headline == f"Like real cells in all {len(GOOD)} metrics that were judged."
    assert repr(found) == str(found)  # what a notebook shows
    assert str(found).startswith(found.headline)


LEVELS = {
    "copied_cells": {1e-5: "warning"},
    "copied_test_cells": {0.3: "warning"},
    "duplicate_share": {0.02: "warning"},
    "membership_auc": {0.65: "warning", 0.35: "warning"},
    "auc_neighbours": {0.2: "warning"},
    "nearer_than_held_out": {0.5: "warning"},
    "dcr_ratio": {0.5: "warning"},
    "recall": {0.6: "warning"},
    "coverage": {0.6: "warning"},
    "precision": {0.5: "warning", 0.83: "note"},
    "auc_logistic": {0.9: "warning"},
    "auc_boosting": {0.63: "note", 0.52: "ok"},
    "w2": {9.0: "warning"},
    "gene_mean_error": {0.08: "warning"},
    "gene_variance_error": {0.12: "warning"},
    "mean_variance_error": {0.4: "warning"},
    "gene_zero_error": {0.04: "warning", 0.022: "note", 0.008: "ok"},
    "library_size_ks": {0.4: "warning"},
    "within_label_correlation": {0.02: "warning"},
    "within_label_slope": {0.5: "warning", 1.6: "warning"},
    "cross_correlation_error": {0.2: "warning"},
    "trts_accuracy": {0.5: "warning", 1.0: "ok"},
    "tstr_f1": {0.5: "warning"},
    "marker_overlap": {0.3: "warning"},
    "marker_slope": {0.4: "warning", 1.7: "warning"},
    "group_share_difference": {0.4: "note"},
}


@pytest.mark.parametrize(
    ("metric", "value", "level"), [(metric, *pair) for metric, pairs in LEVELS.items() for pair in pairs.items()]
)
def test_a_figure_has_the_level_of_its_excess(metric, value, level):
    found = summary(table(**{metric: value}))
    assert level_of(found, metric) == level
    assert found.of_level(level) == [metric] or level == "ok"
    assert metric in found.headline or level == "ok"


@pytest.mark.parametrize(
    ("slope", "real", "level"),
    [(0.97, 0.86, "ok"), (0.75, 0.86, "ok"), (0.60, 0.86, "note"), (1.0, 0.75, "note"), (1.2, 0.83, "warning")],
)
def test_differences_between_groups_are_judged_by_their_distance_to_the_real_value(slope, real, level):
    assert level_of(summary(change(table(marker_slope=slope), "marker_slope", real=real)), "marker_slope") == level


def test_a_real_value_below_guessing_is_chance():
    found = change(table(auc_logistic=0.58, membership_auc=0.5), "auc_logistic", real=0.40)
    assert set(summary(change(found, "membership_auc", real=0.2)).table["level"]) == {"ok"}


def test_an_excess_within_chance_is_not_reported():
    wide = table(precision=0.7)
    for high in (1.0, 0.75):  # a bound may cut one side
        assert level_of(summary(change(wide, "precision", low=0.4, high=high)), "precision") == "ok"
    bare = change(wide, "precision", low=np.nan, high=np.nan)  # then, the size alone decides
    assert level_of(summary(bare), "precision") == "warning"


def test_data_without_structure_between_genes_is_not_judged_by_it():
    without = change(table(within_label_correlation=0.02), "within_label_correlation", real=0.05)
    assert level_of(summary(without), "within_label_correlation") == "not judged"
    for value, shuffled, level in ((0.1, np.nan, "warning"), (0.53, 0.4, "note")):  # real cells: 0.63
        low = change(table(within_label_correlation=value), "within_label_correlation", shuffled=shuffled)
        assert level_of(summary(low), "within_label_correlation") == level


def test_beside_real_values_from_other_donors_only_what_is_worse_is_judged():
    found = change(table(gene_zero_error=0.04, membership_auc=0.7, auc_boosting=0.93), "auc_boosting", real=0.89)
    result = summary(found)
    assert result.of_level("warning") == ["gene_zero_error"]
    assert not result.of_level("ok")
    assert "AUC 0.89" in result.headline


@pytest.mark.parametrize(("n_cells", "is_unlike"), [(60, False), (2_000, True)])
def test_real_values_of_few_cells_are_off_by_chance(n_cells, is_unlike):
    found = change(table(groups=()), "auc_boosting", value=0.99, real=0.66, low=0.98, high=1.0)
    found.attrs["n_cells"] = {"all": n_cells}
    assert ("AUC 0.66" in summary(found).headline) == is_unlike


def test_figures_that_pool_labels_are_not_judged_if_labels_have_other_shares():
    pooled = {"within_label_correlation": 0.2, "within_label_slope": 0.34, "marker_overlap": 0.4, "marker_slope": 0.5}
    near = {"dcr_ratio": 0.6, "nearer_than_held_out": 0.5, "copied_cells": 0.01, "membership_auc": 0.65}
    assert {*summary(table(**pooled, **near)).of_level("warning")} == {*pooled, *near}
    found = summary(table(**pooled, **near, group_share_difference=0.4))
    assert found.of_level("warning") == ["copied_cells", "membership_auc"]
    assert {*found.of_level("not judged")} >= {*pooled, "dcr_ratio", "nearer_than_held_out"}
    found = summary(table(**pooled, **near, group_share_difference=0.1))
    assert {*found.of_level("warning")} == {*pooled, "copied_cells", "membership_auc"}


def test_a_group_that_is_off_is_named():
    off = change(table(), "precision", "T", value=0.1, low=0.05, high=0.15)
    off = change(off, "group_share_difference", "T", value=0.4, low=0.38, high=0.42)
    found = summary(off)
    assert level_of(found, "precision", "T") == "warning"
    assert found.of_level("warning") == ["precision of T"]
    assert found.of_level("note") == ["group_share_difference of T"]


@pytest.mark.parametrize(
    ("real", "synthetic", "n_cells", "is_missing"),
    [(0.2, 0.0, 200, True), (0.2, 0.04, 200, True), (0.2, 0.1, 200, False), (0.2, 0.0, 35, False)],
)
def test_a_label_is_missing_if_its_share_is_below_a_quarter_and_chance_does_not_explain_it(
    real, synthetic, n_cells, is_missing
):
    rows = table()
    shares = {"all": (1, 1), "B": (real, synthetic), "T": (1 - real, 1 - synthetic)}
    rows.attrs["n_labelled"] = {label: tuple(round(s * n_cells) for s in both) for label, both in shares.items()}
    assert summary(rows).of_level("warning") == ["label_share of B"] * is_missing


def test_held_out_cells_that_are_training_cells_are_a_warning():
    found = table()
    found.attrs["leaked"] = 0.14
    assert summary(found).of_level("warning") == ["leaked"]
    assert not {"copied_cells", "membership_auc"} & {*summary(found).of_level("ok")}
    found.attrs["leaked"] = {"rna": 0.14, "prot": 0.0}
    assert summary(found.assign(modality="rna")).of_level("warning") == ["leaked"]
    assert not summary(found.assign(modality="prot")).of_level("warning")


def test_a_table_without_reals_and_metrics_without_limits_are_not_judged():
    own = [["density", "all", 0.5, 0.6, 0.1, np.nan, np.nan, "real"], ["mine", "all", 0.5, 0.6, 0.1, 0, 1, "lower"]]
    for bare in (table(groups=()).assign(real=np.nan), pd.DataFrame(own, columns=COLUMNS)):
        found = summary(bare)
        assert set(found.table["level"]) == {"not judged"}
        assert "n_repeats" in found.headline


def test_a_table_that_was_written_and_read_has_the_same_summary(tmp_path):
    rows = table(precision=0.5)
    rows.to_csv(tmp_path / "table.csv", index=False)
    assert str(summary(pd.read_csv(tmp_path / "table.csv"))) == str(summary(rows))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (table().drop(columns=["shuffled"]), ValueError, "shuffled"),
        (table().assign(perturbation="STAT1"), ValueError, "`table`"),
        (pd.concat([table(), table()]), ValueError, "`table`"),
        (pd.concat([table().assign(modality=name) for name in ("rna", "prot")]), ValueError, "modalities"),
    ],
)
def test_tables_of_another_kind_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        summary(wrong)


FAST = [name for name, metric in CATALOGUE.items() if "all" in metric.scopes and not metric.slow]


def judge_pbmc68k(corrupt, metrics, seed=0):
    """Judge real cells, corrupted, that are neither the training nor the held-out ones."""
    adata = datasets.pbmc68k_reduced()
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    real, train, synthetic = (adata[rows].copy() for rows in np.array_split(order, 3))
    options = {"groupby": "cell_type", "metrics": [*metrics], "n_repeats": 1, "seed": seed}
    return {*summary(evaluate(real, corrupt(synthetic, train), train=train, **options)).of_level("warning")}


def copies(_, train):
    copied = train.copy()
    copied.obs_names = [f"copy{i}" for i in range(copied.n_obs)]
    return copied


def thinned(synthetic, _):
    counts = synthetic.layers["counts"].copy()
    counts.data = np.random.default_rng(0).binomial(counts.data.astype(int), 0.5).astype(np.float32)
    synthetic.X = synthetic.layers["counts"] = counts
    return synthetic


def test_faults_of_real_cells_are_found_and_real_cells_get_no_warning():
    assert not judge_pbmc68k(lambda synthetic, train: synthetic, FAST)
    for corrupt, found in (
        (copies, {"copied_cells", "near_copies", "dcr_ratio", "membership_auc"}),
        (thinned, {"gene_zero_error", "library_size_ks"}),
    ):
        assert judge_pbmc68k(corrupt, found) == found


COPIES = ["copied_cells", "duplicate_share", "copied_test_cells"]


def judge_sparse_panel(seed, share_copied=0.0):
    """Judge fresh cells of a panel of 60 genes and about 20 counts per cell, where a few cells are equal by chance."""
    rng = np.random.default_rng(seed)
    profile = rng.dirichlet(np.full(60, 0.15))
    real, train, synthetic = (
        rng.multinomial(rng.negative_binomial(4, 1 / 6, n_cells) + 1, profile) for n_cells in (100, 600, 600)
    )
    n_copied = round(share_copied * len(synthetic))
    synthetic[:n_copied] = train[rng.choice(len(train), n_copied, replace=False)]
    options = {"metrics": COPIES, "max_cells": 50, "n_repeats": 1, "n_bootstrap": 5}
    return summary(evaluate(real, synthetic, train=train, **options)).of_level("warning")


def test_chance_explains_equal_cells_of_a_sparse_panel_and_copying_is_still_found():
    """Of 40 perfect generators, as many as the confidence level of 95 % allows are warned of."""
    warned = [judge_sparse_panel(seed) for seed in range(40)]
    assert max(sum(metric in metrics for metrics in warned) for metric in COPIES) <= 2
    assert not any("leaked" in metrics for metrics in warned)
    found = [judge_sparse_panel(seed, share_copied=0.05) for seed in range(10)]
    assert sum("copied_cells" in metrics for metrics in found) >= 9
