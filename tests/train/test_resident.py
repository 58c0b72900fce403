"""Cells in a device's memory come out as they went in. The device is the CPU here, whose operators are the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgen_diffusion.train import CellData
from scgen_diffusion.train import _cells as cells_module
from scgen_diffusion.train._cells import BYTES_PER_COUNT, ResidentCells

N_CELLS, N_GENES, CPU = 11, 6, torch.device("cpu")


def expression():
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((N_CELLS, N_GENES), 0.7), generator=generator)
    x[3] = 0  # a cell without counts
    return x


def loader(indices, batch_size, *, batches=None):
    data = {"X": expression()[indices], "conditions": torch.arange(N_CELLS)[indices, None]}
    return [{name: x[i : i + batch_size] for name, x in data.items()} for i in range(0, len(indices), batch_size)]


def test_any_rows_are_those_that_were_read_if_there_is_memory_for_them():
    batches, needed = loader(np.arange(N_CELLS), 4), BYTES_PER_COUNT * int((expression() > 0).sum())
    resident = ResidentCells.of(batches, CPU, n_cells=N_CELLS, limit=needed)

    for rows in ([0], [3], [5, 3, 0, 10], list(range(N_CELLS)), [2, 2]):
        assert torch.equal(resident[rows]["X"], expression()[rows])
        assert resident[rows]["conditions"][:, 0].tolist() == rows
    assert ResidentCells.of(batches, CPU, n_cells=N_CELLS, limit=needed - 1) is None


def test_cells_are_not_all_read_to_learn_that_they_need_too_much():
    batches = iter(loader(np.arange(N_CELLS), 4))

    assert ResidentCells.of(batches, CPU, n_cells=10**6, limit=1e5) is None
    assert len(list(batches)) == 2  # of three


@pytest.mark.parametrize(("room", "is_resident"), [(1e9, True), (0.0, False), (1.0, False)])
def test_a_stage_keeps_its_training_cells_on_the_device_where_there_is_room(monkeypatch, room, is_resident):
    monkeypatch.setattr(cells_module, "memory_for_cells", lambda device: room)
    data = CellData(SimpleNamespace(loader=loader), np.arange(0, 8), np.arange(8, N_CELLS), 3)
    stage = SimpleNamespace(seed=0, n_epochs_done=0)
    where = {"strategy": SimpleNamespace(root_device=CPU), "global_rank": 0, "world_size": 1}
    data.trainer = SimpleNamespace(lightning_module=stage, **where)
    data.setup("fit")

    batches = list(data.train_dataloader())

    assert (data._resident is not None) == is_resident
    numbers = torch.cat([batch["conditions"][:, 0] for batch in batches])
    assert sorted(numbers.tolist()) == list(range(8))
    assert torch.equal(torch.cat([batch["X"] for batch in batches]), expression()[numbers])
