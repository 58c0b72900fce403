import math

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from scgen_diffusion.nn import TimeEmbedding, patch_position_embedding, position_embedding


@pytest.mark.parametrize(("n_positions", "width"), [(4, 8), (1, 2), (16, 256)])
def test_position_embedding_is_sines_then_cosines_of_falling_frequency(n_positions, width):
    expected = np.empty((n_positions, width))
    for position in range(n_positions):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            expected[position, i], expected[position, width // 2 + i] = math.sin(angle), math.cos(angle)
    # Angles up to 15 in single precision.
    np.testing.assert_allclose(position_embedding(n_positions, width).numpy(), expected, rtol=0, atol=3e-6)


def test_positions_differ():
    distances = torch.cdist(position_embedding(16, 8), position_embedding(16, 8))
    assert (distances + torch.eye(16) > 0.1).all()


def test_patch_positions_are_a_constant_half_and_positions_of_half_the_width():
    embedding = patch_position_embedding(5, 12)
    assert (embedding[:, :3] == 0).all()
    assert (embedding[:, 3:6] == 1).all()
    assert torch.equal(embedding[:, 6:], position_embedding(5, 6))


def test_a_width_that_is_no_multiple_of_four_has_no_patch_positions():
    with pytest.raises(ValueError, match="multiple of 4, but found 6"):
        patch_position_embedding(5, 6)


def test_time_embedding_follows_its_formula():
    torch.manual_seed(0)
    embedding = TimeEmbedding(6)
    t = torch.tensor([0.0, 0.25, 1.0])
    frequencies = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    angles = t.double()[:, None] * frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    first, _, second = embedding.network
    expected = silu(features @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(embedding(t), expected, rtol=1e-4, atol=1e-5)  # single precision, sums of 256 terms


def test_time_embedding_separates_close_times():
    torch.manual_seed(0)
    near, far = TimeEmbedding(16)(torch.tensor([0.50, 0.52])), TimeEmbedding(16)(torch.tensor([0.5, 0.5]))
    assert not torch.allclose(near[0], near[1], atol=1e-5)
    torch.testing.assert_close(far[0], far[1])
