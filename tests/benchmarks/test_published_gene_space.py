"""The yardsticks in gene space compute what the published systems compute."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

published = pytest.importorskip("benchmarks.speed.published_gene_space")

PARITY = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[1] / "parity"))

pytestmark = pytest.mark.skipif(not (PARITY / "config.json").exists(), reason=f"{PARITY} holds no recorded numbers")


@pytest.fixture(params=["scrdit", "wbdit"])
def system(request):
    """Return the network with the recorded weights, and what was recorded, ``(cells, genes)``."""
    sizes = json.loads((PARITY / "config.json").read_text())["ddpm_config"]
    network = published.NoisePredictor(
        sizes["n"],
        patch_size=sizes["p"],
        width=sizes["h"],
        n_layers=sizes["depth"],
        n_heads=sizes["heads"],
        white_box=request.param == "wbdit",
    )
    weights = load_file(PARITY / f"{request.param}_state_dict.safetensors")
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].flatten(1)  # published as a convolution
    network.load_state_dict(weights)
    vectors = load_file(PARITY / f"{request.param}_vectors.safetensors")
    return network.requires_grad_(False), {
        key: value.squeeze(1) if value.ndim == 3 else value for key, value in vectors.items()
    }


def test_noise_is_the_recorded_one(system):
    network, recorded = system
    predicted = network(recorded["x"], recorded["t"])
    torch.testing.assert_close(
        predicted, recorded["predicted_noise"], rtol=1e-4, atol=1e-5
    )  # another order of summation


def test_noised_cells_are_the_recorded_ones(system):
    _, recorded = system
    noised = published.Diffusion().noised(recorded["x"], recorded["noise"], recorded["t"])
    torch.testing.assert_close(noised, recorded["noised"])


def test_ddim_ends_at_the_recorded_cells(system):
    network, recorded = system
    cells = published.Diffusion().ddim(network, recorded["x_T"], eta=0.0)
    torch.testing.assert_close(cells, recorded["ddim_eta0_stride10"], rtol=1e-4, atol=1e-3)  # values of up to 440


@pytest.mark.parametrize(("white_box", "millions"), [(False, 34.0), (True, 18.1)])
def test_networks_have_the_published_number_of_parameters(white_box, millions):
    network = published.NoisePredictor(2_000, white_box=white_box)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_samplers_take_the_published_numbers_of_evaluations():
    assert len(published.DDPM_TIMESTEPS) - 1 == 999
    assert len(published.DDIM_TIMESTEPS) - 1 == 100


def test_ancestral_sampling_ends_at_the_data_where_the_noise_is_known():
    diffusion = published.Diffusion()
    data = torch.full((500, 4), 2.0)

    def perfect(x, t):
        alpha_bar = diffusion.alpha_bar[t[0].long()]
        return (x - alpha_bar.sqrt() * data) / (1 - alpha_bar).sqrt()

    torch.manual_seed(0)
    cells = diffusion.ddpm(perfect, torch.randn(500, 4))
    torch.testing.assert_close(cells, data, rtol=0, atol=0.1)  # the first timestep keeps a hundredth of noise
