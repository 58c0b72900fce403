"""Conditions of many cells: what tells one request from another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scgen_diffusion.data._many_conditions import RequestedCodes

TWO = np.array([[0.0], [1.0]])
GIVEN = {
    "nothing": [],
    "two values": [(slice(0, 1), TWO)],
    "the other way round": [(slice(0, 1), TWO[::-1])],
    "for another key": [(slice(1, 2), TWO)],
    "of one key of two columns": [(slice(0, 2), TWO.T)],
    "twice": [(slice(0, 1), np.tile(TWO, (2, 1)))],
    "each twice": [(slice(0, 1), np.repeat(TWO, 2, axis=0))],
    "for two keys": [(slice(0, 1), TWO), (slice(1, 2), TWO)],
    "one each": [(slice(0, 1), TWO[:1]), (slice(1, 2), TWO[1:])],
    "whole numbers": [(slice(0, 1), TWO.astype(int))],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_the_number_of_cells_is_no_part_of_what_was_asked_for(given):
    assert RequestedCodes(600, 3, given).digest == RequestedCodes(500, 3, given).digest


def test_requests_that_differ_have_digests_that_differ():
    digests = [RequestedCodes(600, 3, given).digest for given in GIVEN.values()]

    assert all(one != other for one, other in itertools.combinations(digests, 2))


def test_the_order_in_which_keys_are_named_does_not_matter():
    given = GIVEN["for two keys"]

    assert RequestedCodes(600, 3, given).digest == RequestedCodes(600, 3, given[::-1]).digest
