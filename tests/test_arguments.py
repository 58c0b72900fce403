"""What users give as arguments."""

from __future__ import annotations

import numpy as np
import pytest

from scgen_diffusion._arguments import check_count, is_number, known_names


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_count_comes_back_as_pythons_own(value):
    assert type(check_count("n_cells", value)) is int


BEYOND = [2**63, 10**400, -(2**63), np.uint64(2**64 - 1)]


@pytest.mark.parametrize("value", [0, -1, 2.0, np.float32(2), "2", None, True, [2], *BEYOND], ids=lambda _: "")
def test_an_invalid_count_raises_with_the_name_of_the_argument(value):
    with pytest.raises(ValueError, match="`n_cells`"):
        check_count("n_cells", value)


def test_numbers_are_those_that_a_float_can_hold():
    assert all(map(is_number, (1, 1.5, np.float32(2), np.uint64(2**64 - 1), 1e300)))
    assert not any(map(is_number, (True, "1", None, np.nan, np.inf, 10**400)))


CELL_TYPES = ["CD14+ Mono", "Platelet", "CD8 T", "FCGR3A+ Mono", "NK", "B"]


@pytest.mark.parametrize(("name", "closest"), [("b", "B"), ("platlet", "Platelet"), ("CD14 MONO", "CD14+ Mono")])
def test_the_closest_name_comes_first_whatever_its_case(name, closest):
    assert known_names(name, CELL_TYPES).startswith(f"Known, closest first: {closest!r}, ")
