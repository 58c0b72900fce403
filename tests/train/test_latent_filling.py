"""Several processes encode their shares of the cells, and all get all latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from scgen_diffusion.train import _latent_filling, cache_latents

N = 23
SHAPES = {"mean": (2, 3), "condition": (0,), "log_total": ()}


def encode_into(log):
    """Encode a cell as its number, and take note of which were asked for."""

    def encode(indices, batch_size):
        indices = np.arange(N) if indices is None else indices
        log.append(indices.tolist())
        for start in range(0, len(indices), batch_size):
            rows = torch.from_numpy(indices[start : start + batch_size])
            yield {
                "mean": rows[:, None, None].expand(-1, 2, 3).float(),
                "condition": torch.zeros(len(rows), 0, dtype=torch.long),
                "log_total": rows.float(),
            }

    return encode


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "file"])
@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_every_cell_is_encoded_once_and_read_by_all(run_together, monkeypatch, n_processes, in_memory):
    monkeypatch.setattr(_latent_filling, "BATCH_SIZE", 4)

    def work(rank):
        if n_processes > 1:
            distributed.init_process_group("gloo", rank=rank, world_size=n_processes)
        log, limit = [], 1 << 30 if in_memory else 0
        cache = cache_latents(N, SHAPES, {"condition": torch.long}, encode_into(log), memory_limit=limit)
        folder = cache.folder
        found = {name: array.clone().numpy() for name, array in cache.arrays.items()}
        if n_processes > 1:
            distributed.barrier()
        del cache
        if n_processes > 1:
            distributed.barrier()
        return log, found, folder, folder is not None and Path(folder).exists()

    results = run_together(work, n_processes)

    encoded = [row for log, *_ in results for rows in log for row in rows]
    assert encoded == list(range(N))
    assert {folder is None for _, _, folder, _ in results} == {in_memory}
    assert len({folder for _, _, folder, _ in results}) == 1  # the processes of a machine share one file
    assert not any(left for *_, left in results)
    for _, found, _, _ in results:
        assert found["mean"].shape == (N, 2, 3)
        assert (found["mean"] == np.arange(N)[:, None, None]).all()
        assert (found["log_total"] == np.arange(N)).all()
        assert found["condition"].shape == (N, 0)


def test_processes_that_do_not_see_the_file_keep_their_own(run_together, monkeypatch):
    monkeypatch.setattr(_latent_filling, "BATCH_SIZE", 4)

    def work(rank):
        distributed.init_process_group("gloo", rank=rank, world_size=2)
        monkeypatch.setattr(_latent_filling.Path, "exists", lambda self: False)
        cache = cache_latents(N, SHAPES, {"condition": torch.long}, encode_into([]), memory_limit=0)
        return cache.folder, cache.arrays["log_total"].tolist()

    (first, rows), (second, others) = run_together(work)

    assert first != second
    assert rows == others == list(range(N))


@pytest.mark.parametrize("rank_without_room", [0, 1])
def test_a_process_that_has_no_room_for_latents_ends_all(run_together, monkeypatch, rank_without_room):
    def work(rank):
        distributed.init_process_group("gloo", rank=rank, world_size=2)

        def fail(*_, **__):
            raise OSError("No room for latents")

        if rank == rank_without_room:
            monkeypatch.setattr(_latent_filling, "LatentCache", fail)
        try:
            cache_latents(N, SHAPES, {"condition": torch.long}, encode_into([]), memory_limit=0)
        except OSError as error:
            return str(error)

    messages = run_together(work)

    assert messages[rank_without_room] == "No room for latents"
    assert (
        messages[1 - rank_without_room]
        == f"Process {rank_without_room}, which trains with this one, failed: No room for latents"
    )
