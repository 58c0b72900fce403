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

from scgen_diffusion._arguments import known_names
from scgen_diffusion._compat import registered_manager
from scgen_diffusion._files import explain_failed_read
from scgen_diffusion.module import ANY

from ._model_file import load_plain

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from scvi.model.base import BaseModelClass

    from ._scldm import SCLDM

ModelT = TypeVar("ModelT", bound="SCLDM")
Weights = dict[str, Tensor]

ADVICE = "Save its state dict alone, for example as .safetensors."

SELF_ATTENTION = {
    "attn.c_attn.": "attention.project_qkv.",
    "attn.c_proj.": "attention.project_out.",
    "mlp.w1.": "feed_forward.gate.",
    "mlp.w2.": "feed_forward.value.",
    "mlp.c_proj.": "feed_forward.project_out.",
    "ln_1.": "norm_attention.",
    "ln_2.": "norm_feed_forward.",
    "adaln_modulation.": "modulation.",
}
CROSS_ATTENTION = {
    **SELF_ATTENTION,
    "attn.c_attn.": "attention.project_kv.",
    "attn.c_attn_q.": "attention.project_query.",
    "ln_1.": "norm_tokens.",
    "ln_1q.": "norm_queries.",
}
PRIOR = {
    "input_proj.": "project_in.",
    "t_embedder.mlp.": "embed_time.network.",
    "final_layer.linear.": "project_out.",
    "final_layer.adaln_modulation.": "modulation_out.",
}


def load_reference(
    cls: type[ModelT],
    path: str | os.PathLike[str],
    *,
    var_names: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    library_size: pd.DataFrame | None,
    ema: bool,
    **architecture: Any,
) -> ModelT:
    """Build a model from published weights; see :meth:`SCLDM.from_reference_checkpoint`.

    ``architecture`` is what cannot be read off the tensors.
    """
    weights = read_weights(Path(path).expanduser())
    _check_sizes(weights, var_names, categories)
    registry = stand_in_registry(cls, var_names, categories)
    try:
        model = cls(registry=registry, size="published", **architecture, **_architecture_of(weights))
        _fill(model, weights, list(categories), ema=ema)
    except (KeyError, RuntimeError) as error:
        msg = f"The weights do not have the published layout: {error}"
        raise ValueError(msg) from error
    combinations = list(product(*(range(len(values)) for values in categories.values())))  # one, without keys
    codes = np.array(combinations, dtype=int)
    model.combinations_, model.combination_sizes_ = codes, np.ones(len(codes), dtype=int)
    if library_size is not None:
        _set_library_size(model, library_size, categories)
    model._record_trained("autoencoder", "prior")
    model.module.eval()
    return model


def read_weights(path: Path) -> Weights:
    """Read a state dict from ``.safetensors`` or a Lightning ``.ckpt``, executing nothing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or holds more than plain values and tensors.
    """
    if not path.is_file():
        msg = f"There are no weights at {path}."
        raise FileNotFoundError(msg)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = load_plain(path, "file of weights", ADVICE)
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        msg = f"{path} does not hold weights, a mapping from names to tensors."
        raise ValueError(msg)
    return weights


def _read_safetensors(path: Path) -> Weights:
    with explain_failed_read(path, f"{path} is damaged or not a file of weights"):
        path.open("rb").close()  # safetensors does not say why it cannot open a file
        return load_file(path)


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


def _check_sizes(weights: Weights, var_names: Sequence[str], categories: Mapping[str, Sequence[str]]) -> None:
    """Raise unless genes and categories are those of the weights."""
    needed = ("vae_model.input_layer.gene_embedding.weight", "diffusion_model.input_proj.weight")
    if missing := [name for name in needed if name not in weights]:
        msg = f"The file has no tensor {missing[0]!r}; it is not a file of published scLDM weights."
        raise ValueError(msg)
    n_genes = len(weights[needed[0]]) - 1
    if len(var_names) != n_genes:
        msg = f"`var_names` has {len(var_names)} genes, but the weights have {n_genes}."
        raise ValueError(msg)
    prefix = "diffusion_model.class_embeddings."
    sizes = {
        name.removeprefix(prefix).split(".")[0]: len(w) - 1 for name, w in weights.items() if name.startswith(prefix)
    }
    given = {key: len(values) for key, values in categories.items()}
    if given != sizes:
        msg = f"`categories` has {given} classes per key, but the weights have {sizes}."
        raise ValueError(msg)


