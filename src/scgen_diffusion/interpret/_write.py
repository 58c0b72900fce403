"""Write all interpretations of a white-box network to an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgen_diffusion.data import resolve_seed

from ._cells import cells_of, opened_network, resolve_time
from ._heads import head_loadings, head_specificity, patch_attention, patches
from ._layers import head_coding_rates, layer_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgen_diffusion.model import WBDIT

    from ._heads import Tokens


def write(
    model: WBDIT,
    adata: AnnData | None = None,
    *,
    time: float | None = None,
    times: Sequence[float] | float | None = None,
    groupby: str | None = None,
    conditional: bool = True,
    tokens: Tokens | None = None,
    eps: float = 0.5,
    n_probes: int = 1,
    seed: int | None = None,
    key: str = "WBDIT",
) -> None:
    """Compute all interpretations of the network for these cells, and write them to the AnnData.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    adata
        Cells, all of which are used. Default: those of the model. They are changed in place, and can still be written
        to h5ad and zarr. To use fewer cells, give a copy of some: ``few = adata[:300].copy()``.
    time
        Diffusion time of loadings, attention and coding rates of cells, see :func:`head_loadings`.
    times
        Diffusion times of the layer statistics, see :func:`layer_statistics`.
    groupby, conditional, tokens, eps, n_probes, seed
        See :func:`head_loadings` and :func:`layer_statistics`.
    key
        Prefix of the names below.

    Returns
    -------
    None
        It sets

        - ``varm["WBDIT_loadings"]`` and ``varm["WBDIT_specificity"]``: genes by heads, the latter with
          ``relative=True``;
        - ``var["WBDIT_patch"]``: the name of each gene's patch;
        - ``obsm["WBDIT_coding_rates"]``: cells by heads, see :func:`head_coding_rates`;
        - ``uns["WBDIT"]``: ``"statistics"``, the table of the layers; ``"patch_attention"``, ``(groups, heads, tokens,
          tokens)`` with the names in ``"groups"``, ``"heads"`` and ``"tokens"``; and ``"params"``.
    """
    opened_network(model)
    source, _ = cells_of(model, adata, None)
    seed = resolve_seed(seed)
    options: dict[str, Any] = {"time": time, "conditional": conditional, "seed": seed}
    loadings = head_loadings(model, source, tokens=tokens, n_probes=n_probes, **options)
    rates = head_coding_rates(model, source, eps=eps, **options)
    attention = patch_attention(model, source, groupby=groupby, **options)
    statistics = layer_statistics(
        model, source, times=times, groupby=groupby, conditional=conditional, eps=eps, seed=seed
    )
    names = {f"{level}s": attention.index.unique(level).to_numpy(dtype=object) for level in attention.index.names}
    moment = resolve_time(model.module.path, time)
    source.varm[f"{key}_loadings"] = loadings
    source.varm[f"{key}_specificity"] = head_specificity(loadings)
    source.var[f"{key}_patch"] = patches(model)["patch"].reindex(source.var_names)
    source.obsm[f"{key}_coding_rates"] = rates
    source.uns[key] = {
        "statistics": statistics,
        "patch_attention": attention.to_numpy().reshape(*map(len, names.values()), -1),
        **names,
        "params": {
            "time": moment.network_time,
            "groupby": groupby or "",
            "conditional": conditional,
            "eps": eps,
            "n_probes": n_probes,
            "seed": seed,
        },
    }
