"""What classes do to genes is learned from sums of counts: at the start, of rare classes, and where none has them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import TINY

from scgen_diffusion.diffusion import FLOW_SAMPLERS, Generators, Guidance
from scgen_diffusion.module import CONDITIONS, SCLDMArchitecture, SCLDMModule
from scgen_diffusion.nn import Classes
from scgen_diffusion.train._effects import correct_effects, expected_log_shares, fit_absent_effects, start_effects

N_TYPES, N_DONORS, N_GENES = 4, 6, 60
SAMPLER = replace(FLOW_SAMPLERS["midpoint"], default_n_steps=3)  # an untrained prior moves noise little


FEW = 9  # genes


def build(conditions=(Classes(2),)):
    torch.manual_seed(0)
    return SCLDMModule(FEW, conditions, architecture=SCLDMArchitecture(**TINY)).eval()


def cells_of(x, codes):
    """Cells ``(n, genes)`` with codes of their conditions, as training reads them."""

    def loader(rows, batch_size):
        yield {"X": x[rows], CONDITIONS: codes[rows]}

    return SimpleNamespace(codes=codes.numpy(), var=range(x.shape[1]), loader=loader)


def shares_of(module, condition, before=None):
    """Shares of genes with the effects of a condition; before: ``(genes,)``, by default equal."""
    before = torch.ones(FEW) if before is None else before
    outputs = module.add_condition_effects(condition, before.log()[None, :, None], torch.ones(1, 1))["outputs"]
    return outputs[0, :, 0].detach().softmax(0)


@pytest.mark.parametrize("n_rare", [5, 5000])
def test_effects_start_at_the_mean_profile_of_each_combination(n_rare):
    module = build((Classes(2), Classes(2)))
    condition = torch.tensor([[0, 0], [0, 1], [1, 0]])
    common = torch.full((FEW,), 5.0)
    rare, shifted = common.clone(), common.clone()
    rare[0], shifted[1] = 50, 20
    n_cells = torch.tensor([10_000, 10_000, n_rare])
    x = torch.stack([common, shifted, rare]).repeat_interleave(n_cells, 0)
    start_effects(module, cells_of(x, condition.repeat_interleave(n_cells, 0)), np.arange(len(x)))

    mean = x.sum(0) / x.sum()
    tolerance = 0.25 if n_rare == 5 else 0.02  # few cells: the effects shrink
    torch.testing.assert_close(
        shares_of(module, condition[2:], mean)[0], (rare / rare.sum())[0], atol=0, rtol=tolerance
    )
    torch.testing.assert_close(shares_of(module, module.null_condition[None], mean), mean, atol=0, rtol=0.02)
    both = shares_of(module, torch.tensor([[1, 1]]), mean)  # never seen: the effects of its keys add up
    assert both[:2].min() > 1.4 * both[2:].max()


def test_effects_that_training_missed_are_corrected():
    """Ten cells of the second class have a gene that the model gives to nobody, as if their counts were outliers."""
    module, rng = build(), np.random.default_rng(0)
    means = torch.full((FEW,), 60.0)
    module.start_from_means(means.scatter(0, torch.tensor([0]), 1e-4), torch.zeros(FEW))
    with torch.no_grad():
        module.likelihood.log_theta[:] = torch.tensor([-3.0] + (FEW - 1) * [3.0])  # no counts: any dispersion fits
    expected = means.repeat(10, 1)
    expected[:, 0] = 30
    theta = np.exp(module.likelihood.log_theta.detach().numpy())
    theta[0] = 5.0
    rare = torch.tensor(
        rng.poisson(expected.numpy() * rng.gamma(theta, 1 / theta, expected.shape)), dtype=torch.float32
    )

    codes = torch.tensor([[0], [1]]).repeat_interleave(torch.tensor([1000, 10]), 0)
    correct_effects(module, cells_of(torch.cat([means.repeat(1000, 1), rare]), codes), np.arange(1010))
    effects = module.condition_effects(torch.tensor([[0], [1], [2]])).detach()  # 2: no condition
    assert effects[1, 1:].abs().max() < 0.05  # the other genes were right
    assert effects[[0, 2]].abs().max() < 0.05  # and so were the other cells
    decoded = module.decode(
        torch.zeros(400, *module.latent_shape), torch.full((400, 1), 500.0), torch.ones(400, 1).long()
    )
    drawn = module.likelihood.sample(module.likelihood.parameters_per_cell(**decoded), Generators(0, range(400)))
    ours, real = drawn[:, 0] / drawn.sum(1), rare[:, 0] / rare.sum(1)
    torch.testing.assert_close(ours.mean(), real.mean(), atol=0, rtol=0.15)
    torch.testing.assert_close(ours.std(), real.std(), atol=0, rtol=0.3)


def simulate(n_cells, seed=0, depth=200):
    """Sums of counts of all combinations but some, to which effects of types and donors add up; and the true shares."""
    rng = np.random.default_rng(seed)
    types = rng.normal(0, 0.5, (N_TYPES, N_GENES))
    donors = np.where(rng.random((N_DONORS, N_GENES)) < 0.1, 1.0, 0.0)  # e-fold changes of a tenth of the genes
    codes = torch.cartesian_prod(torch.arange(N_TYPES), torch.arange(N_DONORS))
    logs = torch.from_numpy(types)[codes[:, 0]] + torch.from_numpy(donors)[codes[:, 1]]
    is_absent = (codes.sum(1) % 5) == 0
    shares = logs.softmax(1)
    means = shares[~is_absent] * depth * n_cells
    counts = rng.poisson(rng.gamma(2.0 * n_cells, means / (2.0 * n_cells)))  # of so many cells together
    return torch.from_numpy(counts), codes[~is_absent], codes[is_absent], shares[is_absent].log().float()


@pytest.mark.parametrize(("n_cells", "error", "share"), [(500, 0.1, 0.4), (10, 1.0, 0.6**0.5)])
def test_effects_that_add_up_are_found_and_noise_of_few_cells_is_not(n_cells, error, share):
    counts, seen, absent, truth = simulate(n_cells=n_cells)

    expected = expected_log_shares(counts, torch.full((len(seen),), n_cells), seen, absent)

    torch.testing.assert_close(expected.exp().sum(1), torch.ones(len(absent)))
    pooled = torch.zeros(N_TYPES, N_GENES).index_add(0, seen[:, 0], counts.float())
    of_type = (pooled / pooled.sum(1, keepdim=True)).log()[absent[:, 0]]
    found = (expected - truth).square().mean().sqrt()
    assert found < error
    assert found < share * (of_type - truth).square().mean().sqrt()


@pytest.mark.parametrize("state_first", [True, False])
def test_donors_of_one_state_each_leave_its_effect_to_the_state(state_first):
    rng = np.random.default_rng(0)
    types, states = rng.normal(0, 0.5, (3, N_GENES)), np.zeros((2, N_GENES))
    states[1, :6] = 1.0
    donors, n_cells = rng.normal(0, 0.05, (8, N_GENES)), 300
    codes = torch.tensor([(kind, donor % 2, donor) for kind in range(3) for donor in range(8)])
    logs = types[codes[:, 0]] + states[codes[:, 1]] + donors[codes[:, 2]]
    shares = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    counts = torch.from_numpy(rng.poisson(rng.gamma(2.0 * n_cells, shares * 200 / 2.0)))
    healthy = torch.tensor([(kind, 0, 1) for kind in range(3)])  # a donor who is ill
    order = [0, 1, 2] if state_first else [2, 0, 1]

    both = [codes[:, order], torch.cat([healthy, healthy + torch.tensor([0, 1, 0])])[:, order]]
    well, ill = expected_log_shares(counts, torch.full((len(codes),), n_cells), *both).chunk(2)

    changes = (ill - well) - (ill - well)[:, 6:].mean()
    assert changes[:, :6].mean() == pytest.approx(1.0, abs=0.15)


@pytest.fixture
def module(tiny):
    torch.manual_seed(0)
    built = SCLDMModule(N_GENES, (Classes(N_TYPES), Classes(N_DONORS)), architecture=SCLDMArchitecture(**tiny)).eval()
    torch.nn.init.normal_(built.condition_effects.loadings.weight, std=0.02)
    return built


def mean_shares(module, code, n_cells=2000):
    """Expected shares of generated cells of one combination."""
    condition, generators = code.expand(n_cells, -1), Generators(3, range(n_cells))
    guidance = Guidance(module.strategy.terms([1.0, 1.0]))
    states = SAMPLER(module.denoiser(condition, guidance), module.draw_noise(generators), generators=generators)
    with torch.no_grad():
        means = module.likelihood.mean(
            **module.decode(module.unstandardise(states), torch.full((n_cells, 1), 1e4), condition)
        )
    return means.mean(0) / means.sum() * n_cells


def as_generated(module, codes):
    """Combinations of which the module generates what is expected, with those profiles."""
    return codes[:4], torch.stack([mean_shares(module, code) for code in codes[:4]]).log()


def test_generated_cells_get_the_expected_means_of_genes_that_are_far_off(module):
    _, seen, absent, truth = simulate(n_cells=500)
    before = [mean_shares(module, code) for code in (*absent[:3], seen[0])]

    pairs = (absent[:3], truth[:3]), as_generated(module, seen)
    module.absent_effects = fit_absent_effects(module, *pairs, SAMPLER, iter)

    for code, expected, old in zip(absent[:3], truth[:3], before, strict=False):
        off, off_before = ((shares.log() - expected).abs() for shares in (mean_shares(module, code), old))
        assert off_before.max() > 0.8
        assert off.max() < 0.5  # up to the limit of 0.3, the mean of a few cells, and shares that add up to one
        assert off.mean() < 0.5 * off_before.mean()
    torch.testing.assert_close(mean_shares(module, seen[0]), before[-1])
