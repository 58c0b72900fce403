"""Record numbers of Hugging Face diffusers' schedulers, the oracle of ``test_diffusers.py``.

diffusers is not a dependency of the tests, because it takes seconds to import and brings a dozen packages. To renew the
recording, in an environment that has it besides this package: ``python tests/diffusion/record_diffusers.py``.
"""

from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm
from safetensors.torch import save_file

from scgen_diffusion.diffusion import Generators

N_SAMPLES, N_STEPS, SEED = 3, 20, 7
NOISE_OPTIONS = {"clip_sample": False, "timestep_spacing": "trailing"}
ORDER_2_OPTIONS = {"timestep_spacing": "trailing"}


def predict(x_t, k):
    """Stand in for a network, roughly right for standard normal data; ``test_diffusers.py`` has the same."""
    u = float(k) / 1000
    return x_t * np.sqrt(1 - np.exp(-10 * u**2)) + 0.2 * (1 - u) * np.cos(3 * u) * x_t.sin()


def run(scheduler, x, timesteps=None, **step_options):
    scheduler.set_timesteps(**({"timesteps": timesteps} if timesteps else {"num_inference_steps": N_STEPS}))
    for k in scheduler.timesteps:
        x = scheduler.step(predict(x, k), k, x, **step_options).prev_sample
    return x


def feed_noise():
    """Let stochastic schedulers draw what our generators draw, and nothing in the last step, where ours add none."""
    generators = Generators(SEED, range(N_SAMPLES))
    noises = [generators.normal(4) for _ in range(N_STEPS - 1)] + [torch.zeros(N_SAMPLES, 4)]
    noises = iter([noise.double() for noise in noises])
    for module in (scheduling_ddpm, scheduling_ddim):
        module.randn_tensor = lambda *args, **kwargs: next(noises)


def run_with_noise(scheduler, x, **step_options):
    feed_noise()
    return run(scheduler, x, **step_options)


def record():
    x = torch.randn(N_SAMPLES, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = {"x": x}
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear")
    vectors |= {"betas_linear": scheduler.betas, "alpha_bar_linear": scheduler.alphas_cumprod}
    for ours, theirs in {"upper": "fixed_large", "lower": "fixed_small"}.items():
        scheduler = diffusers.DDPMScheduler(variance_type=theirs, **NOISE_OPTIONS)
        vectors[f"ddpm_{ours}"] = run_with_noise(scheduler, x)
    for eta in (0.0, 0.5, 1.0):
        scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, **NOISE_OPTIONS)
        vectors[f"ddim_{eta}"] = run_with_noise(scheduler, x, eta=eta)
    scheduler = diffusers.DDIMScheduler(prediction_type="sample", beta_start=1e-4, beta_end=0.02, **NOISE_OPTIONS)
    vectors["ddim_data"] = run(scheduler, x)
    solver = diffusers.DPMSolverMultistepScheduler(solver_type="midpoint", **ORDER_2_OPTIONS)
    vectors["dpm_solver"] = run(solver, x)
    return vectors


if __name__ == "__main__":
    path = Path(__file__).parent / "diffusers_vectors.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in record().items()}, path, {"diffusers": diffusers.__version__}
    )
