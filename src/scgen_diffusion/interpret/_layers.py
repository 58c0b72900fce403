"""How compact and sparse the tokens of a white-box network are, by layer, for given cells or during generation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from scgen_diffusion._arguments import is_number, known_names
from scgen_diffusion.data import CategoricalKey, as_label
from scgen_diffusion.diffusion import Denoiser, DormandPrinceSampler, GuidedField
from scgen_diffusion.nn import coding_rate, sparsity, subspace_coding_rate

from ._cells import (
    ALL,
    DEFAULT_TIMES,
    Averages,
    Moment,
    cells_of,
    check_table,
    group_cells,
    noised_cells,
    opened_network,
    resolve_time,
    resolve_times,
    unbiased_std,
)
from ._heads import head_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgen_diffusion.data import ConditionRequest
    from scgen_diffusion.diffusion import Field, Generators, Sampler
    from scgen_diffusion.model import WBDIT
    from scgen_diffusion.module import GeneSpaceModule
    from scgen_diffusion.nn import GeneDiT, HalfTrace, SparseCoding


class Label(NamedTuple):
    """What a number measures: a statistic of one layer, for one head or all heads together."""

    layer: int
    statistic: str
    head: str = ALL


def layer_statistics(
    model: WBDIT,
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    *,
    times: Sequence[float] | float | None = None,
    groupby: str | None = None,
    conditional: bool = True,
    eps: float = 0.5,
    batch_size: int | None = None,
    seed: int | None = None,
    show_progress: bool = False,
) -> pd.DataFrame:
    r"""Measure how each layer compresses and sparsifies the tokens of noised cells.

    A token is a patch of genes, or a global token that reads all of them. With a cell's ``n`` tokens as the columns of
    ``Z``, of width ``d`` and scaled to about unit norm, and the basis :math:`U_k`, ``(d, p)``, of each head:

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
        Diffusion times on the network's scale: timesteps from 0 (data) to 999 (noise) on variance-preserving paths, or
        from 0 (noise, or all molecules masked) to 1 (data) on other paths. Default: six times.
    groupby
        Column of ``obs`` whose groups are averaged separately.
    conditional
        Whether to give the network each cell's conditions, as in training. If False, it gets none, groups differ only
        by their expression, and given cells in memory need no conditions.
    eps
        :math:`\epsilon`, for tokens of unit norm. CRATE: 0.5.
    batch_size
        Cells per batch. Default: about 4 000 tokens.
    seed
        Seed of the noise. Each cell keeps its noise at all times and in all batches.
    show_progress
        Whether to show a progress bar.

    Returns
    -------
    pandas.DataFrame
        One row per time, group, layer, statistic and head, with the mean ``value`` over ``n_cells`` cells, their
        standard deviation ``std``, and the time's ``noise_level`` :math:`\sigma_t`.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    KeyError
        If ``groupby`` is not a column of ``obs``.
    ValueError
        If a time or size is not allowed, or a cell has no label.

    Notes
    -----
    These numbers have limits:

    - They depend on ``eps`` and on the scale of the tokens, which the modulation changes with time and condition.
      Compare ``before`` with ``after``, and cells at the same layer and time.
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
    network = opened_network(model)
    source, rows = cells_of(model, adata, indices)
    groups, codes = group_cells(source, rows, groupby)
    moments = resolve_times(model.module.path, times, default=DEFAULT_TIMES)
    averages = [Averages(groups) for _ in moments]
    batches = noised_cells(model, source, rows, conditional=conditional, seed=seed, batch_size=batch_size)
    with tqdm(total=len(rows), desc="Measuring cells", unit="cell", disable=not show_progress) as progress:
        for batch in batches:
            for moment, averages_then in zip(moments, averages, strict=True):
                labels, values = cell_statistics(network, *batch.inputs(model.module, moment), eps)
                averages_then.add(values, codes[batch.rows])
            progress.update(len(batch.rows))
    return pd.concat(
        [
            table_of(averages_then, labels, time=moment.network_time, noise_level=moment.noise_level)
            for moment, averages_then in zip(moments, averages, strict=True)
        ],
        ignore_index=True,
    )


