"""Plain forms: what goes in comes out, through a file that is read without executing code."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata.io import read_elem, write_elem
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgen_diffusion.data import savable_columns, to_array, to_plain, to_table


def through_a_file(value):
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


@given(values)
def test_nested_values_come_back_with_their_types(value):
    assert same(through_a_file(value), value)


number_types = st.one_of(
    st.just(np.dtype(bool)),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)


@given(hnp.arrays(number_types, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_arrays_of_numbers_come_back_with_dtype_and_shape(array):
    back = to_array(through_a_file(array))

    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    "value", [np.array(["B cell", "Ä"]), np.array(["B cell", None], dtype=object), np.arange(3, dtype=">f4")], ids=str
)
def test_arrays_of_text_and_of_another_byte_order_are_kept(value):
    assert to_array(through_a_file(value)).tolist() == value.tolist()


@pytest.mark.parametrize("scalar", [np.float64(0.1), np.int64(3), np.bool_(True), np.str_("T cell")], ids=type)
def test_numpy_scalars_come_back_as_python_ones(scalar):
    assert same(through_a_file([scalar]), [scalar.item()])


def test_views_of_arrays_are_saved_without_the_rest():
    view = np.arange(100_000)[::-2][:3]

    assert to_plain(view).untyped_storage().nbytes() == view.nbytes


WORDS = ["CD4", "", "CD8"]
COLUMNS = {
    **{kind: np.array([1, 0, 3], dtype=kind) for kind in ("int8", "int32", "int64", "uint16", "float32", "bool")},
    "text": np.array(WORDS, dtype=object),
    "categories": pd.Categorical(["b", None, "a"], categories=["b", "a", "c"], ordered=True),
    "numbers as categories": pd.Categorical([3, 1, 3]),
}


@pytest.mark.parametrize("rows", [slice(None), slice(0)], ids=["rows", "no rows"])
@pytest.mark.parametrize("index", [["a", "b", "c"], [1, 2, 3], [True, False, True]], ids=str)
def test_tables_come_back_with_the_types_of_their_columns(rows, index):
    table = pd.DataFrame(COLUMNS, index=pd.Index(index, name="gene"))[rows]

    back = to_table(through_a_file(table))

    pd.testing.assert_frame_equal(back, table, check_column_type=False)


OTHERS = {
    **{kind: pd.array([1, None, 0], dtype=kind) for kind in ("Int8", "Int64", "UInt32", "Float32", "boolean")},
    "text or None": np.array(["CD4", None, "CD8"], dtype=object),
    "text or NaN": np.array(["CD4", np.nan, "CD8"], dtype=object),
    "string": pd.array(["CD4", None, "CD8"], dtype="string"),
    "strings as categories": pd.Categorical(pd.array(WORDS, dtype="string")),
}


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_savable_columns_can_be_written_as_they_are(suffix, tmp_path):
    columns = {**COLUMNS, **OTHERS}
    table = pd.DataFrame({**columns, "_index": WORDS}, index=pd.Index(["a", "b", "c"], name="text"))

    kept = savable_columns(table)
    path = tmp_path / f"t.{suffix}"
    root = h5py.File(path, "w") if suffix == "h5ad" else zarr.open_group(path, mode="w")
    write_elem(root, "var", kept)
    back = read_elem(root["var"])

    assert list(kept) == list(back) == list(columns)
    assert kept.index.name is None
    for name in columns:
        assert back[name].astype(object).where(back[name].notna(), None).tolist() == (
            table[name].astype(object).where(table[name].notna(), None).tolist()
        )
    assert savable_columns(kept).equals(kept)
    assert table.index.name == "text"  # as given


def test_columns_that_cannot_be_saved_are_left_out():
    odd = {
        "when": pd.to_datetime(["2024-01-01"]),
        "where": pd.to_datetime(["2024-01-01"]).tz_localize("UTC"),
        "what": [[1, 2]],
        "mixed": np.array([1], dtype=object),
        "days": pd.Categorical(pd.to_datetime(["2024-01-01"])),
        7: [1.0],
        "mean/variance": [1.0],
    }
    assert list(savable_columns(pd.DataFrame({**odd, "length": [1]}))) == ["length"]


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, Path("here"), print, 1 + 2j, b"bytes", {1: 2}, np.array(["2024"], "M8[Y]")],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_refused_by_the_name_of_their_type(value):
    with pytest.raises(TypeError, match=f"{type(value).__name__} cannot be saved"):
        to_plain({"deep": [value]})
