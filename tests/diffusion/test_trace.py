"""Looking at samples on their way: the way itself stays as it is."""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.diffusion import (
    DIFFUSION_SAMPLERS,
    FLOW_SAMPLERS,
    PATHS,
    TARGETS,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    DPMSolverSampler,
    Generators,
    LinearInterpolant,
)

DATA = torch.tensor([1.0, -2.0])
SAMPLERS = [(name, sampler, PATHS["vp_cosine"]) for name, sampler in DIFFUSION_SAMPLERS.items()]
SAMPLERS += [(name, sampler, LinearInterpolant()) for name, sampler in FLOW_SAMPLERS.items()]
every_sampler = pytest.mark.parametrize(("sampler", "path"), [s[1:] for s in SAMPLERS], ids=[s[0] for s in SAMPLERS])


def build_denoiser(path, counts=None):
    """Return a denoiser whose prediction depends on ``x_t`` and on time, and that keeps count of its calls."""

    def network(x_t, t):
        if counts is not None:
            counts.append(float(t))
        return DATA + 0.3 * torch.tanh(x_t) + 0.1 * torch.sin(t / 100)

    return Denoiser(network, path, TARGETS["data"] if path != LinearInterpolant() else TARGETS["velocity"])


def start(n=4):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def traced(sampler, *arguments, **options):
    """Return times, and states ``(frames, n, ...)``."""
    times, states = sampler.trace(*arguments, **options)
    return times, torch.stack([*states])


@every_sampler
def test_a_trace_starts_with_the_noise_and_ends_with_exactly_the_samples(sampler, path):
    ends = sampler(build_denoiser(path), start(), generators=Generators(0, range(4)), n_steps=4)

    times, states = traced(
        sampler, build_denoiser(path), start(), n_frames=3, generators=Generators(0, range(4)), n_steps=4
    )

    assert states.shape == (3, 4, 2)
    assert torch.equal(states[0], start())
    assert torch.equal(states[-1], ends)
    assert (times.diff() > 0).all()


@every_sampler
def test_looking_costs_no_evaluations(sampler, path):
    unseen, seen = [], []
    generators = Generators(0, range(4))

    sampler(build_denoiser(path, unseen), start(), generators=generators, n_steps=4)
    traced(sampler, build_denoiser(path, seen), start(), n_frames=5, generators=generators, n_steps=4)

    assert seen == unseen


def test_states_are_computed_one_by_one():
    seen = []
    _, states = FLOW_SAMPLERS["euler"].trace(build_denoiser(LinearInterpolant(), seen), start(), n_frames=3, n_steps=4)

    assert [len(seen) for _ in states] == [0, 2, 4]


def test_the_states_between_are_those_of_the_steps():
    denoiser = Denoiser(lambda x, t: torch.full_like(x, 3.0), LinearInterpolant(), TARGETS["velocity"])

    times, states = traced(FLOW_SAMPLERS["euler"], denoiser, torch.zeros(1, 1), n_frames=5, n_steps=4)

    torch.testing.assert_close(times, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(states.flatten(), 3 * times)


def test_frames_are_chosen_evenly_from_the_steps():
    denoiser = build_denoiser(LinearInterpolant())

    few, all_of_them = (traced(FLOW_SAMPLERS["heun"], denoiser, start(), n_frames=n, n_steps=10) for n in (4, 11))

    kept = [0, 3, 7, 10]
    assert all(torch.equal(some, every[kept]) for some, every in zip(few, all_of_them, strict=True))


def test_the_states_of_diffusion_hold_as_much_noise_as_their_times_say():
    path = PATHS["vp_linear"]
    denoiser = Denoiser(lambda x, k: torch.zeros_like(x), path, TARGETS["data"])  # data are zero: x_t = sigma_t noise

    times, states = traced(DDIMSampler(), denoiser, start(), n_frames=6, n_steps=50)

    expected = path.sigma(times)[:, None, None] / path.sigma(times[0]) * start()
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


@every_sampler
def test_one_frame_is_no_trace(sampler, path):
    with pytest.raises(ValueError, match="`n_frames` must be .*2.*found 1"):
        sampler.trace(build_denoiser(path), start(), n_frames=1, generators=Generators(0, range(4)), n_steps=4)


@pytest.mark.parametrize("sampler", [DDPMSampler(), DPMSolverSampler()])
def test_more_frames_than_steps_are_refused_before_anything_is_computed(sampler):
    counts = []

    with pytest.raises(ValueError, match="between 2 and 6, .*found 7.*`n_steps`"):
        sampler.trace(
            build_denoiser(PATHS["vp_cosine"], counts),
            start(),
            n_frames=7,
            n_steps=5,
            generators=Generators(0, range(4)),
        )

    assert counts == []
