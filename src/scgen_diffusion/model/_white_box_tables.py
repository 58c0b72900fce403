"""Tables made of the white box's tables: groups compared, and the genes that stand out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scgen_diffusion.data import is_whole_number

from ._white_box_measures import Label, layer_of_head, unbiased_std

SMALLEST_SHARE = 1e-6


def compare_groups(statistics: pd.DataFrame, group1: str, group2: str | None = None) -> pd.DataFrame:
    r"""Compare two groups of cells, or one with all others.

    Parameters
    ----------
    statistics
        Of :meth:`~scgen_diffusion.model.WBDIT.get_layer_statistics` or
        :meth:`~scgen_diffusion.model.WBDIT.get_sampling_statistics`, with ``groupby``.
    group1, group2
        Names of groups. ``group2=None``: the cells of all groups but the first.

    Returns
    -------
    pandas.DataFrame
        One row per time, layer, statistic and head: means, standard deviations and numbers of cells of both, their
        ``difference``, and as ``effect_size`` Cohen's :math:`d`, the difference over
        :math:`\sqrt{(s_1^2 + s_2^2) / 2}`.

    Raises
    ------
    ValueError
        For unknown groups, or where there is only one.

    Notes
    -----
    There is no p-value: with enough cells every difference is significant, and cells of one donor are no replicates.
    """
    found = list(statistics["group"].unique())
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
    pools = _pool_cells(statistics[is_first], keys).add_suffix("1")
    pools = pools.join(_pool_cells(statistics[is_second], keys).add_suffix("2"))
    table = pools.reset_index()
    table.insert(len(keys), "group1", group1)
    table.insert(len(keys) + 1, "group2", "rest" if group2 is None else group2)
    spread = np.sqrt((table["std1"] ** 2 + table["std2"] ** 2) / 2)
    difference = table["mean1"] - table["mean2"]
    return table.assign(difference=difference, effect_size=difference / spread.where(spread > 0))


def _pool_cells(statistics: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Put the cells of several groups together."""
    n, mean, std = (statistics[name] for name in ("n_cells", "value", "std"))
    squares = (n - 1) * std.where(n > 1, 0.0) ** 2 + n * mean**2
    sums = statistics[keys].assign(n=n, total=n * mean, square=squares).groupby(keys, sort=False).sum()
    pooled_mean = sums["total"] / sums["n"]
    pooled_std = unbiased_std(sums["n"].to_numpy(), pooled_mean.to_numpy(), sums["square"].to_numpy())
    return pd.DataFrame({"mean": pooled_mean, "std": pooled_std, "n_cells": sums["n"]})


def head_specificity(loadings: pd.DataFrame) -> pd.DataFrame:
    r"""Return by how many doublings loadings exceed what their gene and their head lead to expect.

    Within each layer, :math:`\log_2 \ell_{kg}` minus the mean of gene ``g`` over the heads and the mean of head ``k`` over
    the genes, plus the mean of all. Loadings below a millionth of the largest count as that.

    Parameters
    ----------
    loadings
        Genes by heads, of :meth:`~scgen_diffusion.model.WBDIT.get_head_loadings`.

    Returns
    -------
    pandas.DataFrame
        Genes by heads.
    """
    smallest = max(SMALLEST_SHARE * loadings.to_numpy().max(), np.finfo(float).tiny)
    logs = np.log2(loadings.clip(lower=smallest))
    layers = logs.T.groupby(layer_of_head, sort=False)
    centred = layers.transform(lambda of_heads: of_heads - of_heads.mean()).T
    return centred - centred.mean()


def top_genes(loadings: pd.DataFrame, n_genes: int = 20) -> pd.DataFrame:
    """List the genes with the largest loadings of each head, as tools for gene set enrichment take them.

    Parameters
    ----------
    loadings
        Genes by heads, of :meth:`~scgen_diffusion.model.WBDIT.get_head_loadings`.
    n_genes
        How many per head.

    Returns
    -------
    pandas.DataFrame
        Columns ``head``, ``rank`` (from 1), ``gene`` and ``loading``.

    Raises
    ------
    ValueError
        If there are not that many genes.
    """
    if not is_whole_number(n_genes) or not 1 <= n_genes <= len(loadings):
        msg = f"`n_genes` must be a whole number between 1 and the {len(loadings)} genes, but found {n_genes!r}."
        raise ValueError(msg)
    parts = []
    for head in loadings:
        best = loadings[head].sort_values(ascending=False, kind="stable").iloc[:n_genes]
        ranks = np.arange(1, n_genes + 1)
        parts.append(pd.DataFrame({"head": head, "rank": ranks, "gene": best.index, "loading": best.to_numpy()}))
    return pd.concat(parts, ignore_index=True)
