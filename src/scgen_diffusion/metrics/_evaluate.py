"""All metrics in one tidy table, every figure beside its floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgen_diffusion.data import warn_user

from ._catalogue import CATALOGUE
from ._drawing import draw_pools
from ._evaluate_checks import (
    as_adata,
    check_arrays,
    check_names,
    check_numbers,
    check_space,
    choose_metrics,
    make_sources,
)
from ._resampling import Plan, make_trial
from ._table import ALL, as_table, rows_by_group, rows_of_all, rows_of_group

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from ._catalogue import Metric
    from ._drawing import Pools
    from ._expression import Cells
    from ._resampling import Trial
    from ._scales import Scale
    from ._space import ComparisonSpace

MIN_CELLS_PER_GROUP = 30
MANY_COPIES = 0.2  # without `train`, a third of `real_test` is compared


def evaluate(
    real_test: Cells,
    synthetic: Cells,
    *,
    train: Cells | None = None,
    groupby: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    layer: str | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compare synthetic cells with real ones in every respect, each figure beside what real cells would score.

    Cells are drawn first (``max_cells``, ``seed``), and only these are normalised. Principal components are chosen on real cells that are
    compared with nothing: half of ``train``, or a third of ``real_test``. Both sides of a comparison have equally many cells, as many
    as the smallest set allows, because most figures depend on that number.

    Parameters
    ----------
    real_test
        Real cells that the model has not learned from, 50 or more (150 without ``train``); counts in ``layers["counts"]`` or `X`, or
        log-normalised values in `X` and ``uns["log1p"]`` (whose ``base`` is respected). Whole numbers are counts, whatever ``uns`` says. An array is taken as counts.
    synthetic
        Cells to judge, 50 or more, with these genes in any order. Where both come as arrays, the genes are taken to be the same.
    train
        Cells that the model has learned from, 100 or more. Without them there are no figures of memorisation. These take ``train`` and
        ``real_test`` for draws from one distribution: with held-out donors or batches they see the difference between donors, not a leak.
    groupby
        Column of `obs`, or several (joined by ``|``; within a value it becomes ``\|``), which all sets have: the label that each synthetic cell was asked to
        have. Adds metrics of labels, and rows for every label that 30 or more of the real cells have.
    metrics
        Names of metrics; all that have what they need if None.
    layer
        Layer with the counts of real cells, and of synthetic cells if they have it (generated cells have theirs in `X`).
    space
        Genes and components; must be fitted on cells of none of the sets. All of ``train`` plays the synthetic cells then.
    max_cells
        Cells of each side that are compared, at most. Time and memory grow with its square, that of optimal transport with its cube. Groups draw
        500 cells of their own if they have them, so that rare ones keep theirs. Memorisation looks at all of ``train``, in parts.
    n_floor
        Draws that a floor is the mean of; one for boosting, which is slow. 0 leaves it out.
    n_bootstrap
        Half-samples for the interval. 0 leaves it out.
    seed
        Decides every draw: the same seed gives the same table. No global random state is touched.

    Returns
    -------
    One row per metric and group, with the columns

    - `metric`, `group`: names; the group ``"all"`` is all cells. A group that synthetic cells lack (or have fewer than 30 of) has rows of NaN.
    - `value`: synthetic against real cells.
    - `floor`: real against real cells, as many: what a perfect model would score. Half of ``train`` plays the synthetic cells, or one half of what is left
      of ``real_test``; for metrics that look at ``train``, one half of ``real_test`` always. Never cells that the components were chosen on.
    - `shuffled`: real cells with every gene's values shuffled among the cells of a group (or all cells): right margins, no correlation. A model near this
      has learned nothing beyond single genes. Total counts stay as they are.
    - `low`, `high`: 95 % interval of the value for another draw of equally many cells on both sides, from the same model and the same tissue.
    - `better`: ``"lower"``, ``"higher"``, or ``"floor"`` where the best value is the floor itself.

    ``attrs["n_cells"]`` maps every group to the number of cells on either side.

    Raises
    ------
    KeyError
        If a layer or a column is absent.
    ValueError
        If cells are too few, genes differ, a metric is unknown or lacks what it needs, or ``real_test`` has cells of ``train``.

    Notes
    -----
    The interval comes from half-samples (McCarthy): half of the cells of each side is drawn without replacement, ``n_bootstrap`` times. For a mean of `n` cells, the
    variance over half-samples is :math:`s^2 / (n/2) \cdot (1 - 1/2) = s^2 / n`, that of the mean itself; so for every figure that is smooth in
    the cells, to first order. Their mean is biased (distances grow as cells get fewer) and not used: the interval is
    :math:`\text{value} \pm 1.96\, \text{SD}`, cut at the metric's bounds. A bootstrap with replacement would not do: repeated cells are each
    other's neighbours. For AUCs of classifiers, the cells' cross-validated scores are drawn, and no classifier is fitted again.
    Ten half-samples know the SD to a quarter or so. What another training run would give is not in the interval.

    Floors draw real cells at random, labels included. Synthetic cells that were asked for with the very labels of ``real_test`` have no such
    scatter of labels: in small sets this favours them by a few per cent (4 % of `w2` with 140 cells of ten types).

    Without ``groupby``, `within_label_correlation` looks at correlations among all cells, differences between cell types included.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real, train = rng.poisson(2.0, (60, 20)), rng.poisson(2.0, (120, 20))
    >>> synthetic = rng.poisson(np.linspace(1, 5, 20), (60, 20))
    >>> table = evaluate(real, synthetic, train=train, metrics=["gene_mean_error", "library_size_ks"])
    >>> table[["metric", "group", "better"]].values.tolist()
    [['gene_mean_error', 'all', 'lower'], ['library_size_ks', 'all', 'lower']]
    >>> bool((table["value"] > table["floor"]).all())
    True
    """
    return evaluate_on_scale(
        real_test,
        synthetic,
        train=train,
        groupby=groupby,
        metrics=metrics,
        layer=layer,
        space=space,
        max_cells=max_cells,
        n_floor=n_floor,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def evaluate_on_scale(
    real_test: Cells,
    synthetic: Cells,
    *,
    scale: Scale | None = None,
    without: Collection[str] = (),
    train: Cells | None = None,
    groupby: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    layer: str | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the table of :func:`evaluate`, with the values on another scale (None is the common one), and without some metrics."""
    check_numbers(max_cells=max_cells, n_floor=n_floor, n_bootstrap=n_bootstrap, seed=seed)
    check_names(metrics)
    check_space(space)
    sets = {"real_test": real_test, "synthetic": synthetic} | ({} if train is None else {"train": train})
    adatas = {name: as_adata(cells, name) for name, cells in sets.items()}
    check_arrays(sets)
    real, drawn_from, trained_on = make_sources(
        adatas["real_test"], adatas["synthetic"], adatas.get("train"), groupby, layer, scale
    )
    wanted = choose_metrics(
        metrics,
        has_train=train is not None,
        has_groups=groupby is not None,
        has_counts=all(source.are_counts for source in (real, drawn_from, trained_on) if source is not None),
    )
    wanted = [metric for metric in wanted if metric.name not in without]
    pools = draw_pools(
        real,
        drawn_from,
        trained_on,
        space,
        max_cells=max_cells,
        seed=seed,
        with_training=any(metric.against_training for metric in wanted),
    )
    return _tabulate(wanted, pools, Plan(MIN_CELLS_PER_GROUP, n_floor=n_floor, n_bootstrap=n_bootstrap, seed=seed))


def _tabulate(metrics: list[Metric], pools: Pools, plan: Plan) -> pd.DataFrame:
    of_all = make_trial(pools, None, plan)
    if not np.ptp(of_all.value.real.pcs, axis=0).any():
        msg = "The cells of `real_test` are all the same; there is nothing to compare with."
        raise ValueError(msg)
    _warn_of_real_cells(of_all)
    real_groups, groups = _groups(pools)
    rows = rows_of_all(metrics, of_all) + rows_by_group(metrics, groups, of_all)
    n_cells = {ALL: pools.n_cells}
    for group in real_groups:
        trial = make_trial(pools, group, plan)
        rows += rows_of_group(metrics, group, trial)
        n_cells[group] = 0 if trial is None else len(trial.value.real)
    table = as_table(rows, metrics)
    table.attrs["n_cells"] = n_cells
    return table


def _warn_of_real_cells(trial: Trial) -> None:
    """Warn where synthetic cells are the held-out ones; cells with hardly any counts are equal by chance, as the floor says."""
    share, *usual = (CATALOGUE["copied_test_cells"].measure(part) for part in (trial.value, *trial.floors[:1]))
    if share - sum(usual) > MANY_COPIES:
        msg = (
            f"{share:.0%} of the cells in `synthetic` that were compared are cells of `real_test`, count by count: these figures say nothing of a model. "
            "Were files mixed up?"
        )
        warn_user(msg)


def _groups(pools: Pools) -> tuple[list[str], list[str]]:
    """Return the groups with enough real cells, and with them those with enough synthetic cells only."""
    n_sides = 2 if pools.floor is None else 1  # of real cells, where one half plays the synthetic ones
    real = _frequent(pools.real.sample.labels, n_sides * MIN_CELLS_PER_GROUP)
    return real, sorted({*real, *_frequent(pools.synthetic.sample.labels, MIN_CELLS_PER_GROUP)})


def _frequent(labels: NDArray | None, n_cells: int) -> list[str]:
    if labels is None:
        return []
    names, sizes = np.unique(labels, return_counts=True)
    return names[sizes >= n_cells].tolist()
