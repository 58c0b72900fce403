"""Keys of conditions: values to columns of numbers and back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import CategoricalKey, ContinuousKey, SetKey, have_labels, mark_occurring, recode, to_plain
from scgen_diffusion.data._condition_keys import key_from_state

MEMBERS = ["A", "B", "C", "D"]


def make_set(largest=3, control="ctrl", spellings=("A", "B+A", "C", "ctrl")):
    return SetKey("p", MEMBERS, "+", largest, control, list(spellings))


CLASSES, NUMBER, SETS = CategoricalKey("c", ["x", "y"]), ContinuousKey("d", [2.0], 4.0, [-1.0], [9.0], 0.25), make_set()
PLACES = np.random.default_rng(0).uniform([0, 0], [1000, 100], (300, 2))
ARRAY = ContinuousKey.of("spatial", PLACES)


@pytest.mark.parametrize("key", [CLASSES, NUMBER, SETS, ARRAY], ids=lambda key: key.name)
def test_a_key_survives_being_saved(key):
    assert key_from_state(to_plain(key.state())) == key


@pytest.mark.parametrize("scale", [1e-7, 1.0, 3e5])
def test_numbers_keep_fourteen_digits(scale):
    values = np.array([0.1, 1 / 3, 2.5e-9, 7.123456789012345, 1e3, 0.0]) * scale
    key = ContinuousKey.of("d", pd.Series(values))
    np.testing.assert_allclose(key.decode(key.encode(values)), values, rtol=0, atol=1e-13 * values.max())


def test_numbers_are_standardised_and_common_doses_come_back_exactly():
    values = [0.0, 0.1, 0.3, 1.0, 10.0, 1000.0]
    key = ContinuousKey.of("d", pd.Series(values))
    codes = key.encode(values)
    assert (codes.mean(), codes.std()) == pytest.approx((0, 1))
    assert key.decode(codes).tolist() == values


SINGLE = pd.Series(np.float32([0.1, 0.3, 1.0, 0.1]))


@pytest.mark.parametrize("column", [SINGLE, SINGLE.astype("category"), SINGLE.astype("Float32")], ids=str)
def test_classes_of_single_precision_are_the_numbers_that_they_look_like(column):
    key = CategoricalKey.of("c", column, 0.1, None)

    assert key.values == [0.1, 0.3, 1.0]
    for values in ([0.1, 0.3, 1.0, 0.1], column.tolist(), SINGLE.to_list(), SINGLE.to_numpy()):
        assert key.encode(values).ravel().tolist() == [0, 1, 2, 0]
    assert key.encode_cells(column, "obs").ravel().tolist() == [0, 1, 2, 0]
    assert key.extended(pd.concat([SINGLE, pd.Series([0.1, 2.0])])).values == [0.1, 0.3, 1.0, 2.0]  # made float64
    for value in (0.1001, 0.1 + 1e-10):
        with pytest.raises(ValueError, match=str(value)):
            key.encode([value])


@pytest.mark.parametrize("column", [SINGLE, SINGLE.astype("Float32")], ids=str)
def test_numbers_of_single_precision_are_those_that_they_look_like(column):
    key = ContinuousKey.of("d", column)

    assert key.low == [0.1]
    for values in (column, column.to_numpy(), pd.Series([0.1, 0.3, 1.0, 0.1])):
        assert key.decode(key.encode(key.listed(values))).tolist() == [0.1, 0.3, 1.0, 0.1]
        assert key.encode_cells(pd.Series(values), "obs").tolist() == key.encode([0.1, 0.3, 1.0, 0.1]).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None, 10**400])
def test_infinite_and_missing_numbers_raise(value):
    with pytest.raises(ValueError, match="'d'"):
        NUMBER.encode([1.0, value])


@pytest.mark.parametrize(("values", "dtype"), [([True, False], "boolean"), ([1, 2], "Int64"), ([1, 2], "int32")])
def test_classes_are_pythons_own_as_they_are_after_loading(values, dtype):
    key = CategoricalKey.of("c", pd.Series(values, dtype=dtype), None, None)

    assert [type(value) for value in key.values] == [type(values[0])] * 2
    assert repr(key) == repr(key_from_state(to_plain(key.state())))
    assert key.encode(values).ravel().tolist() == [sorted(values).index(value) for value in values]


def test_classes_keep_their_order_until_others_are_added():
    grades = pd.Series(pd.Categorical(["mid", "low"], categories=["low", "mid", "high"], ordered=True))
    key = CategoricalKey.of("grade", grades, None, None)

    assert key.decode(np.array([[1.0], [0.0]])).equals(grades.array)
    assert key_from_state(to_plain(key.state())).ordered
    assert key.extended(pd.Series(["low"])).ordered
    assert not key.extended(pd.Series(["lowest"])).ordered


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_cells_without_a_label_have_a_code_of_their_own_that_is_no_class(dtype):
    column = pd.Series(["y", "?", None, "x"]).astype(dtype)
    key = CategoricalKey.of("c", column, None, None, "?")

    codes = key.encode_cells(column, "adata.obs")

    assert (key.values, codes[:, 0].tolist()) == (["x", "y"], [1, 2, 2, 0])
    assert pd.isna(key.decode(codes)).tolist() == [False, True, True, False]
    assert have_labels([key], codes).tolist() == [True, False, False, True]
    with_vectors = CategoricalKey.of("c", column, None, pd.DataFrame([[0.5], [1.5]], index=["x", "y"]), "?")
    assert np.array_equal(with_vectors.encode_cells(column, "adata.obs"), codes)
    assert key.extended(pd.Series(["?", "z", np.nan])).values == ["x", "y", "z"]


def test_identities_of_models_do_not_depend_on_the_option():
    assert repr(CategoricalKey("c", ["x"], unlabeled_category="?")) == repr(CategoricalKey("c", ["x"]))


@pytest.mark.parametrize("key", [SETS, CLASSES], ids=lambda key: key.name)
@pytest.mark.parametrize("value", [["A", ["A", "B"]], [["A"], ["A", "B"]]])
def test_lists_of_lists_are_no_values(key, value):
    assert not key.is_single(value)
    with pytest.raises(TypeError, match=key.name):
        key.encode(value)


@pytest.mark.parametrize(
    ("values", "columns", "as_in_training"),
    [
        (["A", "A+ctrl", "A+A"], [0, 4, 4], "A"),
        (["B+A", "A + B", {"A", "B"}], [0, 1, 4], "B+A"),
        (["ctrl", frozenset()], [4, 4, 4], "ctrl"),
        (["D+C+B", {"D", "C", "B"}], [1, 2, 3], "B+C+D"),
    ],
)
def test_sets_are_columns_of_members_in_order(values, columns, as_in_training):
    codes = SETS.encode(values)
    assert codes.tolist() == [columns] * len(values)
    assert list(SETS.decode(codes)) == [as_in_training] * len(values)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *((SETS, *case) for case in [("A+E", "E"), ("A+", r"A\+"), ("", "p"), ("+", r"\+"), ("A+B+C+D", "members")]),
        (make_set(control=None, spellings=["A"]), frozenset(), "members"),  # no empty set without a control
        (make_set(control=None, spellings=["A"]), " ", "p"),
    ],
)
def test_bad_sets_are_refused(key, value, words):
    with pytest.raises(ValueError, match=words):
        key.encode([value])


def test_all_columns_of_an_array_share_one_scale():
    codes = ARRAY.encode(PLACES)

    ratio = np.linalg.norm(codes[1:] - codes[0], axis=1) / np.linalg.norm(PLACES[1:] - PLACES[0], axis=1)
    np.testing.assert_allclose(ratio, ratio[0])
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-12)
    assert np.square(codes).mean() == pytest.approx(1)
    np.testing.assert_allclose(ARRAY.decode(codes), PLACES, atol=1e-12)


def test_a_row_is_one_value_and_an_array_of_one_column_takes_a_list_of_numbers():
    assert all(ARRAY.is_single(value) for value in ([1, 2], np.array([1.0, 2]), (1, 2), []))
    assert not ARRAY.is_single([[1, 2]])
    assert not ARRAY.is_single(PLACES)
    key = ContinuousKey.of("time", PLACES[:, :1])
    assert [key.is_single(value) for value in (5, [5], [5, 6], [[5], [6]])] == [True, False, False, False]
    np.testing.assert_allclose(key.decode(key.encode(key.listed([5, 6, 7]))), [[5], [6], [7]])


DRUGS = SetKey("drug", ["A", "B"], "+", 2, "ctrl", ["ctrl", "A", "A+B"])
TIME = ContinuousKey.of("time", pd.Series([0.0, 2.0]))


def test_classes_are_added_in_order_after_the_old_ones_and_unused_ones_are_not():
    column = pd.Series(pd.Categorical(["c", "a", "y"], categories=["c", "b", "a", "y"]))

    assert CLASSES.extended(column).values == ["x", "y", "c", "a"]
    assert CategoricalKey("dose", [1, 10]).extended(pd.Series([5, 10, 2])).values == [1, 10, 2, 5]


def test_numbers_and_arrays_keep_their_scale_and_their_range_is_widened():
    extended = TIME.extended(pd.Series([1.0, 7.0]))
    assert (extended.mean, extended.std, extended.low, extended.high) == ([1.0], 1.0, [0.0], [7.0])
    assert TIME.extended(pd.Series([0.5, 1.0])).high == [2.0]

    key = ContinuousKey.of("spatial", np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]]))
    extended = key.extended(np.array([[500.0, 2000.0], [500.0, 2000.0]]))
    assert (extended.mean, extended.std) == (key.mean, key.std)
    assert (extended.low, extended.high) == ([0, 0], [1000, 2000])


def test_sets_mean_the_same_after_being_rewritten():
    extended = DRUGS.extended(pd.Series(["C + A", "B+A", "ctrl"]))
    texts = ["ctrl", "A", "B", "A+B"]

    written = recode(DRUGS.encode(texts), [DRUGS], [extended])

    np.testing.assert_array_equal(written, extended.encode(texts))
    assert list(extended.decode(written)) == texts
    assert extended.decode(extended.encode(["A+C"]))[0] == "C + A"
    assert make_set(largest=4).extended(pd.Series(["A"])).largest == 4  # there is room for the larger old sets


def test_placeholders_for_any_value_still_work():
    before, after = [CLASSES, DRUGS], [CLASSES, DRUGS.extended(pd.Series(["C"]))]
    codes = np.array([[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [0, 0, 2]])

    written = recode(codes, before, after)

    assert written.tolist() == [[-1, -1, -1, -1], [1, -1, -1, -1], [-1, 1, -1, -1], [0, 0, 3, 3]]
    assert written.dtype == codes.dtype


def test_the_values_of_each_key_are_listed():
    codes = np.array([[1.0, 0.5, 0.0, 2.0], [1.0, 0.0, 2.0, 2.0]])
    assert [are.tolist() for are in mark_occurring([CLASSES, TIME, DRUGS], codes)] == [[False, True], [], [True, False]]
