"""A verdict names what is wrong with cells, and says nothing against real ones."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgen_diffusion import datasets
from scgen_diffusion.metrics import CATALOGUE, evaluate
from scgen_diffusion.report import verdict

COLUMNS = ["metric", "group", "value", "floor", "shuffled", "low", "high", "better"]

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
    "within_label_slope": (1.0, 0.0, 0.05, "floor"),
    "cross_correlation_similarity": (0.9, 0.1, np.nan, "higher"),
    "cross_correlation_error": (0.08, 0.2, np.nan, "lower"),
    "library_size_ks": (0.04, 0.04, 0.02, "lower"),
    "group_share_difference": (0.04, 0.04, 0.02, "lower"),
    "marker_overlap": (0.7, 0.7, 0.05, "higher"),
    "marker_slope": (1.0, 1.0, 0.05, "floor"),
    "transfer_f1": (0.9, 0.88, 0.02, "higher"),
    "label_fidelity": (0.9, 0.9, 0.02, "higher"),
    "nearest_train_ratio": (1.0, 1.0, 0.02, "floor"),
    "nearer_than_held_out": (0.01, 0.01, 0.01, "lower"),
    "copied_cells": (0.0, 0.0, 0.0, "lower"),
    "duplicate_share": (0.0, 0.0, 0.0, "lower"),
    "membership_auc": (0.5, 0.5, 0.02, "lower"),
    "copied_test_cells": (0.0, 0.0, 0.0, "lower"),
}


def row(metric, value=None, group="all", reach=None):
    floor, shuffled, usual_reach, better = GOOD[metric]
    value, reach = floor if value is None else value, usual_reach if reach is None else reach
    return [metric, group, value, floor, shuffled, value - reach, value + reach, better]


def table(groups=("B", "T"), **values):
    """Return the table of real cells, but for the values given."""
    rows = [row(metric, values.get(metric)) for metric in GOOD]
    for group in groups:
        rows += [row(metric, group=group) for metric in ("w2", "precision", "recall", "group_share_difference")]
    return pd.DataFrame(rows, columns=COLUMNS)


def count_cells(n_cells, **shares):
    """Return the numbers of real and synthetic cells with these shares, for as many cells on either side."""
    return {label: tuple(round(share * n_cells) for share in both) for label, both in {"all": (1, 1), **shares}.items()}


def topics(result):
    return {finding.topic for finding in result.findings}


def level_of(result, topic):
    return {finding.topic: finding.level for finding in result.findings}[topic]


def message_of(result, topic):
    return {finding.topic: finding.message for finding in result.findings}[topic]


def test_cells_that_score_like_real_ones_get_no_complaint():
    result = verdict(table())
    assert {finding.level for finding in result.findings} == {"ok"}
    assert result.summary.endswith("All 19 checks passed.")


def test_a_floor_below_guessing_is_chance():
    found = table(auc_logistic=0.58)
    found.loc[found["metric"] == "auc_logistic", "floor"] = 0.40
    assert {finding.level for finding in verdict(found).findings} == {"ok"}


@pytest.mark.parametrize("value", [0.2, 0.5])
def test_a_membership_that_guessing_would_reach_is_no_leak(value):
    found = table(membership_auc=value)
    found.loc[found["metric"] == "membership_auc", "floor"] = 0.2
    assert level_of(verdict(found), "memorisation") == "ok"


def test_floors_from_other_donors_or_times_pass_nothing():
    found = table(auc_boosting=0.93, membership_auc=0.7, gene_zero_error=0.04)
    found.loc[found["metric"] == "auc_boosting", "floor"] = 0.89
    result = verdict(found)

    assert [finding.topic for finding in result.findings] == ["floors", "classifier", "zeros"]
    assert "an AUC of 0.89" in message_of(result, "floors")
    assert "easily tell the synthetic cells from real ones (AUC 0.93, 0.50 is perfect)." in result.headline
    assert "memorisation" not in result.summary


def test_where_training_saw_no_cells_like_the_held_out_ones_nobody_is_told_to_train_longer():
    found = table(auc_boosting=0.93, label_fidelity=0.5, marker_slope=0.3, recall=0.5, gene_zero_error=0.04)
    assert "train longer" in str(verdict(found))

    found.loc[found["metric"] == "auc_boosting", "floor"] = 0.89
    result = verdict(found)
    assert {finding.topic for finding in result.warnings} >= {"floors", "classifier", "labels", "diversity"}
    assert "train longer" not in str(result)
    assert "labels were not mixed up" in message_of(result, "labels")  # other advice stays


def test_conditions_outside_of_training_are_a_note():
    found = table()
    found.attrs["outside_training"] = ["age=90.0 (trained on 20 to 60)"]
    result = verdict(found)
    assert level_of(result, "conditions") == "note"
    assert "age=90.0 (trained on 20 to 60)" in message_of(result, "conditions")

    for unjudged, headline in (
        (found[found["metric"] == "w2"].assign(metric="density"), "The verdict says nothing about density"),
        (found[found["group"] == "all"].assign(floor=np.nan), "no figure that can be judged"),
    ):
        result = verdict(unjudged)
        assert headline in result.headline
        assert [finding.topic for finding in result.findings] == ["conditions"]


def test_where_held_out_cells_are_training_cells_nothing_good_is_said_about_memorisation():
    found = table()
    found.attrs["leaked"] = 0.14
    result = verdict(found)
    assert [finding.topic for finding in result.warnings] == ["split"]
    assert message_of(result, "split").startswith("At least 14.0% of the held-out cells are training cells")
    assert not {"copies", "memorisation"} & {finding.topic for finding in result.findings}

    bad = table(copied_cells=0.3, membership_auc=0.9)
    bad.attrs["leaked"] = {"rna": 0.14}
    result = verdict(bad.assign(modality="rna"))
    assert {"split", "copies", "memorisation"} <= {finding.topic for finding in result.warnings}

    unjudged = verdict(found[found["group"] == "all"].assign(floor=np.nan))
    assert "no figure that can be judged" in unjudged.headline
    assert [finding.topic for finding in unjudged.warnings] == ["split"]
    assert "no figure that can be judged" in verdict(bad.assign(modality="rna")[:0]).headline


def test_few_cells_have_floors_that_are_off_by_chance():
    found = pd.DataFrame([row(metric, reach=0.1 if "auc" in metric else None) for metric in GOOD], columns=COLUMNS)
    found.loc[found["metric"] == "auc_boosting", "floor"] = 0.62
    assert "floors" not in {finding.topic for finding in verdict(found).findings}


@pytest.mark.parametrize(("n_cells", "is_unlike"), [(60, False), (2_000, True)])
def test_floors_that_are_off_by_chance_are_not_blamed_on_the_training_cells_where_synthetic_cells_are_bad(
    n_cells, is_unlike
):
    found = table(groups=(), auc_boosting=0.99)  # beyond doubt
    found.loc[found["metric"] == "auc_boosting", ["floor", "low", "high"]] = [0.66, 0.98, 1.0]
    found.attrs["n_cells"] = {"all": n_cells}
    assert ("floors" in {finding.topic for finding in verdict(found).findings}) == is_unlike


@pytest.mark.parametrize(
    ("metric", "value", "topic"),
    [
        ("copied_cells", 0.01, "copies"),
        ("copied_cells", 1e-5, "copies"),
        ("copied_test_cells", 0.3, "held-out copies"),
        ("duplicate_share", 0.02, "duplicates"),
        ("membership_auc", 0.65, "memorisation"),
        ("membership_auc", 0.35, "held-out cells"),
        ("auc_neighbours", 0.35, "held-out cells"),
        ("nearer_than_held_out", 0.5, "memorisation"),
        ("nearest_train_ratio", 0.5, "memorisation"),
        ("recall", 0.6, "diversity"),
        ("coverage", 0.6, "diversity"),
        ("precision", 0.5, "realism"),
        ("auc_logistic", 0.9, "classifier"),
        ("w2", 9.0, "distribution"),
        ("gene_mean_error", 0.08, "means"),
        ("gene_variance_error", 0.12, "spread"),
        ("mean_variance_error", 0.4, "spread"),
        ("gene_zero_error", 0.04, "zeros"),
        ("library_size_ks", 0.4, "library size"),
        ("within_label_correlation", 0.02, "gene-gene structure"),
        ("within_label_slope", 0.5, "gene-gene structure"),
        ("within_label_slope", 1.6, "gene-gene structure"),
        ("cross_correlation_similarity", 0.1, "modalities"),
        ("cross_correlation_error", 0.2, "modalities"),
        ("label_fidelity", 0.5, "labels"),
        ("transfer_f1", 0.5, "labels"),
        ("marker_overlap", 0.3, "markers"),
        ("marker_slope", 0.4, "markers"),
        ("marker_slope", 1.7, "markers"),
    ],
)
def test_one_bad_figure_gives_one_warning_of_its_topic(metric, value, topic):
    result = verdict(table(**{metric: value}))
    assert [finding.topic for finding in result.warnings] == [topic]
    assert result.findings[0] == result.warnings[0]
    assert f" checks failed: {topic}." in result.summary


@pytest.mark.parametrize(("metric", "value"), [("auc_boosting", 0.63), ("precision", 0.83), ("gene_zero_error", 0.022)])
def test_a_small_defect_is_a_note(metric, value):
    result = verdict(table(**{metric: value}))
    assert not result.warnings
    assert len(result.notes) == 1
    assert "No check failed; worth a look:" in result.summary


@pytest.mark.parametrize("metric", ["precision", "gene_zero_error", "auc_logistic", "marker_slope"])
def test_better_than_real_cells_is_no_defect(metric):
    floor, better = GOOD[metric][0], GOOD[metric][3]
    value = {"lower": 0.5 * floor, "higher": min(1.0, 1.3 * floor), "floor": floor}[better]
    assert not verdict(table(**{metric: value})).warnings


def test_messages_give_the_value_beside_that_of_real_cells_and_advice():
    message = message_of(verdict(table(gene_zero_error=0.04)), "zeros")
    assert "4.0%" in message
    assert "real cells: 1.6%" in message
    assert "drawn as counts" in message


def test_an_excess_within_chance_is_not_reported():
    wide = table(precision=0.7)
    for high in (1.0, 0.75):  # a bound may cut one side
        wide.loc[wide["metric"] == "precision", ["low", "high"]] = [0.4, high]
        assert level_of(verdict(wide), "realism") == "ok"


def test_without_intervals_the_size_alone_decides():
    bare = table(precision=0.7)
    bare[["low", "high"]] = np.nan
    assert level_of(verdict(bare), "realism") == "warning"


@pytest.mark.parametrize(
    ("auc", "words"),
    [
        (0.52, "cannot reliably tell the synthetic cells from real ones (AUC 0.52, 0.50 is perfect)."),
        (0.57, "can tell the synthetic cells from real ones slightly better than by guessing (AUC 0.57, "),
        (0.69, "can often tell the synthetic cells from real ones (AUC 0.69, "),
        (0.89, "can easily tell the synthetic cells from real ones (AUC 0.89, "),
    ],
)
def test_the_verdict_begins_with_what_a_classifier_can_tell(auc, words):
    result = verdict(table(auc_boosting=auc))
    summary = result.summary
    assert summary.startswith("A classifier can")
    assert words in summary
    assert summary.startswith(f"{result.headline} ")
    assert result.headline.endswith("0.50 is perfect).")
    assert not verdict(table().query("not metric.str.startswith('auc')")).summary.startswith("A classifier")


@pytest.mark.parametrize("auc", [0.52, 0.82])
def test_few_cells_do_not_say_whether_a_classifier_can_tell(auc):
    wide = table(auc_boosting=auc)
    wide.loc[wide["metric"].str.startswith("auc"), ["low", "high"]] = [0.45, 1.0]
    result = verdict(wide)
    assert result.headline == (
        f"Too few cells to say whether a classifier can tell the synthetic cells from real ones (AUC {auc:.2f}, 0.50 "
        "is perfect)."
    )


def test_the_best_classifier_decides():
    result = verdict(table(auc_boosting=0.8, auc_logistic=0.9))
    assert "a linear classifier" in message_of(result, "classifier")


def test_a_classifier_beside_guessing_names_no_floor_that_the_table_lacks():
    row_of_other_donors = ["auc_boosting", "all", 0.97, 0.90, 0.99, 0.95, 0.99, "lower"]
    of_donors = pd.DataFrame([row_of_other_donors], columns=COLUMNS)
    assert message_of(verdict(of_donors), "classifier").startswith(
        "The best classifier, gradient boosting on principal components, tells synthetic from real cells with an AUC "
        "of 0.97 (0.5 is guessing)."
    )
    assert "AUC of 0.90" in message_of(verdict(of_donors), "floors")
    like_held_out = of_donors.assign(floor=0.55)
    assert "(0.5 is guessing; real from real cells: 0.55)" in message_of(verdict(like_held_out), "classifier")


def test_a_group_without_synthetic_cells_is_missing():
    dropped = table()
    in_b = dropped["group"] == "B"
    dropped.loc[in_b & (dropped["metric"] != "group_share_difference"), ["value", "floor", "low", "high"]] = np.nan
    dropped.loc[in_b & (dropped["metric"] == "group_share_difference"), ["value", "low", "high"]] = [0.3, 0.28, 0.32]
    result = verdict(dropped)
    assert level_of(result, "missing groups") == "warning"
    assert "or none, for B." in message_of(result, "missing groups")


def test_a_group_with_too_few_cells_on_both_sides_is_not_missing_but_not_called_present():
    small = table()
    in_b = (small["group"] == "B") & (small["metric"] != "group_share_difference")
    small.loc[in_b, ["value", "floor", "low", "high"]] = np.nan
    assert "missing groups" not in topics(verdict(small))
    assert "Not judged: B (fewer than 30" in message_of(verdict(small), "groups")


@pytest.mark.parametrize(
    ("share", "n_cells", "is_missing"), [(0.0, 200, True), (0.04, 200, True), (0.1, 200, False), (0.0, 35, False)]
)
@pytest.mark.parametrize("reach", [0.02, 0.4])
@pytest.mark.parametrize("floor", [0.04, np.nan])
def test_a_group_is_missing_if_its_share_of_all_cells_is_below_a_quarter_of_the_real_one(
    share, n_cells, is_missing, reach, floor
):
    # whatever the noisy share of the cells drawn, and with or without its floor; not if there may be none by chance
    rows = table()
    in_b, is_share = rows["group"] == "B", rows["metric"] == "group_share_difference"
    rows.loc[in_b & ~is_share, ["value", "floor", "low", "high"]] = np.nan
    off = 0.2 - share
    rows.loc[in_b & is_share, ["value", "floor", "low", "high"]] = [off, floor, off - reach, off + reach]
    n_labelled = count_cells(n_cells, B=(0.2, share), T=(0.8, 1 - share))
    rows.attrs = {"n_labelled": n_labelled, "n_cells": {"all": n_cells, "B": 0, "T": 60}}

    result = verdict(rows)

    assert ("missing groups" in topics(result)) == is_missing
    assert not is_missing or f"or none, for B ({share:.1%}; real cells: 20.0%)" in str(result)


@pytest.mark.parametrize(("real", "synthetic", "n_cells"), [(0.07, 0.0, 400), (0.07, 0.01, 400), (0.12, 0.0, 133)])
def test_a_label_without_rows_is_missing_if_chance_does_not_explain_it(real, synthetic, n_cells):
    rows = table()
    rows.attrs["n_cells"] = {"all": n_cells, "B": 50, "T": 50, "rare": 0}
    shares = {"B": (0.5, 0.5), "T": (0.5 - real, 0.5 - synthetic), "rare": (real, synthetic)}
    rows.attrs["n_labelled"] = count_cells(n_cells, **shares)
    result = verdict(rows)
    assert [finding.topic for finding in result.warnings] == ["missing groups"]
    assert f"or none, for rare ({synthetic:.1%}; real cells: {real:.1%})" in message_of(result, "missing groups")
    advice = "No synthetic cells: rare." if not synthetic else "to compare: hold out and generate more)."
    assert message_of(result, "groups").endswith(advice)
    del rows.attrs["n_cells"]
    assert level_of(verdict(rows), "missing groups") == "warning"
    rows.attrs["n_labelled"] = count_cells(7 / real, **shares)
    assert level_of(verdict(rows), "missing groups") == "ok"


@pytest.mark.parametrize(("n_groups", "level"), [(3, "warning"), (30, "ok")])
def test_among_many_groups_chance_may_leave_one_out(n_groups, level):
    rows = table()
    others = [f"rare {number}" for number in range(n_groups - 2)]
    rows.attrs["n_cells"] = {"all": 300, "B": 100, "T": 100} | dict.fromkeys(others, 0)
    shares = dict.fromkeys(others, (0.03, 0.03))
    shares = {"B": (0.5, 0.5), "T": (0.5, 0.5)} | shares | {"rare 0": (0.03, 0.0)}
    rows.attrs["n_labelled"] = count_cells(300, **shares)
    assert level_of(verdict(rows), "missing groups") == level


@pytest.mark.parametrize(("n_synthetic", "level"), [(1500, "warning"), (150, "ok")])
def test_whether_a_rare_label_is_missing_is_judged_from_all_cells_not_from_those_that_are_drawn(n_synthetic, level):
    def cells(seed, n_cells, n_rare):
        labels = np.where(np.arange(n_cells) < n_rare, "rare", np.where(np.arange(n_cells) % 2, "B", "T"))
        counts = np.random.default_rng(seed).poisson(5.0, (n_cells, 20)).astype(np.float32)
        return AnnData(counts, obs=pd.DataFrame({"type": labels}, index=[f"{seed}-{row}" for row in range(n_cells)]))

    options = {"groupby": "type", "metrics": ["precision", "recall", "group_share_difference"], "n_bootstrap": 0}
    found = evaluate(cells(1, 1500, n_rare=12), cells(2, n_synthetic, n_rare=0), max_cells=100, n_floor=1, **options)
    assert level_of(verdict(found), "missing groups") == level


def test_label_fidelity_is_said_to_be_a_mean_over_labels():
    assert "of the synthetic cells, averaged over labels" in message_of(verdict(table(label_fidelity=0.3)), "labels")


def test_a_group_that_only_synthetic_cells_have_is_not_missing():
    # such a group has no row but that of the shares
    invented = table(groups=("T",))
    invented.loc[len(invented)] = ["group_share_difference", "B", 0.3, 0.0, 0.0, 0.28, 0.32, "lower"]
    assert level_of(verdict(invented), "missing groups") == "ok"


def test_a_group_with_too_few_cells_for_a_floor_is_not_missing():
    rare = table()
    in_b, is_share = rare["group"] == "B", rare["metric"] == "group_share_difference"
    rare.loc[in_b & ~is_share, "floor"] = np.nan
    rare.loc[in_b & is_share, ["value", "low", "high"]] = [0.3, 0.28, 0.32]
    assert level_of(verdict(rare), "missing groups") == "ok"


def test_groups_are_not_called_complete_if_nothing_was_compared_per_group():
    rows = table()
    shares = verdict(rows[rows["metric"] == "group_share_difference"])
    assert {finding.topic for finding in shares.findings} == {"group shares"}


def test_other_shares_of_groups_are_a_note_since_they_may_be_wanted():
    other = table(group_share_difference=0.4)
    is_share = other["metric"] == "group_share_difference"
    other.loc[is_share & (other["group"] == "T"), ["value", "low", "high"]] = [0.4, 0.38, 0.42]
    result = verdict(other)
    assert level_of(result, "group shares") == "note"
    assert "Most of it is T" in message_of(result, "group shares")


def test_other_shares_of_labels_are_named_where_a_classifier_tells_the_cells():
    advice = "Shares of labels differ, which alone makes cells easy to tell. To judge the model, generate cells with"
    assert advice in message_of(verdict(table(auc_boosting=0.9, group_share_difference=0.4)), "classifier")
    assert "Shares of labels" not in message_of(verdict(table(auc_boosting=0.9)), "classifier")
    assert "Shares of labels" not in message_of(verdict(table(group_share_difference=0.4)), "classifier")


def test_totals_that_were_given_are_no_warning():
    found = table(library_size_ks=0.8)
    assert level_of(verdict(found), "library size") == "warning"
    found.attrs["request"] = {"library_size": "latent"}
    assert level_of(verdict(found), "library size") == "warning"
    found.attrs["request"] = {"library_size": "given"}
    result = verdict(found)
    assert level_of(result, "library size") == "note"
    assert "differ by 0.80" in message_of(result, "library size")
    assert "If they were those of the held-out cells, the model does not meet them" in message_of(
        result, "library size"
    )
    assert "No check failed" in result.summary

    same = table()
    same.attrs["request"] = {"library_size": "given"}
    assert level_of(verdict(same), "library size") == "ok"


def with_request(found, request):
    found.attrs["request"] = request
    return found


def test_advice_leaves_out_what_the_record_of_the_cells_rules_out():
    found = table(precision=0.5, recall=0.5)
    guidance, epochs = ", and use less guidance if it was above 1", "SCRDIT and WBDIT on few cells: fewer epochs."
    for request, is_guided, may_be_gene_space in (
        ({}, True, True),
        ({"model": "SCLDM", "guidance_scale": 1.0}, False, False),
        ({"model": "SCRDIT", "guidance_scale": {"cell_type": 2.0, "donor": 1.0}}, True, True),
        ({"model": "MULTISCLDM", "guidance_scale": {"cell_type": 1.0, "donor": 0.0}}, False, False),
    ):
        found.attrs["request"] = request
        realism, diversity = (message_of(verdict(found), topic) for topic in ("realism", "diversity"))
        assert (guidance in realism, guidance in diversity, epochs in realism) == (
            is_guided,
            is_guided,
            may_be_gene_space,
        )
        others = verdict(table(marker_slope=2.0, mean_variance_error=1.0).pipe(with_request, request)).findings
        assert any("guidance" in finding.advice for finding in others) == is_guided
    assert "take more steps of the sampler. If nothing else helps" in realism
    assert "missing groups and shares. If they are reached" in diversity


def test_figures_that_pool_labels_are_not_judged_if_labels_have_other_shares():
    pooled = {
        "nearest_train_ratio": 0.6,
        "within_label_correlation": 0.2,
        "within_label_slope": 0.34,
        "marker_overlap": 0.4,
        "marker_slope": 0.5,
    }
    assert len(verdict(table(**pooled)).warnings) == 3  # memorisation, gene-gene structure, markers

    result = verdict(table(**pooled, group_share_difference=0.4))

    assert not result.warnings
    assert {"copies", "memorisation"} <= {finding.topic for finding in result.findings}
    assert all(metric in message_of(result, "group shares") for metric in pooled)
    assert "model.generate(condition=held_out)" in message_of(result, "group shares")


def test_nearness_that_somewhat_other_shares_of_labels_explain_is_no_memorisation():
    near = {"nearest_train_ratio": 0.6, "nearer_than_held_out": 0.13}
    result = verdict(table(**near, group_share_difference=0.1, within_label_correlation=0.2))
    assert [finding.topic for finding in result.warnings] == ["gene-gene structure"]
    assert "other shares of labels explain at most 10.0% more" in message_of(result, "memorisation")
    assert "alone change them: nearest_train_ratio." in message_of(result, "group shares")
    assert level_of(verdict(table(**near, group_share_difference=0.06)), "memorisation") == "warning"


@pytest.mark.parametrize("difference", [0.1, 0.4])
def test_cells_nearer_to_training_cells_than_other_shares_of_labels_explain_are_memorised(difference):
    """If cells are right within labels, at most as many more are near as would need another label."""
    found = table(nearer_than_held_out=0.9, nearest_train_ratio=0.2, group_share_difference=difference)
    assert level_of(verdict(found), "memorisation") == "warning"


def test_where_a_figure_was_left_out_not_all_checks_passed():
    result = verdict(table(group_share_difference=0.1))
    assert level_of(result, "group shares") == "note"
    assert "No check failed; worth a look: group shares." in result.summary


def test_leaks_are_found_whatever_the_shares_of_labels():
    result = verdict(table(group_share_difference=0.4, copied_cells=0.01, membership_auc=0.65))
    assert {finding.topic for finding in result.warnings} == {"copies", "memorisation"}


def test_a_group_five_times_as_frequent_as_in_real_cells_is_a_note_in_a_hundred_cells():
    # 25% instead of 5%, with the interval of 100 cells on either side
    other = table(group_share_difference=0.2)
    is_share = other["metric"] == "group_share_difference"
    other.loc[is_share, ["value", "floor", "low", "high"]] = [0.2, 0.025, 0.09, 0.31]
    assert level_of(verdict(other), "group shares") == "note"


def test_a_group_that_is_off_is_named():
    off = table()
    off.loc[(off["metric"] == "precision") & (off["group"] == "T"), ["value", "low", "high"]] = [0.1, 0.05, 0.15]
    result = verdict(off)
    assert level_of(result, "groups") == "warning"
    assert "T (0.10; real 0.92)" in message_of(result, "groups")


def test_groups_that_were_not_judged_are_named_in_a_note():
    rows = table(groups=("B", "T", "NK"))
    rows.loc[(rows["group"] == "T") & rows["metric"].isin(["precision", "recall"]), "floor"] = np.nan
    assert level_of(verdict(table()), "groups") == "ok"
    assert message_of(verdict(table()), "groups").endswith(" Judged: 2 of 2 groups.")
    rows.attrs["n_cells"] = {"all": 100, "B": 50, "T": 40, "NK": 50, "rare": 0, "rarer": 0}
    result = verdict(rows)
    assert level_of(result, "groups") == "note"
    assert "No check failed; worth a look: groups." in result.summary
    assert message_of(result, "groups") == (
        "No judged group is far worse than real cells of that group. Judged: 2 of 5 groups. Not judged: rare, rarer "
        "(fewer than 30 real or synthetic cells to compare: hold out and generate more); T (no floor, which needs 30 "
        "cells in half of `train`: read the table, or leave `train` out if 90 cells are held out)."
    )
    # a label with few real and many synthetic cells has rows of some metrics
    rows.loc[len(rows)] = ["group_share_difference", "rare", 0.3, 0.0, 0.0, 0.28, 0.32, "lower"]
    assert message_of(verdict(rows), "groups") == message_of(result, "groups")
    assert level_of(verdict(rows), "missing groups") == "ok"
    of_modality = rows.assign(modality="rna")
    of_modality.attrs["n_cells"] = {"rna": rows.attrs["n_cells"], "prot": {"all": 100}}
    assert message_of(verdict(of_modality), "groups") == message_of(result, "groups")


@pytest.mark.parametrize(("auc", "is_told"), [(0.99, True), (0.6, False)])
def test_cells_of_a_group_without_a_floor_that_are_easily_told_from_real_ones_are_named(auc, is_told):
    rows = table()
    rows.loc[rows["group"] == "T", "floor"] = np.nan
    for metric, value in {"auc_logistic": auc, "auc_neighbours": auc - 0.05}.items():
        rows.loc[len(rows)] = [metric, "T", value, np.nan, np.nan, value - 0.05, value + 0.05, "lower"]
    told = "A classifier easily tells synthetic cells of T (AUC 0.99) from real ones."
    assert (told in message_of(verdict(rows), "groups")) == is_told


@pytest.mark.parametrize("shown", [["all"], ["all", "T"]])
def test_groups_that_a_part_of_the_table_leaves_out_are_not_called_small(shown):
    rows = table()
    rows.attrs["n_cells"] = {"all": 200, "B": 100, "T": 100}
    rows.attrs["n_labelled"] = count_cells(200, B=(0.5, 0.5), T=(0.5, 0.5))
    found = {finding.topic: finding.message for finding in verdict(rows[rows["group"].isin(shown)]).findings}
    assert found.get("groups", "Judged: 1 of 1 groups.").endswith("Judged: 1 of 1 groups.")
    found = verdict(rows[(rows["group"] == "all") | (rows["metric"] == "group_share_difference")]).findings
    assert {"groups", "missing groups"}.isdisjoint(finding.topic for finding in found)


def test_of_many_groups_that_were_not_judged_a_few_are_named():
    rows = table()
    rows.attrs["n_cells"] = {"all": 100, "B": 50, "T": 50} | {f"rare {number}": 0 for number in range(9)}
    assert "Not judged: rare 0, rare 1, rare 2, rare 3, rare 4 and 4 more (" in message_of(verdict(rows), "groups")


def test_groups_of_which_none_was_judged_are_a_note():
    rows = table(groups=())
    rows.attrs["n_cells"] = {"all": 100, "rare": 0, "rarer": 0}
    result = verdict(rows)
    assert level_of(result, "groups") == "note"
    assert "Judged: 0 of 2 groups. Not judged: rare, rarer (fewer than 30" in message_of(result, "groups")


def test_no_group_is_called_present_if_none_is_large_enough():
    # many synthetic cells of a label give it a share, without anything to compare
    rows = table(groups=())
    rows.loc[len(rows)] = ["group_share_difference", "rare", 0.02, 0.0, 0.0, 0.0, 0.05, "lower"]
    rows.attrs["n_cells"] = {"all": 100, "rare": 0, "rarer": 0}
    assert "missing groups" not in topics(verdict(rows))
    assert level_of(verdict(rows), "groups") == "note"


def test_a_rare_copy_is_not_rounded_to_none():
    assert "0.001% of the synthetic cells" in message_of(verdict(table(copied_cells=1e-5)), "copies")


@pytest.mark.parametrize(
    ("slope", "floor", "level"),
    [(0.97, 0.86, "ok"), (0.75, 0.86, "ok"), (0.60, 0.86, "note"), (1.0, 0.75, "note"), (1.2, 0.83, "warning")],
)
def test_differences_between_groups_are_judged_by_their_distance_to_the_floor(slope, floor, level):
    rows = table(marker_slope=slope)
    rows.loc[rows["metric"] == "marker_slope", "floor"] = floor
    assert level_of(verdict(rows), "markers") == level


def test_the_advice_on_differences_between_groups_fits_their_size():
    small, large = (message_of(verdict(table(marker_slope=slope)), "markers") for slope in (0.4, 1.7))
    assert "use more guidance" in small
    assert "if guidance was above 1, use less" in large
    assert "more guidance" not in large
    other = message_of(verdict(table(marker_overlap=0.3)), "markers")
    assert "guidance" not in other
    assert "labels were not mixed up" in other


def test_nearness_without_a_leak_may_be_smoothness():
    smooth, leak = verdict(table(nearest_train_ratio=0.6)), verdict(table(nearest_train_ratio=0.6, membership_auc=0.8))
    assert "too smooth" in message_of(smooth, "memorisation")
    assert "leak" in message_of(leak, "memorisation")


def test_cells_without_memorisation_are_not_called_anonymous():
    assert message_of(verdict(table()), "memorisation").endswith("This does not make the cells anonymous.")
    assert "anonymous" not in message_of(verdict(table(membership_auc=0.7)), "memorisation")


def test_cells_farther_from_training_cells_than_real_ones_are_no_memorisation():
    assert level_of(verdict(table(nearest_train_ratio=1.6)), "memorisation") == "ok"


def test_data_without_structure_between_genes_is_not_judged_by_it():
    without = table(within_label_correlation=0.02)
    without.loc[without["metric"] == "within_label_correlation", "floor"] = 0.05
    result = verdict(without)
    assert "gene-gene structure" not in topics(result)
    assert "Real cells have too little gene-gene structure to check it." in result.summary
    assert "too little" not in verdict(table()).summary


def test_modalities_are_judged_by_their_error_where_those_of_real_cells_do_not_go_together():
    without = table(cross_correlation_similarity=0.01, cross_correlation_error=0.3)
    without.loc[without["metric"] == "cross_correlation_similarity", "floor"] = 0.05
    result = verdict(without)
    assert level_of(result, "modalities") == "warning"
    assert "Real cells have too little correlation between modalities to check it." in result.summary


def test_structure_is_judged_also_where_nothing_was_shuffled():
    for value, shuffled, level in ((0.1, np.nan, "warning"), (0.53, 0.4, "note")):  # real cells: 0.63
        low = table(within_label_correlation=value)
        low.loc[low["metric"] == "within_label_correlation", "shuffled"] = shuffled
        assert level_of(verdict(low), "gene-gene structure") == level


def test_missing_measurements_are_left_out_and_reported():
    rows = table()
    part = verdict(rows[rows["metric"].isin(["w2", "precision"])])
    assert {finding.topic for finding in part.findings} == {"distribution", "realism", "groups"}
    assert part.summary.endswith("passed. Checked only: realism, distribution and groups.")
    part = verdict(rows[~rows["metric"].isin(["library_size_ks", "gene_zero_error"])])
    assert part.summary.endswith("Not checked, as the table lacks the figures: zeros and library size.")


@pytest.mark.parametrize("column", ["value", "floor"])
def test_figures_without_a_number_are_reported_as_not_checked(column):
    rows = table()
    rows.loc[rows["metric"].isin(["marker_overlap", "marker_slope"]), column] = np.nan
    assert verdict(rows).summary.endswith("Not checked, as the table lacks the figures: markers.")
    names = [metric.name for metric in CATALOGUE.values() if "all" in metric.scopes and "train" not in metric.needs]
    rows = pd.DataFrame([[name, "all", *[0.5] * 5, "lower"] for name in names], columns=COLUMNS)
    rows.loc[rows["metric"].isin(["marker_overlap", "marker_slope"]), column] = np.nan
    advice = "memorisation (give `train`) and markers (the table has no value, or no floor)"
    assert verdict(rows).summary.endswith(f"Not checked: {advice}.")


def test_a_table_without_floors_says_so_once():
    summary = verdict(table().assign(floor=np.nan)).summary
    assert summary.endswith("Not checked: what needs a floor, as the table has none (`n_floor`).")


def test_a_table_of_privacy_alone_does_not_seem_to_judge_the_cells():
    privacy = ["copied_cells", "nearest_train_ratio", "nearer_than_held_out", "membership_auc"]
    rows = table(groups=())
    result = verdict(rows[rows["metric"].isin(privacy)])
    assert result.summary == "All 2 checks passed. Checked only: copies and memorisation."


def test_a_table_of_all_metrics_says_what_to_give_for_the_others():
    names = [metric.name for metric in CATALOGUE.values() if "all" in metric.scopes and not metric.needs]
    rows = pd.DataFrame([[name, "all", *[0.5] * 5, "lower"] for name in names], columns=COLUMNS)
    advice = "memorisation (give `train`), labels (give `groupby`) and library size (give counts in X, or name their "
    assert verdict(rows).summary.endswith(f"Not checked: {advice}`layer`).")


def test_figures_with_floors_that_have_no_check_are_named():
    """`n_floor` would not help."""
    names = ["density", "ilisi"]
    rows = [[name, "all", 0.5, 0.6, 0.1, np.nan, np.nan, "lower"] for name in names]

    result = verdict(pd.DataFrame(rows, columns=COLUMNS))

    assert result.summary.startswith(f"The verdict says nothing about {', '.join(names)} of these cells")
    assert "n_floor" not in result.summary
    assert not result.findings


def test_a_table_without_floors_cannot_be_judged():
    bare = table(groups=())
    bare["floor"] = np.nan
    result = verdict(bare)
    assert result.findings == ()
    assert "n_floor" in result.summary


def test_a_table_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['shuffled'"):
        verdict(table().drop(columns=["shuffled", "better"]))


def test_a_table_of_perturbations_is_refused_with_what_to_compare_instead():
    changes = table().drop(columns=["shuffled"]).assign(perturbation="STAT1")
    with pytest.raises(ValueError, match="^A table of perturbations has no verdict: compare .* with `floor`"):
        verdict(changes)


def test_a_table_of_several_modalities_is_refused():
    with pytest.raises(ValueError, match="several rows of the metric 'w2' and the group 'all'; judge one"):
        verdict(pd.concat([table(), table()]))
    both = pd.concat([table().assign(modality=name) for name in ("rna", "prot")])
    with pytest.raises(ValueError, match=r"'all': \['rna', 'prot'\]. Take one .*table\['modality'\] == 'rna'\]"):
        verdict(both)
    assert verdict(both[both["modality"] == "prot"]).findings == verdict(table()).findings
    with pytest.raises(TypeError, match="must be what `evaluate` returns, a DataFrame, but is dict"):
        verdict({})


def test_a_table_that_was_written_and_read_gives_the_same_verdict(tmp_path):
    rows = table(precision=0.5)
    rows.to_csv(tmp_path / "table.csv", index=False)
    assert verdict(pd.read_csv(tmp_path / "table.csv")) == verdict(rows)


def test_the_text_has_the_summary_and_a_line_per_finding():
    result = verdict(table(copied_cells=0.2))
    lines = str(result).splitlines()
    assert lines[0] == result.summary
    assert lines[1].startswith("[warning] copies: 20.00% of the synthetic cells")
    assert len(lines) == 1 + len(result.findings)


FAST = ["precision", "recall", "coverage", "w2", "auc_logistic", "gene_mean_error", "gene_variance_error"]
FAST += ["mean_variance_error", "gene_zero_error", "library_size_ks", "within_label_correlation", "label_fidelity"]
FAST += ["group_share_difference", "nearest_train_ratio", "nearer_than_held_out", "membership_auc", "copied_cells"]


def judge_pbmc68k(corrupt, seed=0):
    """Judge real cells, corrupted, that are neither the training nor the held-out ones."""
    adata = datasets.pbmc68k_reduced()
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    real, train, synthetic = (adata[rows].copy() for rows in np.array_split(order, 3))
    return verdict(
        evaluate(real, corrupt(synthetic, train), train=train, groupby="cell_type", metrics=FAST, n_floor=3, seed=seed)
    )


def test_real_cells_get_no_warning():
    assert not judge_pbmc68k(lambda synthetic, train: synthetic).warnings


def test_copies_of_training_cells_are_found():
    def copies(synthetic, train):
        copied = train.copy()
        copied.obs_names = [f"copy{i}" for i in range(copied.n_obs)]
        return copied

    topics = {finding.topic for finding in judge_pbmc68k(copies).warnings}
    assert {"copies", "memorisation"} <= topics


def test_swapped_training_and_held_out_cells_are_found():
    adata = datasets.pbmc68k_reduced()
    train, real = (adata[rows] for rows in np.array_split(np.random.default_rng(0).permutation(adata.n_obs), 2))
    synthetic = train.copy()
    synthetic.layers["counts"].data[::50] += 1
    synthetic.obs_names = [f"copy{i}" for i in range(synthetic.n_obs)]
    found = verdict(evaluate(train, synthetic, train=real, metrics=["membership_auc"], n_floor=3))
    assert [finding.topic for finding in found.warnings] == ["held-out cells"]
    assert "`train` and `real_test` swapped" in found.warnings[0].message


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
    options = {"metrics": COPIES, "max_cells": 50, "n_floor": 1, "n_bootstrap": 5}
    return {finding.topic for finding in verdict(evaluate(real, synthetic, train=train, **options)).warnings}


def test_chance_explains_equal_cells_of_a_sparse_panel_and_copying_is_still_found():
    """Of 40 perfect generators, as many as the confidence level of 95 % allows are warned of."""
    warned = [judge_sparse_panel(seed) for seed in range(40)]
    assert max(sum(topic in topics for topics in warned) for topic in ("copies", "duplicates", "held-out copies")) <= 2
    assert not any("split" in topics for topics in warned)
    found = [judge_sparse_panel(seed, share_copied=0.05) for seed in range(10)]
    assert sum("copies" in topics for topics in found) >= 9


def test_half_the_counts_are_found():
    def thinned(synthetic, train):
        counts = synthetic.layers["counts"].copy()
        counts.data = np.random.default_rng(0).binomial(counts.data.astype(int), 0.5).astype(np.float32)
        synthetic.X = synthetic.layers["counts"] = counts
        return synthetic

    assert {"zeros", "library size"} <= {finding.topic for finding in judge_pbmc68k(thinned).warnings}


def test_the_directions_here_are_those_of_the_table():
    assert {name: figures[3] for name, figures in GOOD.items()} == {name: CATALOGUE[name].better for name in GOOD}


def test_a_notebook_shows_a_verdict_as_it_is_printed():
    found = verdict(table())
    assert repr(found) == str(found)
