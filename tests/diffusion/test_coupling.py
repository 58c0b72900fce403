"""Optimal pairs: every sample once, and no cheaper pairing."""

from itertools import permutations

import torch

from scgen_diffusion.diffusion import optimal_pairs


def test_every_end_has_one_start_and_no_other_pairing_is_cheaper():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 5, 2, 3, generator=generator)

    pairs = optimal_pairs(start, end)

    best = min((start - end[list(order)]).square().sum() for order in permutations(range(5)))
    assert sorted(pairs.tolist()) == list(range(5))
    torch.testing.assert_close((start - end[pairs]).square().sum(), best)
