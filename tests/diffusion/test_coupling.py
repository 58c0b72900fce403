"""Optimal pairs: every sample once, and no cheaper pairing."""

from itertools import permutations

import pytest
import torch

from scgen_diffusion.diffusion import optimal_pairs


def cost(start, end):
    return float((start - end).square().sum())


def test_no_other_pairing_is_cheaper():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 5, 2, 3, generator=generator)

    pairs = optimal_pairs(start, end)

    best = min(cost(start, end[list(order)]) for order in permutations(range(5)))
    assert cost(start, end[pairs]) == pytest.approx(best)


def test_every_end_belongs_to_one_start_even_if_ends_are_equal():
    pairs = optimal_pairs(torch.randn(6, 2), torch.zeros(6, 2))

    assert sorted(pairs.tolist()) == list(range(6))


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="`start`"):
        optimal_pairs(torch.zeros(5, 1), torch.zeros(4, 1))
