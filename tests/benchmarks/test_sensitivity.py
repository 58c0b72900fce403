"""The sensitivity study's arithmetic: effects in standard deviations of chance, signed so that worse is positive."""

import numpy as np
import pandas as pd
import pytest

report = pytest.importorskip("sensitivity_report")
study = pytest.importorskip("sensitivity")


def rows(metric, values, *, floor, sd, seed=0):
    reach = 1.959964 * sd
    return pd.DataFrame(
        {
            "dataset": "d",
            "seed": seed,
            "corruption": list(values),
            "metric": metric,
            "value": list(values.values()),
            "floor": floor,
            "low": [value - reach for value in values.values()],
            "high": [value + reach for value in values.values()],
        }
    )


def test_an_effect_is_the_change_in_standard_deviations_and_worse_is_positive():
    table = report.effects(
        pd.concat(
            [
                rows("w2", {"unchanged": 7.0, "dropout 10 %": 7.5, "means only": 6.5}, floor=7.0, sd=0.1),
                rows("precision", {"unchanged": 0.9, "dropout 10 %": 0.7, "means only": 1.0}, floor=0.9, sd=0.02),
            ]
        )
    )
    assert table.loc["dropout 10 %", "w2"] == pytest.approx(5)
    assert table.loc["means only", "w2"] == pytest.approx(-5)
    assert table.loc["dropout 10 %", "precision"] == pytest.approx(10)
    assert table.loc["unchanged", "precision"] == 0


def test_a_metric_that_is_best_at_the_floor_is_worse_on_both_sides():
    values = {"unchanged": 1.0, "totals halved": 1.5, "totals doubled": 0.5}
    table = report.effects(rows("density", values, floor=1.0, sd=0.1))
    assert table.loc["totals halved", "density"] == pytest.approx(5)
    assert table.loc["totals doubled", "density"] == pytest.approx(5)


def test_copies_are_seen_strongly_though_real_cells_never_vary_in_them():
    table = report.effects(rows("copied_cells", {"unchanged": 0.0, "copies 1 %": 0.01}, floor=0.0, sd=0.0))
    assert report._symbol(table.loc["copies 1 %", "copied_cells"]) == report.SEES_STRONGLY


@pytest.mark.parametrize(
    ("effect", "symbol"), [(0.0, "·"), (2.9, "·"), (3.0, "sees"), (10.0, "**sees**"), (-4.0, "*fooled*"), (np.nan, "")]
)
def test_symbols(effect, symbol):
    assert report._symbol(effect) == symbol


def test_the_report_has_a_table_per_family_and_the_warnings():
    verdicts = pd.DataFrame(
        {
            "dataset": "d",
            "seed": 0,
            "corruption": ["unchanged", "copies 1 %"],
            "metric": "verdict",
            "says": [None, "copies"],
        }
    )
    values = rows("copied_cells", {"unchanged": 0.0, "copies 1 %": 0.01}, floor=0.0, sd=0.0)
    text = report.report(pd.concat([values, verdicts]))
    assert "| copies 1 % | **sees** |" in text
    assert "| copies 1 % | copies 1/1 |" in text
    assert "| unchanged | none |" in text
    assert not text.startswith("#")


def test_floors_and_widths_of_intervals_come_from_the_unchanged_cells():
    columns = ["metric", "group", "value", "floor", "shuffled", "low", "high", "better"]
    reference = pd.DataFrame([["w2", "all", 7.0, 6.9, 9.0, 6.8, 7.3, "lower"]], columns=columns)
    changed = pd.DataFrame([["w2", "all", 8.0, np.nan, np.nan, np.nan, np.nan, "lower"]], columns=columns)
    row = study.with_chance(changed, reference).iloc[0]
    assert (row["floor"], row["shuffled"]) == (6.9, 9.0)
    assert row["low"] == pytest.approx(7.7)
    assert row["high"] == pytest.approx(8.3)


def test_every_metric_of_the_catalogue_is_in_a_family():
    named = [metric for metrics in report.FAMILIES.values() for metric in metrics]
    assert sorted(named) == sorted(study.CATALOGUE)
