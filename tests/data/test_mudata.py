"""MuData in and out: modalities side by side, and what is refused."""

from __future__ import annotations

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgen_diffusion.data import Modality, build_mudata, check_is_mudata, check_same_features, resolve_modalities
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


def test_modalities_are_joined_in_the_order_of_the_cells_and_an_absent_one_is_zero(mdata):
    mdata["rna"].layers["twice"] = mdata["rna"].X * 2
    joined = pd.DataFrame(join_expression(mdata, MODALITIES, {}).toarray(), index=mdata.obs_names).loc[list("abcd")]
    alone = mudata.MuData({"rna": mdata["rna"].copy()})

    assert joined.to_numpy().tolist() == [[1, 0, 0], [2, 3, 7], [0, 4, 8], [0, 0, 9]]
    assert join_expression(alone, MODALITIES, {}).toarray().tolist() == [[1, 0, 0], [2, 3, 0], [0, 4, 0]]
    assert join_expression(mdata, MODALITIES, {"rna": "twice"}).sum() == 2 * 10 + 24


def test_built_cells_are_paired_and_split_by_modality():
    obs = pd.DataFrame({"cell_type": ["B", "T"]}, index=["x", "y"])
    variables = {"rna": pd.DataFrame(index=["CD4", "ACTB"]), "prot": pd.DataFrame(index=["CD4"])}
    values = np.array([[1, 2, 3], [4, 5, 6]])

    built = build_mudata(values, obs, variables, {"model": "SCLDM", "values": "log1p"})

    assert built["rna"].X.tolist() == [[1, 2], [4, 5]]
    assert built["prot"].X.tolist() == [[3], [6]]
    for part in (built, built["rna"], built["prot"]):
        assert part.obs["cell_type"].tolist() == ["B", "T"]
        assert part.obs["synthetic"].tolist() == [True, True]
        assert part.uns["scgen_diffusion"] == {"model": "SCLDM", "values": "log1p"}
    assert built["prot"].uns["log1p"] == {}  # which tells scanpy that values are logarithms
    built["prot"].var["new"] = 1
    assert "new" not in variables["prot"]


def test_modalities_may_be_left_out_listed_or_given_likelihoods_and_layers(mdata):
    for part in mdata.mod.values():
        part.layers["counts"] = part.X.copy()
    negative_binomial = "negative_binomial"

    assert resolve_modalities(mdata, None, None)[0] == {"rna": negative_binomial, "prot": negative_binomial}
    assert resolve_modalities(mdata[1:].copy(), ["prot"], None)[0] == {"prot": negative_binomial}
    open_or_closed = mdata.copy()
    open_or_closed["prot"].X.data[:] = 1
    given = {"prot": "bernoulli", "rna": "negative_binomial"}
    assert resolve_modalities(open_or_closed, given, None)[0] == given
    assert resolve_modalities(mdata, None, "counts")[1] == {"rna": "counts", "prot": "counts"}
    assert resolve_modalities(mdata, None, {"rna": "counts"})[1] == {"rna": "counts", "prot": None}
    atac = mudata.MuData({"atac": modality([[0, 1]], "a", "xy")})
    assert resolve_modalities(atac, None, None)[0] == {"atac": "bernoulli"}  # zeros and ones: open or closed


@pytest.mark.parametrize(
    ("modalities", "layers", "error", "name"),
    [
        ("rna", None, TypeError, "rna"),
        ([], None, ValueError, "at least one"),
        (["rna", "protein"], None, KeyError, "protein"),
        ({"rna": "binomial"}, None, ValueError, "rna"),
        (None, {"atac": "counts"}, KeyError, "atac"),
        (None, "count", KeyError, "rna"),
    ],
)
def test_wrong_modalities_and_layers_are_named(mdata, modalities, layers, error, name):
    with pytest.raises(error, match=name):
        resolve_modalities(mdata, modalities, layers)


def test_anndata_is_refused(mdata):
    with pytest.raises(TypeError, match="AnnData"):
        check_is_mudata(mdata["rna"])


@pytest.mark.parametrize(
    ("values", "cells", "names", "likelihood"),
    [
        (np.zeros((0, 2)), "", "xy", None),
        (np.zeros((2, 0)), "ab", "", None),
        ([[0.5, 1], [1, 1]], "ab", "xy", None),
        ([[-1, 1], [1, 1]], "ab", "xy", None),
        ([[np.nan, 1], [1, 1]], "ab", "xy", None),
        ([[1, 1], [1, 1]], "ab", "xx", None),
        ([[1, 1], [1, 1]], "aa", "xy", None),
        ([[1, 2], [1, 1]], "ab", "xy", "bernoulli"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_outside_every_likelihood_raise(values, cells, names, likelihood):
    with pytest.raises(ValueError, match=r"mdata\['m'\]"):
        check_modalities(mudata.MuData({"m": modality(values, cells, names)}), {"m": likelihood}, {})


def test_every_cell_has_a_count_and_every_modality_shares_cells(mdata):
    apart = {"rna": modality([[1], [1]], ["A-1", "B-1"], "x"), "prot": modality([[1], [1]], "AB", "y")}
    with pytest.raises(ValueError, match="rna"):
        check_modalities(mudata.MuData(apart), LIKELIHOODS, {})
    linked = {"rna": "ab", "prot": "bc", "atac": "c"}  # through a third
    parts = {name: modality([[1]] * len(cells), cells, "x") for name, cells in linked.items()}
    check_modalities(mudata.MuData(parts), dict.fromkeys(parts), {})

    mdata["rna"].X[0, 0] = 0
    with pytest.raises(ValueError, match="rna"):
        check_modalities(mdata, LIKELIHOODS, {})


def test_some_of_the_models_modalities_are_needed_with_its_features(mdata):
    check_same_features(mdata, MODALITIES)
    check_same_features(mudata.MuData({"prot": mdata["prot"].copy()}), MODALITIES)
    for parts in ({"rna": mdata["rna"][:, ::-1].copy()}, {"atac": mdata["prot"].copy()}):
        with pytest.raises(ValueError, match="rna"):
            check_same_features(mudata.MuData(parts), MODALITIES)
