"""Windows: every cell once in a pass, mixed as far as a window reaches, the same for the same seed and pass."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.data._windows import WindowLoader
from scgen_diffusion.train import EpochBatches

SIZES = {"batch_size": st.integers(1, 9), "block_size": st.integers(1, 20), "window_size": st.integers(1, 40)}


class Numbers:
    """A matrix whose rows hold their numbers."""

    def __init__(self, block_size):
        self.block_size = block_size

    def read(self, rows):
        return rows[:, None]


def make_loader(indices, *, batch_size=4, block_size=8, window_size=16, **process):
    indices = np.asarray(indices)
    batches = EpochBatches(len(indices), batch_size, **process) if process else None
    size = batch_size if batches is None else batches.batch_size
    return WindowLoader(Numbers(block_size), np.zeros((1000, 0)), indices, size, batches, window_size=window_size)


def order_of(loader):
    """Return the batches' row numbers, one array each, of the pass at hand."""
    return [batch["X"][:, 0].numpy() for batch in loader]


@settings(deadline=None, max_examples=40)
@given(
    chosen=st.sets(st.integers(0, 90), min_size=1), seed=st.sampled_from([None, 0]), epoch=st.integers(0, 3), **SIZES
)
def test_every_cell_comes_once_in_a_pass_in_full_batches(chosen, seed, epoch, **sizes):
    loader = make_loader(sorted(chosen), seed=seed, **sizes)
    loader.sampler.set_epoch(epoch)

    batches = order_of(loader)

    assert sorted(np.concatenate(batches)) == sorted(chosen)
    assert [len(batch) for batch in batches[:-1]] == [sizes["batch_size"]] * (len(batches) - 1)
    assert len(batches) == len(loader)


@settings(deadline=None, max_examples=30)
@given(n_cells=st.integers(1, 60), n_ranks=st.integers(1, 4), seed=st.sampled_from([None, 0]), **SIZES)
def test_processes_share_the_cells_in_equal_numbers_of_batches(n_cells, n_ranks, seed, **sizes):
    loaders = [make_loader(np.arange(n_cells), seed=seed, rank=r, n_processes=n_ranks, **sizes) for r in range(n_ranks)]

    shares = [order_of(loader) for loader in loaders]

    assert {len(share) for share in shares} == {len(loaders[0])}
    read = np.concatenate([np.concatenate(share) for share in shares])
    assert set(read) == set(range(n_cells))
    assert len(read) < n_cells + n_ranks  # ranks without cells read another rank's


def test_without_batches_of_a_stage_the_order_is_the_given_one():
    given = [5, 3, 3, 60, 0, 7, 1]

    assert np.concatenate(order_of(make_loader(given))).tolist() == given


def test_an_epoch_can_resume_at_any_batch():
    loader = make_loader(np.arange(90), seed=0)
    whole = order_of(loader)
    loader.sampler.first_batch = 6

    rest = [rows[batch] for rows, batches in loader.windows() for batch in batches]

    assert all(np.array_equal(one, other) for one, other in zip(rest, whole[6:], strict=True))


def test_a_window_holds_no_more_cells_than_it_may_and_never_less_than_a_batch():
    assert max(len(rows) for rows, _ in make_loader(np.arange(90), window_size=17).windows()) == 16
    assert max(len(rows) for rows, _ in make_loader(np.arange(90), window_size=1).windows()) == 4


def test_a_window_mixes_blocks_of_many_places():
    loader = make_loader(np.arange(1000), block_size=10, window_size=100, seed=0)

    first, _ = next(iter(loader.windows()))

    assert len(np.unique(first // 10)) == 10
    assert first.max() - first.min() > 300


def test_the_cells_of_a_block_are_shuffled():
    order = np.concatenate(order_of(make_loader(np.arange(64), block_size=64, window_size=64, seed=0)))

    assert np.count_nonzero(np.diff(order) == 1) < 10  # one is expected


def test_passes_differ_and_are_the_same_again_for_the_same_seed():
    loaders = [make_loader(np.arange(64), seed=seed) for seed in (1, 1, 2)]
    first = [np.concatenate(order_of(loader)).tolist() for loader in loaders]
    loaders[0].sampler.set_epoch(1)

    assert first[0] == first[1]
    assert first[0] != first[2]
    assert np.concatenate(order_of(loaders[0])).tolist() != first[0]
