"""Means of an epoch's losses are those of all processes' cells, through interruptions."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from scgen_diffusion.train import EpochMeans


def test_processes_that_go_on_from_a_checkpoint_can_pool_again_before_they_add(run_together):
    """The first one alone has the sums of the checkpoint."""

    def work(rank):
        distributed.init_process_group("gloo", rank=rank, world_size=2)
        means = EpochMeans()
        means.load_state_dict({"sums": {"loss": torch.tensor(3.0)}, "n_cells": 2})
        means.pool()
        means.pool()
        means.add({"loss": torch.tensor(1.5)}, 1)
        return float(means.compute()["loss"])

    assert run_together(work) == [1.5, 1.5]


@pytest.mark.parametrize(("loss", "is_finite"), [(1.0, True), (torch.nan, False), (torch.inf, False)])
def test_sums_that_are_no_numbers_are_found(loss, is_finite):
    means = EpochMeans()
    means.add({"loss": torch.tensor(loss)}, 2)
    means.add({"loss": torch.tensor(1.0)}, 2)

    assert means.is_finite == is_finite
