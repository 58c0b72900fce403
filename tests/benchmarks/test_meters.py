"""What a step computes is counted as closed forms say."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention

meters = pytest.importorskip("benchmarks.speed.meters")

N, WIDTH, HIDDEN = 8, 16, 32


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


def test_forward_flops_are_two_per_weight_and_cell(network):
    x = torch.randn(N, WIDTH)
    with torch.inference_mode():
        assert meters.count_flops(lambda: network(x)) == 2 * N * 2 * WIDTH * HIDDEN


def test_a_training_step_takes_three_products_per_layer_but_the_first_takes_two(network):
    x = torch.randn(N, WIDTH)
    flops = meters.count_flops(lambda: mse_loss(network(x), x).backward())
    layer = 2 * N * WIDTH * HIDDEN
    assert flops == 2 * layer + 3 * layer  # no gradient of the cells


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
    assert meters.count_flops(step) == 2 * product + (5 * product if backward else 0)


def test_the_rate_is_that_of_a_computer(monkeypatch):
    monkeypatch.setattr(meters, "MATRIX_SIDES", {"cpu": 256})
    assert 1e8 < meters.matrix_rate("cpu", "float32") < 1e14
