"""MuData in and out: modalities side by side, and what is refused."""

from __future__ import annotations

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgen_diffusion.data import (
    ConditionSetup,
    Modality,
    build_mudata,
    check_is_mudata,
    check_same_features,
    resolve_modalities,
)
from scgen_diffusion.data._mudata import check_modalities, join_expression

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:var_names are not unique")


def modality(values, cells, names):
    return anndata.AnnData(
        sp.csr_matrix(np.asarray(values, dtype=np.float32)),
        obs=pd.DataFrame(index=list(cells)),
        var=pd.DataFrame(index=list(names)),
    )


@pytest.fixture
def mdata():
    """Build cells a to d: rna of a, b, c; protein of d, c, b, in that order."""
    rna = modality([[1, 0], [2, 3], [0, 4]], "abc", ["CD4", "ACTB"])
    prot = modality([[9], [8], [7]], "dcb", ["CD4"])
    return mudata.MuData({"rna": rna, "prot": prot})


LIKELIHOODS = {"rna": "negative_binomial", "prot": "negative_binomial"}
MODALITIES = {"rna": Modality(["CD4", "ACTB"], "negative_binomial"), "prot": Modality(["CD4"], "negative_binomial")}


def test_modalities_are_concatenated_in_the_order_of_the_cells(mdata):
    joined = pd.DataFrame(join_expression(mdata, MODALITIES, {}).toarray(), index=mdata.obs_names).loc[list("abcd")]

    assert joined.to_numpy().tolist() == [[1, 0, 0], [2, 3, 7], [0, 4, 8], [0, 0, 9]]


def test_modalities_may_have_the_same_cells_in_another_order():
    parts = {"rna": modality([[1], [2], [3]], "abc", ["CD4"]), "prot": modality([[6], [4], [5]], "cab", ["CD4"])}
    both = mudata.MuData(parts)

    joined = join_expression(both, dict.fromkeys(parts, MODALITIES["prot"]), {}).toarray()

    assert pd.DataFrame(joined, both.obs_names).loc[list("abc")].to_numpy().tolist() == [[1, 4], [2, 5], [3, 6]]


def test_an_absent_modality_is_zero(mdata):
    alone = mudata.MuData({"rna": mdata["rna"].copy()})

    assert join_expression(alone, MODALITIES, {}).toarray().tolist() == [[1, 0, 0], [2, 3, 0], [0, 4, 0]]


def test_a_layer_is_read_for_its_modality(mdata):
    mdata["rna"].layers["twice"] = mdata["rna"].X * 2

    joined = join_expression(mdata, MODALITIES, {"rna": "twice"})

    assert joined.sum() == 2 * 10 + 24


def test_built_cells_are_paired_and_split_by_modality():
    obs = pd.DataFrame({"cell_type": ["B", "T"]}, index=["x", "y"])
    variables = {"rna": pd.DataFrame(index=["CD4", "ACTB"]), "prot": pd.DataFrame(index=["CD4"])}

    built = build_mudata(
        sp.csr_matrix(np.array([[1, 2, 3], [4, 5, 6]])), obs, variables, {"model": "SCLDM"}, is_log1p=False
    )

    assert built["rna"].X.toarray().tolist() == [[1, 2], [4, 5]]
    assert built["prot"].X.toarray().tolist() == [[3], [6]]
    for part in (built, built["rna"], built["prot"]):
        assert part.obs["cell_type"].tolist() == ["B", "T"]
        assert part.obs["synthetic"].str.startswith("SCLDM ").all()
        assert part.uns["scgen_diffusion"] == {"model": "SCLDM"}


def test_layers_are_split_with_the_values():
    obs = pd.DataFrame(index=["x"])
    variables = {"rna": pd.DataFrame(index=["a"]), "prot": pd.DataFrame(index=["b"])}

    built = build_mudata(
        np.array([[1.0, 2.0]]),
        obs,
        variables,
        {"model": "SCLDM"},
        is_log1p=True,
        layers={"estimate": np.array([[3.0, 4.0]])},
    )

    assert built["rna"].layers["estimate"].tolist() == [[3.0]]
    assert built["prot"].layers["estimate"].tolist() == [[4.0]]
    assert built["prot"].uns["log1p"] == {}


