"""Networks of scRDiT and of the white-box diffusion transformer against numbers of the published code."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scgen_diffusion.nn import GeneDiT

FOLDER = Path(os.environ.get("PARITY_DIR") or Path(__file__).parents[1] / "parity")
SIZES = json.loads((FOLDER / "config.json").read_text())["ddpm_config"]
SYSTEMS = {"scrdit": "transformer", "wbdit": "white_box"}
per_system = pytest.mark.parametrize("system", SYSTEMS)

# Published names, and ours below GeneDiT.network (below its block for the first two).
TRANSFORMER_BLOCK = {
    "attn.qkv.": "attention.project_qkv.",
    "attn.proj.": "attention.project_out.",
    "mlp.fc1.": "feed_forward.project_in.",
    "mlp.fc2.": "feed_forward.project_out.",
    "adaLN_modulation.": "modulation.",
}
WHITE_BOX_BLOCK = {
    "attn.qkv.": "attention.project.",
    "attn.to_out.0.": "attention.project_out.",
    "mlp.weight": "feed_forward.dictionary",
    "adaLN_modulation.": "modulation.",
}
AROUND = {
    "x_embedder.proj.": "project_in.",  # a convolution (width, 1, patch, 1)
    "pos_embed": "positions",  # (1, patches, width)
    "t_embedder.mlp.": "embed_time.network.",
    "final_layer.adaLN_modulation.": "modulation_out.",
    "final_layer.linear.": "project_out.",
}


def rename(name, block):
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        return f"blocks.{number}.{replace_start(rest, block)}"
    return replace_start(name, AROUND)


def replace_start(name, names):
    (theirs,) = (start for start in names if name.startswith(start))
    return names[theirs] + name.removeprefix(theirs)


def read(system):
    names = {"scrdit": TRANSFORMER_BLOCK, "wbdit": WHITE_BOX_BLOCK}[system]
    weights = load_file(FOLDER / f"{system}_state_dict.safetensors")
    weights = {rename(name, names): w for name, w in weights.items()}
    weights["project_in.weight"] = weights["project_in.weight"].flatten(1)
    weights["positions"] = weights["positions"][0]
    return weights


def build(system):
    sizes = {"patch_size": SIZES["p"], "width": SIZES["h"], "n_layers": SIZES["depth"], "n_heads": SIZES["heads"]}
    return GeneDiT(SIZES["n"], **sizes, block=SYSTEMS[system])


@per_system
def test_predicted_noise_is_the_published_one(system):
    network, vectors = build(system), load_file(FOLDER / f"{system}_vectors.safetensors")
    network.network.load_state_dict(read(system))
    condition = torch.empty(SIZES["B"], 0, dtype=torch.long)
    predicted = network(vectors["x"].squeeze(1), vectors["t"].float(), condition)  # recorded at x, not at noised
    torch.testing.assert_close(predicted, vectors["predicted_noise"].squeeze(1), rtol=0, atol=1e-5)


@per_system
def test_positions_are_the_published_ones(system):
    torch.testing.assert_close(build(system).network.positions, read(system)["positions"], rtol=0, atol=1e-6)
