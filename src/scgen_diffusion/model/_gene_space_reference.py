"""Read weights of the published scRDiT and White-Box Diffusion Transformer code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ._reference import read_weights, stand_in_registry

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ._gene_space import GeneSpaceModel

ModelT = TypeVar("ModelT", bound="GeneSpaceModel")
Weights = dict[str, "Tensor"]


NAMES = {
    r"^x_embedder\.proj\.": "network.project_in.",
    r"^pos_embed$": "network.positions",
    r"^t_embedder\.mlp\.": "network.embed_time.network.",
    r"^final_layer\.adaLN_modulation\.": "network.modulation_out.",
    r"^final_layer\.linear\.": "network.project_out.",
    r"^blocks\.(\d+)\.adaLN_modulation\.": r"network.blocks.\1.modulation.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"network.blocks.\1.attention.project_out.",
    r"^blocks\.(\d+)\.attn\.to_out\.0\.": r"network.blocks.\1.attention.project_out.",
    r"^blocks\.(\d+)\.mlp\.fc1\.": r"network.blocks.\1.feed_forward.project_in.",
    r"^blocks\.(\d+)\.mlp\.fc2\.": r"network.blocks.\1.feed_forward.project_out.",
    r"^blocks\.(\d+)\.mlp\.weight$": r"network.blocks.\1.feed_forward.dictionary",
}
QUERIES_KEYS_VALUES = {
    "dit": r"network.blocks.\1.attention.project_qkv.",
    "white_box": r"network.blocks.\1.attention.project.",
}


def load_gene_space_reference(
    cls: type[ModelT], path: str | os.PathLike[str], *, var_names: Sequence[str], n_heads: int, zero_value: float | None
) -> ModelT:
    """Build a model from published weights; see :meth:`GeneSpaceModel.from_reference_checkpoint`."""
    weights = read_weights(Path(path))
    backbone = _backbone_of(weights)
    if (cls._family == "WBDIT") != (backbone == "white_box"):
        msg = f"The file holds a {backbone!r} network, which {cls.__name__} does not have."
        raise ValueError(msg)
    try:
        options = {"backbone": backbone, "zero_value": zero_value, **_sizes_of(weights, n_heads)}
        n_genes = weights["pos_embed"].shape[1] * options["patch_size"]
        if len(var_names) != n_genes:
            msg = f"`var_names` has {len(var_names)} genes, but the weights have {n_genes}."
            raise ValueError(msg)
        registry = stand_in_registry(cls, var_names, {}, values="log1p")
        model = cls(registry=registry, size="published", **options)
        renamed = rename(weights, backbone)
        for network in (model.module.network, model.module.averaged_network.module):
            network.backbone.load_state_dict(_with_condition_tables(renamed, network.backbone))
    except (KeyError, RuntimeError) as error:
        msg = f"The weights do not have the published layout: {error}"
        raise ValueError(msg) from error
    model.combinations_, model.combination_sizes_ = np.zeros((1, 0), dtype=int), np.ones(1, dtype=int)
    model._record_trained("diffusion")
    model.module.eval()
    return model


def rename(weights: Weights, backbone: str) -> Weights:
    """Give published weights our names and shapes."""
    names = {**NAMES, r"^blocks\.(\d+)\.attn\.qkv\.": QUERIES_KEYS_VALUES[backbone]}
    renamed = {_rename_one(name, names): w for name, w in weights.items()}
    renamed["network.project_in.weight"] = renamed["network.project_in.weight"].flatten(1)  # a convolution
    renamed["network.positions"] = renamed["network.positions"][0]
    return renamed


def _rename_one(name: str, names: dict[str, str]) -> str:
    for pattern, ours in names.items():
        name = re.sub(pattern, ours, name)
    return name


def _backbone_of(weights: Weights) -> str:
    if "x_embedder.proj.weight" not in weights:
        msg = "The file has no tensor 'x_embedder.proj.weight'; the file holds no scRDiT or White-Box DiT transformer."
        raise ValueError(msg)
    return "white_box" if any(name.endswith("mlp.weight") for name in weights) else "dit"


def _sizes_of(weights: Weights, n_heads: int) -> dict[str, int]:
    """Read every size off the tensors."""
    shape = weights["x_embedder.proj.weight"].shape
    if len(shape) != 4:
        msg = f"'x_embedder.proj.weight' has the shape {tuple(shape)}, not that of a convolution"
        raise RuntimeError(msg)
    width, _, patch_size, _ = shape
    n_layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    return {"patch_size": patch_size, "width": width, "n_layers": n_layers, "n_heads": n_heads}


def _with_condition_tables(weights: Weights, network: torch.nn.Module) -> Weights:
    """Add the weights that embed conditions, which the published networks lack."""
    return {**{name: w for name, w in network.state_dict().items() if "embed_condition" in name}, **weights}
