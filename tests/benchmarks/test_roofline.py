"""The arithmetic limit: operators are counted as closed forms say."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention

roofline = pytest.importorskip("benchmarks.speed.roofline")

N, WIDTH, HIDDEN = 8, 16, 32
FLOAT = 4  # bytes


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


def test_forward_flops_are_two_per_weight_and_cell(network):
    x = torch.randn(N, WIDTH)
    with torch.inference_mode():
        assert roofline.count_work(lambda: network(x)).flops == 2 * N * 2 * WIDTH * HIDDEN


def test_a_training_step_takes_three_products_per_layer_but_the_first_takes_two(network):
    x = torch.randn(N, WIDTH)
    work = roofline.count_work(lambda: mse_loss(network(x), x).backward())
    layer = 2 * N * WIDTH * HIDDEN
    assert work.flops == 2 * layer + 3 * layer  # no gradient of the cells


@pytest.mark.parametrize("backward", [False, True])
def test_attention_is_counted_whatever_kernel_computes_it(backward):
    cells, heads, tokens, width = 2, 4, 64, 16
    q, k, v = (torch.randn(cells, heads, tokens, width, requires_grad=backward) for _ in range(3))
    product = 2 * cells * heads * tokens**2 * width

    def step():
        out = scaled_dot_product_attention(q, k, v)
        if backward:
            out.sum().backward()

    # backward: the weights again, and the gradients of weights, values, queries and keys
    assert roofline.count_work(step).flops == 2 * product + (5 * product if backward else 0)


def test_unfused_bytes_are_all_that_operators_read_and_write():
    a, b = torch.ones(100), torch.ones(100)
    assert roofline.count_work(lambda: (a + b).exp()).unfused_bytes == (3 + 2) * 100 * FLOAT


def test_least_bytes_are_what_was_there_before_read_once():
    a, b = torch.ones(100), torch.ones(100)
    assert roofline.count_work(lambda: ((a + b) * a).exp()).least_bytes == 2 * 100 * FLOAT


def test_what_is_changed_in_place_is_written_once_too():
    a, b = torch.ones(100), torch.ones(100)
    work = roofline.count_work(lambda: a.add_(b).mul_(2))
    assert work.least_bytes == (2 + 1) * 100 * FLOAT
    assert work.unfused_bytes == (3 + 2) * 100 * FLOAT


def test_views_cost_nothing_and_look_ups_what_they_find():
    table = torch.ones(1000, 10)
    rows = torch.tensor([3, 4])
    assert roofline.count_work(lambda: table.T.reshape(10, 1000)[:, :5]).unfused_bytes == 0
    found = 2 * 10 * FLOAT
    assert roofline.count_work(lambda: table[rows]).least_bytes == found + rows.nbytes


def test_an_optimiser_reads_and_writes_weights_and_both_moments(network):
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    n_bytes = sum(p.nbytes for p in network.parameters())
    x = torch.randn(N, WIDTH)
    network(x).sum().backward()
    optimizer.step()
    least = roofline.count_work(optimizer.step).least_bytes
    # gradients, weights and two moments are read and written (gradients by the schema: they may be rescaled); beside these, step numbers
    assert 8 * n_bytes <= least < 8.1 * n_bytes


def test_the_limit_is_set_by_what_takes_longer():
    rates = roofline.Rates({"float32": 10.0, "bf16": 100.0}, bytes_per_second=2.0)
    work = roofline.Work(flops=100, least_bytes=4, unfused_bytes=40)
    assert work.limit(rates) == 10
    assert work.limit(rates, dtype="bf16") == 2
    assert work.unfused_limit(rates) == 20


def test_rates_are_those_of_a_computer(monkeypatch):
    monkeypatch.setattr(roofline, "MATRIX_SIDES", {"cpu": 256})
    monkeypatch.setattr(roofline, "COPIED_NUMBERS", {"cpu": 1 << 20})
    rates = roofline.Rates.measure("cpu")
    assert 1e8 < rates.flops_per_second["float32"] < 1e14
    assert 1e8 < rates.bytes_per_second < 1e13
