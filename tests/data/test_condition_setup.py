"""What users say of their columns: kinds, separators, controls and known embeddings, and the errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion.data import ConditionField, ConditionSetup, encode_conditions
from scgen_diffusion.data._condition_setup import complete_columns, keys_of_state

N = 12
TABLE = pd.DataFrame(np.eye(4, 3), index=["A", "B", "C", "NEW"])


@pytest.fixture
def adata():
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(["x", "y"] * 6, categories=["x", "y", "empty"]),
            "dose": np.tile([0.0, 1.0, 10.0], 4),
            "gene": ["A", "B", "A+B", "B+C", "ctrl", "A+ctrl"] * 2,
        },
        index=[f"c{i}" for i in range(N)],
    )
    return AnnData(np.ones((N, 2), np.float32), obs=obs)


def setup(adata, categorical=(), continuous=(), sets=(), controls=None, embeddings=None):
    given = {"condition_keys": categorical, "continuous_condition_keys": continuous, "set_condition_keys": sets}
    return ConditionSetup.of({**given, "control_values": controls, "condition_embeddings": embeddings})


def test_keys_come_in_the_order_categorical_continuous_sets(adata):
    keys = setup(adata, ["type"], ["dose"], ["gene"], {"gene": "ctrl"}).keys_of(adata)

    assert [(key.name, key.kind, key.n_columns) for key in keys] == [
        ("type", "categorical", 1),
        ("dose", "continuous", 1),
        ("gene", "set", 4),  # two members, and room for two more
    ]
    assert keys[0].values == ["x", "y", "empty"]
    assert keys[2].members == ["A", "B", "C"]


def test_without_a_control_value_its_name_is_a_member_whatever_the_separator(adata):
    for separator in "+&":
        (key,) = setup(adata, sets={"gene": separator}).keys_of(adata)
        assert key.members == ["A", "B", "C", "ctrl"]
        adata.obs["gene"] = adata.obs["gene"].str.replace("+", " & ")


def test_members_are_the_rows_of_a_table(adata):
    found = setup(adata, sets=["gene"], controls={"gene": "ctrl"}, embeddings={"gene": TABLE})
    (key,) = found.keys_of(adata)
    assert key.members == list(TABLE.index)
    assert key.has_vectors
    assert found.condition_embeddings["gene"].dtypes.unique() == np.dtype("float32")


@pytest.mark.parametrize("column", [[0.1, 0.3, 1.0] * 4, np.float32([0.1, 0.3, 1.0] * 4)], ids=["float64", "float32"])
def test_a_number_can_be_a_control_value(adata, column):
    adata.obs["dose"] = column
    found = setup(adata, ["type"], ["dose"], controls={"dose": 0.1, "type": "x"})
    assert [key.name for key in found.keys_of(adata)] == ["type", "dose"]
    assert found.control_values == {"dose": 0.1, "type": "x"}


def test_a_control_of_sets_may_be_empty_or_have_spaces_around(adata):
    adata.obs["guide"] = ["", "A", "A+B"] * 4
    (key,) = setup(adata, sets={"guide": "+"}, controls={"guide": ""}).keys_of(adata)
    assert list(key.decode(key.encode(["", "B+A", frozenset(), " "]))) == ["", "A+B", "", ""]

    adata.obs["gene"] = np.resize(["A", "B", "no drug "], N)
    (key,) = setup(adata, sets=["gene"], controls={"gene": "no drug "}).keys_of(adata)
    assert key.members == ["A", "B"]
    asked = ["no drug", "A + no drug ", frozenset(), frozenset({"no drug ", "B"})]
    assert list(key.decode(key.encode(asked))) == ["no drug ", "A", "no drug ", "B"]


def test_the_field_writes_what_its_keys_encode_and_knows_them_again(adata):
    field = ConditionField(setup(adata, ["type"], ["dose"], ["gene"], {"gene": "ctrl"}))
    state = field.register_field(adata)
    keys = keys_of_state(state)

    np.testing.assert_array_equal(adata.obsm[field.attr_key], encode_conditions(adata, keys))
    other = adata[:3].copy()
    del other.obsm[field.attr_key]
    field.transfer_field(state, other)
    np.testing.assert_array_equal(other.obsm[field.attr_key], adata.obsm[field.attr_key][:3])
    other.obs["gene"] = "A+Z"
    with pytest.raises(ValueError, match="Z"):
        field.transfer_field(state, other)
    assert ConditionField(setup(adata)).is_empty


def test_an_array_that_other_cells_lack_is_named(adata):
    adata.obsm["spatial"] = np.arange(2.0 * N).reshape(N, 2)
    field = ConditionField(setup(adata, continuous=["spatial"]))
    state, other = field.register_field(adata), adata.copy()
    other.obs["spatial"] = 1.0
    del other.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        field.transfer_field(state, other)


def refuse(error, words, adata, **arguments):
    with pytest.raises(error, match=words):
        setup(adata, **arguments).keys_of(adata)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"categorical": "dose"}, TypeError, "condition_keys"),
        ({"continuous": {"dose", "age"}}, TypeError, "continuous_condition_keys"),
        *(({"sets": names}, TypeError, "set_condition_keys") for names in ("gene", [1])),
        ({"continuous": "dose"}, TypeError, "continuous_condition_keys"),
        ({"controls": "ctrl"}, TypeError, "control_values"),
        ({"embeddings": TABLE}, TypeError, "condition_embeddings"),
        ({"categorical": ["gene"], "sets": ["gene"]}, ValueError, "gene"),
        ({"continuous": ["doze"]}, KeyError, "doze"),
        ({"sets": {"gene": " "}}, ValueError, "gene"),
        ({"sets": {"gene": 3}}, ValueError, "gene"),
        ({"continuous": ["gene"]}, ValueError, "condition_keys"),
        ({"sets": ["gene"], "controls": {"gene": "none"}}, ValueError, "none"),
        ({"sets": {"gene": "r"}, "controls": {"gene": "ctrl"}}, ValueError, "r"),
        ({"categorical": ["type"], "controls": {"type": "z"}}, ValueError, "z"),
        ({"categorical": ["type"], "controls": {"type": "empty"}}, ValueError, "empty"),  # no cell has it
        ({"categorical": ["type"], "controls": {"gene": "ctrl"}}, ValueError, "gene"),
        *(
            ({"continuous": ["dose"], "controls": {"dose": control}}, ValueError, "dose")
            for control in (0.5, -3, np.nan, np.inf, 10**400, "none")
        ),
    ],
)
def test_keys_and_controls_that_do_not_fit_are_refused(adata, arguments, error, words):
    refuse(error, words, adata, **arguments)


@pytest.mark.parametrize(
    ("kind", "name", "table", "error", "words"),
    [
        ("continuous", "dose", TABLE, ValueError, "dose"),
        ("sets", "gene", "vectors", TypeError, "gene"),
        ("sets", "gene", TABLE, ValueError, "ctrl"),
        ("categorical", "type", TABLE, ValueError, "x"),
        ("categorical", "type", pd.DataFrame({"a": [1e300, 0.0]}, index=["x", "y"]), ValueError, "type"),
        ("sets", "gene", pd.concat([TABLE, TABLE]), ValueError, "gene"),
        ("sets", "gene", TABLE.assign(text="a"), ValueError, "finite"),
        ("sets", "gene", TABLE * np.nan, ValueError, "finite"),
        ("sets", "gene", TABLE[[]], ValueError, "column"),
        ("sets", "gene", TABLE.set_axis(["1", 1, "x"], axis=1), ValueError, "gene"),
        ("sets", "gene", TABLE.rename(index={"NEW": "X+Y"}), ValueError, r"X\+Y"),
    ],
)
def test_tables_that_do_not_fit_are_refused(adata, kind, name, table, error, words):
    refuse(error, words, adata, **{kind: [name], "embeddings": {name: table}})


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("categorical", "type", pd.cut(np.arange(N), 3)),  # intervals could not be saved
        ("categorical", "type", pd.date_range("2020-01-01", periods=N)),
        *(("categorical", "type", values * 6) for values in (["a", 1], [True, 1.5], [1j, 2j])),
        ("continuous", "dose", [np.nan, *[1.0] * (N - 1)]),
        ("continuous", "dose", [np.inf, *[1.0] * (N - 1)]),
        ("continuous", "dose", [2.0] * N),
        ("continuous", "dose", [True, False] * 6),
        *(("continuous", "dose", numbers * 4) for numbers in ([0, 1, 1e300], [1e-300, 2e-300, 3e-300])),
        *(("sets", "gene", values) for values in (["A+"] * N, ["ctrl"] * N, [None, *["A"] * (N - 1)])),
        *(("sets", "gene", [value, *["A"] * (N - 1)]) for value in (("A", "B"), frozenset({"A"}), 3)),
    ],
)
def test_bad_columns_are_refused(adata, kind, name, values):
    adata.obs[name] = pd.Series(values, index=adata.obs_names)
    refuse(ValueError, name, adata, **{kind: [name]}, controls={"gene": "ctrl"} if kind == "sets" else None)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((N, 2)),
        np.arange(N * 51.0).reshape(N, 51),
        np.ones((N, 0)),
        np.ones((N, 2, 2)),
        np.where(np.arange(N)[:, None] == 3, np.nan, np.ones((N, 2))),
        np.where(np.arange(N)[:, None] > 3, np.inf, np.ones((N, 2))),
        np.array([[-1e308, 1e308, 0] * 4, [0.0, 1, 2] * 4]).T,
        sp.csr_matrix(np.eye(N, 2)),
        np.array([["a", "b"]] * N),
        pd.DataFrame(np.eye(N, 2)),
    ],
    ids=["constant", "wide", "empty", "deep", "NaN", "infinite", "huge", "sparse", "text", "table"],
)
def test_bad_arrays_are_refused(adata, array):
    adata.obsm["spatial"] = array.set_axis(adata.obs_names) if isinstance(array, pd.DataFrame) else array
    refuse(ValueError, "spatial", adata, continuous=["spatial"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"continuous": ["dose"]}, ValueError, "dose"),  # a column has the name, too
        ({"categorical": ["spatial"]}, KeyError, "spatial"),
        ({"continuous": ["spatail"]}, KeyError, "spatial"),
        ({"continuous": ["a/b"]}, ValueError, "a/b"),
        ({"continuous": ["spatial"], "controls": {"spatial": [0, 0]}}, ValueError, "control value"),
    ],
)
def test_names_of_arrays_are_checked(adata, arguments, error, words):
    adata.obsm["spatial"] = adata.obsm["dose"] = adata.obsm["a/b"] = np.arange(2.0 * N).reshape(N, 2)
    refuse(error, words, adata, **arguments)


@pytest.mark.parametrize("kind", ["categorical", "continuous", "sets"])
@pytest.mark.parametrize("name", ["synthetic", "_index"])
def test_names_of_columns_that_files_of_synthetic_cells_need_are_taken(adata, kind, name):
    adata.obs[name] = adata.obs["dose" if kind == "continuous" else "gene"]
    refuse(ValueError, name, adata, **{kind: [name]})


@pytest.mark.parametrize(
    ("names", "values", "error", "words"),
    [
        (["celltype"], None, KeyError, "celltype"),
        (["dose", "type"], ["B", *[None] * (N - 1)], ValueError, "type"),
        (["dose", "type"], pd.Categorical(["B", *[None] * (N - 1)]), ValueError, "type"),
        (["dose", "type"], [1.0, *[np.nan] * (N - 1)], ValueError, "type"),
        (["dose", "cell/type"], None, ValueError, "cell/type"),
    ],
)
def test_every_cell_has_a_label(adata, names, values, error, words):
    assert list(complete_columns(adata, ["type", "dose"])) == ["type", "dose"]
    adata.obs["cell/type"] = adata.obs["type"]
    if values is not None:
        adata.obs["type"] = values
    with pytest.raises(error, match=words):
        complete_columns(adata, names)


def test_cells_without_a_number_are_not_said_to_lack_a_label(adata):
    keys = setup(adata, ["type"], ["dose"]).keys_of(adata)
    adata.obs.loc["c1", "dose"] = np.nan
    with pytest.raises(ValueError, match="dose"):
        encode_conditions(adata, keys)
