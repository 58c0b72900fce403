"""Masked diffusion of counts: the path, unmasking, and its inversion, against closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

from scgen_diffusion.diffusion import Denoiser, Generators, Masking, UnmaskingSampler, with_masked

PATH = Masking()
SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05])
N = 4000


def always(shares, path=PATH):
    """Return a denoiser that predicts the same shares for whatever is seen, and no dispersion."""
    prediction = torch.stack([shares.log(), torch.full_like(shares, 25.0)])
    return Denoiser(lambda x, t: prediction.expand(len(x), -1, -1), path)


def all_masked(n, total):
    return with_masked(torch.zeros(n, len(SHARES)), torch.full((n,), float(total)))


def generators(n=N, seed=0):
    return Generators(seed, range(n))


def test_training_times_cover_the_path_evenly():
    t = PATH.draw_times(50, torch.Generator().manual_seed(0), "cpu")

    assert (t.mul(50).floor().sort().values == torch.arange(50)).all()
    assert (t.diff() < 0).any()


@pytest.mark.parametrize("n_steps", [1, 7, 64])
def test_constant_shares_give_poisson_counts_in_any_number_of_steps(n_steps):
    cells = UnmaskingSampler()(always(SHARES), all_masked(N, 60), n_steps=n_steps, generators=generators())[:, :-1]

    torch.testing.assert_close(cells.mean(0), 60 * SHARES, rtol=0.03, atol=0.05)
    assert (cells == cells.round()).all()
    totals = cells.sum(1)
    assert totals.mean() == pytest.approx(60, abs=0.4)
    last_step = PATH.sigma(torch.tensor(1 - 1 / n_steps)).item()  # only its items may be too many or too few
    assert totals.var() == pytest.approx(60 * last_step, rel=0.15)


def test_samples_do_not_depend_on_the_others():
    few = UnmaskingSampler()(always(SHARES), all_masked(3, 100), n_steps=8, generators=generators(3))
    many = UnmaskingSampler()(always(SHARES), all_masked(40, 100), n_steps=8, generators=generators(40))

    assert torch.equal(few, many[:3])


@pytest.mark.parametrize(("path", "depth", "n_steps"), [(PATH, 100, 10), (Masking(resolution=3_000.0), 9_000, 64)])
def test_equal_predictions_return_the_same_items(path, depth, n_steps):
    """In single precision, the last step would leave 0.04 of the items of deep samples masked, and lose some."""
    denoiser = always(SHARES, path)
    x = torch.poisson(depth * torch.ones(400, len(SHARES)), torch.Generator().manual_seed(0))

    moved = UnmaskingSampler().invert(
        denoiser, denoiser, with_masked(x, torch.zeros(400)), n_steps=n_steps, generators=generators(400)
    )

    assert torch.equal(moved[:, :-1], x)


def test_items_of_one_distribution_become_those_of_the_other():
    new = SHARES.flip(0)
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.multinomial(200, SHARES / SHARES.sum(), N)).float()
    x = with_masked(counts, counts.sum(1))

    moved = UnmaskingSampler().invert(always(SHARES), always(new), x, n_steps=10, generators=generators())[:, :-1]

    torch.testing.assert_close(moved.mean(0), 200 * new, rtol=0.03, atol=0.2)
    assert stats.spearmanr(counts[:, 1] / counts[:, 2], moved[:, 1] / moved[:, 2]).statistic > 0.1  # residuals stay


def test_a_prediction_sees_its_own_items():
    x = with_masked(torch.tensor([[400.0, 0]]).repeat(200, 1), torch.full((200,), 400.0))
    first, second = always(torch.tensor([1, 1e-9])), always(torch.tensor([1e-9, 1]))
    loyal = Denoiser(lambda x, t: second.field(x, t) + 500 * x[:, None, :-1], PATH)  # to the first kind it sees

    assert not UnmaskingSampler().invert(first, loyal, x, generators=generators(200))[:, 0].any()


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="`n_steps`"):
        UnmaskingSampler()(always(SHARES), all_masked(2, 9), n_steps=0, generators=generators(2))