# --- what a user says of modalities ---------------------------------------------------------------------------------


def test_names_may_be_left_out_listed_or_given_likelihoods(mdata):
    negative_binomial = "negative_binomial"
    assert resolve_modalities(mdata, None, None)[0] == {"rna": negative_binomial, "prot": negative_binomial}
    assert resolve_modalities(mdata, ["prot"], None)[0] == {"prot": negative_binomial}
    given = {"prot": "bernoulli", "rna": None}
    assert resolve_modalities(mdata, given, None)[0] == {"prot": "bernoulli", "rna": negative_binomial}


@pytest.mark.parametrize(
    ("modalities", "error", "message"),
    [
        ("rna", TypeError, "rna"),
        ([], ValueError, "at least one"),
        (["rna", "rna"], ValueError, "rna"),
        (["rna", "protein"], KeyError, "protein"),
        ({"rna": "binomial"}, ValueError, "rna"),
    ],
)
def test_wrong_modalities_are_named(mdata, modalities, error, message):
    with pytest.raises(error, match=message):
        resolve_modalities(mdata, modalities, None)


def test_a_modality_that_files_cannot_store_raises_with_advice(mdata):
    mdata.mod["rna/spliced"] = mdata.mod.pop("rna")

    with pytest.raises(ValueError, match="/"):
        resolve_modalities(mdata, None, None)


def test_modalities_that_share_features_are_refused(mdata):
    with pytest.raises(ValueError, match="share cells"):
        resolve_modalities(mudata.MuData({"a": mdata["rna"].copy(), "b": mdata["rna"].copy()}, axis=1), None, None)


def test_mudata_within_mudata_is_refused(mdata):
    nested = mudata.MuData({"all": mdata, "rna": mdata["rna"].copy()})

    assert list(resolve_modalities(nested, ["rna"], None)[0]) == ["rna"]
    with pytest.raises(TypeError, match="all"):
        resolve_modalities(nested, None, None)


def test_anndata_is_refused(mdata):
    with pytest.raises(TypeError, match="found AnnData"):
        check_is_mudata(mdata["rna"])


def test_layers_are_one_for_all_or_one_each(mdata):
    for part in mdata.mod.values():
        part.layers["counts"] = part.X.copy()

    assert resolve_modalities(mdata, None, "counts")[1] == {"rna": "counts", "prot": "counts"}
    assert resolve_modalities(mdata, None, {"rna": "counts"})[1] == {"rna": "counts", "prot": None}
    with pytest.raises(KeyError, match="modality 'atac'"):
        resolve_modalities(mdata, None, {"atac": "counts"})
    with pytest.raises(KeyError, match=r"mdata\['rna'\].layers"):
        resolve_modalities(mdata, None, "count")


def test_zeros_and_ones_are_taken_for_open_or_closed():
    atac = mudata.MuData({"atac": modality([[0, 1]], "a", "xy")})

    assert resolve_modalities(atac, None, None)[0] == {"atac": "bernoulli"}


