"""Plain forms: what goes in comes out, through a file that is read without executing code."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgen_diffusion.data import from_plain, to_plain


def through_a_file(value):
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
keys = st.booleans() | st.integers() | st.text(max_size=8) | st.tuples(st.integers(), st.text(max_size=3))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["__type__", "items"]), inner)
    ),
    max_leaves=12,
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(values)
def test_nested_python_values_come_back_with_their_types(value):
    assert same(through_a_file(value), value)


number_types = st.one_of(
    st.just(np.dtype(bool)),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)


@given(hnp.arrays(number_types, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_arrays_of_numbers_come_back_with_dtype_and_shape(array):
    back = through_a_file(array)

    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@given(hnp.arrays(object, hnp.array_shapes(max_dims=2, max_side=4), elements=st.text(max_size=6) | st.integers()))
def test_arrays_of_objects_come_back(array):
    back = through_a_file(array)

    assert back.dtype == object
    assert back.shape == array.shape
    assert same(back.ravel().tolist(), array.ravel().tolist())


def test_arrays_of_text_come_back_as_text():
    assert through_a_file(np.array(["B cell", "Ä"])).tolist() == ["B cell", "Ä"]


@pytest.mark.parametrize(
    "scalar", [np.float64(0.1), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("T cell")], ids=lambda s: type(s)
)
def test_numpy_scalars_come_back_as_python_ones(scalar):
    back = through_a_file({"x": [scalar]})["x"][0]

    assert type(back) is type(scalar.item())
    assert back == scalar


def test_views_of_arrays_are_saved_without_the_rest():
    view = np.arange(100_000)[::-2][:3]

    np.testing.assert_array_equal(through_a_file(view), view)
    assert to_plain(view)["items"].untyped_storage().nbytes() == view.nbytes


columns = st.sampled_from(
    [st.integers(-(2**60), 2**60), st.booleans(), st.floats(allow_nan=False), st.text(max_size=4)]
)


@given(st.data(), st.integers(0, 5), st.lists(st.text(max_size=4), max_size=4, unique=True), st.none() | st.text())
def test_tables_come_back(data, n_rows, names, index_name):
    frame = pd.DataFrame(
        {name: data.draw(st.lists(data.draw(columns), min_size=n_rows, max_size=n_rows)) for name in names},
        index=pd.Index([f"row {number}" for number in range(n_rows)], name=index_name),
    )

    pd.testing.assert_frame_equal(through_a_file(frame), frame, check_column_type=False)


def test_tables_indexed_by_numbers_come_back():
    frame = pd.DataFrame({"loss": [1.0, 0.5]}, index=pd.Index([0, 1], name="epoch"))

    pd.testing.assert_frame_equal(through_a_file(frame), frame)


def test_tensors_come_back():
    assert torch.equal(through_a_file({"w": torch.arange(3)})["w"], torch.arange(3))


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("here"), print, 1 + 2j, b"bytes"], ids=repr)
def test_other_values_are_refused_by_the_name_of_their_type(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        to_plain({"deep": [value]})


def test_arrays_of_other_values_are_refused():
    with pytest.raises(TypeError, match="cannot be saved"):
        to_plain(np.array([object()]))
