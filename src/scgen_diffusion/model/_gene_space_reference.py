"""Read weights of the published scRDiT and White-Box Diffusion Transformer code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ._reference import read_weights, stand_in_registry

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from ._gene_space import GeneSpaceModel

ModelT = TypeVar("ModelT", bound="GeneSpaceModel")
Weights = dict[str, "Tensor"]


def _shift_down(ours: str, first: int = 1) -> Callable[[re.Match[str]], str]:
    """Return a substitution that fills ``{}`` with the number in a published name, counted from 0."""
    return lambda match: ours.format(int(match[1]) - first, *match.groups()[1:])


TRANSFORMER_NAMES: dict[str, Any] = {
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
QUERIES_KEYS_VALUES = {"dit": "project_qkv", "white_box": "project"}
UNET_NAMES: dict[str, Any] = {
    r"^inc\.double_conv\.": "convolve_in.network.",
    r"^down(\d)\.maxpool_conv\.1\.double_conv\.": _shift_down("down.{}.convolve.0.network."),
    r"^down(\d)\.maxpool_conv\.2\.double_conv\.": _shift_down("down.{}.convolve.1.network."),
    r"^down(\d)\.emb_layer\.": _shift_down("down.{}.embed_context."),
    r"^bot(\d)\.double_conv\.": _shift_down("bottom.{}.network."),
    r"^up(\d)\.conv\.([01])\.double_conv\.": _shift_down("up.{}.convolve.{}.network."),
    r"^up(\d)\.emb_layer\.": _shift_down("up.{}.embed_context."),
    r"^sa([123])\.": _shift_down("down.{}.attend."),
    r"^sa([456])\.": _shift_down("up.{}.attend.", first=4),
    r"attend\.mha\.in_proj_": "attend.attention.project_qkv.",
    r"attend\.mha\.out_proj\.": "attend.attention.project_out.",
    r"attend\.ln\.": "attend.norm.",
    r"attend\.ff_self\.": "attend.feed_forward.",
    r"^outc\.": "project_out.",
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
        options = {"backbone": backbone, "zero_value": zero_value, **_sizes_of(weights, backbone, n_heads)}
        _check_genes(weights, backbone, len(var_names), options)
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
    names = dict(UNET_NAMES if backbone == "unet" else TRANSFORMER_NAMES)
    if backbone != "unet":
        names[r"^blocks\.(\d+)\.attn\.qkv\."] = rf"network.blocks.\1.attention.{QUERIES_KEYS_VALUES[backbone]}."
    renamed = {_rename_one(name, names): w for name, w in weights.items()}
    if backbone != "unet":
        renamed["network.project_in.weight"] = renamed["network.project_in.weight"].flatten(1)  # a convolution
        renamed["network.positions"] = renamed["network.positions"][0]
    return renamed


def _rename_one(name: str, names: dict[str, Any]) -> str:
    for pattern, ours in names.items():
        name = re.sub(pattern, ours, name)
    return name


def _backbone_of(weights: Weights) -> str:
    if "inc.double_conv.0.weight" in weights:
        return "unet"
    if "x_embedder.proj.weight" not in weights:
        msg = "The file has no tensor 'x_embedder.proj.weight'; it is not a file of scRDiT or White-Box DiT weights."
        raise ValueError(msg)
    return "white_box" if any(name.endswith("mlp.weight") for name in weights) else "dit"


def _sizes_of(weights: Weights, backbone: str, n_heads: int) -> dict[str, int]:
    """Read every size off the tensors."""
    if backbone == "unet":
        return {"unet_width": len(weights["inc.double_conv.0.weight"])}
    shape = weights["x_embedder.proj.weight"].shape
    if len(shape) != 4:
        msg = f"'x_embedder.proj.weight' has the shape {tuple(shape)}, not that of a convolution"
        raise RuntimeError(msg)
    width, _, patch_size, _ = shape
    n_layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    return {"patch_size": patch_size, "width": width, "n_layers": n_layers, "n_heads": n_heads}


def _check_genes(weights: Weights, backbone: str, n_genes: int, sizes: dict[str, Any]) -> None:
    """Raise unless the number of genes fits the weights; those of a U-Net fit any number."""
    if backbone != "unet":
        expected = weights["pos_embed"].shape[1] * sizes["patch_size"]
        if n_genes != expected:
            msg = f"`var_names` has {n_genes} genes, but the weights have {expected}."
            raise ValueError(msg)


def _with_condition_tables(weights: Weights, network: torch.nn.Module) -> Weights:
    """Add the weights that embed conditions, which the published networks lack."""
    return {**{name: w for name, w in network.state_dict().items() if "embed_condition" in name}, **weights}
