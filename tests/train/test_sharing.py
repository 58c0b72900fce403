"""Processes share batches so that together they read what one process would."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.data import CellFiles
from scgen_diffusion.diffusion import SharedGenerator, draw_integers, draw_normal, draw_uniform
from scgen_diffusion.train import EpochMeans, Share, SharedBatches

SIZES = {"n_rows": st.integers(1, 40), "batch_size": st.integers(1, 7), "n_processes": st.integers(1, 5)}


def all_batches(n_rows, batch_size, n_processes, **options):
    """Collect what every process reads, batch by batch, and for what it counts."""
    processes = [
        SharedBatches(n_rows, batch_size, rank=rank, n_processes=n_processes, **options) for rank in range(n_processes)
    ]
    assert len({len(batches) for batches in processes}) == 1
    return [[(rows, batches.share(n)) for n, rows in enumerate(batches)] for batches in processes]


@given(**SIZES, seed=st.none() | st.integers(0, 3))
def test_together_processes_read_the_batches_of_one(n_rows, batch_size, n_processes, seed):
    together = all_batches(n_rows, batch_size, n_processes, seed=seed)
    [alone] = all_batches(n_rows, batch_size * n_processes, 1, seed=seed)

    for number, (rows, share) in enumerate(alone):
        parts = [process[number] for process in together]
        assert np.concatenate([part[: s.n_counted] for part, s in parts]).tolist() == rows.tolist()
        assert all(len(part) == max(s.n_counted, 1) for part, s in parts)
        assert sum(s.weight for _, s in parts) == pytest.approx(n_processes)
        assert share.is_whole == (share.weight == 1)
    assert sorted(row for rows, _ in alone for row in rows) == list(range(n_rows))


@given(**SIZES)
def test_parts_of_an_epoch_have_equally_many_batches_and_every_row_counts_once(n_rows, batch_size, n_processes):
    processes = [SharedBatches(n_rows, batch_size, rank=r, n_processes=n_processes) for r in range(n_processes)]
    n_counted = np.zeros(n_processes, dtype=int)
    for number in range(len(processes[0])):
        for batches in processes:
            batches.in_parts = True
        shares = [batches.share(number) for batches in processes]
        assert [s.first for s in shares] == [0, *np.cumsum([s.n_counted for s in shares])[:-1]]
        assert {s.n_rows for s in shares} == {sum(s.n_counted for s in shares)}
        assert shares[0].n_rows > 0
        n_counted += [s.n_counted for s in shares]

    assert n_counted.sum() == n_rows
    assert n_counted.max() - n_counted.min() <= 1


def test_small_sets_are_gone_through_more_than_once_and_evenly():
    [[*batches]] = all_batches(7, 4, 1, seed=0, n_draws=20)

    rows = np.concatenate([rows for rows, _ in batches])

    assert len(rows) == 20
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))


def test_an_epoch_goes_on_where_it_was_left_and_the_next_one_is_whole():
    whole, resumed = (SharedBatches(30, 4, seed=5, rank=0, n_processes=1) for _ in range(2))
    whole.set_epoch(2)
    resumed.resume(2, 3)

    assert [rows.tolist() for rows in resumed] == [rows.tolist() for rows in whole][3:]
    for batches in (whole, resumed):
        batches.set_epoch(3)
    assert [rows.tolist() for rows in resumed] == [rows.tolist() for rows in whole]


@pytest.mark.parametrize("draw", [draw_normal, draw_uniform, lambda shape, g: draw_integers(1000, shape, g)])
def test_what_is_drawn_for_a_row_does_not_depend_on_who_draws_it(draw):
    whole = draw((10, 3), SharedGenerator().manual_seed(0))
    parts, states = [], []
    for rank in range(3):
        generator = SharedGenerator().manual_seed(0)
        share = Share.of(10, rank, 3)
        generator.rows, generator.n_rows = share.rows, share.n_rows
        parts.append(draw((share.n_counted, 3), generator))
        states.append(generator.get_state())

    assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(state, states[0]) for state in states)  # so that one state can be kept for all


def test_sums_of_losses_outlive_a_checkpoint():
    whole, first, second = EpochMeans(), EpochMeans(), EpochMeans()
    batches = [({"loss": torch.tensor(value)}, n) for value, n in ((1.0, 5), (4.0, 2), (9.0, 3))]
    for losses, n in batches:
        whole.add(losses, n)
    first.add(*batches[0])
    second.load_state_dict(first.state_dict())
    for losses, n in batches[1:]:
        second.add(losses, n)

    assert whole.compute() == second.compute() == {"loss": torch.tensor(4.0)}
    assert whole.compute() == {}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write 33 cells in two files; a cell's only count is its number."""
    folder = tmp_path_factory.mktemp("files")
    for name, numbers in (("a", range(20)), ("b", range(20, 33))):
        x = np.array([[number, 1] for number in numbers], dtype=np.float32)
        obs = pd.DataFrame({"kind": pd.Categorical(["x", "y"] * len(x))[: len(x)]}, index=[f"c{n}" for n in numbers])
        anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=["g", "h"])).write_h5ad(folder / f"{name}.h5ad")
    return CellFiles([folder / "a.h5ad", folder / "b.h5ad"], condition_keys=["kind"])


@pytest.mark.parametrize("n_processes", [1, 2, 3])
@pytest.mark.parametrize("seed", [None, 4])
def test_processes_share_the_cells_of_files_and_go_on_in_the_middle(files, n_processes, seed):
    indices = np.arange(1, 33)

    def read(rank, first_batch=0):
        batches = SharedBatches(len(indices), 5, seed=seed, rank=rank, n_processes=n_processes)
        loader = files.loader(indices, 5, batches=batches)
        batches.resume(1, first_batch)
        return loader, [(batch["X"][:, 0].tolist(), batches.share(n)) for n, batch in enumerate(loader, first_batch)]

    counted = []
    for rank in range(n_processes):
        loader, batches = read(rank)
        assert len(batches) == len(loader) == -(-len(indices) // (5 * n_processes))
        assert all(len(rows) == max(share.n_counted, 1) for rows, share in batches)
        assert [rows for rows, _ in read(rank, 2)[1]] == [rows for rows, _ in batches[2:]]
        counted += [row for rows, share in batches for row in rows[: share.n_counted]]

    assert sorted(counted) == indices.tolist()
    assert (counted == indices.tolist()) == (seed is None)


def test_the_order_of_cells_of_files_depends_on_the_number_of_processes_and_that_of_others_does_not(files):
    def depends_on(n_processes, cells=None):
        batches = SharedBatches(32, 5, seed=0, rank=0, n_processes=n_processes)
        if cells is not None:
            cells.loader(np.arange(32), 5, batches=batches)
        return batches.order_depends_on

    assert depends_on(1) == depends_on(2)
    assert depends_on(1, files) != depends_on(2, files)
    assert depends_on(1, files) != depends_on(1)
