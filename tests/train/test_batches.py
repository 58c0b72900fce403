"""What a stage reads: which cells are in which batch, tables of latents, and cells in the device's memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.perturbation import PerturbationGroup, perturbation_groups
from scgen_diffusion.train import CellData, EpochBatches, LatentData, PerturbationFlowRecipe, PriorRecipe, TensorTable
from scgen_diffusion.train import _stage_data as cells_module
from scgen_diffusion.train._initialise import standardise_latents
from scgen_diffusion.train._perturbation_stage import GroupBatches


def epoch(batches, number):
    batches.set_epoch(number)
    return [batch.tolist() for batch in batches]


@given(n_rows=st.integers(1, 60), size=st.integers(1, 20), n_processes=st.integers(1, 4), seed=st.none() | st.just(3))
def test_an_epoch_has_every_cell_and_processes_take_equally_many_steps(n_rows, size, n_processes, seed):
    options = {"seed": seed, "n_processes": n_processes}
    shares = [epoch(EpochBatches(n_rows, size, rank=rank, **options), 2) for rank in range(n_processes)]

    assert len({tuple(map(len, share)) for share in shares}) == 1
    read = [row for share in shares for batch in share for row in batch]
    assert set(read) == set(range(n_rows))
    assert len(read) - n_rows < n_processes  # some cells come twice, so that all ranks have equal numbers


@given(n_rows=st.integers(1, 500), size=st.integers(1, 64), n_processes=st.integers(1, 4), smallest=st.integers(0, 9))
def test_several_processes_take_the_steps_of_one(n_rows, size, n_processes, smallest):
    size *= n_processes  # a share that is no whole number is rounded up
    one = EpochBatches(n_rows, size, seed=0, smallest_epoch=smallest)
    share = EpochBatches(n_rows, size, seed=0, smallest_epoch=smallest, n_processes=n_processes)

    assert len(share) == len(one)
    assert max(map(len, epoch(share, 0))) <= size // n_processes


def test_the_order_depends_on_seed_and_epoch():
    orders = {str(epoch(EpochBatches(20, 6, seed=seed), number)) for seed in (0, 1) for number in (0, 1)}

    assert len(orders) == 4
    assert str(epoch(EpochBatches(20, 6, seed=1), 1)) in orders
    assert epoch(EpochBatches(5, 2), 3) == [[0, 1], [2, 3], [4]]


def test_small_sets_are_gone_through_more_than_once_in_an_epoch():
    batches = epoch(EpochBatches(5, 4, seed=0, smallest_epoch=4), 0)

    assert list(map(len, batches)) == [4, 4, 4, 4]
    rows = np.concatenate(batches)
    assert all(sorted(rows[start : start + 5]) == list(range(5)) for start in (0, 5, 10))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_pass_over_many_cells_is_cut_into_epochs_of_equal_length(monkeypatch, n_processes):
    monkeypatch.setattr(cells_module, "LONGEST_EPOCH", 4)
    batches = EpochBatches(50, 3, seed=0, n_processes=n_processes)

    lengths = {len(epoch(batches, number)) for number in range(2 * batches.epochs_per_pass)}
    first, second = ([row for n in range(5) for batch in epoch(batches, 5 * k + n) for row in batch] for k in range(2))

    assert batches.epochs_per_pass == 5
    assert lengths == {len(batches)} == {-(-50 // n_processes // batches.batch_size) // 5}
    assert len(set(first)) == len(first) >= 45 / n_processes - 15  # each once; few wait for another pass
    assert first != second


def test_groups_hold_perturbed_cells_beside_their_own_controls():
    rows = np.arange(10, 16)
    perturbation, others = np.array([0, 1, 0, 1, 2, 1])[:, None], np.array([0, 0, 1, 1, 1, 2])[:, None]

    groups = perturbation_groups(rows, perturbation[:, 0] == 0, perturbation, others)

    found = [(group.control.tolist(), group.perturbed.tolist()) for group in groups]
    assert found == [([10], [11]), ([12], [13]), ([12], [14])]  # the last cell has no control


def test_pairs_are_drawn_within_groups_by_seed_epoch_and_process():
    groups = [
        PerturbationGroup(np.arange(3), np.arange(10, 12)),
        PerturbationGroup(np.arange(20, 25), np.arange(30, 39)),
    ]
    recipe = PerturbationFlowRecipe(batch_size=8, n_paired=4)

    drawn = {}
    for key in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)):
        batches = GroupBatches(groups, recipe, 3, seed=key[0], rank=key[2])
        drawn[key] = str(epoch(batches, key[1]))
        assert drawn[key] == str(epoch(batches, key[1]))
        assert len(list(batches)) == len(batches) == 3
        for control, perturbed in batches:
            assert ((control < 10) == (perturbed < 20)).all()
            assert len(set(control[:3])) == len(set(perturbed[:2])) + 1 or control[0] >= 20
    assert len(set(drawn.values())) == 4


N = 25


def attached(data, device="cpu"):
    """Attach data to a trainer."""
    recipe, strategy = PriorRecipe(batch_size=3, smallest_epoch=0), SimpleNamespace(root_device=torch.device(device))
    stage = SimpleNamespace(seed=0, n_epochs_done=0, recipe=recipe)
    data.trainer = SimpleNamespace(lightning_module=stage, strategy=strategy, global_rank=0, world_size=1)
    return data


def test_the_training_loader_reads_every_cell_once_and_shuffles_and_the_validation_loader_does_not():
    rows = {"mean": torch.rand(N, 2, 3), "condition": torch.arange(N)[:, None], "log_total": torch.rand(N)}
    cache = TensorTable(N, ({name: array[i : i + 7] for name, array in rows.items()} for i in range(0, N, 7)))
    train = np.array([3, 1, 4, 15, 9, 2, 6])
    data = attached(LatentData(cache, train, np.array([24, 21, 23])))
    loader = data.train_dataloader()

    first, again = (torch.cat([batch["log_total"] for batch in loader]) for _ in range(2))
    loader.sampler.set_epoch(1)
    second = torch.cat([batch["log_total"] for batch in loader])

    assert sorted(first.tolist()) == sorted(rows["log_total"][train].tolist())
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    for name, array in rows.items():
        validation = torch.cat([batch[name] for batch in data.val_dataloader()])
        assert validation.dtype == array.dtype
        assert torch.equal(validation, array[[24, 21, 23]])


def test_the_scale_of_the_prior_is_that_of_draws_from_the_posteriors():
    generator = torch.Generator().manual_seed(0)
    mean, std = 3 + 2 * torch.randn(N, 2, 3, generator=generator), 0.5 + torch.rand(N, 2, 3, generator=generator)
    cache = TensorTable(N, [{"mean": mean, "std": std}])
    module = SimpleNamespace(latent_mean=torch.zeros(2, 3), latent_std=torch.zeros(2, 3))

    standardise_latents(module, cache, np.arange(N))

    torch.testing.assert_close(module.latent_mean, mean.mean(0))
    # the variance of a mixture: that of its means, and the mean variance
    torch.testing.assert_close(module.latent_std, (mean.var(0, correction=0) + std.square().mean(0)).sqrt())


N_CELLS, N_GENES = 11, 6


def expression():
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((N_CELLS, N_GENES), 0.7), generator=generator)
    x[3] = 0  # a cell without counts
    return x


def loader(indices, batch_size, *, batches=None):
    data = {"X": expression()[indices], "conditions": torch.arange(N_CELLS)[indices, None]}
    return [{name: x[i : i + batch_size] for name, x in data.items()} for i in range(0, len(indices), batch_size)]


@pytest.mark.parametrize(("room", "fits"), [(1e9, True), (0.0, False), (191.0, False)])
def test_a_stage_keeps_its_training_cells_on_the_device_where_there_is_room(monkeypatch, room, fits):
    monkeypatch.setattr(cells_module, "memory_for_cells", lambda device: room)
    data = attached(
        CellData(SimpleNamespace(loader=loader, var=range(N_GENES)), np.arange(0, 8), np.arange(8, N_CELLS))
    )
    data.setup("fit")

    batches = list(data.train_dataloader())

    assert (data._on_gpu is not None) == fits
    numbers = torch.cat([batch["conditions"][:, 0] for batch in batches])
    assert sorted(numbers.tolist()) == list(range(8))
    assert torch.equal(torch.cat([batch["X"] for batch in batches]), expression()[numbers])
