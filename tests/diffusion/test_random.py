import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scgen_diffusion.diffusion import Generators, sample_seed

SEEDS = st.integers(0, 2**63 - 1)
INDICES = st.lists(st.integers(0, 10**9), min_size=1, max_size=8, unique=True)


def draw_everything(seed, indices):
    """Draw all kinds of numbers in turn, so the state after each draw matters too."""
    generators = Generators(seed, indices)
    drawn = [
        generators.normal(2, 3).flatten(1),
        generators.uniform()[:, None],
        generators.uniform(2, dtype=torch.float64).float(),
        generators.normal(20),
    ]
    return torch.cat(drawn, dim=1)


@given(seed=SEEDS, indices=INDICES)
@settings(max_examples=30, deadline=None)
def test_numbers_of_a_sample_do_not_depend_on_its_batch(seed, indices):
    together = draw_everything(seed, indices)
    alone = torch.cat([draw_everything(seed, [index]) for index in indices])
    assert torch.equal(together, alone)
    assert torch.equal(draw_everything(seed, indices[::-1]), together.flip(0))


def test_seeds_do_not_collide_over_requests_and_samples():
    # Neighbouring requests must not share cells, as they would if seed and index were only added.
    seeds = {sample_seed(seed, index) for seed in range(300) for index in range(300)}
    assert len(seeds) == 90_000


def test_seeds_of_numpy_are_those_of_python():
    assert sample_seed(np.int64(7), 3) == sample_seed(7, 3)


def test_first_numbers_of_neighbouring_samples_are_standard_normal_and_independent():
    drawn = Generators(0, range(10_000)).normal(5).numpy()
    for column in drawn.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4  # a fixed seed: fails by chance never, by a bias always
    lagged = np.corrcoef(drawn[:-1].T, drawn[1:].T)[:5, 5:]
    within = np.corrcoef(drawn.T)[np.triu_indices(5, 1)]
    # The standard error of a correlation of 10 000 pairs is 0.01; four of them allowed.
    assert np.abs(lagged).max() < 0.04
    assert np.abs(within).max() < 0.04


@pytest.mark.parametrize("seed", [0, 12345])
def test_no_two_of_many_samples_share_the_bits_that_a_cpu_generator_looks_at(seed):
    assert len({sample_seed(seed, index) & 0xFFFFFFFF for index in range(300_000)}) == 300_000


@pytest.mark.parametrize("n", [1, 5, 64, 128])
def test_the_first_samples_get_what_they_get_with_the_others(n):
    assert torch.equal(draw_everything(3, range(128, 128 + n)), draw_everything(3, range(128, 256))[:n])


def test_blocks_drawn_together_are_those_drawn_alone():
    together = draw_everything(5, range(128, 512))
    alone = [draw_everything(5, range(first, first + 128)) for first in (128, 256, 384)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together.flip(0), draw_everything(5, range(511, 127, -1)))


def test_numbers_are_as_precise_as_asked():
    doubles = Generators(0, range(9)).uniform(9, dtype=torch.float64)

    assert doubles.dtype == torch.float64
    assert (doubles % 2.0**-24 != 0).any()  # finer than single precision
