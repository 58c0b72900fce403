"""Keys of conditions: values to columns of numbers and back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from scgen_diffusion.data import (
    OPEN,
    ArrayKey,
    CategoricalKey,
    Conditions,
    ContinuousKey,
    SetKey,
    mark_occurring,
    recode,
    to_plain,
)
from scgen_diffusion.data import _conditions as conditions_module
from scgen_diffusion.data._conditions import LARGEST_DISTANCE, key_from_state

MEMBERS = ["A", "B", "C", "D"]
SPELLINGS = ["A", "B+A", "C", "ctrl"]


def make_set(**changes):
    options = {
        "name": "p",
        "members": MEMBERS,
        "separator": "+",
        "largest": 3,
        "control": "ctrl",
        "spellings": SPELLINGS,
    }
    return SetKey(**(options | changes))


KEYS = [CategoricalKey("c", ["x", "y"]), ContinuousKey("d", 2.0, 4.0, -1.0, 9.0), make_set()]


PLACES = np.random.default_rng(0).uniform([0, 0], [1000, 100], (300, 2))
ARRAYS = [
    ArrayKey.of("spatial", PLACES),
    ArrayKey.of("fate", pd.DataFrame({"left": PLACES[:, 0], "right": PLACES[:, 1]})),
]


@pytest.mark.parametrize("key", [*KEYS, *ARRAYS], ids=lambda key: key.name)
def test_a_key_survives_being_saved(key):
    state = key.state()
    to_plain(state)
    assert key_from_state(state) == key


# --- numbers ----------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=20, unique=True))
def test_numbers_come_back_as_they_were(values):
    key = ContinuousKey.of("d", pd.Series(values))
    np.testing.assert_allclose(key.decode(key.encode(values)), values, rtol=1e-6, atol=1e-6 * key.std)


def test_numbers_are_standardised_by_the_training_cells():
    values = np.array([0.0, 0.0, 3.0, 10.0])
    codes = ContinuousKey.of("d", pd.Series(values)).encode(values)
    assert codes.mean() == pytest.approx(0)
    assert codes.std() == pytest.approx(1)


def test_common_doses_come_back_exactly():
    values = [0.0, 0.1, 0.3, 1.0, 10.0, 1000.0]
    key = ContinuousKey.of("d", pd.Series(values))
    assert key.decode(key.encode(values)).tolist() == values


SINGLE = pd.Series(np.float32([0.1, 0.3, 1.0, 0.1]))


def test_classes_of_half_precision_can_be_set_up_too():
    column = SINGLE.astype("float16")
    assert CategoricalKey.of("c", column, 0.1, None).encode_cells(column, "obs").ravel().tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("column", [SINGLE, SINGLE.astype("category"), SINGLE.astype("Float32")], ids=str)
def test_classes_of_single_precision_are_the_numbers_that_they_look_like(column):
    key = CategoricalKey.of("c", column, 0.1, None)

    assert key.values == [0.1, 0.3, 1.0]
    for values in ([0.1, 0.3, 1.0, 0.1], column.tolist(), SINGLE.to_list()):
        assert key.encode(values).ravel().tolist() == [0, 1, 2, 0]
    assert key.encode_cells(column, "obs").ravel().tolist() == [0, 1, 2, 0]
    assert key.encode(SINGLE.to_numpy()).ravel().tolist() == [0, 1, 2, 0]
    assert key.extended(pd.concat([SINGLE, pd.Series([0.1, 2.0])])).values == [0.1, 0.3, 1.0, 2.0]  # made float64
    for value in (0.1001, 0.1 + 1e-10):
        with pytest.raises(ValueError, match=f"unknown value {value}"):
            key.encode([value])


@pytest.mark.parametrize("column", [SINGLE, SINGLE.astype("Float32")], ids=str)
def test_numbers_of_single_precision_are_those_that_they_look_like(column):
    key = ContinuousKey.of("d", column)

    assert key.low == 0.1
    for values in (column, column.to_numpy(), pd.Series([0.1, 0.3, 1.0, 0.1])):
        assert key.decode(key.encode(key.listed(values))).tolist() == [0.1, 0.3, 1.0, 0.1]
        assert key.encode_cells(pd.Series(values), "obs").tolist() == key.encode([0.1, 0.3, 1.0, 0.1]).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None, True, np.False_])
def test_infinite_and_missing_numbers_and_booleans_raise(value):
    with pytest.raises(ValueError, match="a finite number is needed"):
        KEYS[1].encode([1.0, value])


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "dtype"), [([True, False], "boolean"), ([1, 2], "Int64"), ([1, 2], "int32")])
def test_classes_are_pythons_own_as_they_are_after_loading(values, dtype):
    key = CategoricalKey.of("c", pd.Series(values, dtype=dtype), None, None)

    assert [type(value) for value in key.values] == [type(values[0])] * 2
    assert repr(key) == repr(key_from_state(to_plain(key.state())))
    assert key.encode(values).ravel().tolist() == [sorted(values).index(value) for value in values]


def test_classes_keep_their_order_until_others_are_added():
    grades = pd.Series(pd.Categorical(["mid", "low"], categories=["low", "mid", "high"], ordered=True))
    key = CategoricalKey.of("grade", grades, None, None)
    state = key.state()

    assert key.decode(np.array([[1.0], [0.0]])).equals(grades.array)
    assert key_from_state(to_plain(state)).ordered
    assert key.extended(pd.Series(["low"])).ordered
    assert not key.extended(pd.Series(["lowest"])).ordered
    del state["ordered"]  # as in models that were saved before
    assert not key_from_state(state).ordered


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_cells_without_a_label_have_a_code_of_their_own_that_is_no_class(dtype):
    column = pd.Series(["y", "?", None, "x"]).astype(dtype)
    key = CategoricalKey.of("c", column, None, None, "?")

    codes = key.encode_cells(column, "adata.obs")

    assert (key.values, codes[:, 0].tolist()) == (["x", "y"], [1, 2, 2, 0])
    assert pd.isna(key.decode(codes)).tolist() == [False, True, True, False]
    assert key_from_state(key.state()) == key
    assert Conditions.from_codes([key], codes).combinations[:, 0].tolist() == [0, 1]
    with_vectors = CategoricalKey.of("c", column, None, pd.DataFrame([[0.5], [1.5]], index=["x", "y"]), "?")
    assert np.array_equal(with_vectors.encode_cells(column, "adata.obs"), codes)


def test_new_cells_without_a_label_add_no_class():
    key = CategoricalKey("c", ["x"], unlabeled_category="?").extended(pd.Series(["?", "z", np.nan]))

    assert key.values == ["x", "z"]


def test_identities_of_models_do_not_depend_on_the_option():
    assert repr(CategoricalKey("c", ["x"], unlabeled_category="?")) == repr(CategoricalKey("c", ["x"]))


def test_a_control_class_without_cells_is_refused():
    column = pd.Series(pd.Categorical(["x", "y"], categories=["x", "y", "empty"]))

    with pytest.raises(ValueError, match="empty"):
        CategoricalKey.of("c", column, "empty", None)


@pytest.mark.parametrize("value", [["A", ["A", "B"]], [["A"], ["A", "B"]]])
def test_lists_of_lists_are_no_single_values(value):
    assert not make_set().is_single(value)
    assert not KEYS[0].is_single(value)


# --- sets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ("A", [0, 4, 4]),
        ("B+A", [0, 1, 4]),
        ("A + B", [0, 1, 4]),
        ("A+ctrl", [0, 4, 4]),
        ("A+A", [0, 4, 4]),
        ("ctrl", [4, 4, 4]),
        ({"D", "B"}, [1, 3, 4]),
        (frozenset(), [4, 4, 4]),
        ("D+C+B", [1, 2, 3]),
    ],
)
def test_sets_are_columns_of_members_in_order(value, columns):
    assert make_set().encode([value]).tolist() == [columns]


@given(st.sets(st.sampled_from(MEMBERS), min_size=1, max_size=3).flatmap(lambda s: st.permutations(sorted(s))))
def test_the_order_of_members_does_not_matter(parts):
    key = make_set()
    assert key.encode(["+".join(parts)]).tolist() == key.encode([set(parts)]).tolist()


def test_sets_come_back_as_they_are_written_in_training():
    key = make_set()
    assert list(key.decode(key.encode(["A+B", "D+C", "ctrl"]))) == ["B+A", "C+D", "ctrl"]


@pytest.mark.parametrize(
    ("value", "words"),
    [("A+E", "E"), ("A+", r"A\+"), ("", "p"), ("+", r"\+"), ("A+B+C+D", "members")],
)
def test_bad_sets_are_refused(value, words):
    with pytest.raises(ValueError, match=words):
        make_set().encode([value])


def test_without_a_control_there_is_no_empty_set():
    with pytest.raises(ValueError, match="members"):
        make_set(control=None, spellings=["A"]).encode([frozenset()])
    with pytest.raises(ValueError, match="p"):
        make_set(control=None, spellings=["A"]).encode([" "])


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_all_columns_of_an_array_share_one_scale():
    codes = ARRAYS[0].encode(PLACES)

    ratio = np.linalg.norm(codes[1:] - codes[0], axis=1) / np.linalg.norm(PLACES[1:] - PLACES[0], axis=1)
    np.testing.assert_allclose(ratio, ratio[0])
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-12)
    assert np.square(codes).mean() == pytest.approx(1)
    np.testing.assert_allclose(ARRAYS[0].decode(codes), PLACES, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [([1, 2], True), (np.array([1.0, 2]), True), ((1, 2), True), ([[1, 2]], False), (PLACES, False), ([], True)],
)
def test_a_row_is_one_value(value, is_one):
    assert ARRAYS[0].is_single(value) is is_one


def test_an_array_of_one_column_takes_a_list_of_numbers():
    key = ArrayKey.of("time", PLACES[:, :1])
    assert [key.is_single(value) for value in (5, [5], [5, 6], [[5], [6]])] == [True, True, False, False]
    np.testing.assert_allclose(key.decode(key.encode(key.listed([5, 6, 7]))), [[5], [6], [7]])


def test_few_cells_of_an_array_stand_for_many():
    rng = np.random.default_rng(0)
    types, places = rng.choice(2, 50_000, p=[0.9999, 0.0001]), rng.normal(size=(50_000, 2))
    key = ArrayKey.of("spatial", places)
    codes = np.concatenate([types[:, None], key.encode(places)], axis=1)

    conditions = Conditions.from_codes([CategoricalKey("c", ["x", "y"]), key], codes)

    assert 16_000 < len(conditions.combinations) < 17_000
    assert {tuple(row) for row in conditions.combinations} <= {tuple(row) for row in codes}
    of_y = conditions.combinations[:, 0] == 1
    assert (conditions.n_cells[of_y].sum(), conditions.n_cells.sum()) == (types.sum(), 50_000)


def test_open_keys_are_drawn_from_the_nearest_cells_in_proportion():
    places = np.repeat([[0.0, 0], [10, 0], [10, 1]], [40, 40, 2], axis=0)
    types = np.r_[np.tile([0, 0, 0, 1], 10), np.full(42, 1)]
    key = ArrayKey.of("spatial", places)
    conditions = Conditions.from_codes(
        [CategoricalKey("c", ["x", "y"]), key], np.concatenate([types[:, None], key.encode(places)], axis=1)
    )
    asked = conditions.encode({"spatial": [0.5, 0]}, 1000)

    drawn = conditions.fill(asked, (np.arange(1000) + 0.5) / 1000)[:, 0]
    assert drawn.mean() == 0.25  # only cells of the nearest place, and all of them
    both = conditions.fill(asked[:2], np.array([0.1, 0.9]))
    assert both[:, 0].tolist() == [conditions.fill(asked[[n]], np.array([u]))[0, 0] for n, u in enumerate([0.1, 0.9])]


# --- several keys at once ---------------------------------------------------------------------------------------------


@pytest.fixture
def conditions():
    """Return conditions of 100 cells: x with doses 0 and 8, y with dose 8 and the set A only."""
    codes = np.concatenate(
        [
            KEYS[0].encode(["x"] * 60 + ["y"] * 40),
            KEYS[1].encode([0.0] * 30 + [8.0] * 70),
            KEYS[2].encode(["B+A"] * 60 + ["A"] * 40),
        ],
        axis=1,
    )
    return Conditions.from_codes(KEYS, codes)


def test_columns_lie_side_by_side(conditions):
    codes = conditions.encode({"p": "B", "c": "y"}, 2)
    assert codes.tolist() == [[1, OPEN, 1, 4, 4]] * 2
    assert conditions.describe(codes[0]) == "c='y', p='B'"


def test_open_keys_are_drawn_given_the_others(conditions):
    codes = conditions.encode({"d": 7.5}, 1000)

    obs = conditions.to_obs(conditions.fill(codes, (np.arange(1000) + 0.5) / 1000), pd.RangeIndex(1000))

    assert set(obs["d"]) == {7.5}
    assert (obs["c"] == "y").mean() == pytest.approx(4 / 7, abs=2e-3)  # as of the nearest dose, 8
    assert set(obs.loc[obs["c"] == "y", "p"]) == {"A"}


def test_what_no_training_cell_has_is_named(conditions):
    codes = conditions.encode({"c": ["x", "y", "y"], "d": [0.0, 0.0, 8.0], "p": ["A+B", "A", "A"]}, None)
    assert [conditions.describe(row) for row in conditions.unseen(codes)] == ["c='y', d=0.0, p='A'"]


def test_numbers_outside_the_training_range_are_named(conditions):
    assert conditions.extrapolated(conditions.encode({"d": [-1.0, 9.0]}, None)) == []
    assert conditions.extrapolated(conditions.encode({"d": [9.5, 3.0]}, None)) == ["d=9.5 (no training cell is near)"]
    assert conditions.extrapolated(conditions.encode(None, 3)) == []


@pytest.mark.parametrize("numbers", [[0, 2, 4, 8], [0, 1, 3, 9], [0, 24, 48], [0, 10, 100, 1000], range(20, 90, 5)])
def test_numbers_between_those_of_a_series_are_not_far_from_them(numbers):
    conditions, between = conditions_of(numbers), np.linspace(min(numbers), max(numbers), 50)
    assert conditions.extrapolated(conditions.encode({"d": between}, None)) == []


def test_numbers_in_a_hole_of_the_training_numbers_are_named():
    minutes = [*range(210, 475, 5), *range(585, 785, 5)]  # as worm_embryo without 480 to 559
    conditions = conditions_of(minutes)
    assert conditions.extrapolated(conditions.encode({"d": [480, 500, 550, *minutes]}, None)) == []
    found = conditions.extrapolated(conditions.encode({"d": [300, 520, 525, 800]}, None))
    assert found == ["d=520.0 (no training cell is near, one of 3)"]


def conditions_of(numbers):
    key = ContinuousKey.of("d", pd.Series(numbers))
    return Conditions.from_codes([key], key.encode(numbers))


def test_members_without_training_cells_need_known_embeddings(conditions):
    with pytest.raises(ValueError, match="D"):
        conditions.encode({"p": "A+D"}, 1)
    known = Conditions([*KEYS[:2], make_set(has_vectors=True)], conditions.combinations, conditions.n_cells)
    assert known.encode({"p": "A+D"}, 1)[0, 2:].tolist() == [0, 3, 4]


def test_many_values_of_a_number_are_rounded_to_a_few():
    values = np.random.default_rng(0).normal(size=5000)
    key = ContinuousKey.of("d", pd.Series(values))
    conditions = Conditions.from_codes([key], key.encode(values))

    assert len(conditions.combinations) == 256
    assert conditions.n_cells.sum() == 5000
    drawn = key.decode(conditions.fill(np.full((5000, 1), OPEN), (np.arange(5000) + 0.5) / 5000))
    assert np.abs(np.sort(drawn) - np.sort(values))[50:-50].max() < 0.1


def test_a_number_is_near_those_of_cells_with_the_same_classes():
    rng = np.random.default_rng(0)
    classes, ages = rng.choice(["x", "y"], 400), rng.uniform(0, 80, 400)
    keys = [KEYS[0], ContinuousKey.of("d", pd.Series(ages)), CategoricalKey("sex", ["f", "m"])]
    sex = np.where(classes == "y", "f", rng.choice(["f", "m"], 400))
    codes = np.concatenate([key.encode(v) for key, v in zip(keys, (classes, ages, sex), strict=True)], axis=1)
    conditions = Conditions.from_codes(keys, codes)

    asked = conditions.encode({"c": "y", "d": np.linspace(5, 75, 200).tolist()}, None)

    assert not len(conditions.unseen(asked))
    assert set(conditions.to_obs(conditions.fill(asked, rng.random(200)), pd.RangeIndex(200))["sex"]) == {"f"}


def test_a_tuple_is_no_set(conditions):
    for pairs in ([("B", "A"), {"A"}], [["A"]], np.array([["B", "A"]])):
        with pytest.raises(TypeError, match="condition"):
            conditions.encode({"p": pairs}, 2)
    with pytest.raises(TypeError, match="condition"):
        conditions.encode({"p": ("A", "B")}, 4)


@pytest.mark.parametrize("value", [np.array(8.0), np.float32(8.0), 8])
def test_numbers_may_come_as_any_scalar(conditions, value):
    assert conditions.to_obs(conditions.encode({"d": value, "c": "x", "p": "A"}, 2), pd.RangeIndex(2))[
        "d"
    ].tolist() == [8, 8]


@pytest.mark.parametrize("scale", [1e-7, 1.0, 3e5])
def test_numbers_keep_fourteen_digits(scale):
    values = np.array([0.1, 1 / 3, 2.5e-9, 7.123456789012345, 1e3, 0.0]) * scale
    key = ContinuousKey.of("d", pd.Series(values))

    found = key.decode(key.encode(values))

    np.testing.assert_allclose(found, values, rtol=0, atol=1e-13 * values.max())


# --- further values keep the numbers of the old ones ------------------------------------------------------------------

DRUGS = SetKey("drug", ["A", "B"], "+", 2, "ctrl", ["ctrl", "A", "A+B"])
TYPES = CategoricalKey("type", ["x", "y"])
TIME = ContinuousKey.of("time", pd.Series([0.0, 2.0]))


def test_classes_are_added_in_order_after_the_old_ones_and_unused_ones_are_not():
    column = pd.Series(pd.Categorical(["c", "a", "y"], categories=["c", "b", "a", "y"]))

    assert TYPES.extended(column).values == ["x", "y", "c", "a"]
    assert CategoricalKey("dose", [1, 10]).extended(pd.Series([5, 10, 2])).values == [1, 10, 2, 5]


def test_numbers_keep_their_scale():
    extended = TIME.extended(pd.Series([1.0, 7.0]))

    assert (extended.mean, extended.std, extended.low, extended.high) == (1.0, 1.0, 0.0, 7.0)
    assert TIME.extended(pd.Series([0.5, 1.0])).high == 2.0


def test_arrays_keep_scale_and_reach_and_their_range_is_widened():
    key = ArrayKey.of("spatial", np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]]))

    extended = key.extended(np.array([[500.0, 2000.0], [500.0, 2000.0]]))

    assert (extended.mean, extended.std, extended.reach) == (key.mean, key.std, key.reach)
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
    before, after = [TYPES, DRUGS], [TYPES, DRUGS.extended(pd.Series(["C"]))]
    codes = np.array([[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [0, 0, 2]])

    written = recode(codes, before, after)

    assert written.tolist() == [[-1, -1, -1, -1], [1, -1, -1, -1], [-1, 1, -1, -1], [0, 0, 3, 3]]
    assert written.dtype == codes.dtype


def test_the_values_of_each_key_are_listed():
    codes = np.array([[1.0, 0.5, 0.0, 2.0], [1.0, 0.0, 2.0, 2.0]])

    assert [are.tolist() for are in mark_occurring([TYPES, TIME, DRUGS], codes)] == [[False, True], [], [True, False]]


def test_many_numbers_are_compared_with_those_of_training_at_once(monkeypatch):
    """A search for each of the pairs takes half a minute for 100,000 cells."""
    rng = np.random.default_rng(0)
    classes, numbers = rng.choice(["x", "y"], 250), rng.normal(size=(250, 2))
    keys = [KEYS[0], *(ContinuousKey.of(f"d{n}", pd.Series(column)) for n, column in enumerate(numbers.T))]
    codes = np.concatenate(
        [key.encode(values) for key, values in zip(keys, (classes, *numbers.T), strict=True)], axis=1
    )
    asked = np.concatenate([rng.permutation(codes[:, :1]), codes[:, 1:]], axis=1)
    conditions = Conditions.from_codes(keys, codes)
    monkeypatch.setattr(conditions_module, "_Matches", None)

    found = conditions.are_unseen(asked)

    distances = [np.abs(codes[codes[:, 0] == one[0], 1:] - one[1:]).max(1).min() for one in asked]
    assert found.tolist() == (np.array(distances) > LARGEST_DISTANCE).tolist()
    assert 10 < found.sum() < 200


def test_numbers_with_an_array_need_no_search_of_their_own(monkeypatch):
    rng = np.random.default_rng(0)
    numbers, places, fit = rng.normal(size=200), rng.normal(size=(200, 2)), NearestNeighbors.fit
    keys = [ContinuousKey.of("d", pd.Series(numbers)), ArrayKey.of("spatial", places)]
    codes = np.concatenate([keys[0].encode(numbers), keys[1].encode(places)], axis=1)
    conditions, fits = Conditions.from_codes(keys, codes), []
    monkeypatch.setattr(NearestNeighbors, "fit", lambda *args: fits.append(1) or fit(*args))

    assert not conditions.are_unseen(codes).any()
    assert len(fits) == 1  # of all places
