import pytest
import torch

from scgen_diffusion.diffusion import PATHS, TARGETS, ConditionColumns, Denoiser, GuidedField, Joint, ResolvedGuidance

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def draw(shape=(5, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise, 0.05 + 0.9 * torch.rand(shape[0], generator=generator, dtype=torch.float64)


def build_oracle(path, target, data, noise, t):
    """Return a denoiser that knows what the sample is made of."""
    return Denoiser(lambda x_t, times: target.of(path, data, noise, t), path, target)


@every_path
@every_target
def test_a_right_prediction_is_read_as_data_noise_and_velocity(path, target):
    data, noise, t = draw()
    denoiser, x_t = build_oracle(path, target, data, noise, t), path.interpolate(data, noise, t)
    torch.testing.assert_close(tuple(denoiser.estimate(x_t, t)), (data, noise), rtol=1e-9, atol=1e-9)
    velocity = TARGETS["velocity"].of(path, data, noise, t)
    torch.testing.assert_close(denoiser(x_t, t), velocity, rtol=1e-7, atol=1e-7)


@every_path
def test_a_predicted_velocity_is_returned_as_it_is(path):
    prediction, x_t, t = draw()
    assert torch.equal(Denoiser(lambda x, s: prediction, path, TARGETS["velocity"])(x_t, t), prediction)


@every_path
@pytest.mark.parametrize("t", [torch.tensor(0.25), torch.tensor([0.25, 0.5, 0.5, 0.0, 0.75])])
def test_the_network_sees_its_own_time(path, t):
    seen = []
    x_t = draw()[0]

    def field(x, times):
        seen.append(times)
        return x

    denoiser = Denoiser(field, path, TARGETS["v"])
    denoiser.predict(x_t, t)
    denoiser.estimate(x_t, t)
    denoiser(x_t, t)
    assert all(torch.equal(times, path.network_time(t)) for times in seen)
    assert len(seen) == 3


@every_path
@every_target
def test_one_time_means_the_same_time_for_every_sample(path, target):
    x_t, one = draw()[0], torch.tensor(0.3, dtype=torch.float64)
    denoiser = Denoiser(lambda x, times: x.sin(), path, target)
    torch.testing.assert_close(denoiser(x_t, one), denoiser(x_t, one.repeat(5)), rtol=0, atol=0)
    both = [tuple(denoiser.estimate(x_t, t)) for t in (one, one.repeat(5))]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


@every_path
def test_precision_is_that_of_the_sample(path):
    t = torch.tensor(0.3, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        x_t = torch.ones(2, 3, dtype=dtype)
        denoiser = Denoiser(lambda x, times: x, path, TARGETS["v"])
        assert denoiser(x_t, t).dtype == dtype
        assert denoiser.estimate(x_t, t).noise.dtype == dtype


def test_a_guided_field_is_a_field():
    data, noise, t = draw()
    path = PATHS["vp_linear"]
    condition = torch.zeros(5, 1, dtype=torch.long)

    def network(x_t, times, classes):
        return x_t * (classes + 1) + times[:, None]

    columns = ConditionColumns(null=torch.tensor([2]), key=torch.tensor([0]), n_keys=1)
    field = GuidedField(network, condition, columns, path, ResolvedGuidance.of(Joint(), [2.0]))
    prediction = Denoiser(field, path, TARGETS["noise"]).predict(data, t)
    by_hand = 3 * data + 2.0 * (data - 3 * data) + path.network_time(t)[:, None]
    torch.testing.assert_close(prediction, by_hand)
