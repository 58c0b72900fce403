"""Caches of latents hold the same in memory and in a file, and loaders read every row."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from unittest.mock import Mock

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


def make_cache(memory_limit, n_rows=N):
    batches = ({name: array[i : min(i + 7, n_rows)] for name, array in rows().items()} for i in range(0, n_rows, 7))
    return LatentCache(N, SHAPES, {"condition": torch.long}, memory_limit=memory_limit).fill(batches)


@pytest.fixture(params=[1 << 30, 0], ids=["memory", "file"])
def cache(request):
    return make_cache(request.param)


def loaders(*arguments, device="cpu"):
    data = LatentData(*arguments)
    stage, strategy = SimpleNamespace(seed=0, n_epochs_done=0), SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(lightning_module=stage, strategy=strategy, global_rank=0, world_size=1)
    return data


def test_written_values_are_read_back(cache):
    picked = [24, 0, 13, 13]

    found = cache[picked]

    assert len(cache) == N
    for name, array in rows().items():
        assert found[name].dtype == array.dtype
        assert torch.equal(found[name], array[picked])


def test_the_training_loader_reads_every_cell_once_and_shuffles_and_the_validation_loader_does_not(cache):
    train = np.array([3, 1, 4, 15, 9, 2, 6])
    data = loaders(cache, train, np.array([24, 21, 23]), 3)
    loader = data.train_dataloader()

    first, again = (torch.cat([batch["log_total"] for batch in loader]) for _ in range(2))
    loader.sampler.set_epoch(1)
    second = torch.cat([batch["log_total"] for batch in loader])

    assert sorted(first.tolist()) == sorted(rows()["log_total"][train].tolist())
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    validation = torch.cat([batch["mean"] for batch in data.val_dataloader()])
    assert torch.equal(validation, rows()["mean"][[24, 21, 23]])


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [2] * 9), ("cuda", [16, 2])])
def test_a_gpu_validates_many_cells_at_once(cache, device, sizes):
    batches = loaders(cache, np.arange(5), np.arange(5, 23), 2, device=device).validation_batches()

    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_parts_of_a_cache_are_all_its_rows(cache):
    means = torch.cat([part["mean"] for part in cache.parts(np.arange(N), 4)])

    assert torch.equal(means, rows()["mean"])


def test_a_disk_without_room_is_noticed_before_anything_is_written(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=full), raising=False)

    with pytest.raises(OSError, match="TMPDIR"):
        make_cache(0)


@pytest.mark.parametrize("n_training_cells", [700, 2500])
def test_counts_per_gene_are_those_of_the_training_cells(n_training_cells):
    generator = np.random.default_rng(0)
    counts = torch.from_numpy(generator.poisson(3.0, (3000, 4))).float()
    indices = np.sort(generator.permutation(3000)[:n_training_cells])

    def loader(rows, batch_size):
        return ({"X": counts[part]} for part in np.array_split(rows, 3))

    found = counts_per_gene(SimpleNamespace(loader=loader), indices)

    expected = float(counts[indices].sum(0).mean())
    assert found == pytest.approx(expected, rel=0.03 if n_training_cells > 1024 else 1e-6)


@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
def test_the_scale_of_the_prior_is_that_of_draws_from_the_posteriors(memory_limit):
    generator, found = torch.Generator().manual_seed(0), []
    mean, std = 3 + 2 * torch.randn(N, 2, 3, generator=generator), 0.5 + torch.rand(N, 2, 3, generator=generator)
    cache = LatentCache(N, {"mean": (2, 3), "std": (2, 3)}, {}, memory_limit=memory_limit)
    module = SimpleNamespace(standardise_latents=lambda *moments: found.extend(moments))

    standardise_latents(module, cache.fill([{"mean": mean, "std": std}]), np.arange(N))

    torch.testing.assert_close(found[0], mean.mean(0))
    # the variance of a mixture: that of its means, and the mean variance
    torch.testing.assert_close(found[1], (mean.var(0, correction=0) + std.square().mean(0)).sqrt())
