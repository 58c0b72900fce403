"""Assembling the AnnData that a model returns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import PROVENANCE_KEY, build_anndata, join_labels


@pytest.fixture
def parts():
    return np.ones((2, 3), dtype=np.float32), pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=["x", "y", "z"])


def test_provenance_is_kept_under_the_package_name(parts):
    adata = build_anndata(*parts, {"model": "SCLDM", "seed": 3}, is_log1p=False)

    assert adata.uns[PROVENANCE_KEY] == {"model": "SCLDM", "seed": 3}
    assert "log1p" not in adata.uns


def test_logarithms_are_announced_to_scanpy(parts):
    assert "log1p" in build_anndata(*parts, {"model": "SCLDM"}, is_log1p=True).uns


def test_the_result_does_not_share_its_var_with_the_model(parts):
    adata = build_anndata(*parts, {"model": "SCLDM"}, is_log1p=False)

    adata.var["new"] = 1

    assert "new" not in parts[2]


def test_labels_of_several_columns_never_merge():
    values = ["x", "x|y", "y|z", "z", "\\", "x\\", "|z"]
    obs = pd.DataFrame([(first, second) for first in values for second in values], columns=["one", "two"])
    assert len(set(join_labels(obs, ["one", "two"]))) == len(values) ** 2
    assert join_labels(obs, ["one"]).tolist() == obs["one"].tolist()
    assert join_labels(pd.DataFrame({"one": ["B"], "two": pd.Categorical([1])}), ["one", "two"]).tolist() == ["B|1"]


def test_labels_that_are_numbers_are_whole_where_they_can_be():
    values = [1.0, 2.5, np.int64(3), True, "4.0"]
    assert join_labels(pd.DataFrame({"one": pd.Series(values, dtype=object)}), ["one"]).tolist() == [
        "1",
        "2.5",
        "3",
        "True",
        "4.0",
    ]
    assert join_labels(pd.DataFrame({"one": pd.Categorical([1.0, 2.0])}), ["one"]).tolist() == ["1", "2"]


def test_numbers_of_single_precision_have_the_labels_that_they_look_like():
    doses, expected = np.array([0.1, 2.5, 1.0, 1e-7, np.nan]), ["0.1", "2.5", "1", "1e-07", "no label"]
    for values in (doses, doses.astype(np.float32), doses.astype(np.float32).astype(float)):
        for column in (pd.Series(values), pd.Series(pd.Categorical(values)), pd.Series(values, dtype=object)):
            assert join_labels(pd.DataFrame({"dose": column}), ["dose"]).tolist() == expected
    others = [0.1, 0.100000000001, 2.0**40, 2.0**40 + 0.5, 1e-50, 1e300 / 3]
    assert join_labels(pd.DataFrame({"x": others}), ["x"]).tolist() == [
        "0.1",
        "0.100000000001",
        "1099511627776",
        "1099511627776.5",
        "1e-50",
        str(int(1e300 / 3)),
    ]
