"""SCRDIT and WBDIT with ``size="published"``, against numbers recorded from the published code."""

import json
import os
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scgen_diffusion.diffusion import DDIMSampler, Denoiser
from scgen_diffusion.diffusion._samplers import levels_at
from scgen_diffusion.module import SCRDIT_ARCHITECTURES, WBDIT_ARCHITECTURES, ProfileModule, change_options
from scgen_diffusion.nn import GeneUNet

FOLDER = Path(os.environ.get("PARITY_DIR") or Path(__file__).parent)
SIZES = json.loads((FOLDER / "config.json").read_text())["ddpm_config"]
NAMES = {  # published names, and ours
    r"^x_embedder\.proj\.": "project_in.",
    r"^pos_embed$": "positions",
    r"^t_embedder\.mlp\.": "embed_time.network.",
    r"^final_layer\.adaLN_modulation\.": "modulation_out.",
    r"^final_layer\.linear\.": "project_out.",
    r"\.adaLN_modulation\.": ".modulation.",
    r"\.attn\.(proj|to_out\.0)\.": ".attention.project_out.",
    r"\.mlp\.fc1\.": ".feed_forward.project_in.",
    r"\.mlp\.fc2\.": ".feed_forward.project_out.",
    r"\.mlp\.weight$": ".feed_forward.dictionary",
}
QUERIES_KEYS_VALUES = {"SCRDIT": "project_qkv", "WBDIT": "project"}


@pytest.fixture(scope="module", params=QUERIES_KEYS_VALUES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def recorded(family):
    vectors = load_file(FOLDER / f"{family.lower()}_vectors.safetensors")
    return {name: v.squeeze(1) if v.ndim == 3 else v for name, v in vectors.items()}


@pytest.fixture(scope="module")
def weights(family):
    names, renamed = NAMES | {r"\.attn\.qkv\.": f".attention.{QUERIES_KEYS_VALUES[family]}."}, {}
    for name, w in load_file(FOLDER / f"{family.lower()}_state_dict.safetensors").items():
        for theirs, ours in names.items():
            name = re.sub(theirs, ours, name)
        renamed[name] = w
    renamed["project_in.weight"] = renamed["project_in.weight"].flatten(1)  # a convolution (width, 1, patch, 1)
    renamed["positions"] = renamed["positions"][0]
    return renamed


@pytest.fixture(scope="module")
def module(family):
    sizes = {"patch_size": SIZES["p"], "width": SIZES["h"], "n_layers": SIZES["depth"], "n_heads": SIZES["heads"]}
    architectures = {"SCRDIT": SCRDIT_ARCHITECTURES, "WBDIT": WBDIT_ARCHITECTURES}[family]
    architecture = change_options(architectures, "published", sizes)
    return ProfileModule(SIZES["n"], [], input_values="log1p", architecture=architecture)


@pytest.fixture(scope="module")
def predict(module, weights):
    """Return the network with the published weights, as a function of ``x_t`` and the timestep."""
    network = deepcopy(module.network)
    network.backbone.network.load_state_dict(weights)
    with torch.no_grad():
        yield lambda x_t, k: network(x_t, k.expand(len(x_t)), torch.zeros(len(x_t), 0, dtype=torch.long))


def test_the_positions_are_the_published_ones(module, weights):
    torch.testing.assert_close(module.network.backbone.network.positions, weights["positions"], rtol=0, atol=1e-6)


def test_the_predicted_noise_is_the_published_one(predict, recorded):
    predicted = predict(recorded["x"], recorded["t"].float())

    torch.testing.assert_close(predicted, recorded["predicted_noise"], rtol=0, atol=1e-5)  # sums in another order


def test_accelerated_sampling_ends_where_the_published_code_does(module, predict, recorded):
    denoiser, x = Denoiser(predict, module.path, module.network.target), recorded["x_T"]
    times = module.path.time(torch.tensor([*range(990, 0, -10), 1, 0], dtype=torch.float64))  # not those of the sampler

    ends = DDIMSampler().carry(denoiser, x, levels_at(module.path, times, x), None)

    # A hundred steps of an untrained network let values grow to 440; float32 keeps six digits of them.
    error = (ends - recorded["ddim_eta0_stride10"]).abs().max() / recorded["ddim_eta0_stride10"].abs().max()
    assert error < 1e-5


def test_the_unet_predicts_as_the_published_one():
    # recorded from `Unet1d` (DongShengze/scRDiT, 4c26d88e) with the same weights, waves by the names of ours
    network = GeneUNet(64)
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(network.named_parameters())):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 0.7 + number).float().view_as(weight)
            scale, start = (2 * weight[0].numel() ** -0.5, 0) if weight.ndim > 1 else (0.5, not name.endswith("bias"))
            weight.copy_(wave * scale + start)
        x = torch.sin(torch.arange(128, dtype=torch.float64) * 0.37).float().view(2, 64)
        predicted = network(x, torch.tensor([3.0, 940.0]), torch.zeros(2, 0, dtype=torch.long))
    recorded = load_file(Path(__file__).with_name("unet_vectors.safetensors"))["predicted_noise"]
    torch.testing.assert_close(predicted, recorded, rtol=1e-5, atol=1e-5)
