"""Masked molecules: Bayes' rule for genes that the network knows nothing else about, its training, and its cells."""

import math

import pytest
import torch

from scgen_diffusion.diffusion import Denoiser, Generators, Masking, UnmaskingSampler, with_masked
from scgen_diffusion.module import MoleculeArchitecture, MoleculeModule
from scgen_diffusion.module._molecules import MoleculeNetwork, summarise_molecules

PATH = Masking()
SHARE = torch.tensor([0.02, 0.08, 0.2, 0.7])
THETA = torch.tensor([0.5, 3.0, 1.0, 200.0])


class Silent(torch.nn.Module):
    """A backbone that has learned nothing, and keeps what it was shown."""

    def forward(self, features, time, condition):
        self.shown = features, time, condition
        return torch.zeros(len(features), 2, features.shape[1])


def build(log_total=6.0):
    """Build a network for cells of this typical total."""
    network = MoleculeNetwork(Silent(), len(SHARE))
    network.start_from(SHARE, torch.tensor(log_total), torch.tensor(0.5))
    network.log_theta.data.copy_(THETA.log())
    return network


@pytest.fixture
def network():
    return build()


@pytest.mark.parametrize("total", [1_700, 30_000, 1_000_000])
def test_the_first_of_64_steps_unmasks_two_molecules_at_most_however_deep_the_cells_are(total):
    network, loaded = build(math.log(total)), build()
    assert total * network.path.alpha(torch.tensor(1 / 64)) < 2
    loaded.load_state_dict(network.state_dict())
    assert loaded.path == network.path


def probabilities(network, seen, masked=100.0):
    state = torch.tensor([[*seen, masked]])
    with torch.no_grad():
        return network(state, torch.tensor([0.5]), torch.zeros(1, 0))[0, 0].exp()


def test_seen_molecules_change_the_share_of_their_gene_by_bayes_rule(network):
    torch.testing.assert_close(probabilities(network, [0.0, 0, 0, 0]), SHARE)
    seen = torch.tensor([5.0, 0.0, 2.0, 13.0])
    posterior = SHARE * (THETA + seen) / (THETA + seen.sum() * SHARE)  # means of the Gamma posteriors

    torch.testing.assert_close(probabilities(network, seen.tolist()), posterior / posterior.sum())


@pytest.mark.parametrize("n_steps", [1, 4, 16, 64])
def test_independent_genes_come_out_negative_binomial_in_any_number_of_steps(n_steps):
    """Rare genes of one dispersion beside one that takes the rest, so that the number of masked ones hardly matters.

    Poisson steps would have the variance of the mean alone in one step, and four fifths of it in 16.
    """
    n, total, theta = 6000, 2000.0, 2.0
    share = torch.tensor([0.005] * 8 + [0.96])
    network = MoleculeNetwork(Silent(), len(share))
    network.start_from(share, torch.tensor(math.log(total)), torch.tensor(0.5))
    network.log_theta.data.copy_(torch.tensor([theta] * 8 + [math.exp(8)]).log())
    denoiser = Denoiser(lambda x, t: network(x, t, torch.zeros(len(x), 0)), network.path)

    with torch.no_grad():
        start = with_masked(torch.zeros(n, 9), torch.full((n,), total))
        cells = UnmaskingSampler()(denoiser, start, n_steps=n_steps, generators=Generators(0, range(n)))[:, :8]

    mean = total * share[:8]
    torch.testing.assert_close(cells.mean(0).mean(), mean.mean(), rtol=0.02, atol=0)
    torch.testing.assert_close(cells.var(0).mean(), (mean + mean.square() / theta).mean(), rtol=0.06, atol=0)


def test_the_backbone_sees_a_profile_a_timestep_and_the_total(network):
    network(torch.tensor([[1.0, 0, 0, 19, 380]]), torch.tensor([0.25]), torch.tensor([[2]]))

    features, time, condition = network.backbone.shown
    profile = (torch.tensor([1.0, 0, 0, 19]) * 1000 / 40).log1p()
    torch.testing.assert_close(features[0], profile - (1000 * SHARE).log1p())
    assert time.item() == 250
    torch.testing.assert_close(condition, torch.tensor([[2.0, (torch.tensor(400.0).log().item() - 6) / 0.5]]))


def test_the_loss_is_the_weighted_cross_entropy_of_masked_molecules(network):
    data, t = with_masked(torch.tensor([[3.0, 0, 1, 16]]), torch.tensor([20.0])), torch.tensor([0.9])
    seen = with_masked(torch.tensor([[2.0, 0, 0, 11]]), torch.tensor([20.0]))
    masked = (data - seen)[0, :-1]

    loss = network.loss(data, seen, t, torch.zeros(1, 0))

    expected = -(masked * probabilities(network, seen[0, :-1].tolist(), masked.sum().item()).log()).sum() / masked.sum()
    torch.testing.assert_close(loss[0], PATH.alpha_rate(t)[0].sqrt() * expected)
    nothing = torch.zeros(1, 5)  # no masked molecules
    assert network.loss(nothing, nothing, t, torch.zeros(1, 0)).tolist() == [0]


def test_a_summary_of_batches_is_that_of_all_cells():
    x = torch.poisson(torch.full((30, 5), 2.0), torch.Generator().manual_seed(0))
    x[:, 4] = 0

    (share, mean, std), totals = summarise_molecules(x.split(7)), x.sum(1).log()

    torch.testing.assert_close(share, (x.sum(0) + 0.5) / (x.sum() + 2.5))
    torch.testing.assert_close(mean, totals.mean())
    torch.testing.assert_close(std, totals.std(correction=0))


def module_of(n_genes, **changes):
    return MoleculeModule(n_genes, architecture=MoleculeArchitecture(**changes))


def test_each_molecule_is_seen_with_the_probability_of_the_time():
    module, counts = module_of(4), torch.tensor([[40.0, 10.0, 0.0, 1.0]]).repeat(8000, 1)

    drawn = module.draw_for_training(counts, torch.Generator().manual_seed(0), training=False)

    seen, share = drawn["x_t"][:, :-1], module.path.alpha(drawn["t"])[:, None]
    assert (drawn["x_t"].sum(1) == 51).all()
    assert (seen <= counts).all()
    z = (seen - counts * share)[:, [0, 1, 3]] / (counts * share * (1 - share))[:, [0, 1, 3]].sqrt()
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=0.06, rtol=0)
    torch.testing.assert_close(z[:, 0].var(), torch.tensor(1.0), atol=0, rtol=0.15)


def test_a_tenth_of_the_genes_is_hidden_and_the_total_is_vague_in_training_only(network):
    module, x, generator = module_of(50), torch.ones(400, 50), torch.Generator().manual_seed(0)

    drawn = module.draw_for_training(x, generator, training=True)

    assert drawn["shown"].float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert drawn["total_noise"].std().item() == pytest.approx(0.3, abs=0.03)
    assert not {"shown", "total_noise"} & {*module.draw_for_training(x, generator, training=False)}
    state = torch.tensor([[1.0, 0, 0, 19, 380]]), torch.tensor([0.25]), torch.zeros(1, 0)
    exact, vague = [(network(*state, total_noise=noise), network.backbone.shown[2].item())[1] for noise in (0.0, 0.2)]
    assert vague == pytest.approx(exact + 0.2)