def stand_in_registry(
    cls: type[BaseModelClass], var_names: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Register made-up cells, at least three of every class, and return their registry."""
    n_cells = 3 * max([1, *map(len, categories.values())])
    ones, rows = np.ones(n_cells, np.float32), np.arange(n_cells)
    codes = {key: rows % len(names) for key, names in categories.items()}
    obs = {key: pd.Categorical.from_codes(codes[key], categories=list(names)) for key, names in categories.items()}
    x = sp.csr_matrix((ones, (rows, 0 * rows)), (n_cells, len(var_names)))
    names = pd.Index([str(cell) for cell in range(n_cells)])
    cells = AnnData(x, obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=pd.Index(list(var_names))))
    cls.setup_anndata(cells, condition_keys=list(categories))
    return registered_manager(cls, cells).registry


def _fill(model: SCLDM, weights: Weights, keys: Sequence[str], *, ema: bool) -> None:
    module: Any = model.module
    encoder, decoder = module.encoder.network, module.decoder.gene_queries
    pooling = encoder.attention
    positions = weights.get("vae_model.encoder.pos_embed")
    if positions is not None and positions.any():
        msg = (
            "The encoder's position embedding is not zero, which is not supported; the published code never trains it."
        )
        raise ValueError(msg)
    _load(pooling.pool, weights, "vae_model.encoder.ca_layer.", CROSS_ATTENTION, ignore=("inducing_points",))
    pooling.queries.data.copy_(weights["vae_model.encoder.ca_layer.inducing_points"].reshape(pooling.queries.shape))
    genes = weights["vae_model.input_layer.gene_embedding.weight"]
    pooling.embed_gene.weight.data.copy_(genes)
    decoder.embed_gene.weight.data.copy_(weights.get("vae_model.decoder.gene_embedding.weight", genes))
    for number, (down, up) in enumerate(zip(pooling.blocks, decoder.blocks, strict=True)):
        _load(down, weights, f"vae_model.encoder.encoder_layers.{number}.", SELF_ATTENTION)
        _load(up, weights, f"vae_model.decoder.decoder_layers.{number}.", SELF_ATTENTION)
    _load(decoder.unpool, weights, "vae_model.decoder.decoder_cross_attention.", CROSS_ATTENTION)
    encoder.read_attention.weight.data.copy_(weights["vae_model.encoder.encoder_latent_input.0.weight"])
    decoder.project_in.weight.data.copy_(weights["vae_model.decoder.decoder_latent_input.1.weight"])
    _load(decoder.readout, weights, "vae_model.decoder_head.params.", {"": ""})
    if module.likelihood.log_theta is not None:
        module.likelihood.log_theta.data.copy_(weights["vae_model.decoder_head.theta.weight"][1:, 0])
    _fill_prior(module.prior, weights, "diffusion_model.", keys)
    averaged = "diffusion_model." if not ema else _ema_prefix(weights)
    _fill_prior(module.averaged_prior.module, weights, averaged, keys)


def _fill_prior(prior: torch.nn.Module, weights: Weights, prefix: str, keys: Sequence[str]) -> None:
    own = {name: w for name, w in weights.items() if name.startswith(prefix)}
    for number, block in enumerate(prior.blocks):
        _load(block, _shift_before_scale(own), f"{prefix}blocks.{number}.", SELF_ATTENTION)
    for key, table in zip(keys, prior.embed_condition.tables, strict=True):
        table.weight.data.copy_(own[f"{prefix}class_embeddings.{key}.weight"])
    prior.positions.copy_(own[f"{prefix}pos_embed"][0])
    for theirs, ours in PRIOR.items():
        _load(prior.get_submodule(ours.rstrip(".")), own, prefix + theirs, {"": ""})


def _shift_before_scale(weights: Weights) -> Weights:
    """Reorder the modulation of the blocks from (scale, shift, gate) to (shift, scale, gate), twice."""
    ordered = dict(weights)
    for name, w in weights.items():
        if ".blocks." in name and "adaln_modulation" in name:
            scale_a, shift_a, gate_a, scale_f, shift_f, gate_f = w.chunk(6)
            ordered[name] = torch.cat([shift_a, scale_a, gate_a, shift_f, scale_f, gate_f])
    return ordered


def _load(
    target: torch.nn.Module, weights: Weights, prefix: str, names: Mapping[str, str], ignore: Sequence[str] = ()
) -> None:
    """Load the tensors with a prefix under our names; raise unless they fit exactly."""
    renamed = {}
    for name, w in weights.items():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest not in ignore:
            theirs = max((start for start in names if rest.startswith(start)), key=len, default=None)
            if theirs is not None:
                renamed[names[theirs] + rest.removeprefix(theirs)] = w
    try:
        target.load_state_dict(renamed)
    except RuntimeError as error:
        msg = f"The weights below {prefix!r} do not have the published layout: {error}"
        raise ValueError(msg) from error


def _ema_prefix(weights: Weights) -> str:
    for name in weights:  # the averaging library also saves the raw weights, as ema_model.online_model
        if name.startswith("ema_model.ema_model.") and name.endswith("input_proj.weight"):
            return name.removesuffix("input_proj.weight")
    msg = "`ema` is True, but the file has no averaged weights (names that start with 'ema_model.ema_model.')."
    raise ValueError(msg)


def _count(weights: Weights, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _set_library_size(model: SCLDM, table: pd.DataFrame, categories: Mapping[str, Sequence[str]]) -> None:
    """Set one normal distribution of log totals per row of the table; add their mixture if no row covers all cells."""
    if missing := [name for name in ("mean", "std") if name not in table]:
        msg = (
            f"`library_size` needs the columns 'mean' and 'std' besides condition keys, but {missing[0]!r} is missing."
        )
        raise ValueError(msg)
    if unknown := [name for name in table if name not in (*categories, "mean", "std")]:
        msg = f"`library_size` has the unknown column {unknown[0]!r}. {known_names(unknown[0], [*categories])}"
        raise ValueError(msg)
    codes = np.full((len(table), len(categories)), ANY)
    for number, (key, values) in enumerate(categories.items()):
        if key in table:
            given = table[key].notna().to_numpy()
            codes[given, number] = pd.Index(list(values)).get_indexer(table.loc[given, key])
            if (codes[given, number] < 0).any():
                msg = f"`library_size` names classes of {key!r} that are not among its categories."
                raise ValueError(msg)
    means, stds = table["mean"].to_numpy(float), table["std"].to_numpy(float)
    good = np.isfinite(means) & np.isfinite(stds) & (stds >= 0)
    if not (len(table) and good.all()):
        bad = table.index[~good].tolist()
        found = f"row {bad[0]!r} has {means[~good][0]:g} and {stds[~good][0]:g}" if bad else "it has no row"
        msg = f"`library_size` needs rows with a finite 'mean', and a finite 'std' that is not negative, but {found}."
        raise ValueError(msg)
    if pd.DataFrame(codes).duplicated().any() or (not categories and len(table) > 1):
        keys = f"columns ({', '.join(categories)}), not in the index" if categories else "columns, but there are none"
        msg = f"`library_size` has several rows of the same classes. Classes stand in {keys}."
        raise ValueError(msg)
    for_all = (codes == ANY).all(1)
    if not for_all.any():
        overall_std = np.sqrt((stds**2).mean() + means.var())
        codes = np.vstack([np.full((1, len(categories)), ANY), codes])
        means, stds = np.append(means.mean(), means), np.append(overall_std, stds)
    order = np.argsort(~(codes == ANY).all(1), kind="stable")
    model.module.library_size.set_groups(
        torch.from_numpy(codes[order]), means=torch.from_numpy(means[order]), stds=torch.from_numpy(stds[order])
    )