def table_of(averages: Averages, labels: Sequence[Label], **constants: float) -> pd.DataFrame:
    """Return one row per non-empty group and label; ``constants`` become columns."""
    parts = []
    for name, n_cells, mean, std in zip(*averages.results(), strict=True):
        part = pd.DataFrame(labels, columns=Label._fields).assign(value=mean, std=std, n_cells=n_cells)
        parts.append(part.assign(group=name, **constants))
    columns = [*constants, "group", *Label._fields, "value", "std", "n_cells"]
    return pd.concat(parts, ignore_index=True)[columns]


def head_coding_rates(
    model: WBDIT,
    adata: AnnData | None = None,
    indices: Sequence[int] | None = None,
    *,
    time: float | None = None,
    conditional: bool = True,
    eps: float = 0.5,
    batch_size: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Return the coding rate of each cell within the subspace of each head, in nats.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    adata, indices, conditional, eps, batch_size, seed
        See :func:`layer_statistics`; these are its ``subspace_coding_rate_before`` for single cells.
    time
        A time as there. Default: 0.75 with masked molecules, timestep 500, or 0.25 for flow matching, where a gene's
        own value says little.

    Returns
    -------
    pandas.DataFrame
        Cells by heads; ``L0H2`` is head 2 of layer 0.
    """
    network = opened_network(model)
    source, rows = cells_of(model, adata, indices)
    moment = resolve_time(model.module.path, time)
    parts = []
    for batch in noised_cells(model, source, rows, conditional=conditional, seed=seed, batch_size=batch_size):
        labels, values = cell_statistics(network, *batch.inputs(model.module, moment), eps)
        of_heads = [label.statistic == "subspace_coding_rate_before" and label.head != ALL for label in labels]
        heads = [label.head for label, is_of_head in zip(labels, of_heads, strict=True) if is_of_head]
        parts.append(pd.DataFrame(values[:, of_heads].float().cpu().numpy(), columns=heads))
    table = pd.concat(parts, ignore_index=True)
    table.index = source.obs_names[rows]
    return table


@torch.no_grad()
def cell_statistics(
    network: GeneDiT, x_t: Tensor, t: Tensor, condition: Tensor, eps: float
) -> tuple[list[Label], Tensor]:
    """Measure every layer on every cell.

    Parameters
    ----------
    network
        A network with white-box blocks.
    x_t, t, condition
        Inputs of the network.
    eps
        Allowed error per token, for tokens of unit norm.

    Returns
    -------
    tuple
        The labels, and one number per cell for each, ``(cells, labels)``.
    """
    if not (is_number(eps) and eps > 0):
        msg = f"`eps` must be positive, but found {eps!r}."
        raise ValueError(msg)
    measured: dict[Label, Tensor] = {}
    dit = network.network
    context = dit.embed_context(t, condition)
    for layer, (block, trace) in enumerate(zip(dit.blocks, network.trace(x_t, t, condition), strict=True)):
        attention, sparse = trace.attention, trace.feed_forward
        # The input of the same attention if it were applied again, normalised and modulated in the same way.
        again = block.trace(attention.tokens_out, context).attention.modulated
        for when, tokens in (("before", attention.modulated), ("after", again)):
            scaled_eps = eps * tokens.shape[-1] ** 0.5  # LayerNorm gives a token the norm sqrt(width)
            within = subspace_coding_rate(tokens, block.attention.subspaces, scaled_eps)
            measured[Label(layer, f"coding_rate_{when}")] = coding_rate(tokens, scaled_eps)
            measured[Label(layer, f"subspace_coding_rate_{when}")] = within.sum(-1)
            for head, values in enumerate(within.unbind(-1)):
                measured[Label(layer, f"subspace_coding_rate_{when}", head_name(layer, head))] = values
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
        measured |= {Label(layer, name): values for name, values in of_layer.items()}
    return list(measured), torch.stack([values.double() for values in measured.values()], dim=1)


def sparse_coding_loss(operator: SparseCoding, tokens: Tensor, code: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \lVert z - D a \rVert^2 + \lambda \lVert a \rVert_1`, the mean over a cell's tokens."""
    residual = tokens - torch.nn.functional.linear(code, operator.dictionary)
    return (residual.square().sum(-1) / 2 + operator.threshold * code.abs().sum(-1)).mean(-1)


def relative_step(half: HalfTrace) -> Tensor:
    """Return how far a half moves a cell's tokens, relative to their norm; NaN if the norm is zero."""
    moved = (half.tokens_out - half.tokens_in).flatten(1).norm(dim=1)
    return moved / half.tokens_in.flatten(1).norm(dim=1)


def sampling_statistics(
    model: WBDIT,
    n_cells: int | None = None,
    condition: ConditionRequest = None,
    *,
    groupby: str | None = None,
    eps: float = 0.5,
    sampler: str | Sampler | None = None,
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Measure :func:`layer_statistics` while noise becomes cells.

    The cells are those that :meth:`~scgen_diffusion.model.WBDIT.generate` makes with the same arguments. They are
    measured at every evaluation of the network, under their own conditions, even if guidance combines several
    predictions.

    Parameters
    ----------
    model
        A trained :class:`~scgen_diffusion.model.WBDIT`.
    n_cells, condition, sampler, **generate_kwargs
        See :meth:`~scgen_diffusion.model.WBDIT.generate`. The sampler ``"dopri5"`` is not supported, because its steps
        differ between cells.
    groupby
        Condition key with classes, which are averaged separately.
    eps
        See :func:`layer_statistics`.

    Returns
    -------
    pandas.DataFrame
        As from :func:`layer_statistics`, with a first column ``step``, the number of the network's evaluation.
    """
    opened_network(model)
    classes = [key.name for key in model.conditions.by_key if isinstance(key, CategoricalKey)]
    if groupby is not None and groupby not in classes:
        msg = f"`groupby` {groupby!r} is not a condition key with classes. {known_names(groupby, classes)}"
        raise ValueError(msg)
    _, sampler = model._engine.sampler(sampler)
    if isinstance(sampler, DormandPrinceSampler):
        msg = (
            "The steps of 'dopri5' differ between blocks of cells, so they cannot be averaged; "
            "choose a sampler with fixed steps."
        )
        raise ValueError(msg)
    watch = WatchedSampler(sampler, model.module, eps)
    n_cells = model.generate(n_cells, condition, sampler=watch, **generate_kwargs).n_obs
    groups = [ALL] if groupby is None else [as_label(name) for name in model.conditions.categories[groupby]]
    column = None if groupby is None else model.conditions.columns(groupby).start
    tables = []
    in_order = sorted(watch.seen, key=lambda steps: steps[0][1][0])  # in the order of the cells, not of the threads
    for step, blocks in enumerate(zip(*in_order, strict=True)):
        averages = Averages(groups)
        for _, cells, conditions, _, values in blocks:
            wanted = cells < n_cells  # the others only fill the last block
            codes = np.zeros(len(cells), dtype=int) if column is None else conditions[:, column].astype(int)
            averages.add(values[wanted], codes[wanted])
        time, _, _, labels, _ = blocks[0]
        level = Moment.of(model.module.path, time).noise_level
        tables.append(table_of(averages, labels, step=step, time=time, noise_level=level))
    return pd.concat(tables, ignore_index=True)


class WatchedSampler:
    """A sampler that measures the inputs of the network and changes nothing.

    Parameters
    ----------
    sampler
        The sampler.
    module
        The module whose averaged network is a white box.
    eps
        See :func:`cell_statistics`.
    """

    def __init__(self, sampler: Sampler, module: GeneSpaceModule, eps: float) -> None:
        self.sampler, self.network, self.eps = sampler, module.averaged_network.module, eps
        self.seen: list[list[tuple[float, np.ndarray, np.ndarray, list[Label], Tensor]]] = []  # the steps of each block

    def __call__(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry noise ``x (n, ...)`` to data as the sampler does."""
        if not isinstance(field, Denoiser) or not isinstance(field.field, GuidedField) or generators is None:
            msg = f"`field` must be a Denoiser around a GuidedField, with generators, but found {type(field).__name__}."
            raise TypeError(msg)
        guided, steps = field.field, []
        self.seen.append(steps)
        cells, condition = generators.indices.numpy(), guided.condition

        def watched(x_t: Tensor, t: Tensor) -> Tensor:
            inputs = self.network.backbone_inputs(x_t, t.expand(len(x_t)), condition)
            labels, values = cell_statistics(self.network.backbone, *inputs, self.eps)
            steps.append((float(t.flatten()[0]), cells, condition.cpu().numpy(), labels, values.cpu()))
            return guided(x_t, t)

        return self.sampler(replace(field, field=watched), x, n_steps=n_steps, generators=generators)


def compare_groups(statistics: pd.DataFrame, group1: str | int, group2: str | int | None = None) -> pd.DataFrame:
    r"""Compare two groups of cells, or one group with all others.

    Parameters
    ----------
    statistics
        Table from :func:`layer_statistics` or :func:`sampling_statistics`, with ``groupby``.
    group1, group2
        Names of groups. ``group2=None`` means the cells of all other groups.

    Returns
    -------
    pandas.DataFrame
        One row per time, layer, statistic and head: means, standard deviations and numbers of cells of both groups,
        their ``difference``, and Cohen's :math:`d` as ``effect_size``, the difference divided by
        :math:`\sqrt{(s_1^2 + s_2^2) / 2}`.

    Raises
    ------
    ValueError
        If a group is unknown, or there is only one.

    Notes
    -----
    There is no p-value: with enough cells every difference is significant, and cells of one donor are not replicates.
    """
    check_table("statistics", statistics, "layer_statistics or sampling_statistics")
    found = list(statistics["group"].unique())
    group1, group2 = (group if group is None else as_label(group) for group in (group1, group2))  # groups are text
    for name, group in (("group1", group1), ("group2", group2)):
        if group not in (*found, None) or (group is None and name == "group1"):
            msg = f"`{name}` is {group!r}, but the groups are {', '.join(map(repr, found))}."
            raise ValueError(msg)
    if group1 == group2 or len(found) < 2:
        msg = f"Two groups are needed, but found only {group1!r}; compute the statistics with `groupby`."
        raise ValueError(msg)
    keys = [key for key in ("step", "time", "noise_level", *Label._fields) if key in statistics]
    is_first = statistics["group"] == group1
    is_second = ~is_first if group2 is None else statistics["group"] == group2
    pools = pool_cells(statistics[is_first], keys).add_suffix("1")
    pools = pools.join(pool_cells(statistics[is_second], keys).add_suffix("2"))
    table = pools.reset_index()
    table.insert(len(keys), "group1", group1)
    table.insert(len(keys) + 1, "group2", "rest" if group2 is None else group2)
    spread = np.sqrt((table["std1"] ** 2 + table["std2"] ** 2) / 2)
    difference = table["mean1"] - table["mean2"]
    return table.assign(difference=difference, effect_size=difference / spread.where(spread > 0))


def pool_cells(statistics: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Pool the cells of several groups."""
    n, mean, std = (statistics[name] for name in ("n_cells", "value", "std"))
    squares = (n - 1) * std.where(n > 1, 0.0) ** 2 + n * mean**2
    sums = statistics[keys].assign(n=n, total=n * mean, square=squares).groupby(keys, sort=False).sum()
    pooled_mean = sums["total"] / sums["n"]
    pooled_std = unbiased_std(sums["n"].to_numpy(), pooled_mean.to_numpy(), sums["square"].to_numpy())
    return pd.DataFrame({"mean": pooled_mean, "std": pooled_std, "n_cells": sums["n"]})
