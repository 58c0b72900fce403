"""The yardstick of the speed study computes what the published system computes."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

published = pytest.importorskip("benchmarks.speed.published")

PARITY = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[1] / "parity"))

pytestmark = pytest.mark.skipif(not (PARITY / "config.json").exists(), reason=f"{PARITY} holds no recorded numbers")


@pytest.fixture(scope="module")
def sizes():
    return json.loads((PARITY / "config.json").read_text())["config"]


@pytest.fixture(scope="module")
def vectors():
    return load_file(PARITY / "scldm_vectors.safetensors")


def weights(prefix):
    state = load_file(PARITY / "scldm_joint_state_dict.safetensors")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def autoencoder(sizes):
    model = published.Autoencoder(
        sizes["G"],
        width=sizes["E"],
        n_tokens=sizes["M"],
        n_latent=sizes["L"],
        n_layers=sizes["nl"],
        n_heads=sizes["H"],
        n_heads_cross=sizes["HC"],
    )
    missing, unexpected = model.load_state_dict(weights("vae_model."), strict=False)
    assert not missing
    assert unexpected in ([], ["encoder.pos_embed"])  # stored, but all zeros
    return model.requires_grad_(False)


def prior(sizes):
    model = published.Prior(
        sizes["classes"],
        n_tokens=sizes["M"],
        n_latent=sizes["L"],
        width=sizes["D"],
        n_layers=sizes["DL"],
        n_heads=sizes["DH"],
    )
    model.load_state_dict(weights("diffusion_model."))
    return model.requires_grad_(False)


def test_latents_and_likelihood_are_the_recorded_ones(sizes, vectors):
    model = autoencoder(sizes)
    z = model.encode(vectors["genes_subset"], vectors["counts_subset"])
    torch.testing.assert_close(z, vectors["z"], rtol=1e-4, atol=1e-5)  # float32, another order of summation
    loss = model.loss(vectors["genes_subset"], vectors["counts_subset"], vectors["counts"])
    torch.testing.assert_close(loss, vectors["nll_per_cell"], rtol=1e-4, atol=1e-4)


def test_velocities_are_the_recorded_ones(sizes, vectors):
    condition = {key: vectors[f"joint.condition.{key}"] for key in sizes["classes"]}
    velocity = prior(sizes)(vectors["joint.x"], vectors["joint.t"], condition)
    torch.testing.assert_close(velocity, vectors["joint.velocity_conditional"], rtol=1e-4, atol=1e-5)


def test_ode_ends_are_the_recorded_ones(sizes, vectors):
    nobody = {key: torch.full((sizes["B"],), n) for key, n in sizes["classes"].items()}
    ends = prior(sizes).sample(vectors["joint.x"], nobody)
    torch.testing.assert_close(ends, vectors["joint.ode_end_unconditional"], rtol=1e-3, atol=1e-4)  # adaptive steps
