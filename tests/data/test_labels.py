"""Labels as text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import join_labels


def test_labels_of_several_columns_never_merge():
    values = ["x", "x|y", "y|z", "z", "\\", "x\\", "|z"]
    obs = pd.DataFrame([(first, second) for first in values for second in values], columns=["one", "two"])
    assert len(set(join_labels(obs, ["one", "two"]))) == len(values) ** 2
    assert join_labels(obs, ["one"]).tolist() == obs["one"].tolist()
    assert join_labels(pd.DataFrame({"one": ["B"], "two": pd.Categorical([1])}), ["one", "two"]).tolist() == ["B|1"]


DOSES = np.array([0.1, 2.5, 1.0, 1e-7, np.nan])
OTHERS = [0.1, 0.100000000001, 2.0**40, 2.0**40 + 0.5, 1e-50, 1e300 / 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        *((values, ["0.1", "2.5", "1", "1e-07", "no label"]) for values in (DOSES, DOSES.astype(np.float32))),
        (DOSES.astype(np.float32).astype(float), ["0.1", "2.5", "1", "1e-07", "no label"]),
        ([1.0, 2.5, np.int64(3), "4.0"], ["1", "2.5", "3", "4.0"]),
        (OTHERS, ["0.1", "0.100000000001", "1099511627776", "1099511627776.5", "1e-50", str(int(1e300 / 3))]),
    ],
    ids=["doubles", "single precision", "made double", "mixed", "far apart"],
)
@pytest.mark.parametrize("dtype", [None, "category", object])
def test_numbers_have_the_labels_that_they_look_like(values, expected, dtype):
    assert join_labels(pd.DataFrame({"x": pd.Series(values, dtype=dtype)}), ["x"]).tolist() == expected
