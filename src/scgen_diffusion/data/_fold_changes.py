"""Fold changes planted into counts, for tests of methods that look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgen_diffusion._arguments import known_names

from ._checks import check_expression, check_is_anndata, check_unique_names, obs_column, resolve_seed, values_in
from ._generated import PROVENANCE_KEY
from ._labels import as_labels
from ._matrices import to_csr

if TYPE_CHECKING:
    from collections.abc import Sequence

TRUTH = "log2_fold_changes_"  # in `varm`, followed by the name of the column with the groups
ADVICE = "Fold changes are planted by removing molecules. Give the layer with counts as `layer=...`."


def plant_fold_changes(
    adata: AnnData, log2_fold_changes: pd.DataFrame, groupby: str, *, layer: str | None = None, seed: int | None = None
) -> AnnData:
    r"""Change the expression of chosen genes in groups of cells, real or generated, by known factors.

    A test of differential expression should find these genes and no others. Every molecule of gene :math:`g` in a cell
    of group :math:`k` is kept with probability :math:`2^{\beta_{gk} - \max_j \beta_{gj}}`, where :math:`\beta` are
    the log fold changes. So a gene goes up in one group because molecules are removed from all others; nothing is
    invented. Counts that follow a Poisson or a negative binomial distribution still do, with the same dispersion.

    Cells lose molecules. If many genes change in one direction only, totals differ between groups, and normalising by
    them changes all other genes a little: let about as many genes go up as down.

    A second call plants changes between the groups of another column, such as batches; the changes of a gene multiply.

    Parameters
    ----------
    adata
        Cells with counts.
    log2_fold_changes
        A row per gene, named as in ``adata.var_names``, and a column per group. Genes and groups that it leaves out
        have 0.
    groupby
        Column of ``adata.obs`` with the groups. Cells without a group stay as they are.
    layer
        Layer with the counts. Default: `X`.
    seed
        Seed of the molecules that are kept. Default: scvi-tools' seed, else a random one.

    Returns
    -------
    New cells, with counts in `X`, `obs` and `var` as they were, and the fold changes of all genes in
    ``varm["log2_fold_changes_<groupby>"]``, beside those of earlier calls. Other layers, embeddings and `uns` are left
    out, because they describe the old counts; only the record of generated cells stays, with the seeds by ``groupby``
    in ``uns["scgen_diffusion"]["planted"]``. If the name of a group or of the column has a ``/``, as in ``CD4/CD8``,
    rename it first: from version 0.13 on, anndata cannot write it.

    Raises
    ------
    KeyError
        For a layer, column, gene or group that ``adata`` does not have.
    TypeError
        If ``adata`` is no AnnData, ``log2_fold_changes`` no DataFrame, or ``groupby`` a list.
    ValueError
        If the values are no counts, there are no two groups, fold changes are not finite or not unique, or the cells
        have fold changes between the same groups from an earlier call.

    References
    ----------
    Gerard (2020), *Data-based RNA-seq simulations by binomial thinning*.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.datasets.pbmc68k_reduced()
    >>> cells.obs["group"] = np.random.default_rng(0).choice(
    ...     ["control", "treated"], cells.n_obs
    ... )
    >>> truth = pd.DataFrame({"treated": [1.5, -1.0]}, index=["CD3E", "LYZ"])
    >>> changed = scgd.data.plant_fold_changes(
    ...     cells, truth, groupby="group", layer="counts", seed=0
    ... )
    """
    check_is_anndata(adata, "adata")
    column = obs_column(adata, groupby, "adata")
    if (name := f"{TRUTH}{groupby}") in adata.varm:
        msg = f"These cells have fold changes between groups of {groupby!r} from an earlier call: adata.varm[{name!r}]."
        raise ValueError(msg)
    adata = adata.to_memory() if adata.isbacked else adata
    check_expression(adata, layer, "counts", ADVICE)
    labels = as_labels(column).where(column.notna())
    if (n_groups := labels.nunique()) < 2:
        msg = f"Fold changes are differences between groups, but adata.obs[{groupby!r}] has {n_groups}."
        raise ValueError(msg)
    changes = _check_changes(log2_fold_changes, labels.dropna().unique(), adata.var_names)
    counts = to_csr(values_in(adata, layer)).copy()
    counts.sum_duplicates()  # sorts, so that results do not depend on how values are stored
    of_groups = changes.reindex(columns=labels.dropna().unique(), fill_value=0.0)
    keep = np.exp2(of_groups.sub(of_groups.max(axis=1), axis=0)).to_numpy()
    keep = np.column_stack([keep, np.ones(len(keep))])  # the last column, -1, is for cells without a group
    groups = np.repeat(of_groups.columns.get_indexer(labels), np.diff(counts.indptr))
    seed = resolve_seed(seed)
    rng = np.random.default_rng(seed)
    counts.data = rng.binomial(counts.data.astype(np.int64), keep[counts.indices, groups]).astype(counts.dtype)
    counts.eliminate_zeros()
    uns = {}
    if record := adata.uns.get(PROVENANCE_KEY):  # of generated cells
        uns[PROVENANCE_KEY] = {**record, "planted": {**record.get("planted", {}), groupby: seed}}
    varm = {key: value.copy() for key, value in adata.varm.items() if key.startswith(TRUTH)} | {name: changes}
    return AnnData(counts, obs=adata.obs.copy(), var=adata.var.copy(), uns=uns, varm=varm)


def _check_changes(changes: pd.DataFrame, groups: Sequence[str], genes: pd.Index) -> pd.DataFrame:
    """Return the fold changes of all genes; raise unless they are numbers for known genes and groups."""
    if not isinstance(changes, pd.DataFrame):
        msg = f"`log2_fold_changes` must be a DataFrame, genes by groups, but found {type(changes).__name__}."
        raise TypeError(msg)
    changes = changes.set_axis(list(as_labels(pd.Series(changes.columns))), axis=1)
    for names, known, what in ((changes.index, genes, "gene"), (changes.columns, groups, "group")):
        if len(unknown := names.difference(known, sort=False)):
            msg = f"`log2_fold_changes` names the unknown {what} {unknown[0]!r}. {known_names(unknown[0], known)}"
            raise KeyError(msg)
        check_unique_names(names, f"`log2_fold_changes` ({what}s)")
    values = changes.astype(float)
    if not np.isfinite(values.to_numpy()).all():
        msg = "`log2_fold_changes` must be finite. Leave genes without a change out."
        raise ValueError(msg)
    return values.reindex(genes, fill_value=0.0)
