"""How compact and sparse the tokens of a white-box network are, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pandas as pd
import torch

from scgen_diffusion.nn import coding_rate, sparsity, subspace_coding_rate

from ._heads import head_name
from ._noised_cells import (
    ALL,
    DEFAULT_TIME,
    DEFAULT_TIMES,
    check_times,
    groups_of,
    noised_cells,
    opened,
    path_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.model import WBDIT
    from scgen_diffusion.nn import GeneDiT, HalfTrace, SparseCoding

    from ._noised_cells import CellBatch


#: What a number measures: the layer, the statistic, and the head, or "all" for all heads together.
Label: TypeAlias = tuple[int, str, str]
LABEL = ["layer", "statistic", "head"]
EPS = 0.5  # allowed error of tokens of unit norm, as in CRATE


def layer_statistics(
    model: WBDIT,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    times: Sequence[float] | float = DEFAULT_TIMES,
    groupby: str | None = None,
    conditional: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Measure how each layer compresses and sparsifies the tokens of noised cells.

    A token is a patch of genes, or a global token that reads all of them. With a cell's ``n`` tokens as the columns of
    ``Z``, of width ``d`` and scaled to about unit norm, the basis :math:`U_k`, ``(d, p)``, of each head, and
    :math:`\epsilon = 0.5`:

    .. math::

        R(Z) &= \tfrac12 \log\det\Bigl(I + \tfrac{d}{n \epsilon^2} Z^\top Z\Bigr) \\
        R^c_k(Z) &= \tfrac12 \log\det\Bigl(I + \tfrac{p}{n \epsilon^2} (U_k^\top Z)^\top U_k^\top Z\Bigr),
        \quad R^c = \sum_k R^c_k

    ``statistic`` is one of

    - ``coding_rate_before``, ``coding_rate_after``: :math:`R` of the input of attention, and of its input if it were
      applied a second time, normalised and modulated in the same way.
    - ``subspace_coding_rate_before``, ``..._after``: :math:`R^c` of the same tokens, which attention is designed to
      lower; for all heads together (``head`` is ``"all"``) and for each.
    - ``sparsity``, ``l0_norm``, ``l1_norm``: of the output of the sparse half (ISTA): its share of exact zeros, and the
      mean norms of a token.
    - ``sparse_coding_loss_before``, ``..._after``:
      :math:`\tfrac12 \lVert z - D a \rVert^2 + \lambda \lVert a \rVert_1`, which the sparse half is designed to lower,
      for its initial code ``a = z`` and for its output.
    - ``attention_step``, ``sparse_coding_step``: how far each half moves the tokens, relative to their norm.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    adata
        Cells. Default: those of the model.
    indices
        Rows to use. Default: all.
    times
        Timesteps, from 0 (data) to 999 (noise).
    groupby
        Column of ``obs`` whose groups are averaged separately.
    conditional
        Whether to give the network each cell's conditions, as in training. If False, it gets none, groups differ only
        by their expression, and given cells in memory need no conditions.
    seed
        Seed of the noise. Each cell keeps its noise at all times and in all batches.

    Returns
    -------
    pandas.DataFrame
        One row per time, group, layer, statistic and head, with the mean ``value`` over ``n_cells`` cells, their
        standard deviation ``std``, and the time's ``noise_level`` :math:`\sigma_t`.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    KeyError, TypeError
        If ``groupby`` is not one column of ``obs``.
    ValueError
        If a time or size is not allowed, or a cell has no label.

    Notes
    -----
    These numbers have limits:

    - They depend on :math:`\epsilon` and on the scale of the tokens, which the modulation changes with time and
      condition. Compare ``before`` with ``after``, and cells at the same layer and time.
    - The :math:`U_k` are learned without constraint. They are not orthonormal, so :math:`R^c` is not an upper bound of
      :math:`R`, and they are defined only up to a rotation within a head.
    - The blocks differ from CRATE's: attention has a learned output map, both halves have a gate that depends on time
      and condition, and the sparse half has a residual connection. So a half need not lower its objective; ``before``
      and ``after`` show whether it does.

    References
    ----------
    Yu et al. (2023), *White-box transformers via sparse rate reduction*, arXiv 2306.01129. Yu et al. (2020), *Learning
    diverse and discriminative representations via the principle of maximal coding rate reduction*, arXiv 2006.08558.
    """
    network, source, rows = opened(model, adata, indices)
    groups = groups_of(source, rows, groupby).iloc[rows]
    path = model.module.path
    timesteps = check_times(path, times)
    batches = noised_cells(model, source, rows, conditional=conditional, seed=seed)
    tables = []
    for timestep, cells in zip(timesteps, _measure(network, batches, timesteps), strict=True):
        by_group = cells.groupby(groups.array, observed=True)
        columns = {"value": by_group.mean(), "std": by_group.std(), "n_cells": by_group.count()}
        table = pd.DataFrame({name: found.rename_axis("group").unstack() for name, found in columns.items()})
        noise_level = path.sigma(path_time(path, timestep)).item()
        tables.append(table.reset_index().astype({"group": object}).assign(time=timestep, noise_level=noise_level))
    return pd.concat(tables, ignore_index=True)[["time", "noise_level", "group", *LABEL, *columns]]


