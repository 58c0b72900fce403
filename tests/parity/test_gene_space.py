"""SCRDIT and WBDIT built from published weights, against numbers recorded from the published code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scgen_diffusion.diffusion import DDIMSampler, Denoiser, GuidedField
from scgen_diffusion.diffusion._diffusion_walk import levels_at
from scgen_diffusion.model import SCRDIT, WBDIT
from scgen_diffusion.nn import GeneUNet

FOLDER = Path(os.environ.get("PARITY_DIR") or Path(__file__).parent)
SIZES = json.loads((FOLDER / "config.json").read_text())["ddpm_config"]
SYSTEMS = {"scrdit": SCRDIT, "wbdit": WBDIT}
per_system = pytest.mark.parametrize("system", SYSTEMS)
GENES = [f"gene {i}" for i in range(SIZES["n"])]


def weights_path(system):
    return FOLDER / f"{system}_state_dict.safetensors"


def vectors(system):
    return {
        name: v.squeeze(1) for name, v in load_file(FOLDER / f"{system}_vectors.safetensors").items() if v.ndim == 3
    }


def read(system, path=None, **options):
    return SYSTEMS[system].from_reference_checkpoint(
        path or weights_path(system), **({"var_names": GENES, "n_heads": SIZES["heads"]} | options)
    )


@per_system
def test_the_predicted_noise_is_the_published_one(system):
    model, recorded = read(system), vectors(system)
    t = load_file(FOLDER / f"{system}_vectors.safetensors")["t"].float()

    predicted = model.module.averaged_network(recorded["x"], t, torch.zeros(len(t), 0, dtype=torch.long))

    torch.testing.assert_close(predicted, recorded["predicted_noise"], rtol=0, atol=1e-5)  # sums in another order


@per_system
def test_the_noised_cells_are_the_published_ones(system):
    path, recorded = read(system).module.path, vectors(system)
    t = path.time(load_file(FOLDER / f"{system}_vectors.safetensors")["t"].double()).float()

    noised = path.interpolate(recorded["x"], recorded["noise"], t)

    torch.testing.assert_close(noised, recorded["noised"], rtol=0, atol=1e-5)


@per_system
def test_accelerated_sampling_ends_where_the_published_code_does(system):
    module, recorded = read(system).module, vectors(system)
    condition = torch.zeros(len(recorded["x_T"]), 0, dtype=torch.long)
    field = GuidedField(module.averaged_network, condition, module.condition_columns, module.path)
    denoiser, x = Denoiser(field, module.path, module.target), recorded["x_T"]
    times = module.path.time(torch.tensor([*range(990, 0, -10), 1, 0], dtype=torch.float64))  # not those of the sampler

    *_, ends = DDIMSampler()._states(denoiser, x, levels_at(module.path, times, x), None)

    # A hundred steps of an untrained network let values grow to 440; float32 keeps six digits of them.
    error = (ends - recorded["ddim_eta0_stride10"]).abs().max() / recorded["ddim_eta0_stride10"].abs().max()
    assert error < 1e-5


@per_system
def test_a_model_from_published_weights_generates_and_survives_a_file(system, tmp_path):
    model = read(system, zero_value=-10.0)
    cells = model.generate(3, seed=0, n_steps=3)
    model.save(tmp_path / "model")

    again = SYSTEMS[system].load(tmp_path / "model").generate(3, seed=0, n_steps=3)

    assert (cells.X != again.X).nnz == 0
    assert cells.var_names.tolist() == GENES


def test_a_file_of_the_other_model_is_refused():
    with pytest.raises(ValueError, match="holds a 'white_box' network, which SCRDIT does not have"):
        read("scrdit", weights_path("wbdit"))
    with pytest.raises(ValueError, match="holds a 'dit' network, which WBDIT does not have"):
        read("wbdit", weights_path("scrdit"))


def test_genes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=f"`var_names` has 3 genes, but the weights have {SIZES['n']}"):
        read("scrdit", var_names=["a", "b", "c"])


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no tensor 'x_embedder.proj.weight'"):
        read("scrdit", tmp_path / "other.safetensors")


def test_incomplete_weights_are_refused(tmp_path):
    weights = load_file(weights_path("scrdit"))
    del weights["blocks.1.attn.proj.weight"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="do not have the published layout"):
        read("scrdit", tmp_path / "part.safetensors")


def test_a_state_dict_that_torch_saved_is_read_too(tmp_path):
    torch.save(load_file(weights_path("scrdit")), tmp_path / "weights.pt")

    assert read("scrdit", tmp_path / "weights.pt").is_trained_


def published_unet_name(ours):
    """Give a weight of our U-Net its published name."""
    level, _, rest = ours.partition(".")
    number, _, inner = rest.partition(".")
    attention = {
        "attend.attention.project_qkv.": "mha.in_proj_",
        "attend.attention.project_out.": "mha.out_proj.",
        "attend.norm.": "ln.",
        "attend.feed_forward.": "ff_self.",
    }
    if level == "convolve_in":
        return ours.replace("convolve_in.network.", "inc.double_conv.")
    if level == "project_out":
        return ours.replace("project_out.", "outc.")
    if level == "bottom":
        return f"bot{int(number) + 1}.{inner.replace('network.', 'double_conv.')}"
    for mine, theirs in attention.items():
        if inner.startswith(mine):
            return f"sa{int(number) + (1 if level == 'down' else 4)}.{theirs}{inner.removeprefix(mine)}"
    if inner.startswith("embed_context."):
        return f"{level}{int(number) + 1}.{inner.replace('embed_context.', 'emb_layer.')}"
    _, half, _, name = inner.split(".", 3)
    halves = f"maxpool_conv.{int(half) + 1}" if level == "down" else f"conv.{half}"
    return f"{level}{int(number) + 1}.{halves}.double_conv.{name}"


def test_every_weight_of_the_published_unet_has_its_place(tmp_path):
    torch.manual_seed(0)
    network = GeneUNet(20, width=4)
    weights = {name: w for name, w in network.state_dict().items() if "layout" not in name}
    save_file({published_unet_name(name): w.contiguous() for name, w in weights.items()}, tmp_path / "unet.safetensors")

    model = read("scrdit", tmp_path / "unet.safetensors", var_names=GENES[:20])

    x, t, condition = torch.randn(2, 20), torch.tensor([3.0, 700.0]), torch.zeros(2, 0, dtype=torch.long)
    torch.testing.assert_close(model.module.averaged_network(x, t, condition), network(x, t, condition))
