"""What classifiers learn from synthetic cells."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from scgen_diffusion.metrics import CATALOGUE, augmentation_gain, trts_accuracy, tstr_f1
from scgen_diffusion.metrics._cells import Expression
from scgen_diffusion.metrics._comparison import CellComparison, Sample

LABELS = np.array(["a", "b", "c"])
CENTRES = np.array([[8.0, 0], [0, 8.0], [0, 0]])


def clear_cells(n_per_label=60, seed=0, n_features=2):
    """Build cells whose labels lie eight standard deviations apart."""
    codes = np.repeat(np.arange(3), n_per_label)
    noise = np.random.default_rng(seed).normal(size=(len(codes), n_features))
    noise[:, :2] += CENTRES[codes]
    return noise, LABELS[codes]


def test_labels_that_are_all_swapped_score_nothing():
    values, labels = clear_cells()
    assert tstr_f1(values, np.roll(labels, 60), *clear_cells(seed=1)) < 0.01


def test_a_missing_label_scores_nothing_and_drags_the_one_it_is_taken_for():
    values, labels = clear_cells()
    kept = labels != "c"
    # c is taken for a or b: with shares s and 1 - s, their F1 are 2 / (2 + s) and 2 / (3 - s), between 2 / 3 and 1
    found = tstr_f1(values[kept], labels[kept], *clear_cells(seed=1))
    assert 2 * 2 / 3 / 3 < found < 2 / 3
    assert np.isnan(tstr_f1(values, ["a"] * len(values), *clear_cells()))  # cells of one label teach nothing


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_values", np.full((180, 2), np.nan)),
        ("train_labels", [None] * 180),
        ("train_labels", [*["a"] * 179, float("nan")]),
    ],
)
def test_points_and_labels_that_do_not_fit_are_refused(name, value):
    values, labels = clear_cells()
    given = {"train_values": values, "train_labels": labels, "test_values": values, "test_labels": labels}
    with pytest.raises(ValueError, match=name):
        tstr_f1(**{**given, name: value})


def test_fidelity_is_the_share_of_requests_that_were_followed_label_by_label():
    real = clear_cells()
    values, labels = clear_cells(seed=1)
    kept = np.r_[0:60, 60:72, 120:180]  # the mean is over labels, so that their sizes do not matter
    asked = labels[kept].copy()
    asked[:15] = "b"  # cells of a requested as b: 15 of 27 requests for b fail
    assert trts_accuracy(*real, values[kept], asked) == pytest.approx((1 + 12 / 27 + 1) / 3, abs=0.01)


def test_labels_of_whole_numbers_may_be_floats():
    values, labels = clear_cells()
    codes = pd.factorize(labels)[0]
    others = codes.astype(float)  # as a missing value makes them
    assert trts_accuracy(values, codes, values, others) > 0.99
    assert tstr_f1(values, others, values, codes) > 0.99


def test_fidelity_leaves_out_labels_that_real_cells_do_not_have():
    real, (values, labels) = clear_cells(), clear_cells(seed=1)
    asked = labels.astype("<U9")
    asked[labels == "c"] = "unseen"
    assert trts_accuracy(*real, values, asked) == trts_accuracy(*real, values[:120], labels[:120]) > 0.99
    assert np.isnan(trts_accuracy(*real, values, np.full(180, "unseen")))


def starved_cells():
    """Build training cells with no cell of c, and synthetic ones of c."""
    values, labels = clear_cells()
    extra, extra_labels = clear_cells(seed=2)
    return values[labels != "c"], labels[labels != "c"], extra[extra_labels == "c"], extra_labels[extra_labels == "c"]


def test_synthetic_cells_of_a_missing_label_gain_all_of_its_f1():
    found = augmentation_gain(*starved_cells(), *clear_cells(seed=1))
    assert found.loc["c", "f1_real"] == 0
    assert found.loc["c", "gain"] > 0.98
    assert 0.9 < found.loc["c", "low"] <= found.loc["c", "gain"] <= found.loc["c", "high"]
    assert list(found.loc["c", ["n_train", "n_synthetic", "n_test"]]) == [0, 60, 60]


def test_scores_are_those_of_the_classifiers():
    train, extra, test = clear_cells(20, n_features=5), clear_cells(5, seed=1, n_features=5), clear_cells(50, seed=2)
    test = np.random.default_rng(0).normal(3, 3, (150, 5)), test[1]
    both = np.concatenate([train[0], extra[0]]), np.concatenate([train[1], extra[1]])
    found = augmentation_gain(*train, *extra, *test)
    for column, seen in (("f1_real", train), ("f1_augmented", both)):
        predicted = LogisticRegression(max_iter=2_000, C=0.1).fit(*seen).predict(test[0])
        expected = f1_score(test[1], predicted, average=None)
        np.testing.assert_allclose(found[column], [*expected, expected.mean()])
        assert tstr_f1(*seen, *test) == pytest.approx(expected.mean())


def test_mislabelled_cells_do_harm():
    values, labels = clear_cells(20)
    wrong = clear_cells(60, seed=1)
    found = augmentation_gain(values, labels, wrong[0], np.roll(wrong[1], 60), *clear_cells(seed=2))
    assert found.loc["macro", "gain"] < -0.5
    assert found.loc["macro", "high"] < 0


def test_the_control_repeats_training_cells_of_a_label_as_often_as_synthetic_ones_are_added():
    train, test = clear_cells(10, n_features=5), clear_cells(50, seed=1, n_features=5)
    test = np.random.default_rng(0).normal(3, 3, (150, 5)), test[1]
    is_a = train[1] == "a"
    twice = np.concatenate([train[0][is_a]] * 2), np.concatenate([train[1][is_a]] * 2)
    found = augmentation_gain(*train, *twice, *test)
    np.testing.assert_allclose(found["f1_repeated"], found["f1_augmented"], rtol=1e-12)
    assert (found["f1_repeated"] != found["f1_real"]).any()


def sample(values, labels):
    return Sample(Expression(sp.csr_matrix(values.shape), None), values.astype(np.float32), labels)


def test_the_table_teaches_by_synthetic_cells_and_checks_them_by_real_ones():
    (values, labels), (others, asked) = clear_cells(), clear_cells(seed=1)
    kept, asked = asked != "c", np.where(np.arange(180) < 15, "b", asked)  # 15 cells of a were asked for as b
    both = CellComparison(sample(values, labels), sample(others[kept], asked[kept]))
    assert CATALOGUE["tstr_f1"].measure(both) < 2 / 3  # c is never learned
    assert CATALOGUE["trts_accuracy"].measure(both) == pytest.approx((1 + 60 / 75) / 2, abs=0.01)
