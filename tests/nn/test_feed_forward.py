import pytest
import torch
from torch.nn.functional import gelu, silu

from scgen_diffusion.nn import MLP, SwiGLU


def test_swiglu_follows_its_formula():
    torch.manual_seed(0)
    network, x = SwiGLU(6, 10).double(), torch.randn(4, 3, 6, dtype=torch.float64)
    w1, w2, w3 = network.gate.weight, network.value.weight, network.project_out.weight
    expected = (silu(x @ w1.T) * (x @ w2.T)) @ w3.T
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


def test_swiglu_has_no_bias():
    assert (SwiGLU(6)(torch.zeros(2, 6)) == 0).all()


# ceil(int(2 * 4 * width / 3) / 4) * 4, as published.
@pytest.mark.parametrize(("width", "hidden"), [(32, 88), (16, 44), (24, 64), (256, 684), (1, 4)])
def test_default_inner_width_is_the_published_one(width, hidden):
    assert SwiGLU(width).gate.out_features == hidden


def test_mlp_follows_its_formula():
    torch.manual_seed(0)
    network, x = MLP(6, 10).double(), torch.randn(4, 3, 6, dtype=torch.float64)
    into, out = network.project_in, network.project_out
    expected = gelu(x @ into.weight.T + into.bias, approximate="tanh") @ out.weight.T + out.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


def test_mlp_is_four_times_as_wide_inside():
    assert MLP(6).project_in.out_features == 24
