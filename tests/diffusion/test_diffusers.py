"""Schedules and samplers against numbers that Hugging Face diffusers gave (``record_diffusers.py`` recorded them).

diffusers keeps its schedules in single precision, so that ends of order 1 agree to 1e-6. Its "trailing" timesteps are
ours with equal steps in time.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scgen_diffusion.diffusion import (
    TARGETS,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    DPMSolverSampler,
    Generators,
    VariancePreserving,
)

VECTORS = load_file(Path(__file__).parent / "diffusers_vectors.safetensors")
N_STEPS, SEED = 20, 7


def predict(x_t, k):
    """Stand in for a network, roughly right for standard normal data; ``record_diffusers.py`` has the same."""
    u = k / 1000
    return x_t * (1 - (-10 * u**2).exp()).sqrt() + 0.2 * (1 - u) * (3 * u).cos() * x_t.sin()


def sample(sampler, target):
    denoiser = Denoiser(predict, VariancePreserving(), TARGETS[target])
    x = VECTORS["x"]
    return sampler(denoiser, x, n_steps=N_STEPS, generators=Generators(SEED, range(len(x))))


def test_the_schedule_is_that_of_diffusers():
    betas = VariancePreserving().betas()
    torch.testing.assert_close(betas.float(), VECTORS["betas_linear"], rtol=1e-5, atol=1e-7)
    # In single precision 1 - 0.999 is wrong by 1e-5, and 1 000 factors are multiplied.
    torch.testing.assert_close((1 - betas).cumprod(0).float(), VECTORS["alpha_bar_linear"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("recorded", "sampler", "target"),
    [
        ("ddpm_upper", DDPMSampler(), "noise"),
        ("ddpm_lower", DDIMSampler(eta=1.0), "noise"),
        *[(f"ddim_{eta}", DDIMSampler(eta=eta), "noise") for eta in (0.0, 0.5, 1.0)],
        ("ddim_data", DDIMSampler(), "data"),
        ("dpm_solver", DPMSolverSampler(), "noise"),
    ],
)
def test_samples_are_those_of_diffusers(recorded, sampler, target):
    torch.testing.assert_close(sample(sampler, target), VECTORS[recorded], rtol=0, atol=5e-6)
