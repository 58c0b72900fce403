"""The table of perturbations: what the baselines score where the truth is known, and on real cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import normalize

from scgen_diffusion.metrics import CATALOGUE, evaluate
from scgen_diffusion.metrics._perturbation import GeneMoments, Shift, rank_score

COLUMNS = ["metric", "perturbation", "group", "value", "real", "no_change", "mean_shift", "additive", "better"]

BASE = np.full(40, 60.0)
# every perturbation keeps the total, so that logarithms of normalised values change by what is written here
EFFECTS = {"A": {0: 2.0, 1: 0.5, 2: 0.5}, "B": {3: 1.8, 4: 0.2}, "C": {5: 1.5, 6: 0.5}}


def rate(perturbation, separator="+"):
    factors = np.ones(len(BASE))
    for part in perturbation.split(separator):
        for gene, factor in EFFECTS.get(part, {}).items():
            factors[gene] *= factor
    return BASE * factors


def cells(*perturbations, n_cells=120, seed=0, rates=None, key="gene", **obs):
    rng = np.random.default_rng(seed)
    counts = np.vstack([rng.poisson(rates or rate(name), (n_cells, len(BASE))) for name in perturbations])
    table = pd.DataFrame(
        {key: np.repeat(perturbations, n_cells), **obs}, index=[f"{seed}_{i}" for i in range(len(counts))]
    )
    return ad.AnnData(counts.astype(np.float32), obs=table)


def judge(real, predicted, **arguments):
    arguments = {"control": cells("ctrl", seed=9), "perturbation_key": "gene", **arguments}
    return evaluate(real, predicted, **arguments)


def row(table, metric, perturbation="A+B"):
    return table[(table["metric"] == metric) & (table["perturbation"] == perturbation)].iloc[0]


def test_there_is_a_row_per_metric_and_perturbation():
    table = judge(cells("A", "A+B", seed=1), cells("A", "A+B", seed=2), train=cells("A", "B", seed=3))
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * table["metric"].nunique() == 2 * 13
    assert set(table["metric"]) > {"de_overlap_top_20", "variance_error_top_20", "mean_change_correlation_top_20"}
    assert not table["metric"].str.endswith("_top_100").any()  # of 40 genes
    assert table[["value", "real", "no_change", "mean_shift", "additive"]].notna().all(axis=None)


def test_effects_in_the_wrong_direction_have_values_within_their_bounds():
    opposite = cells("A", "B", seed=2, rates=list(BASE**2 / rate("A")))
    table = judge(cells("A", "B", seed=1), opposite, train=cells("A", "B", seed=3))
    assert (table["value"] < -0.5).any()
    for metric, rows in table.groupby("metric"):
        low, high = CATALOGUE[metric].bounds
        assert rows["value"].between(low, high).all(), metric


def test_the_additive_baseline_is_as_good_as_real_cells_where_effects_add_up():
    table = judge(cells("A+B", seed=1), cells("A+B", seed=2), train=cells("A", "B", "C", seed=3))
    energy, correlation = row(table, "energy_distance"), row(table, "mean_change_correlation")
    assert correlation["additive"] > 0.99
    assert correlation["additive"] > correlation["mean_shift"] > correlation["no_change"] == 0
    # the change from counts without noise is known up to sampling, which is what two halves of real cells differ by
    assert abs(energy["additive"] - energy["real"]) < 0.05 * energy["mean_shift"]
    assert energy["mean_shift"] < energy["no_change"]


@pytest.mark.parametrize("name", ["synthetic", "other"])
def test_counts_of_other_cells_beside_a_prediction_give_a_warning(name):
    real, control = cells("A", seed=1), cells("ctrl", seed=9, rates=list(BASE / 60))  # one count per gene
    stale = control.copy()
    stale.obs["gene"], stale.layers["counts"], stale.X = "A", control.X, real.X
    sets = {"synthetic": cells("A", seed=2), name: stale}
    predicted, others = sets.pop("synthetic"), sets
    with pytest.warns(UserWarning, match=f"`{name}` has values in `X`"):
        judge(real, predicted, control=control, others=others)
    del stale.layers["counts"]
    assert judge(real, predicted, control=control, others=others)["value"].notna().any()


UNLABELLED = cells("A", seed=1)
UNLABELLED.obs.loc[UNLABELLED.obs_names[:2], "gene"] = None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"synthetic": np.ones((5, 40))}, TypeError, "`synthetic`"),
        ({"train": "cells"}, TypeError, "`train`"),
        ({"groupby": "type"}, KeyError, "'type'"),
        ({"max_cells": None}, ValueError, "`max_cells`"),
        ({"metrics": "recall"}, ValueError, "'recall'"),
        ({"metrics": "perturbation_discrimination"}, ValueError, "'perturbation_discrimination'"),
        ({"metrics": "specific_change_correlation"}, ValueError, "'specific_change_correlation'.*`train`"),
        ({"perturbation_key": None}, ValueError, "`perturbation_key`"),
        ({"control": None}, ValueError, "`control`"),
        ({"control": None, "perturbation_key": None, "others": {"x": 1}}, ValueError, "`others`"),
        ({"layer": {"rna": "raw"}}, ValueError, "`layer`"),
        ({"others": {"real": cells("A", seed=3)}}, ValueError, "`others`.*'real'"),
        ({"others": {"train": cells("A", seed=3)}}, ValueError, "`others`.*'train'"),
        ({"others": {"better": cells("A", seed=3)}}, ValueError, "`others`.*'better'"),
        ({"synthetic": cells("A")[:1]}, ValueError, "`synthetic`"),
        ({"synthetic": cells("A", key="drug")}, KeyError, "`synthetic.*'gene'"),
        ({"real_test": UNLABELLED}, ValueError, "`real_test.*'gene'.* 2 of 120"),
        ({"real_test": cells("ctrl", seed=1)}, ValueError, "`real_test`"),
    ],
)
def test_arguments_that_cannot_be_compared_raise(change, error, message):
    sets = {"real_test": cells("A", seed=1), "synthetic": cells("A", seed=2), "control": cells("ctrl", seed=9)}
    with pytest.raises(error, match=message):
        evaluate(**{**sets, "perturbation_key": "gene", **change})


def test_what_the_training_cells_do_not_allow_is_missing():
    without_train = judge(cells("A+B", seed=1), cells("A+B", seed=2))
    assert without_train[["mean_shift", "additive"]].isna().all(axis=None)
    without_part = judge(cells("A+B", seed=1), cells("A+B", seed=2), train=cells("A", "C", seed=3))
    assert without_part["additive"].isna().all()
    assert without_part["mean_shift"].notna().all()
    real, control = cells("A", seed=1, group="NK"), cells("ctrl", seed=9, group="NK")
    of_others = judge(real, real, control=control, train=cells("A", seed=3, group="B"), groupby="group")
    assert of_others[["mean_shift", "additive"]].isna().all(axis=None)


def test_names_of_the_control_in_a_combination_are_no_perturbation():
    plain = judge(cells("A+B", seed=1), cells("A+B", seed=2), train=cells("A", "B", seed=3))
    train = cells("A + ctrl", "ctrl+B", seed=3)
    train.X = cells("A", "B", seed=3).X
    suffixed = judge(cells("B+A", seed=1), cells("A+B", seed=2), train=train)
    assert set(suffixed["perturbation"]) == {"B+A"}
    np.testing.assert_allclose(suffixed["additive"], plain["additive"])


def test_perturbed_cells_of_train_are_not_held_out_cells():
    real, predicted, control = cells("A", seed=1), cells("A", seed=2), cells("ctrl", seed=9)
    train, quick = cells("B", seed=3), {"control": control, "metrics": "mean_change_error", "n_repeats": 1}
    with pytest.raises(ValueError, match="`real_test` has cells of `train`"):
        judge(real, predicted, train=ad.concat([real, train]), **quick)
    real, train = ad.concat([real, control]), ad.concat([train, control])
    assert len(judge(real, predicted, train=train, **quick)) == 1  # they may share control cells


def test_control_cells_among_the_perturbed_change_nothing():
    real, predicted, train = cells("A", seed=1), cells("A", seed=2), cells("A", "B", seed=3)
    control = cells("ctrl", seed=9)
    mixed = [ad.concat([part, control], index_unique="-") for part in (real, predicted, train)]
    pd.testing.assert_frame_equal(
        judge(real, predicted, train=train), judge(*mixed[:2], train=mixed[2]), check_exact=False
    )


def test_parts_may_be_joined_by_another_sign_and_metrics_be_chosen():
    sets = cells("A+B", seed=1), cells("A+B", seed=2)
    expected = judge(*sets, train=cells("A", "B", seed=3))
    for adata in sets:
        adata.obs["gene"] = "A_B"
    found = judge(*sets, train=cells("A", "B", seed=3), separator="_", metrics=["de_jaccard", "energy_distance"])
    assert found["metric"].tolist() == ["energy_distance", "de_jaccard"]
    rows = expected[expected["metric"].isin(["energy_distance", "de_jaccard"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns="perturbation"), rows.drop(columns="perturbation"))


def test_other_predictions_get_columns_measured_as_the_first_one_is():
    real, predicted, train = cells("A", "A+B", seed=1), cells("A", "A+B", seed=2), cells("A", "B", seed=3)
    table = judge(real, predicted, train=train, others={"copy": predicted, "half": cells("A", seed=4, n_cells=30)})
    assert list(table.columns) == [*COLUMNS[:-1], "copy", "half", "better"]
    pd.testing.assert_series_equal(table["copy"], table["value"], check_names=False)
    pd.testing.assert_series_equal(table["half"].isna(), table["perturbation"] == "A+B", check_names=False)
    alone = judge(real, predicted, train=train)
    pd.testing.assert_frame_equal(table.drop(columns=["copy", "half"]), alone)


def test_control_cells_predict_nothing_and_the_mean_response_nothing_specific():
    sets = cells("A", "B", "C", seed=1), cells("A", "B", "C", seed=2)
    table = judge(*sets, train=cells("A", "B", "C", seed=3)).set_index(["metric", "perturbation"])
    assert (table.loc["mean_change_slope", "no_change"] == 0).all()
    assert (table.loc["perturbation_discrimination", "no_change"] == 0.5).all()
    assert table.loc["perturbation_discrimination", "mean_shift"].mean() == pytest.approx(0.5)
    assert (table.loc["specific_change_correlation", "mean_shift"] == 0).all()
    assert (table.loc["perturbation_discrimination", ["value", "additive"]] == 1).all(axis=None)
    assert (table.loc["perturbation_discrimination", "real"] > 0.9).all()
    np.testing.assert_allclose(table.loc["mean_change_slope", ["value", "real", "additive"]], 1, atol=0.05)
    specific = table.loc["specific_change_correlation"]
    assert (specific[["value", "additive"]] > 0.95).all(axis=None)


def test_discrimination_is_that_of_changes_without_the_perturbed_genes():
    def named(*perturbations, seed):
        adata = cells(*perturbations, seed=seed)
        adata.var_names = ["A", *(f"g{i}" for i in range(1, 40))]
        return adata

    names = ["A", "B", "C"]
    real, predicted, control = named(*names, seed=1), named("B", "B", "A", seed=2), named("ctrl", seed=9)
    predicted.obs["gene"] = real.obs["gene"].to_numpy()
    table = judge(real, predicted, control=control, metrics="perturbation_discrimination")
    log = [np.log1p(a.X / a.X.sum(axis=1, keepdims=True) * 1e4) for a in (real, predicted)]
    start = np.log1p(control.X / control.X.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)
    changes = [np.array([x[real.obs["gene"] == name].mean(axis=0) - start for name in names])[:, 1:] for x in log]
    expected = [
        rank_score(normalize(changes[0]), row, np.full(39, fill_value=True), own) for row, own in enumerate(changes[1])
    ]
    np.testing.assert_allclose(table.set_index("perturbation").loc[names, "value"], expected)
    assert expected[1] == 1
    assert expected[0] < 1


def test_the_additive_prediction_of_additive_effects_has_no_debiased_error():
    errors = []
    for seed in range(40):
        sets = cells("A+B", seed=100 + seed, n_cells=30), cells("A+B", seed=200 + seed, n_cells=30)
        train, control = cells("A", "B", seed=300 + seed, n_cells=30), cells("ctrl", seed=400 + seed, n_cells=30)
        wanted = ["mean_change_debiased_error", "mean_change_slope"]
        table = judge(*sets, train=train, control=control, metrics=wanted, n_repeats=1)
        errors.append(table.set_index("metric")[["value", "additive", "real", "no_change", "mean_shift"]].stack())
    errors = pd.concat(errors, axis=1)
    expected, spread = errors.mean(axis=1), errors.std(axis=1) / np.sqrt(errors.shape[1])
    of_error, of_slope = expected["mean_change_debiased_error"], expected["mean_change_slope"]
    for name in ("value", "additive", "real"):
        assert abs(of_error[name]) < 4 * spread["mean_change_debiased_error", name] < 0.02 * of_error["no_change"]
        assert abs(of_slope[name] - 1) < 4 * spread["mean_change_slope", name]
    assert of_error["mean_shift"] > 0.2 * of_error["no_change"]


def test_control_cells_have_no_differential_genes_and_the_variance_of_control():
    table = judge(cells("A+B", seed=1), cells("A+B", seed=2), train=cells("A", "B", seed=3))
    for metric in ("de_overlap_top_20", "de_jaccard", "de_direction"):
        assert row(table, metric)["no_change"] == 0
    variance = row(table, "variance_error")
    assert variance["no_change"] == variance["mean_shift"] == variance["additive"] > variance["real"]
    # five of forty genes change, so that a list of twenty is noise for the most part
    assert row(table, "de_overlap_top_20")["real"] < 0.8
    assert row(table, "de_direction")["additive"] == row(table, "de_direction")["real"] == 1


def test_groups_are_compared_with_their_own_control():
    far = list(BASE * np.linspace(0.5, 1.5, len(BASE)))
    control = ad.concat([cells("ctrl", seed=5, line="x"), cells("ctrl", seed=6, line="y", rates=far)])
    real, predicted = cells("A", seed=1, line="x"), cells("A", seed=2, line="x")
    train = ad.concat([cells("B", seed=3, line="x"), cells("C", seed=4, line="x")])
    grouped = judge(real, predicted, train=train, control=control, groupby="line")
    alone = judge(real, predicted, train=train, control=cells("ctrl", seed=5, line="x"))
    assert set(grouped["group"]) == {"x"}
    assert set(alone["group"]) == {"all"}
    pd.testing.assert_frame_equal(grouped.drop(columns="group"), alone.drop(columns="group"), check_exact=False)


#: How much more of genes 10 to 19 the cells of each donor have.
DONORS = {"d1": 1.0, "d2": 3.0}


def cells_of_donors(perturbation, seed, **n_cells):
    """Build cells of one perturbation, this many of each donor."""
    is_donors = np.isin(np.arange(len(BASE)), range(10, 20))
    parts = []
    for number, donor in enumerate(n_cells):
        rates = list(rate(perturbation) * np.where(is_donors, DONORS[donor], 1.0))
        parts.append(cells(perturbation, seed=seed + number, n_cells=n_cells[donor], rates=rates, donor=donor))
    return ad.concat(parts)


def test_changes_are_taken_within_donors_that_are_groups():
    real, predicted = cells_of_donors("A", 10, d1=80, d2=20), cells_of_donors("A", 20, d1=30, d2=60)
    control = cells_of_donors("ctrl", 30, d1=20, d2=80)
    train = ad.concat([cells_of_donors("A", 40, d1=20, d2=70), cells_of_donors("B", 50, d1=70, d2=10)])
    sets = {"train": train, "control": control, "others": {"copy": predicted}}
    apart, together = (judge(real, predicted, groupby=keys, **sets).groupby("metric") for keys in ("donor", None))
    apart, together = (of_metric[["value", "additive", "copy"]].mean() for of_metric in (apart, together))
    for metric in ("mean_change_error", "mean_change_debiased_error", "energy_distance"):
        assert (apart.loc[metric] < 0.5 * together.loc[metric]).all()
    assert apart.loc["mean_change_slope", "additive"] == pytest.approx(1, abs=0.1)
    pd.testing.assert_series_equal(apart["copy"], apart["value"], check_names=False)
    strange = cells("A", seed=60, donor="d3")  # a donor without control cells teaches nothing
    options = {"groupby": "donor", "metrics": ["mean_change_error", "mean_change_slope", "de_jaccard"]}
    more = judge(real, predicted, **sets | {"train": ad.concat([train, strange])}, **options)
    pd.testing.assert_frame_equal(more, judge(real, predicted, **sets, **options))


def test_training_cells_of_unknown_noise_vary_as_those_of_other_perturbations_do():
    def moments(n_cells, variance):
        return GeneMoments(np.zeros(1), np.array([variance]), n_cells)

    control = {"": moments(9, 1.0)}
    trained = {("A", ""): moments(4, 0.4), ("B", ""): moments(1, 0.0), ("C", ""): moments(2, 0.6)}
    found = Shift.of(trained, control, weight=1 / 3)
    assert found.noise == pytest.approx((0.1 + 0.5 + 0.3) / 9)
    alone = Shift.of({("B", ""): moments(1, 0.0)}, control)
    assert np.isnan(alone.noise)


def test_perturbations_without_cells_are_named():
    with pytest.raises(ValueError, match=r"`synthetic`.*'A\+C'.* 0"):
        judge(cells("A", "B", "C", "A+C", seed=1), cells("A", "B", "C", seed=2))
    with pytest.raises(ValueError, match="`real_test`.*'B'.* 1"):
        judge(cells("A", "B", seed=1)[:121], cells("A", "B", seed=2))
    with pytest.raises(ValueError, match="`control`.*'B'.*'y'"):
        judge(
            cells("B", seed=1, line="y"), cells("B", seed=2, line="y"), groupby="line", control=cells("ctrl", line="x")
        )


# --- baselines -------------------------------------------------------------------------------------------------------


def test_a_shift_has_the_noise_of_the_cells_that_it_comes_from():
    def one(noise):
        return GeneMoments(np.ones(3), np.full(3, 50.0), 50, np.full(3, noise))

    controls = {"x": one(1.0), "y": one(10.0)}
    trained = {("A", "x"): one(2.0), ("B", "x"): one(4.0)}
    for shift, group, noise, control_share in (
        # the mean is that of the training cells, and control cancels
        (Shift.of({("A", "x"): one(2.0)}, controls), "x", 2, 0),
        (Shift.of(trained, controls), "x", 2 + 4 + 1, -1),
        (Shift.of(trained, controls, weight=0.5), "y", (2 + 4) / 4 + 1 + 10, 1),
    ):
        moved = shift.move(group, controls)
        np.testing.assert_allclose(moved.noise, noise)
        assert moved.control_share == control_share


def test_real_cells_are_better_than_no_change_in_the_direction_of_every_metric():
    table = judge(*(cells("A", "B", "C", seed=s) for s in (1, 2)), train=cells("A", "B", "C", seed=3))
    means = table.groupby("metric")[["value", "no_change"]].mean()
    gain, better = means["value"] - means["no_change"], table.groupby("metric")["better"].first()
    assert (gain[better == "higher"] > 0).all()
    assert (gain[better == "lower"] < 0).all()
    assert set(better.index[better == "real"]) == {"mean_change_slope"}
