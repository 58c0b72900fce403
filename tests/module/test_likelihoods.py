"""Likelihoods against scipy, finite differences and their own samples; zeros and ones, and several modalities."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scgen_diffusion.diffusion import Generators
from scgen_diffusion.module._likelihoods import (
    LARGEST_LOG_THETA,
    N_TABULATED,
    BernoulliLikelihood,
    Entries,
    GaussianLikelihood,
    MultimodalLikelihood,
    NegativeBinomialLikelihood,
    OutlierCounts,
    negative_binomial_log_likelihood,
    total_rate,
)


def nb_logpmf(counts, mu, theta):
    return stats.nbinom.logpmf(counts, theta, theta / (theta + mu))


def outliers_of(n_genes, **values):
    """Build the second component in double precision, with given parameters and a mean profile that is not flat."""
    outliers = OutlierCounts(n_genes).double()
    with torch.no_grad():
        for name, value in values.items():
            getattr(outliers, name).fill_(value)
        outliers.log_share.copy_(torch.linspace(-3, 0, n_genes))
    return outliers


COMMON = {"log_odds": -1.0, "slope": 0.5, "log_mean": 2.0, "log_theta": 0.3}


def mixture_logpmf(counts, mu, theta, outliers):
    """Write out ``log[(1 - p) NB(x; mu, theta) + p NB(x - 1; b, theta_b)]``."""
    share = outliers.log_share.numpy()
    b, theta_b = np.exp(outliers.log_mean.item()), np.exp(outliers.log_theta.item())
    odds = np.exp(outliers.log_odds.item() + outliers.slope.item() * (share - share.mean())) / (1 + (mu / b) ** 2)
    p = odds / (1 + odds)
    return np.logaddexp(np.log1p(-p) + nb_logpmf(counts, mu, theta), np.log(p) + nb_logpmf(counts - 1, b, theta_b))


@pytest.fixture(params=["nonzero", "all"])
def _entries(request, monkeypatch):
    """Compute with the counts above zero only, as on a CPU, and with all."""
    if request.param == "all":
        monkeypatch.setattr(Entries, "of_matrix", lambda counts: Entries(counts, counts))


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    mu, theta = rng.gamma(1.0, 3.0, (5, 7)), rng.gamma(2.0, 2.0, (5, 7))
    counts = rng.negative_binomial(theta, theta / (theta + mu)).astype(float)
    counts[0] = 0
    counts[1, 2] = 5000
    return counts, mu, theta


@pytest.mark.parametrize("with_outliers", [False, True])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.usefixtures("_entries")
def test_the_log_likelihood_is_that_of_scipy(case, with_outliers, per_cell):
    (counts, mu, theta), outliers = case, outliers_of(7, **COMMON) if with_outliers else None
    theta = theta if per_cell else theta[0]
    arguments = (torch.from_numpy(a) for a in (counts, np.log(mu), np.log(theta)))

    found = negative_binomial_log_likelihood(*arguments, outliers)

    expected = mixture_logpmf(counts, mu, theta, outliers) if outliers else nb_logpmf(counts, mu, theta)
    np.testing.assert_allclose(found.detach(), expected.sum(1), rtol=1e-9)  # the largest terms are near 1e4


@given(x=st.integers(0, 10_000), log_mu=st.floats(-12, 8), log_theta=st.floats(-5, 5))
def test_single_precision_is_close_to_the_truth(x, log_mu, log_theta):
    inputs = torch.tensor([[float(x)]]), torch.tensor([[log_mu]]), torch.tensor([log_theta])

    found = negative_binomial_log_likelihood(*inputs).item()

    truth = float(nb_logpmf(x, np.exp(float(inputs[1])), np.exp(float(inputs[2]))))
    # differences of log-Gammas up to 1e5, of which single precision keeps seven digits
    assert found == pytest.approx(truth, rel=1e-4, abs=0.05)


@pytest.mark.parametrize("outliers", [False, True])
def test_gradients_are_finite_at_extremes(outliers):
    counts = torch.tensor([[0.0, 1.0, 1e6, 0.0]])
    log_mean = torch.tensor([[-60.0, -60.0, 20.0, 20.0]], requires_grad=True)
    log_theta = torch.tensor([-10.0, 10.0, 0.0, 10.0], requires_grad=True)
    component = OutlierCounts(4) if outliers else None

    value = negative_binomial_log_likelihood(counts, log_mean, log_theta, component).sum()
    value.backward()

    assert value.isfinite()
    assert log_mean.grad.isfinite().all()
    assert log_theta.grad.isfinite().all()


N = 200_000  # draws: the standard error of a mean is then 0.2 % of the standard deviation


def head_and_outputs(*, per_cell=False, outliers=False):
    """Build a head of N equal genes, and the outputs of one cell with a mean of 3 and a dispersion of 1.5 each."""
    head = NegativeBinomialLikelihood(N, per_cell=per_cell, outliers=outliers)
    log_theta = np.log(1.5)
    with torch.no_grad():
        if per_cell:
            outputs = torch.stack([torch.zeros(1, N), torch.full((1, N), log_theta)], dim=-1)
        else:
            outputs = torch.zeros(1, N, 1)
            head.log_theta.fill_(log_theta)
        if outliers:
            head.outliers.log_odds.fill_(-1.0)
            head.outliers.log_scale.fill_(0.5)
    return head, outputs, torch.tensor([[3.0 * N]])


@pytest.mark.parametrize("per_cell", [False, True])
def test_samples_have_the_mean_and_variance_of_the_distribution(per_cell):
    head, outputs, library_size = head_and_outputs(per_cell=per_cell)

    drawn = head.sample(head.parameters_per_cell(outputs, library_size), Generators(0, [0]))[0]

    variance = 3 + 3**2 / 1.5
    assert drawn.mean().item() == pytest.approx(3, abs=5 * np.sqrt(variance / N))
    assert drawn.mean().item() == pytest.approx(head.mean(outputs, library_size)[0, 0].item(), rel=0.02)
    assert drawn.var().item() == pytest.approx(variance, rel=0.03)  # 3 % is five standard errors
    assert (drawn == drawn.round()).all()


def test_samples_with_outliers_follow_the_likelihood():
    head, outputs, library_size = head_and_outputs(outliers=True)
    drawn = head.sample(head.parameters_per_cell(outputs, library_size).detach(), Generators(1, [0]))[0].detach()

    mu = float(head.log_mean(outputs, library_size)[0, 0].exp().detach())
    counts = torch.arange(12.0)[:, None]
    one_gene = OutlierCounts(1)
    one_gene.load_state_dict({**head.outliers.state_dict(), "log_share": torch.zeros(1)})
    log_theta = head.log_theta[:1]
    expected = negative_binomial_log_likelihood(counts, torch.full((12, 1), np.log(mu)), log_theta, one_gene).exp()

    shares = np.bincount(drawn.int(), minlength=12)[:12] / N
    np.testing.assert_allclose(shares, expected.detach(), atol=5 * np.sqrt(0.25 / N))  # five standard errors
    b = head.outliers.log_mean.exp().item()
    odds = np.exp(-1) / (1 + (3 * np.exp(0.5) / b) ** 2)
    p, mean = odds / (1 + odds), head.mean(outputs, library_size)[0, 0].item()
    assert mean == pytest.approx((1 - p) * 3 * np.exp(0.5) + p * (1 + b), rel=1e-5)
    assert drawn.mean().item() == pytest.approx(mean, rel=0.02)  # five standard errors


@pytest.mark.parametrize("outliers", [False, True])
def test_the_probability_of_zero_is_the_likelihood_of_zero(outliers):
    head = NegativeBinomialLikelihood(2, outliers=outliers)
    if outliers:
        head.outliers = outliers_of(2, **COMMON).float()
    outputs, library_size = torch.randn(5, 2, 1), torch.full((5, 1), 3.0)

    probability = head.probability_of_zero(outputs, library_size)

    torch.testing.assert_close(probability.log().sum(1), head(torch.zeros(5, 2), outputs, library_size))


@pytest.mark.parametrize("sign", [-1, 1])
def test_dispersions_beyond_the_limit_count_as_the_limit(sign):
    heads = [NegativeBinomialLikelihood(2, initial_log_theta=sign * size) for size in (LARGEST_LOG_THETA, 40.0)]
    given = torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2, 1), torch.tensor([[4.0]])

    assert torch.equal(*(head(*given) for head in heads))


@pytest.mark.parametrize("lists_entries", [True, False])
def test_the_probability_of_an_outlier_is_that_of_bayes(case, monkeypatch, lists_entries):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: not lists_entries)
    (counts, mu, theta), outliers = case, outliers_of(7, **COMMON)
    mu[0, 0], mu[1, 1] = 0, 1e-300  # no count but an outlier is possible

    found = outliers.probability_given(*(torch.from_numpy(values) for values in case)).detach()

    others = nb_logpmf(counts, mu, theta) - outliers.log_odds_at(torch.from_numpy(mu).log()).detach().numpy()
    b, theta_b = np.exp(COMMON["log_mean"]), np.exp(COMMON["log_theta"])
    expected = np.where(counts > 0, 1 / (1 + np.exp(others - nb_logpmf(counts - 1, b, theta_b))), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


MIXED = {"log_odds": -1.0, "slope": 0.0, "log_mean": 2.0, "log_theta": 0.3}


def head_with_outliers(**values):
    head = NegativeBinomialLikelihood(N)
    head.outliers = outliers_of(N, **{**MIXED, **values}).float()
    return head.requires_grad_(False)


def parameters_of(mean, theta):
    return torch.tensor([mean, theta])[None, :, None].expand(1, 2, N)


@pytest.mark.parametrize("new_mean", [0.5, 40.0])
def test_counterfactual_counts_with_outliers_follow_the_mixture_of_the_new_mean(new_mean):
    head, before, after = head_with_outliers(), parameters_of(5.0, 2.0), parameters_of(new_mean, 2.0)
    x = head.sample(before, Generators(0, [0]))

    drawn = head.counterfactual(x, before, after, Generators(1, [0]))[0]

    probabilities = np.exp(mixture_logpmf(np.arange(12), new_mean, 2.0, outliers_of(1, **MIXED)))
    shares = np.bincount(drawn.int(), minlength=12)[:12] / N
    np.testing.assert_allclose(shares, probabilities, atol=5 * np.sqrt(0.25 / N))  # five standard errors
    assert drawn.mean() == pytest.approx(float(head.outliers.mix_into(after[:, 0])[0, 0]), rel=0.02)
    assert torch.equal(head.counterfactual(x, before, before, Generators(1, [0])), x)


def test_the_gaussian_head_is_the_squared_error_and_gives_means_without_noise_which_are_not_negative():
    head, outputs = GaussianLikelihood(), torch.tensor([[[1.5], [-0.3]], [[0.0], [2.0]]])
    parameters = head.parameters_per_cell(outputs, torch.ones(2, 1))

    assert head.sample(parameters, Generators(0, [0, 1])).tolist() == [[1.5, 0], [0, 2]]
    changed = head.counterfactual(parameters, parameters, parameters - 1, Generators(0, [0, 1]))
    assert changed.tolist() == [[0.5, 0], [0, 1]]
    assert head(torch.zeros(2, 2), outputs, torch.ones(2, 1)).tolist() == pytest.approx([-2.34, -4])


# --- gradients, and the two ways to compute: that of a CPU and that of other devices ----------------------------------

N_CELLS, N_GENES = 6, 9


def draw_case(*, per_cell=False, largest=40):
    generator = torch.Generator().manual_seed(0)
    shape = (N_CELLS, N_GENES)
    is_expressed = torch.rand(shape, generator=generator) < 0.5
    is_expressed[0] = False
    counts = torch.randint(0, largest, shape, generator=generator).double() * is_expressed
    log_mean = torch.randn(shape, generator=generator, dtype=torch.double, requires_grad=True)
    log_theta = torch.randn(shape if per_cell else N_GENES, generator=generator, dtype=torch.double, requires_grad=True)
    return counts, log_mean, log_theta


def value_and_gradients(case, outliers, **options):
    learned = [*case[1:], *(outliers.parameters() if outliers else ())]
    if outliers:
        learned = learned[:-1]  # the common factor of means is applied before
    value = negative_binomial_log_likelihood(*case, outliers)
    weights = torch.linspace(0.5, 2, N_CELLS).double()  # a loss that does not weigh all cells alike
    return value.detach(), torch.autograd.grad((weights * value).sum(), learned, **options)


@pytest.mark.parametrize("with_outliers", [False, True])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("largest", [2, N_TABULATED, 40, 3000])
@pytest.mark.usefixtures("_entries")
def test_the_gradient_is_that_of_finite_differences(largest, per_cell, with_outliers):
    counts, *inputs = draw_case(per_cell=per_cell, largest=largest)
    outliers = outliers_of(N_GENES, log_odds=-1.0) if with_outliers else None
    extra = tuple(outliers.parameters())[:-1] if outliers else ()

    def log_likelihood(log_mean, log_theta, *_):
        return negative_binomial_log_likelihood(counts, log_mean, log_theta, outliers)

    assert torch.autograd.gradcheck(log_likelihood, (*inputs, *extra))


@pytest.mark.parametrize("log_theta", [5.0, 6.9, 7.0, 9.9])
def test_float32_has_digits_left_where_counts_are_hardly_dispersed(log_theta):
    x = torch.tensor([1.0, 2, 5, 50, 3000])
    theta = torch.full((len(x),), log_theta).exp()
    exact = theta.double()

    rise, slope = Entries(x, x).rising(theta)

    # about ten float32 steps of the terms; below the limit, of the digammas that are subtracted
    expected = (x + exact).lgamma() - exact.lgamma(), (x + exact).digamma() - exact.digamma()
    torch.testing.assert_close(rise.double(), expected[0], rtol=1e-6 if log_theta > 6.95 else 1e-4, atol=1e-6)
    torch.testing.assert_close(slope.double(), expected[1], rtol=2e-6 if log_theta > 6.95 else 1e-2, atol=0)


@pytest.mark.usefixtures("_entries")
def test_means_leave_no_count_to_outliers_whose_responsibilities_have_no_weight(monkeypatch):
    (counts, log_mean, log_theta), outliers = draw_case(), outliers_of(N_GENES, log_odds=-1.0)
    apart = log_mean.detach().clone().requires_grad_()  # the probability of an outlier depends on the mean, too
    odds = outliers.log_odds_at(apart)
    monkeypatch.setattr(outliers, "log_odds_at", lambda _: odds)
    case = counts, log_mean, log_theta
    value, (_, *of_others) = value_and_gradients(case, outliers, retain_graph=True)

    outliers.responsibility_weight.fill_(0.0)
    same_value, (for_mean, *same) = value_and_gradients(case, outliers)

    _, (alone, _) = value_and_gradients(case, None)
    torch.testing.assert_close([same_value, *same], [value, *of_others])
    torch.testing.assert_close(for_mean, alone)


# --- zeros and ones, and several modalities ---------------------------------------------------------------------------


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def outputs():
    return torch.randn(6, 8, 1, generator=generator())


def test_the_expected_number_of_ones_is_the_library_size(outputs):
    library = torch.tensor([[0.5], [1.0], [3.0], [5.0], [7.0], [7.4]])

    mean = BernoulliLikelihood().mean(outputs, library)

    assert ((mean > 0) & (mean <= 1)).all()
    torch.testing.assert_close(mean.sum(1, keepdim=True), library, rtol=1e-3, atol=1e-3)  # Newton's steps are few


def test_a_bernoulli_likelihood_is_that_of_its_means(outputs):
    library = torch.full((6, 1), 3.0)
    target = (torch.rand(6, 8, generator=generator()) < 0.4).float()
    mean = BernoulliLikelihood().mean(outputs, library)

    expected = torch.distributions.Bernoulli(mean).log_prob(target).sum(1)

    torch.testing.assert_close(BernoulliLikelihood()(target, outputs, library), expected, rtol=1e-4, atol=1e-4)


def test_impossible_features_have_finite_gradients():
    outputs = torch.tensor([[[0.0], [-200.0], [5.0]]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 0.0]])

    BernoulliLikelihood()(target, outputs, torch.full((1, 1), 2.0)).sum().backward()

    assert outputs.grad.isfinite().all()


def test_the_rate_has_the_derivative_of_the_root():
    share = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64, requires_grad=True)
    n_ones = torch.tensor([[1.7]], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(total_rate, (share, n_ones))
    assert total_rate(share, torch.tensor([[40.0]])).isfinite().all()  # more ones than features: no endless search


def test_draws_have_their_means(outputs):
    library = torch.full((6, 1), 4.0)
    likelihood = BernoulliLikelihood()
    parameters = likelihood.parameters_per_cell(outputs, library)[:1].expand(4000, -1, -1)

    drawn = likelihood.sample(parameters, Generators(0, range(4000)))

    # five standard errors of a mean of 4 000 draws with a variance of at most 1/4
    torch.testing.assert_close(
        drawn.mean(0), likelihood.mean(outputs, library)[0], rtol=0, atol=5 * (0.25 / 4000) ** 0.5
    )


def two_modalities():
    parts = [NegativeBinomialLikelihood(3), BernoulliLikelihood()]
    outputs = [torch.randn(4, n, 1, generator=generator()) for n in (3, 5)]
    return MultimodalLikelihood(parts, [3, 5]), parts, outputs


def test_modalities_of_a_cell_add_up_and_missing_ones_say_nothing():
    together, parts, outputs = two_modalities()
    sizes = torch.tensor([[10.0, 2.0]] * 4)
    target = torch.cat([torch.full((4, 3), 2.0), torch.tensor([[1.0, 0, 1, 0, 0]] * 4)], dim=1)
    target[0, 3:] = 0
    target[1, :3] = 0

    own = [
        part(x, o, size)
        for part, x, o, size in zip(parts, target.split([3, 5], 1), outputs, sizes.split(1, 1), strict=True)
    ]

    expected = torch.stack([own[0][0], own[1][1], own[0][2] + own[1][2], own[0][3] + own[1][3]])
    torch.testing.assert_close(together(target, outputs, sizes), expected)


# --- other parameters, the same residuals -----------------------------------------------------------------------------


def test_counterfactual_ones_are_distributed_as_the_new_parameters_say():
    likelihood, n_cells = BernoulliLikelihood(), 40_000
    before, after = (
        torch.tensor([values]).expand(n_cells, -1, -1) for values in ([0.5, 0.3, 0.9, 0.02], [0.5, 0.6, 0.2, 0.04])
    )
    x = likelihood.sample(before, Generators(0, range(n_cells)))

    drawn = likelihood.counterfactual(x, before, after, Generators(1, range(n_cells)))

    assert torch.equal(drawn[:, 0], x[:, 0])  # its parameter stays
    assert (drawn[:, 1] >= x[:, 1]).all()
    assert (drawn[:, 2] <= x[:, 2]).all()
    mean = after[0, 0]
    assert ((drawn.mean(0) - mean).abs() <= 5 * (mean * (1 - mean) / n_cells).sqrt()).all()


def test_a_modality_that_a_cell_lacks_is_drawn_and_its_neighbours_do_not_notice():
    parts = [NegativeBinomialLikelihood(4, outliers=False), BernoulliLikelihood()]
    joint, n_cells = MultimodalLikelihood(parts, [4, 4]), 20_000
    means = torch.tensor([2.0, 1.0, 0.5, 3.0]), torch.tensor([0.5, 0.1, 0.9, 0.3])
    of_counts = torch.stack([means[0], torch.full((4,), 3.0)])  # and dispersions
    same = [of_counts.expand(n_cells, -1, -1), means[1].expand(n_cells, 1, -1)]
    x = joint.sample(same, Generators(0, range(n_cells)))
    lacking = x.clone()
    lacking[::2, 4:] = 0

    drawn = joint.counterfactual(lacking, same, same, Generators(1, range(n_cells)))

    for part in (slice(4), slice(4, 8)):  # a modality without any count counts as lacking
        has = (lacking[:, part] > 0).any(1)
        assert torch.equal(drawn[has, part], x[has, part])
    torch.testing.assert_close(drawn[::2, 4:].mean(0), means[1], rtol=0, atol=0.03)
