"""What users say of their columns: kinds, separators, controls and known embeddings, and the errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion.data import ConditionField, ConditionSetup, check_conditions, encode_conditions, keys_to_check
from scgen_diffusion.data._condition_setup import keys_of_state

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
    return AnnData(np.ones((N, 2), np.float32), obs=obs, uns={"vectors": TABLE, "number": 3})


def setup(adata, categorical=(), continuous=(), sets=(), controls=None, embeddings=None):
    return ConditionSetup.of(categorical, continuous, sets, controls, embeddings).checked(adata)


def test_keys_come_in_the_order_categorical_continuous_sets(adata):
    keys = setup(adata, ["type"], ["dose"], ["gene"], {"gene": "ctrl"}).keys_of(adata)

    assert [(key.name, key.kind, key.n_columns) for key in keys] == [
        ("type", "categorical", 1),
        ("dose", "continuous", 1),
        ("gene", "set", 4),  # two members, and room for two more
    ]
    assert keys[0].values == ["x", "y", "empty"]
    assert keys[2].members == ["A", "B", "C"]


def test_without_a_control_value_its_name_is_a_member(adata):
    (key,) = setup(adata, sets={"gene": "+"}).keys_of(adata)
    assert key.members == ["A", "B", "C", "ctrl"]


def test_another_separator(adata):
    adata.obs["gene"] = adata.obs["gene"].str.replace("+", " & ")
    (key,) = setup(adata, sets={"gene": "&"}).keys_of(adata)
    assert key.members == ["A", "B", "C", "ctrl"]


@pytest.mark.parametrize("table", ["vectors", TABLE])
def test_members_are_the_rows_of_a_table(adata, table):
    found = setup(adata, sets=["gene"], controls={"gene": "ctrl"}, embeddings={"gene": table})
    (key,) = found.keys_of(adata)
    assert key.members == list(TABLE.index)
    assert key.has_vectors
    assert found.condition_embeddings["gene"].dtypes.unique() == np.dtype("float32")


def test_classes_are_the_rows_of_a_table(adata):
    table = TABLE.rename(index={"A": "x", "B": "y"})
    (key,) = setup(adata, ["type"], embeddings={"type": table}).keys_of(adata)
    assert key.values == ["x", "y", "C", "NEW"]


@pytest.mark.parametrize(("classes", "rows"), [([0, 1], [0, 1, 7]), ([0.5, 2], [0.5, 2, 7])])
def test_rows_with_names_of_text_describe_classes_that_are_numbers(adata, classes, rows):
    adata.obs["type"] = np.resize(classes, adata.n_obs)
    table = TABLE.iloc[:3].set_axis(map(str, rows))
    found = setup(adata, ["type"], embeddings={"type": table})
    (key,) = found.keys_of(adata)
    assert key.values == rows
    assert list(found.condition_embeddings["type"].index) == rows


def make(**changes):
    return lambda adata: setup(adata, **changes).keys_of(adata)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (make(sets="gene"), TypeError, "set_condition_keys"),
        (make(continuous="dose"), TypeError, "continuous_condition_keys"),
        (make(categorical=["gene"], sets=["gene"]), ValueError, "gene"),
        (make(continuous=["doze"]), KeyError, "doze"),
        (make(sets={"gene": " "}), ValueError, "gene"),
        (make(sets={"gene": 3}), ValueError, "gene"),
        (make(continuous=["gene"]), ValueError, "condition_keys"),
        (make(sets=["gene"], controls={"gene": "none"}), ValueError, "none"),
        (make(categorical=["type"], controls={"type": "z"}), ValueError, "z"),
        (make(categorical=["type"], controls={"gene": "ctrl"}), ValueError, "gene"),
        (make(continuous=["dose"], embeddings={"dose": TABLE}), ValueError, "dose"),
        (make(sets=["gene"], embeddings={"gene": "vektors"}), KeyError, "vectors"),
        (make(sets=["gene"], embeddings={"gene": "number"}), TypeError, "gene"),
        (make(sets=["gene"], embeddings={"gene": TABLE}), ValueError, "ctrl"),
        (make(categorical=["type"], embeddings={"type": TABLE}), ValueError, "x"),
        (make(sets=["gene"], embeddings={"gene": pd.concat([TABLE, TABLE])}), ValueError, "A"),
        (make(sets=["gene"], embeddings={"gene": TABLE.assign(text="a")}), ValueError, "only finite numbers"),
        (make(sets=["gene"], embeddings={"gene": TABLE * np.nan}), ValueError, "only finite numbers"),
        (make(sets=["gene"], embeddings={"gene": TABLE[[]]}), ValueError, "at least one column"),
        (make(sets=["gene"], embeddings={"gene": TABLE.rename(index={"NEW": "X+Y"})}), ValueError, r"X\+Y"),
    ],
)
def test_what_does_not_fit_is_refused(adata, build, error, words):
    with pytest.raises(error, match=words):
        build(adata)


@pytest.mark.parametrize("column", [[0.1, 0.3, 1.0] * 4, np.float32([0.1, 0.3, 1.0] * 4)], ids=["float64", "float32"])
def test_a_number_can_be_a_control_value(adata, column):
    adata.obs["dose"] = column
    found = setup(adata, ["type"], ["dose"], controls={"dose": 0.1, "type": "x"})
    assert [key.name for key in found.keys_of(adata)] == ["type", "dose"]
    assert found.arguments["control_values"] == {"dose": 0.1, "type": "x"}


@pytest.mark.parametrize("numbers", [[0, 1, 1e300], [1e-300, 2e-300, 3e-300], [-1e308, 1e308, 0]])
def test_numbers_whose_spread_has_no_type_are_refused(adata, numbers):
    adata.obs["dose"] = numbers * 4
    adata.obsm["place"] = np.array([numbers * 4, [0.0, 1, 2] * 4]).T

    for name in ("dose", "place"):
        with pytest.raises(ValueError, match=name):
            make(continuous=[name])(adata)


def test_vectors_beyond_single_precision_are_refused(adata):
    with pytest.raises(ValueError, match="'type'"):
        setup(adata, ["type"], embeddings={"type": pd.DataFrame({"a": [1e300, 0.0]}, index=["x", "y"])})


def test_an_empty_text_can_be_the_control_of_sets(adata):
    adata.obs["guide"] = ["", "A", "A+B"] * 4
    (key,) = setup(adata, sets={"guide": "+"}, controls={"guide": ""}).keys_of(adata)

    codes = key.encode(["", "B+A", frozenset(), " "])
    assert list(key.decode(codes)) == ["", "A+B", "", ""]


def test_cells_without_a_number_are_not_said_to_lack_a_label(adata):
    keys = setup(adata, ["type"], ["dose"]).keys_of(adata)
    adata.obs.loc["c1", "dose"] = np.nan
    with pytest.raises(ValueError, match="dose"):
        check_conditions(adata, *keys_to_check(keys))


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (0.5, "dose"),
        (-3, "No cell has the control value -3 .* the nearest number is 0.0"),
        (np.nan, "dose"),
        (np.inf, "dose"),
        (10**400, "dose"),
        ("0", "dose"),
        (False, "dose"),
    ],
)
def test_a_control_value_of_numbers_must_be_that_of_some_cells(adata, control, words):
    with pytest.raises(ValueError, match=words):
        make(continuous=["dose"], controls={"dose": control})(adata)


def test_an_array_has_no_control_value(adata):
    adata.obsm["spatial"] = np.arange(2.0 * N).reshape(N, 2)
    with pytest.raises(ValueError, match="spatial"):
        make(continuous=["dose", "spatial"], controls={"spatial": [0, 0]})(adata)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("dose", [np.nan, *[1.0] * (N - 1)], "no number for 1 of 12"),
        ("dose", [np.inf, *[1.0] * (N - 1)], "infinite"),
        ("dose", [2.0] * N, "dose"),
        ("dose", [True, False] * 6, "dose"),
    ],
)
def test_bad_numbers_are_refused(adata, name, values, words):
    adata.obs[name] = values
    with pytest.raises(ValueError, match=words):
        make(continuous=[name])(adata)


@pytest.mark.parametrize("values", [["A+"] * N, ["ctrl"] * N, [None, *["A"] * (N - 1)]])
def test_bad_sets_are_refused(adata, values):
    adata.obs["gene"] = values
    with pytest.raises(ValueError, match=r"empty member|only the control value|no label"):
        make(sets=["gene"], controls={"gene": "ctrl"})(adata)


def test_the_field_writes_what_its_keys_encode_and_knows_them_again(adata):
    field = ConditionField(setup(adata, ["type"], ["dose"], ["gene"], {"gene": "ctrl"}))
    state = field.register_field(adata)
    keys = keys_of_state(state)

    np.testing.assert_array_equal(adata.obsm[field.attr_key], encode_conditions(adata, keys))
    other = adata[:3].copy()
    del other.obsm[field.attr_key]
    field.transfer_field(state, other)
    np.testing.assert_array_equal(other.obsm[field.attr_key], adata.obsm[field.attr_key][:3])


def test_cells_with_values_that_the_model_does_not_know_are_refused(adata):
    field = ConditionField(setup(adata, ["type"], (), ["gene"], {"gene": "ctrl"}))
    state = field.register_field(adata)
    other = adata.copy()
    other.obs["gene"] = "A+Z"
    with pytest.raises(ValueError, match="Z"):
        field.transfer_field(state, other)


def test_a_field_without_keys_is_empty(adata):
    assert ConditionField(setup(adata)).is_empty


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"controls": "ctrl"}, TypeError, "control_values"),
        ({"embeddings": TABLE}, TypeError, "condition_embeddings"),
        ({"sets": {"gene": "r"}, "controls": {"gene": "ctrl"}}, ValueError, "r"),
        ({"sets": ["gene"], "embeddings": {"gene": TABLE.set_axis(["1", 1, "x"], axis=1)}}, ValueError, "1"),
    ],
)
def test_mappings_names_and_columns_are_checked(adata, arguments, error, words):
    with pytest.raises(error, match=words):
        make(**arguments)(adata)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((N, 2)), "is the same in every cell"),
        (np.arange(N * 51.0).reshape(N, 51), "51"),
        (np.ones((N, 0)), "columns"),
        (np.ones((N, 2, 2)), r"has the shape \(12, 2, 2\)"),
        (np.where(np.arange(N)[:, None] == 3, np.nan, np.ones((N, 2))), "infinite numbers in 1 of 12 cells"),
        (np.where(np.arange(N)[:, None] > 3, np.inf, np.ones((N, 2))), "infinite numbers in 8 of 12 cells"),
        (sp.csr_matrix(np.eye(N, 2)), "must be an array or table of numbers to be a condition, but holds a csr_matrix"),
        (np.array([["a", "b"]] * N), "holds values of type <U1"),
        (pd.DataFrame(np.eye(N, 2), columns=["x", "um/2"]), "um/2"),
    ],
)
def test_bad_arrays_are_refused(adata, array, words):
    adata.obsm["spatial"] = array.set_axis(adata.obs_names) if isinstance(array, pd.DataFrame) else array
    with pytest.raises(ValueError, match=words):
        make(continuous=["spatial"])(adata)


def test_names_of_arrays_are_checked(adata):
    adata.obsm["spatial"] = adata.obsm["dose"] = adata.obsm["a/b"] = np.arange(2.0 * N).reshape(N, 2)
    with pytest.raises(ValueError, match="dose"):
        make(continuous=["dose"])(adata)
    with pytest.raises(KeyError, match="spatial"):
        make(categorical=["spatial"])(adata)
    with pytest.raises(KeyError, match="spatial"):
        make(continuous=["spatail"])(adata)
    with pytest.raises(ValueError, match="a/b"):
        make(continuous=["a/b"])(adata)
    field = ConditionField(setup(adata, continuous=["spatial"]))
    state = field.register_field(adata)
    other = adata.copy()
    other.obs["spatial"] = 1.0
    del other.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        field.transfer_field(state, other)


@pytest.mark.parametrize("value", [("A", "B"), frozenset({"A"}), 3])
def test_sets_must_be_written_as_text(adata, value):
    adata.obs["gene"] = pd.Series([value, *["A"] * (N - 1)], index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"A\+B"):
        make(sets=["gene"])(adata)


def test_classes_that_could_not_be_saved_are_refused(adata):
    adata.obs["type"] = pd.cut(np.arange(N), 3)
    with pytest.raises(ValueError, match="Interval"):
        make(categorical=["type"])(adata)


@pytest.mark.parametrize("kind", ["categorical", "continuous", "sets"])
@pytest.mark.parametrize("name", ["synthetic", "_index"])
def test_names_of_columns_that_files_of_synthetic_cells_need_are_taken(adata, kind, name):
    adata.obs[name] = adata.obs["dose" if kind == "continuous" else "gene"]
    with pytest.raises(ValueError, match=f"'{name}' cannot be a condition key, because"):
        setup(adata, **{kind: [name]})


# --- every cell has a value -------------------------------------------------------------------------------------------


@pytest.fixture
def obs():
    return pd.DataFrame({"cell_type": ["B", "T", "B"], "donor": [1, 2, 3]}, index=["c1", "c2", "c3"])


def test_labelled_columns_pass(obs):
    check_conditions(AnnData(obs=obs), ["cell_type", "donor"])
    check_conditions(AnnData(obs=obs), ("donor",))
    check_conditions(AnnData(obs=obs), [])


def test_an_unknown_column_lists_the_known_ones_closest_first(obs):
    with pytest.raises(KeyError, match="celltype"):
        check_conditions(AnnData(obs=obs), ["celltype"])


@pytest.mark.parametrize("column", [["B", None, "B"], pd.Categorical(["B", None, "B"]), [1.0, np.nan, 2.0]])
def test_cells_without_a_label_are_counted_and_named(obs, column):
    obs["cell_type"] = column

    with pytest.raises(ValueError, match="cell_type"):
        check_conditions(AnnData(obs=obs), ["donor", "cell_type"])


def test_a_key_that_files_cannot_store_raises_with_advice(obs):
    obs = obs.rename(columns={"cell_type": "cell/type"})
    with pytest.raises(ValueError, match="cell/type"):
        check_conditions(AnnData(obs=obs), ["donor", "cell/type"])


def test_spaces_around_a_control_do_not_count(adata):
    adata.obs["gene"] = np.resize(["A", "B", "no drug "], N)
    (key,) = setup(adata, sets=["gene"], controls={"gene": "no drug "}).keys_of(adata)

    assert key.members == ["A", "B"]
    asked = ["no drug", "A + no drug ", frozenset(), frozenset({"no drug ", "B"})]
    assert list(key.decode(key.encode(asked))) == ["no drug ", "A", "no drug ", "B"]
