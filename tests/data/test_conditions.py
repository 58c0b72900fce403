"""Conditions: every form of request, and draws of what is left open."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.data import OPEN, CategoricalKey, Conditions, ContinuousKey, RequestedCodes, SetKey
from scgen_diffusion.data import _conditions as conditions_module

CATEGORIES = {"cell_type": ["B", "T", "NK", "empty"], "dose": [1, 10, 100], "treated": [False, True]}
COMBINATIONS = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 0], [1, 2, 1], [2, 2, 0]])
N_CELLS = np.array([50, 10, 20, 15, 5])


def categorical_keys(categories):
    return [CategoricalKey(name, values) for name, values in categories.items()]


@pytest.fixture
def conditions():
    return Conditions(categorical_keys(CATEGORIES), COMBINATIONS, N_CELLS)


ROWS = pd.DataFrame({"treated": [True, False], "cell_type": ["T", "B"]}, index=["x", "y"])


@pytest.mark.parametrize(
    ("request_", "n_cells", "expected"),
    [
        (None, 2, [[OPEN] * 3] * 2),
        ({"cell_type": "NK", "treated": True}, 3, [[2, OPEN, 1]] * 3),
        ({"dose": np.array(100)}, 2, [[OPEN, 2, OPEN]] * 2),  # an array without axes
        ({"dose": [100, 1, 10]}, None, [[OPEN, code, OPEN] for code in (2, 0, 1)]),
        *(
            ({"cell_type": ["B", "T"]}, len(shares), [[code, OPEN, OPEN] for code in shares])
            for shares in ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1])  # shared evenly among consecutive cells
        ),
        (ROWS, 2, [[1, OPEN, 1], [0, OPEN, 0]]),
        *(
            ({"cell_type": make(["T", "B"])}, None, [[1, OPEN, OPEN], [0, OPEN, OPEN]])
            for make in (list, tuple, np.array, pd.Series, pd.Categorical, pd.Index)
        ),
    ],
)
def test_requests_of_any_form_become_codes(conditions, request_, n_cells, expected):
    assert conditions.encode(request_, n_cells).tolist() == expected


TWICE = pd.DataFrame([["B", "T"]], columns=["cell_type", "cell_type"], index=["cell"])


@pytest.mark.parametrize(
    ("request_", "n_cells", "error", "words"),
    [
        ({"celltype": "B"}, 1, ValueError, "celltype.*cell_type"),
        ({"cell_type": ["B", "NKT"]}, 2, ValueError, "NKT.*NK"),
        *(({"cell_type": ["NK", missing]}, 2, ValueError, "cell_type") for missing in (None, np.nan, pd.NA)),
        ({"dose": [1, "1"]}, 2, ValueError, "dose"),
        ({"dose": [1, 2]}, 2, ValueError, "dose"),
        ({"cell_type": "empty"}, 1, ValueError, "empty"),  # no training cell has it
        ({"cell_type": ["B", "T", "B"]}, 2, ValueError, "cell_type"),
        ({"cell_type": []}, 2, ValueError, "cell_type"),
        (pd.DataFrame({"cell_type": []}), None, ValueError, "n_cells"),
        (AnnData(obs=TWICE), None, ValueError, "condition"),
        *((no_mapping, 2, TypeError, "condition") for no_mapping in ("B", ["B", "T"], 3)),
        (pd.DataFrame({"cell_type": ["T", "B", "T"]}), 2, ValueError, "cell_type"),
        (pd.DataFrame(index=range(3)), None, ValueError, "n_cells"),
        (None, None, ValueError, "n_cells"),
        ({"cell_type": "B"}, None, ValueError, "n_cells"),
        *((None, n_cells, ValueError, "n_cells") for n_cells in (0, -3, 2.0, True, "5")),
    ],
)
def test_wrong_requests_are_refused(conditions, request_, n_cells, error, words):
    with pytest.raises(error, match=words):
        conditions.encode(request_, n_cells)


def evenly(n):
    """Numbers that fill the unit interval, in place of random ones: shares are then exact to one cell."""
    return (np.arange(n) + 0.5) / n


@pytest.mark.parametrize(
    ("given", "combinations", "shares"),
    [
        ([OPEN, OPEN, OPEN], COMBINATIONS.tolist(), (10 * N_CELLS).tolist()),
        ([1, OPEN, OPEN], [[1, 0, 0], [1, 2, 1]], [400, 300]),  # T cells: 20 with (1, False), 15 with (100, True)
    ],
)
def test_open_keys_follow_their_distribution_given_the_others(conditions, given, combinations, shares):
    codes = np.array([given] * sum(shares))

    found, n_drawn = np.unique(conditions.fill(codes, evenly(len(codes))), axis=0, return_counts=True)

    assert (codes == given).all()  # the input stays as it is
    assert found.tolist() == combinations
    assert n_drawn.tolist() == shares


def test_what_is_given_is_kept_even_where_it_does_not_occur_together(conditions):
    filled = conditions.fill(np.array([[2, 0, OPEN]] * 50), evenly(50))  # NK cells were never given the dose 1

    assert (filled[:, :2] == [2, 0]).all()
    assert set(filled[:, 2]) == {0, 1}


def test_a_cell_draws_the_same_whatever_the_other_cells_ask_for(conditions):
    codes = np.array([[OPEN] * 3, [1, OPEN, OPEN], [OPEN, 2, OPEN], [0, 1, 1]] * 5)
    uniform = np.random.default_rng(0).random(len(codes))
    uniform[[0, 4]] = 0, np.nextafter(1, 0)  # the ends

    together = conditions.fill(codes, uniform)
    alone = [conditions.fill(codes[[cell]], uniform[[cell]])[0].tolist() for cell in range(len(codes))]

    assert together.tolist() == alone
    assert all(row in COMBINATIONS.tolist() for row in together[[0, 4]].tolist())


classes = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=5, unique=True),
    st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=5, unique=True),
    st.just([False, True]),
)


@given(data=st.data(), categories=st.lists(classes, min_size=1, max_size=3), n_cells=st.integers(1, 12))
def test_generated_obs_can_be_requested_again(data, categories, n_cells):
    codes = [data.draw(st.lists(st.integers(0, len(c) - 1), min_size=n_cells, max_size=n_cells)) for c in categories]
    codes = np.array(codes).T
    conditions = Conditions.from_codes(categorical_keys({f"key {i}": c for i, c in enumerate(categories)}), codes)

    obs = conditions.to_obs(codes, pd.RangeIndex(n_cells))

    assert (conditions.encode(obs, None) == codes).all()
    assert (conditions.encode({key: obs[key].tolist() for key in obs}, n_cells) == codes).all()


# --- what tells one request from another ------------------------------------------------------------------------------

TWO = np.array([[0.0], [1.0]])
GIVEN = {
    "nothing": [],
    "two values": [(slice(0, 1), TWO)],
    "the other way round": [(slice(0, 1), TWO[::-1])],
    "for another key": [(slice(1, 2), TWO)],
    "of one key of two columns": [(slice(0, 2), TWO.T)],
    "twice": [(slice(0, 1), np.tile(TWO, (2, 1)))],
    "each twice": [(slice(0, 1), np.repeat(TWO, 2, axis=0))],
    "for two keys": [(slice(0, 1), TWO), (slice(1, 2), TWO)],
    "one each": [(slice(0, 1), TWO[:1]), (slice(1, 2), TWO[1:])],
    "whole numbers": [(slice(0, 1), TWO.astype(int))],
}


@pytest.mark.parametrize("n_cells", [6, 7, 11, 600])
def test_runs_are_the_consecutive_cells_of_equal_codes(n_cells):
    given = [(slice(0, 1), np.arange(4)[:, None]), (slice(1, 3), np.arange(12).reshape(6, 2))]
    request = RequestedCodes(n_cells, 4, given)

    codes, sizes = request.runs()

    assert np.array_equal(np.repeat(codes, sizes, axis=0), request.all())
    assert (codes[1:] != codes[:-1]).any(1).all()


def test_requests_that_differ_have_digests_that_differ():
    """The number of cells and the order of the keys make no difference."""
    digests = [RequestedCodes(600, 3, given).digest for given in GIVEN.values()]

    assert all(one != other for one, other in itertools.combinations(digests, 2))
    assert digests == [RequestedCodes(500, 3, given[::-1]).digest for given in GIVEN.values()]


# --- what goes with a number ------------------------------------------------------------------------------------------


def drawn_given(numbers, labels, *requested, n=400):
    """Return the shares of the labels drawn for given numbers."""
    table = np.atleast_2d(np.asarray(numbers, dtype=float).T).T
    keys = [ContinuousKey.of(f"x{column}", pd.Series(values)) for column, values in enumerate(table.T)]
    codes = np.column_stack([*(key.encode(values) for key, values in zip(keys, table.T, strict=True)), labels])
    conditions = Conditions.from_codes([*keys, *categorical_keys({"label": [0, 1, 2]})], codes)
    request = conditions.encode({f"x{column}": value for column, value in enumerate(requested)}, n)
    filled = conditions.fill(request, (np.arange(n) + 0.5) / n)
    return np.bincount(filled[:, -1].astype(int), minlength=3) / n


TIMES = np.arange(200)
GRID_TIMES, GRID_DOSES = (grid.ravel() for grid in np.meshgrid(np.arange(100), [0.0, 10.0]))


@pytest.mark.parametrize(
    ("numbers", "labels", "asked", "shares", "atol"),
    [
        (TIMES, TIMES % 3 == 0, [100.2], [10 / 15, 5 / 15, 0], 0.01),  # 93 to 107: five multiples of three
        (np.repeat([0.0, 0.1, 5.0], [20, 300, 20]), np.repeat([0, 1, 2], [20, 300, 20]), [0.01], [1, 0, 0], 0),
        (np.repeat([0.0, 5.0, 10.0], [100, 3, 100]), np.repeat([0, 1, 2], [100, 3, 100]), [5], [0, 1, 0], 0),
        (np.column_stack([GRID_TIMES, GRID_DOSES]), GRID_DOSES > 0, [50, 10], [0, 1, 0], 0),
    ],
    ids=["the 15 nearest of a rare number", "a common number", "far from others", "two numbers"],
)
def test_labels_of_a_number_are_those_of_the_nearest_cells(numbers, labels, asked, shares, atol):
    np.testing.assert_allclose(drawn_given(numbers, labels, *asked), shares, atol=atol)


def test_a_sample_of_the_cells_stands_for_all(monkeypatch):
    monkeypatch.setattr(conditions_module, "MOST_CELLS", 64)
    keys = [*categorical_keys({"label": [0, 1]}), ContinuousKey.of("position", np.arange(1000.0)[:, None])]
    labels = np.repeat([0, 1], [999, 1])[:, None]
    conditions = Conditions.from_codes(keys, np.hstack([labels, np.arange(1000)[:, None] / 1000]))

    assert 64 <= len(conditions.combinations) <= 66
    assert set(conditions.combinations[:, 0]) == {0, 1}
    assert conditions.n_cells.sum() == pytest.approx(1000, rel=0.05)
    drawn = conditions.fill(np.full((5000, 2), OPEN), evenly(5000))[:, 1]
    assert np.abs(np.quantile(drawn, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.1


def test_many_new_combinations_take_little_memory():
    grid = np.array(list(itertools.product(range(100), range(100))), dtype=float)
    is_new = grid.sum(1) % 50 == 0
    conditions = Conditions.from_codes(categorical_keys({"line": range(100), "drug": range(100)}), grid[~is_new])
    asked = np.concatenate([grid[is_new], grid[~is_new][:10]])
    tracemalloc.start()

    found = conditions.are_unseen(asked)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == [True] * is_new.sum() + [False] * 10
    assert peak < 1e7  # each of the 200 would hold 160 kB


def test_open_keys_are_drawn_from_the_nearest_cells_in_proportion():
    places = np.repeat([[0.0, 0], [10, 0], [10, 1]], [40, 40, 2], axis=0)
    types = np.r_[np.tile([0, 0, 0, 1], 10), np.full(42, 1)]
    key = ContinuousKey.of("spatial", places)
    conditions = Conditions.from_codes([CLASSES, key], np.column_stack([types, key.encode(places)]))
    asked = conditions.encode({"spatial": [0.5, 0]}, 1000)

    drawn = conditions.fill(asked, evenly(1000))[:, 0]
    assert drawn.mean() == 0.25  # only cells of the nearest place, and all of them
    both = conditions.fill(asked[:2], np.array([0.1, 0.9]))
    assert both[:, 0].tolist() == [conditions.fill(asked[[n]], np.array([u]))[0, 0] for n, u in enumerate([0.1, 0.9])]


# --- keys of several kinds --------------------------------------------------------------------------------------------

CLASSES, NUMBER = CategoricalKey("c", ["x", "y"]), ContinuousKey("d", [2.0], 4.0, [-1.0], [9.0], 0.25)
SETS = SetKey("p", ["A", "B", "C", "D"], "+", 3, "ctrl", ["A", "B+A", "C", "ctrl"])


@pytest.fixture
def mixed():
    """Return conditions of 100 cells: x with doses 0 and 8, y with dose 8 and the set A only."""
    values = ["x"] * 60 + ["y"] * 40, [0.0] * 30 + [8.0] * 70, ["B+A"] * 60 + ["A"] * 40
    return joint([CLASSES, NUMBER, SETS], *values)


def joint(keys, *values):
    return Conditions.from_codes(keys, np.hstack([key.encode(own) for key, own in zip(keys, values, strict=True)]))


def test_columns_lie_side_by_side(mixed):
    codes = mixed.encode({"p": "B", "c": "y"}, 2)
    assert codes.tolist() == [[1, OPEN, 1, 4, 4]] * 2
    assert mixed.describe(codes[0]) == "c='y', p='B'"


def test_what_no_training_cell_has_is_named(mixed):
    codes = mixed.encode({"c": ["x", "y", "y"], "d": [0.0, 0.0, 8.0], "p": ["A+B", "A", "A"]}, None)
    assert [mixed.describe(row) for row in mixed.unseen(codes)] == ["c='y', d=0.0, p='A'"]


def test_numbers_far_from_those_of_training_cells_are_unseen(mixed):
    asked = mixed.encode({"d": [0.0, 0.9, 1.1, 7.5, 20.0]}, None)  # within a quarter of the standard deviation, 4
    assert mixed.are_unseen(asked).tolist() == [False, False, True, False, True]


def test_members_without_training_cells_need_known_embeddings(mixed):
    with pytest.raises(ValueError, match="D"):
        mixed.encode({"p": "A+D"}, 1)
    with_vectors = SetKey("p", ["A", "B", "C", "D"], "+", 3, "ctrl", ["A"], has_vectors=True)
    known = Conditions([CLASSES, NUMBER, with_vectors], mixed.combinations, mixed.n_cells)
    assert known.encode({"p": "A+D"}, 1)[0, 2:].tolist() == [0, 3, 4]


def test_a_number_is_near_those_of_cells_with_the_same_classes():
    rng = np.random.default_rng(0)
    classes, ages = rng.choice(["x", "y"], 400), rng.uniform(0, 80, 400)
    keys = [CLASSES, ContinuousKey.of("d", pd.Series(ages)), CategoricalKey("sex", ["f", "m"])]
    conditions = joint(keys, classes, ages, np.where(classes == "y", "f", rng.choice(["f", "m"], 400)))

    asked = conditions.encode({"c": "y", "d": np.linspace(5, 75, 200).tolist()}, None)

    assert not len(conditions.unseen(asked))
    assert set(conditions.to_obs(conditions.fill(asked, rng.random(200)), pd.RangeIndex(200))["sex"]) == {"f"}


def test_combinations_of_numbers_are_unseen_if_no_cell_of_the_class_is_near_in_all():
    rng = np.random.default_rng(0)
    classes, numbers = rng.choice(["x", "y"], 250), rng.normal(size=(250, 2))
    conditions = joint(
        [CLASSES, *(ContinuousKey.of(f"d{n}", pd.Series(numbers[:, n])) for n in (0, 1))], classes, *numbers.T
    )
    codes = np.repeat(conditions.combinations, conditions.n_cells, axis=0)
    asked = np.concatenate([rng.permutation(codes[:, :1]), codes[:, 1:]], axis=1)

    found = conditions.are_unseen(asked)

    reach = [key.reach for key in conditions.by_key[1:]]
    distances = [(np.abs(codes[codes[:, 0] == one[0], 1:] - one[1:]) / reach).max(1).min() for one in asked]
    assert found.tolist() == (np.array(distances) > 1).tolist()
    assert 5 < found.sum() < 200


@pytest.mark.parametrize("sets", [[("B", "A"), {"A"}], [["A"]], np.array([["B", "A"]])])
def test_a_tuple_or_list_is_no_set(mixed, sets):
    with pytest.raises(TypeError, match="condition"):
        mixed.encode({"p": sets}, 2)
