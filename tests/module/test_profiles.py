"""The module of profiles: encoding and decoding, losses of every part, counts from profiles."""

import pytest
import torch
from builders import TINY_GENE_SPACE
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import DDPMSampler, DPMSolverSampler, Generators, Guidance, Joint
from scgen_diffusion.module import ProfileArchitecture, ProfileModule, to_counts
from scgen_diffusion.module._profiles import summarise_profiles
from scgen_diffusion.nn import log_profile

N_GENES = 9
SIZES = {**TINY_GENE_SPACE, "patch_size": 4, "scaling": "none"}


def build(conditions=(), n_genes=N_GENES, input_values="counts", **changes):
    torch.manual_seed(0)
    architecture = ProfileArchitecture(**{**SIZES, **changes})
    return ProfileModule(n_genes, conditions, input_values=input_values, architecture=architecture)


@pytest.fixture(scope="module")
def counts():
    """Return counts with a cell that expresses a single gene, and a gene that no cell expresses."""
    x = torch.poisson(torch.full((40, N_GENES), 1.5), generator=torch.Generator().manual_seed(0))
    x[:, 1] += 1
    x[0] = 0
    x[0, 4] = 3
    x[:, 7] = 0
    return x


@pytest.fixture(scope="module")
def profiles(counts):
    return log_profile(counts, "counts")


value = st.one_of(st.just(0.0), st.floats(0.0078125, 10, width=32))  # one count of a million is 0.01
cells = st.lists(st.lists(value, min_size=4, max_size=4), min_size=2, max_size=6).map(torch.tensor)
zero_values = st.one_of(st.none(), st.floats(-1000, -1e-3))


@given(cells, zero_values, st.sampled_from(["none", "gene"]))
@settings(max_examples=60, deadline=None)
def test_decoding_undoes_encoding_and_restores_exact_zeros(profile, zero_value, scaling):
    if not profile.any():
        profile[0, 0] = 1.0
    module = build(n_genes=4, input_values="log1p", zero_value=zero_value, scaling=scaling)
    module.start_from([profile])

    restored = module.cut_zeros(module.expected_profiles(module.encode(profile)))

    assert torch.equal(restored == 0, profile == 0)
    tolerance = 1e-6 * max(10, abs(zero_value or 0))  # single precision at the largest value on the way
    torch.testing.assert_close(restored, profile, atol=tolerance, rtol=1e-5)


@given(st.integers(0, 99), st.lists(st.integers(1, 39), max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_summary_is_that_of_the_cells_however_they_are_batched(seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(40, 7, generator=generator) * 5 + 0.1
    x = x * (torch.rand(40, 7, generator=generator) < torch.linspace(0.2, 1, 7))
    x[:, 0] = 1.5  # expressed, and constant
    x[:, 1] = 0
    x[-1] = 0  # a cell without expression, in a batch of its own at times

    frequency, mean, std, smallest = summarise_profiles(x.tensor_split(sorted(set(cuts))))

    torch.testing.assert_close(frequency, (x > 0).float().mean(0))
    for gene in (0, 2, 6):
        expressed = x[:, gene][x[:, gene] > 0]
        if len(expressed):
            torch.testing.assert_close(mean[gene], expressed.mean())
            # the difference of two means of squares, rounded to single precision
            torch.testing.assert_close(std[gene], expressed.std(correction=0), atol=1e-3, rtol=1e-4)
    assert smallest == x[x > 0].min()
    torch.testing.assert_close((frequency[1], mean[1], std[1]), (torch.tensor(0.0), x[x > 0].mean(), torch.tensor(0.0)))


@pytest.mark.parametrize("zero_value", [None, -1.0, -10.0])
def test_scaled_per_gene_training_cells_have_no_mean_and_unit_variance(profiles, zero_value):
    module = build(input_values="log1p", scaling="gene", zero_value=zero_value)
    module.start_from(profiles.split(7))

    encoded = module.encode(profiles)

    varying = torch.arange(N_GENES) != 7
    torch.testing.assert_close(encoded.mean(0), torch.zeros(N_GENES), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded[:, varying].std(0, correction=0), torch.ones(N_GENES - 1), atol=1e-4, rtol=0)
    assert not encoded[:, 7].any()  # a constant gene is not blown up


@pytest.mark.parametrize("zero_value", [None, -10.0])
def test_values_are_negated_clamped_and_stay_no_numbers(profiles, zero_value):
    module = build(zero_value=zero_value)
    encoded = module.encode(profiles)
    assert torch.equal(encoded, profiles if zero_value is None else torch.where(profiles == 0, zero_value, profiles))

    values = torch.linspace(-3, 3, N_GENES)[None]
    assert torch.equal(module.cut_zeros(module.expected_profiles(values)), values.clamp(min=0))
    nan = torch.full((1, N_GENES), torch.nan)  # what a diverged sampler is known by
    assert module.cut_zeros(module.expected_profiles(nan)).isnan().all()
    assert to_counts(nan, torch.tensor([10.0])).isnan().all()


@pytest.mark.parametrize("sampler", [DPMSolverSampler(), DDPMSampler()])
def test_a_network_that_knows_the_data_samples_it(profiles, sampler):
    """Every value of a known cell; the network is planted."""
    module = build(input_values="log1p", scaling="gene")
    module.start_from([profiles])
    known = module.encode(profiles[:1])

    class Oracle(torch.nn.Module):
        def forward(self, x_t, t, condition):
            return known.expand_as(x_t)

    module.averaged_network = Oracle()
    condition, generators = torch.zeros(5, 0).long(), Generators(0, range(5))
    denoiser = module.denoiser(condition, Guidance(Joint().terms([])))
    states = sampler(denoiser, module.draw_noise(generators), n_steps=20, generators=generators)
    sampled = module.cells_of(states, None, generators, condition, "log1p")

    assert torch.equal(sampled == 0, (profiles[:1] == 0).expand(5, -1))
    torch.testing.assert_close(sampled, profiles[:1].expand(5, -1), atol=1e-2, rtol=1e-3)


@given(
    st.lists(st.lists(st.integers(0, 3000), min_size=5, max_size=5).filter(any), min_size=1, max_size=8).map(
        lambda rows: torch.tensor(rows, dtype=torch.float32)
    )
)
@settings(max_examples=100, deadline=None)
def test_a_real_cell_with_its_own_total_has_its_own_counts(x):
    assert torch.equal(to_counts(log_profile(x, "counts"), x.sum(1)), x)


def test_counts_are_the_profiles_shares_of_the_total_rounded(profiles):
    totals = torch.linspace(5, 5000, 40)
    few = torch.tensor([1.0, 2.0, 7.0, 500.0]).repeat(10)

    counts = to_counts(profiles, totals)

    assert not to_counts(-profiles, totals).any()
    assert torch.equal(to_counts(torch.rand(40, 30, generator=torch.Generator().manual_seed(0)), few).sum(1), few)

    shares = profiles.expm1() / profiles.expm1().sum(1, keepdim=True)
    assert torch.equal(counts, counts.round())
    assert ((counts - shares * totals[:, None]).abs() <= 1 + 1e-3).all()  # in single precision
    assert ((counts.sum(1) - totals).abs() <= 0.5 + 1e-3).all()
