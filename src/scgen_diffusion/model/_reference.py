"""Read weights of the published scLDM code."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from safetensors.torch import load_file
from torch import Tensor

from scgen_diffusion._compat import registered_manager
from scgen_diffusion._files import explain_failed_read, read_torch

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from scvi.model.base import BaseModelClass

ModelT = TypeVar("ModelT", bound="BaseModelClass")
Weights = dict[str, Tensor]

#: Parts of published names, and of ours; they are replaced in this order.
NAMES = {
    "vae_model.input_layer.gene_embedding": "encoder.network.attention.embed_gene",
    "vae_model.encoder.ca_layer.inducing_points": "encoder.network.attention.queries",
    "vae_model.encoder.ca_layer": "encoder.network.attention.pool",
    "vae_model.encoder.encoder_layers": "encoder.network.attention.blocks",
    "vae_model.encoder.encoder_latent_input.0": "encoder.network.read_attention",
    "vae_model.decoder.gene_embedding": "decoder.gene_queries.embed_gene",
    "vae_model.decoder.decoder_layers": "decoder.gene_queries.blocks",
    "vae_model.decoder.decoder_cross_attention": "decoder.gene_queries.unpool",
    "vae_model.decoder.decoder_latent_input.1": "decoder.gene_queries.project_in",
    "vae_model.decoder_head.params": "decoder.gene_queries.readout",
    "vae_model.decoder_head.theta.weight": "likelihood.log_theta",
    "diffusion_model.": "prior.",
    "prior.pos_embed": "prior.positions",
    ".input_proj": ".project_in",
    ".t_embedder.mlp": ".embed_time.network",
    ".final_layer.linear": ".project_out",
    ".final_layer.adaln_modulation": ".modulation_out",
    ".adaln_modulation": ".modulation",
    ".attn.c_attn_q": ".attention.project_query",
    "pool.attn.c_attn": "pool.attention.project_kv",
    ".attn.c_attn": ".attention.project_qkv",
    ".attn.c_proj": ".attention.project_out",
    ".mlp.w1": ".feed_forward.gate",
    ".mlp.w2": ".feed_forward.value",
    ".mlp.c_proj": ".feed_forward.project_out",
    "pool.ln_1q": "pool.norm_queries",
    "pool.ln_1": "pool.norm_tokens",
    ".ln_1": ".norm_attention",
    ".ln_2": ".norm_feed_forward",
}
FILLED = ("encoder.", "decoder.", "likelihood.", "prior.", "averaged_prior.module.")


def load_reference(
    cls: type[ModelT],
    path: str | os.PathLike[str],
    *,
    var_names: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    ema: bool,
    **architecture: Any,
) -> ModelT:
    """Build a model from published weights; see :meth:`SCLDM.from_reference_checkpoint`.

    ``architecture`` is what cannot be read off the tensors.
    """
    weights = read_weights(Path(path).expanduser())
    try:
        architecture |= _architecture_of(weights)
        model = cls(registry=stand_in_registry(cls, var_names, categories), size="published", **architecture)
        _fill(model.module, weights, list(categories), ema=ema)
    except (KeyError, RuntimeError) as error:
        msg = f"`var_names` or `categories` do not fit the weights, or these are not published ones of scLDM: {error}"
        raise ValueError(msg) from error
    codes = np.array([*product(*(range(len(values)) for values in categories.values()))], dtype=int)
    model.combinations_, model.combination_sizes_ = codes, np.ones(len(codes), dtype=int)
    model.module.eval()
    return model


def read_weights(path: Path) -> Weights:
    """Read a state dict from ``.safetensors`` or a Lightning ``.ckpt``; raise ValueError for any other content."""
    with explain_failed_read(f"{path} is damaged or not a file of weights"):
        path.open("rb").close()  # safetensors does not say why it cannot open a file
        content = load_file(path) if path.suffix == ".safetensors" else read_torch(path)
        weights = content.get("state_dict", content)
        if not all(isinstance(w, Tensor) for w in weights.values()):
            msg = "it does not map names to tensors"
            raise ValueError(msg)
    return weights


def _architecture_of(weights: Weights) -> dict[str, Any]:
    """Read every size off the tensors."""
    encoder, prior = "vae_model.encoder.", "diffusion_model."
    n_tokens, width = weights[f"{encoder}ca_layer.inducing_points"].shape[-2:]
    return {
        "n_latent_tokens": n_tokens,
        "n_latent": weights[f"{encoder}encoder_latent_input.0.weight"].shape[0],
        "width": width,
        "n_layers": _count(weights, f"{encoder}encoder_layers."),
        "feed_forward_width": weights[f"{encoder}ca_layer.mlp.w1.weight"].shape[0],
        "dispersion": "gene" if "vae_model.decoder_head.theta.weight" in weights else "gene-cell",
        "share_gene_embedding": "vae_model.decoder.gene_embedding.weight" not in weights,
        "prior_width": weights[f"{prior}input_proj.weight"].shape[0],
        "prior_n_layers": _count(weights, f"{prior}blocks."),
        "prior_feed_forward_width": weights[f"{prior}blocks.0.mlp.w1.weight"].shape[0],
        "mask_padding": False,
    }


def _count(weights: Weights, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def stand_in_registry(
    cls: type[BaseModelClass], var_names: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Register made-up cells, at least three of every class, and return their registry."""
    rows = np.arange(3 * max([1, *map(len, categories.values())]))
    obs = {key: pd.Categorical.from_codes(rows % len(names), list(names)) for key, names in categories.items()}
    x = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, 0 * rows)), (len(rows), len(var_names)))
    cells = AnnData(x, obs=pd.DataFrame(obs, index=rows.astype(str)), var=pd.DataFrame(index=list(var_names)))
    cls.setup_anndata(cells, condition_keys=list(categories))
    return registered_manager(cls, cells).registry


