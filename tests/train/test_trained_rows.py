"""Training rows of tables, while the rest stays bit for bit."""

from __future__ import annotations

import torch
from torch import nn

from scgen_diffusion.train import TrainedRows


def test_other_rows_and_parameters_stay_under_weight_decay():
    torch.manual_seed(0)
    table, whole, other = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
    before = [parameter.detach().clone() for parameter in (table, other, whole)]
    rows = TrainedRows({table: torch.tensor([[False], [True], [False], [False]]), whole: None})
    groups = rows.of([{"params": [table, whole, other]}, {"params": [other], "lr": 1.0}])
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)

    handles = rows.mask_gradients()
    for _ in range(20):
        optimizer.zero_grad()
        sum((parameter - 3).square().sum() for parameter in (table, whole, other)).backward()
        optimizer.step()
    for handle in handles:
        handle.remove()

    assert torch.equal(table[[0, 2, 3]], before[0][[0, 2, 3]])
    assert torch.equal(other, before[1])
    assert (table[1] != before[0][1]).all()
    assert (whole != before[2]).all()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    table.square().sum().backward()
    assert (table.grad[0] != 0).all()


def test_groups_keep_their_own_options():
    one, other = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(1))
    mask = torch.ones(2, 1, dtype=torch.bool)

    groups = TrainedRows({one: mask, other: None}).of([{"params": [one, other], "lr": 2.0, "weight_decay": 3.0}])

    assert [(group["params"], group["lr"], group["weight_decay"]) for group in groups] == [
        ([other], 2.0, 3.0),
        ([one], 2.0, 0.0),
    ]
