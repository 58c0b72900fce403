"""Keys that learn new values keep the numbers of the old ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import CategoricalKey, ContinuousKey, SetKey, extend_key, occurring, recode

DRUGS = SetKey("drug", ["A", "B"], "+", 2, "ctrl", ["ctrl", "A", "A+B"])
TYPES = CategoricalKey("type", ["x", "y"])
TIME = ContinuousKey.of("time", np.array([0.0, 2.0]))


def test_classes_are_added_in_order_after_the_old_ones_and_unused_ones_are_not():
    column = pd.Series(pd.Categorical(["c", "a", "y"], categories=["c", "b", "a", "y"]))

    assert extend_key(TYPES, column).values == ["x", "y", "c", "a"]
    assert extend_key(CategoricalKey("dose", [1, 10]), pd.Series([5, 10, 2])).values == [1, 10, 2, 5]


def test_numbers_keep_their_scale():
    extended = extend_key(TIME, pd.Series([1.0, 7.0]))

    assert (extended.mean, extended.std, extended.low, extended.high) == (1.0, 1.0, 0.0, 7.0)


def test_sets_mean_the_same_after_being_written_anew():
    extended = extend_key(DRUGS, pd.Series(["C + A", "B+A", "ctrl"]))
    texts = ["ctrl", "A", "B", "A+B"]

    written = recode(DRUGS.encode(texts), [DRUGS], [extended])

    np.testing.assert_array_equal(written, extended.encode(texts))
    assert list(extended.decode(written)) == texts
    assert extended.decode(extended.encode(["A+C"]))[0] == "C + A"


def test_what_stands_for_any_value_does_still():
    before, after = [TYPES, DRUGS], [TYPES, extend_key(DRUGS, pd.Series(["C"]))]
    codes = np.array([[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [0, 0, 2]])

    written = recode(codes, before, after)

    assert written.tolist() == [[-1, -1, -1, -1], [1, -1, -1, -1], [-1, 1, -1, -1], [0, 0, 3, 3]]
    assert written.dtype == codes.dtype


def test_what_occurs_is_told_for_each_key():
    codes = np.array([[1.0, 0.5, 0.0, 2.0], [1.0, 0.0, 2.0, 2.0]])

    assert [are.tolist() for are in occurring([TYPES, TIME, DRUGS], codes)] == [[False, True], [], [True, False]]


def test_no_keys_are_no_trouble():
    codes = np.zeros((3, 0))

    assert recode(codes, [], []).shape == (3, 0)
    assert occurring([], codes) == []


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="'late' for 'time'; a finite number is needed"):
        extend_key(TIME, pd.Series([1.0, "late"]))
