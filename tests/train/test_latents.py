"""Caches of latents hold the same in memory and in a file, and loaders read every row."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgen_diffusion.train import LatentCache, LatentData, counts_per_gene
from scgen_diffusion.train._initialise import standardise_latents

N = 25
SHAPES = {"mean": (2, 3), "condition": (2,), "log_total": ()}


def rows():
    generator = torch.Generator().manual_seed(0)
    return {
        "mean": torch.randn(N, 2, 3, generator=generator),
        "condition": torch.randint(5, (N, 2), generator=generator),
        "log_total": torch.randn(N, generator=generator),
    }


def batches(size):
    data = rows()
    return ({name: array[i : i + size] for name, array in data.items()} for i in range(0, N, size))


def make_cache(**kwargs):
    return LatentCache(N, SHAPES, {"condition": torch.long}, **kwargs).fill(batches(7))


@pytest.fixture(params=[1 << 30, 0], ids=["memory", "file"])
def memory_limit(request):
    return request.param


@pytest.fixture
def cache(memory_limit):
    return make_cache(memory_limit=memory_limit)


def loaders(*arguments, device="cpu"):
    data = LatentData(*arguments)
    stage, strategy = SimpleNamespace(seed=0, n_epochs_done=0), SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(lightning_module=stage, strategy=strategy, global_rank=0, world_size=1)
    return data


def test_a_loader_that_drops_cells_is_refused():
    """Otherwise the last rows would hold whatever was in memory."""
    with pytest.raises(ValueError, match="cells"):
        LatentCache(N, SHAPES, {"condition": torch.long}, memory_limit=0).fill(
            {name: array[: N - 1] for name, array in batch.items()} for batch in batches(N)
        )


def test_written_values_are_read_back(cache):
    picked = [24, 0, 13, 13]

    found = cache[picked]

    assert len(cache) == N
    for name, array in rows().items():
        assert found[name].dtype == array.dtype
        assert torch.equal(found[name], array[picked])


def test_a_memory_mapped_file_goes_with_its_cache():
    cache = make_cache(memory_limit=0)
    folder = Path(cache._folder.name)
    assert any(folder.iterdir())

    del cache

    assert not folder.exists()


def test_the_training_loader_reads_every_training_cell_once(cache):
    train, validation = np.array([3, 1, 4, 15, 9, 2, 6]), np.array([5, 8])
    data = loaders(cache, train, validation, 3)

    read = torch.cat([batch["log_total"] for batch in data.train_dataloader()])

    assert sorted(read.tolist()) == sorted(rows()["log_total"][train].tolist())


def test_the_training_loader_shuffles_and_the_validation_loader_does_not(cache):
    data = loaders(cache, np.arange(20), np.array([24, 21, 23]), 30)
    loader = data.train_dataloader()

    first, again = (next(iter(loader))["log_total"] for _ in range(2))
    loader.sampler.set_epoch(1)
    second = next(iter(loader))["log_total"]

    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    validation = next(iter(data.val_dataloader()))
    assert torch.equal(validation["mean"], rows()["mean"][[24, 21, 23]])


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [2] * 9), ("cuda", [16, 2])])
def test_a_gpu_validates_many_cells_at_once(cache, device, sizes):
    batches = loaders(cache, np.arange(5), np.arange(5, 23), 2, device=device).validation_batches()

    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_parts_of_a_cache_are_all_its_rows_and_memory_is_given_back(cache, monkeypatch):
    monkeypatch.setattr("scgen_diffusion.train._latents.RELEASE_AFTER", 1)

    means = torch.cat([part["mean"] for part in cache.parts(np.arange(N), 4)])

    assert torch.equal(means, rows()["mean"])  # also after what was mapped was let go
    assert torch.equal(cache[[3, 1]]["mean"], rows()["mean"][[3, 1]])


def test_a_disk_without_room_is_noticed_before_anything_is_written(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)

    with pytest.raises(OSError, match="TMPDIR"):
        make_cache(memory_limit=0)


@pytest.mark.parametrize("n_training_cells", [7, 700, 2500])
def test_counts_per_gene_are_those_of_the_training_cells(n_training_cells):
    generator = np.random.default_rng(0)
    counts = torch.from_numpy(generator.poisson(3.0, (3000, 4))).float()
    indices = np.sort(generator.permutation(3000)[:n_training_cells])

    def loader(rows, batch_size):
        return ({"X": counts[part]} for part in np.array_split(rows, 3))

    found = counts_per_gene(SimpleNamespace(loader=loader), indices)

    expected = float(counts[indices].sum(0).mean())
    assert found == pytest.approx(expected, rel=0.03 if n_training_cells > 1024 else 1e-6)


def test_the_scale_of_the_prior_is_that_of_draws_from_the_posteriors(memory_limit):
    generator, found = torch.Generator().manual_seed(0), []
    mean, std = 3 + 2 * torch.randn(N, 2, 3, generator=generator), 0.5 + torch.rand(N, 2, 3, generator=generator)
    cache = LatentCache(N, {"mean": (2, 3), "std": (2, 3)}, {}, memory_limit=memory_limit).fill(
        [{"mean": mean, "std": std}]
    )

    standardise_latents(
        SimpleNamespace(standardise_latents=lambda *moments: found.extend(moments)), cache, np.arange(N)
    )

    torch.testing.assert_close(found[0], mean.mean(0))
    # the variance of a mixture: that of its means, and the mean variance
    torch.testing.assert_close(found[1], (mean.var(0, correction=0) + std.square().mean(0)).sqrt())