def _fill(module: torch.nn.Module, weights: Weights, keys: Sequence[str], *, ema: bool) -> None:
    """Load the weights under our names."""
    positions = weights.get("vae_model.encoder.pos_embed")
    if positions is not None and positions.any():
        msg = (
            "The encoder's position embedding is not zero, which is not supported (the published code never trains it)."
        )
        raise ValueError(msg)
    found = _rename(weights, keys)
    if ema:  # the averaging library also saves the raw weights, as ema_model.online_model
        ends = (n for n in weights if n.startswith("ema_model.ema_model.") and n.endswith("input_proj.weight"))
        if not (prefix := next(ends, "").removesuffix("input_proj.weight")):
            msg = "`ema` is True, but the file has no averaged weights (names that start with 'ema_model.ema_model.')."
            raise ValueError(msg)
        averaged = {f"diffusion_model.{n.removeprefix(prefix)}": w for n, w in weights.items() if n.startswith(prefix)}
    of_prior = _rename(averaged, keys) if ema else found
    found |= {f"averaged_prior.module.{n.removeprefix('prior.')}": w for n, w in of_prior.items() if n[:6] == "prior."}
    own = module.state_dict()
    if missing := [name for name in own if name.startswith(FILLED) and name not in found]:
        msg = f"there is no tensor for {missing[0]!r}"
        raise KeyError(msg)
    if unknown := [name for name in found if name.startswith("prior.class_embeddings.")]:
        msg = f"`categories` lacks the key of {unknown[0]!r}"
        raise KeyError(msg)
    module.load_state_dict(own | {name: w for name, w in found.items() if name in own})


def _rename(weights: Weights, keys: Sequence[str]) -> Weights:
    """Return published weights as ours, by our names; others keep their names."""
    names = NAMES | {f"class_embeddings.{key}.": f"embed_condition.tables.{n}." for n, key in enumerate(keys)}
    renamed = {}
    for published, w in weights.items():
        name = published
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if ".blocks." in name and ".modulation." in name:  # theirs is (scale, shift, gate), twice; ours shifts first
            parts = w.chunk(6)
            renamed[name] = torch.cat([parts[number] for number in (1, 0, 2, 4, 3, 5)])
        elif name in ("encoder.network.attention.queries", "prior.positions"):
            renamed[name] = w.reshape(w.shape[-2:])
        else:
            renamed[name] = w[1:, 0] if name == "likelihood.log_theta" else w
    if (genes := renamed.get("encoder.network.attention.embed_gene.weight")) is not None:
        renamed.setdefault("decoder.gene_queries.embed_gene.weight", genes)
    return renamed