def head_coding_rates(
    model: WBDIT,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    time: float = DEFAULT_TIME,
    conditional: bool = True,
    seed: int | None = None,
) -> pd.DataFrame:
    """Return the coding rate of each cell within the subspace of each head, in nats.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    adata, indices, conditional, seed
        See :func:`layer_statistics`; these are its ``subspace_coding_rate_before`` for single cells.
    time
        Timestep. At the default, a gene's own value says little.

    Returns
    -------
    pandas.DataFrame
        Cells by heads; ``L0H2`` is head 2 of layer 0.

    Raises
    ------
    RuntimeError, ValueError
        As :func:`layer_statistics`, and if there are several times.
    """
    network, source, rows = opened(model, adata, indices)
    timesteps = check_times(model.module.path, time, most=1)
    batches = noised_cells(model, source, rows, conditional=conditional, seed=seed)
    (cells,) = _measure(network, batches, timesteps)
    rates = cells.xs("subspace_coding_rate_before", axis=1, level="statistic").drop(columns=ALL, level="head")
    return rates.droplevel("layer", axis=1).set_axis(source.obs_names[rows]).rename_axis(columns=None)


def _measure(network: GeneDiT, batches: Iterable[CellBatch], timesteps: Sequence[float]) -> list[pd.DataFrame]:
    """Measure every layer on every cell: a table for each timestep, with cells in rows and labels in columns."""
    parts: list[list[pd.DataFrame]] = [[] for _ in timesteps]
    for batch in batches:
        for timestep, of_time in zip(timesteps, parts, strict=True):
            found = cell_statistics(network, *batch.at(timestep))
            of_time.append(pd.DataFrame({label: values.double().cpu().numpy() for label, values in found.items()}))
    return [pd.concat(own).rename_axis(columns=LABEL) for own in parts]


@torch.no_grad()
def cell_statistics(network: GeneDiT, x_t: Tensor, t: Tensor, condition: Tensor) -> dict[Label, Tensor]:
    """Return each statistic ``(cells,)`` of every layer, for inputs of the network."""
    measured: dict[Label, Tensor] = {}
    dit = network.network
    context = dit.embed_context(t, condition)
    for layer, (block, trace) in enumerate(zip(dit.blocks, network.trace(x_t, t, condition), strict=True)):
        attention, sparse = trace.attention, trace.feed_forward
        # The input of the same attention if it were applied again, normalised and modulated in the same way.
        again = block.trace(attention.tokens_out, context).attention.modulated
        for when, tokens in (("before", attention.modulated), ("after", again)):
            scaled_eps = EPS * tokens.shape[-1] ** 0.5  # LayerNorm gives a token the norm sqrt(width)
            within = subspace_coding_rate(tokens, block.attention.subspaces, scaled_eps)
            measured[layer, f"coding_rate_{when}", ALL] = coding_rate(tokens, scaled_eps)
            measured[layer, f"subspace_coding_rate_{when}", ALL] = within.sum(-1)
            for head, values in enumerate(within.unbind(-1)):
                measured[layer, f"subspace_coding_rate_{when}", head_name(layer, head)] = values
        code, operator = sparse.output, block.feed_forward
        of_layer = {
            "attention_step": relative_step(attention),
            "sparsity": sparsity(code),
            "l0_norm": (code != 0).float().sum(-1).mean(-1),
            "l1_norm": code.abs().sum(-1).mean(-1),
            "sparse_coding_loss_before": sparse_coding_loss(operator, sparse.modulated, sparse.modulated),
            "sparse_coding_loss_after": sparse_coding_loss(operator, sparse.modulated, code),
            "sparse_coding_step": relative_step(sparse),
        }
        measured |= {(layer, name, ALL): values for name, values in of_layer.items()}
    return measured


def sparse_coding_loss(operator: SparseCoding, tokens: Tensor, code: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \lVert z - D a \rVert^2 + \lambda \lVert a \rVert_1`, the mean over a cell's tokens."""
    residual = tokens - torch.nn.functional.linear(code, operator.dictionary)
    return (residual.square().sum(-1) / 2 + operator.threshold * code.abs().sum(-1)).mean(-1)


def relative_step(half: HalfTrace) -> Tensor:
    """Return how far a half moves a cell's tokens, relative to their norm; NaN if the norm is zero."""
    moved = (half.tokens_out - half.tokens_in).flatten(1).norm(dim=1)
    return moved / half.tokens_in.flatten(1).norm(dim=1)
