"""Windows: every cell once in a pass, mixed as far as a window reaches, the same for the same seed and pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.data._window_plan import WindowPlan

SIZES = {"batch_size": st.integers(1, 9), "block_size": st.integers(1, 20), "window_size": st.integers(1, 40)}


def order_of(plan):
    """Return the batches' row numbers, one array each, of the pass at hand."""
    return [window.rows[batch] for window in plan.windows() for batch in window.batches]


def make_plan(indices, *, shuffle=True, **options):
    return WindowPlan(
        np.asarray(indices), **{"batch_size": 4, "block_size": 8, "window_size": 16, **options}, shuffle=shuffle
    )


@settings(deadline=None, max_examples=60)
@given(chosen=st.sets(st.integers(0, 90), min_size=1), shuffle=st.booleans(), epoch=st.integers(0, 3), **SIZES)
def test_every_cell_comes_once_in_a_pass_in_full_batches(chosen, shuffle, epoch, **sizes):
    plan = make_plan(sorted(chosen), shuffle=shuffle, **sizes)
    plan.set_epoch(epoch)

    batches = order_of(plan)

    assert sorted(np.concatenate(batches)) == sorted(chosen)
    assert [len(batch) for batch in batches[:-1]] == [sizes["batch_size"]] * (len(batches) - 1)
    assert len(batches) == plan.n_batches


@settings(deadline=None, max_examples=40)
@given(n_cells=st.integers(1, 60), n_ranks=st.integers(1, 4), shuffle=st.booleans(), **SIZES)
def test_processes_share_the_cells_in_equal_numbers_of_batches(n_cells, n_ranks, shuffle, **sizes):
    plans = [make_plan(np.arange(n_cells), shuffle=shuffle, rank=r, n_ranks=n_ranks, **sizes) for r in range(n_ranks)]

    shares = [order_of(plan) for plan in plans]

    assert {len(share) for share in shares} == {plans[0].n_batches}
    read = np.concatenate([np.concatenate(share) for share in shares])
    assert set(read) == set(range(n_cells))
    assert len(read) < n_cells + n_ranks  # whoever has no cell left for the last batch reads another's


def test_without_shuffling_the_order_is_the_given_one():
    given = [5, 3, 3, 60, 0, 7, 1]

    assert np.concatenate(order_of(make_plan(given, shuffle=False))).tolist() == given


def test_a_window_holds_no_more_cells_than_it_may_and_never_less_than_a_batch():
    assert max(len(w.rows) for w in make_plan(np.arange(90), window_size=17).windows()) == 16
    assert max(len(w.rows) for w in make_plan(np.arange(90), window_size=1).windows()) == 4


def test_a_window_mixes_blocks_of_many_places():
    plan = make_plan(np.arange(1000), block_size=10, window_size=100)

    first = next(iter(plan.windows())).rows

    assert len(np.unique(first // 10)) == 10
    assert first.max() - first.min() > 300


@pytest.mark.parametrize("indices", [np.arange(100), np.arange(3, 100, 7)], ids=["all", "some"])
def test_blocks_begin_at_the_same_rows_whichever_cells_are_chosen(indices):
    cell_by_cell = np.concatenate(order_of(make_plan(indices, block_size=10, batch_size=1, window_size=1)))

    assert np.count_nonzero(np.diff(cell_by_cell // 10)) == 9  # the block changes no more often than there are blocks


def test_passes_differ_and_are_the_same_again_for_the_same_seed():
    plans = [make_plan(np.arange(64), seed=seed) for seed in (1, 1, 2)]
    first = [np.concatenate(order_of(plan)).tolist() for plan in plans]
    plans[0].set_epoch(1)

    assert first[0] == first[1]
    assert first[0] != first[2]
    assert np.concatenate(order_of(plans[0])).tolist() != first[0]


def test_choosing_the_next_pass_does_not_change_one_that_began():
    plan = make_plan(np.arange(64))
    expected = np.concatenate(order_of(plan))
    windows = plan.windows()
    plan.set_epoch(1)

    assert np.array_equal(np.concatenate([w.rows[b] for w in windows for b in w.batches]), expected)


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_cells_make_no_batches(shuffle):
    assert order_of(make_plan(np.zeros(0, dtype=int), shuffle=shuffle)) == []