# --- values and cells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "cells", "names", "likelihood", "message"),
    [
        (np.zeros((0, 2)), "", "xy", None, "m"),
        (np.zeros((2, 0)), "ab", "", None, "has 2 cells and 0 genes"),
        ([[0, 0], [0, 0]], "ab", "xy", None, "holds no counts"),
        ([[0.5, 1], [1, 1]], "ab", "xy", None, "m"),
        ([[-1, 1], [1, 1]], "ab", "xy", None, "negative"),
        ([[np.nan, 1], [1, 1]], "ab", "xy", None, "NaN"),
        ([[1, 1], [1, 1]], "ab", "xx", None, "m"),
        ([[1, 1], [1, 1]], "aa", "xy", None, "m"),
        ([[1, 2], [1, 1]], "ab", "xy", "bernoulli", "modalities"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_outside_every_likelihood_raise(values, cells, names, likelihood, message):
    with pytest.raises(ValueError, match=message):
        check_modalities(mudata.MuData({"m": modality(values, cells, names)}), {"m": likelihood}, {})


@pytest.mark.parametrize("dtype", [str, object])
def test_matrices_of_text_are_refused_by_the_type_of_their_values(dtype):
    text = anndata.AnnData(np.array([["a", "b"]], dtype=dtype), obs=pd.DataFrame(index=["c"]))
    mdata = mudata.MuData({"m": text})

    assert resolve_modalities(mdata, None, None)[0] == {"m": "negative_binomial"}  # which is no error of its own
    with pytest.raises(ValueError, match="m"):
        check_modalities(mdata, {"m": "negative_binomial"}, {})


def test_cells_of_other_names_are_refused():
    mdata = mudata.MuData({"rna": modality([[1], [1]], ["A-1", "B-1"], "x"), "prot": modality([[1], [1]], "AB", "y")})

    with pytest.raises(ValueError, match="rna"):
        check_modalities(mdata, LIKELIHOODS, {})


def test_modalities_may_be_linked_through_a_third():
    parts = {
        "rna": modality([[1]] * 2, "ab", "x"),
        "prot": modality([[1]] * 2, "bc", "y"),
        "atac": modality([[1]], "c", "z"),
    }

    check_modalities(mudata.MuData(parts), dict.fromkeys(parts), {})


def test_cells_without_any_count_are_named(mdata):
    mdata["rna"].X[0, 0] = 0

    with pytest.raises(ValueError, match="rna"):
        check_modalities(mdata, LIKELIHOODS, {})
    with pytest.raises(ValueError, match="prot"):
        check_modalities(mdata, {"prot": None}, {})


def test_cells_that_were_added_to_a_modality_only_are_found(mdata):
    mdata.mod["rna"] = modality([[1, 0], [2, 3]], "ae", ["CD4", "ACTB"])

    with pytest.raises(ValueError, match=r"mdata\.obs"):
        check_modalities(mdata, LIKELIHOODS, {})


def test_a_condition_of_a_modality_is_brought_up():
    counts = np.ones((3, 2))
    mdata = mudata.MuData({"rna": modality(counts, "abc", "xy"), "prot": modality(counts, "cab", "vw")})
    mdata["prot"].obs["cell_type"] = list("CAB")
    mdata["prot"].obsm["spatial"] = np.array([[3.0], [1], [2]])

    setup = ConditionSetup.of(["cell_type", "prot:cell_type"], ["spatial"], None, None, None)
    for place in (r"obs\['cell_type'\]", r"obs\['prot:cell_type'\]", r"obsm\['spatial'\]"):
        with pytest.raises(KeyError, match=rf"Copy it: mdata.{place} = ") as error:
            setup.checked(mdata)
        exec(str(error.value.args[0]).split("Copy it: ")[1].removesuffix("."), {"mdata": mdata})
    setup.checked(mdata)
    assert list(mdata.obs_names) == list("abc")
    assert list(mdata.obs["cell_type"]) == list(mdata.obs["prot:cell_type"]) == list("ABC")
    assert mdata.obsm["spatial"].tolist() == [[1], [2], [3]]


def test_an_array_of_all_modalities_may_have_the_name_of_a_column_of_one(mdata):
    mdata["rna"].obs["spatial"] = "slide 1"
    mdata.obsm["spatial"] = np.arange(8.0).reshape(4, 2)

    ConditionSetup.of(None, ["spatial"], None, None, None).checked(mdata)


# --- cells for a model that is there --------------------------------------------------------------------------------


def test_features_must_be_the_models(mdata):
    check_same_features(mdata, MODALITIES)
    other = mudata.MuData({"rna": mdata["rna"][:, ::-1].copy()})

    with pytest.raises(ValueError, match="rna"):
        check_same_features(other, MODALITIES)


def test_one_of_the_modalities_is_enough_and_none_is_not(mdata):
    check_same_features(mudata.MuData({"prot": mdata["prot"].copy()}), MODALITIES)
    with pytest.raises(ValueError, match="rna"):
        check_same_features(mudata.MuData({"atac": mdata["prot"].copy()}), MODALITIES)
    with pytest.raises(TypeError, match="reads MuData"):
        check_same_features(mdata["rna"], MODALITIES)
