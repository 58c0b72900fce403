"""All metrics in one tidy table, each next to its real value: check the sets, compare them, and collect the rows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from mudata import MuData
from tqdm.auto import tqdm

from scgen_diffusion._arguments import as_list, check_count, known_names, list_first, warn_user
from scgen_diffusion.data import PROVENANCE_KEY, SEPARATOR, CellFiles, as_labels, check_is_anndata, to_csr

from ._catalogue import CATALOGUE, choose_metrics, leaked_share
from ._cells import Cells, ComparisonSpace, Source, check_same_number_of_genes, labels_of, log_normalise
from ._comparison import (
    ALL,
    FIGURES,
    MIN_CELLS,
    MIN_CELLS_PER_GROUP,
    MIN_CELLS_PER_PERTURBATION,
    Draws,
    Metric,
    table_of,
)
from ._genes import count_labels
from ._modalities import choose_scale, common_modalities, joint_sources, modality_cells, pair_context, paired_cells
from ._perturbation import Perturbed, check_perturbed, control_share_of, parts_of, perturbation_contexts
from ._pools import draw_pools, make_context

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pandas as pd

    from ._cells import Scale
    from ._comparison import Need, Scope
    from ._perturbation import Parts

    Row = dict[str, object]

#: Columns of the table of perturbations, beside one per entry of `others`.
PREDICTIONS = ("value", "real", "no_change", "mean_shift", "additive")
N_CELLS_CHECKED = 20


def evaluate(
    real_test: Cells | MuData,
    synthetic: Cells | MuData,
    *,
    train: Cells | CellFiles | MuData | None = None,
    groupby: str | Sequence[str] | None = None,
    control: AnnData | None = None,
    perturbation_key: str | None = None,
    separator: str = SEPARATOR,
    others: Mapping[str, AnnData] | None = None,
    metrics: str | Sequence[str] | None = None,
    layer: str | Mapping[str, str] | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_repeats: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compare synthetic cells with real ones in every respect, each figure next to what real cells would score.

    What you pass decides what is compared: all cells, and each label of ``groupby``; with ``control``, each
    perturbation, next to baselines that need no model; for MuData, each modality, all of them together, and each pair.
    :doc:`/user_guide/metrics` explains the metrics and how to read the table.

    Parameters
    ----------
    real_test
        Real cells that the model was not trained on, 50 or more (150 without ``train``; with ``control``, two of each
        perturbation): counts in ``layers["counts"]`` or `X`, or log-normalised values in `X` with ``uns["log1p"]``.
        Arrays are read as counts. In MuData, real cells without any count in a modality lack it.
    synthetic
        Cells to judge, 50 or more (with ``control``, two of each perturbation), with the same genes in any order; in
        arrays, in the same order.
    train
        Cells that the model was trained on, 100 or more (with ``control``, any number); needed for metrics of
        memorisation. These assume that ``train`` and ``real_test`` come from one distribution, and so do the real
        values: leave ``train`` out for held-out donors, batches or times. :class:`~scgen_diffusion.data.CellFiles` stay
        in their files and are read part by part. With ``control``, the baselines ``mean_shift`` and ``additive`` and
        the principal components come from these cells, which must be an AnnData then.
    groupby
        Column of `obs`, or several (joined by ``|``; a ``|`` inside a value becomes ``\|``), in all sets: the label
        that each synthetic cell was generated for. Adds metrics of labels, and rows for every label with 30 or more
        real cells (about 90 without ``train``). With ``control``, changes are taken against control cells of the same
        label, so add the donor or batch if cells have several: ``groupby=["cell_type", "donor"]``.
    control
        Real unperturbed cells, with ``groupby`` those of all labels. Metrics of perturbations then judge every
        perturbation in ``real_test``. If these cells have a value in ``obs[perturbation_key]``, cells with that value
        are left out of the other sets, and that part of a name such as ``"KLF1+ctrl"`` is ignored.
    perturbation_key
        Column of `obs` with the perturbation; needed with ``control``.
    separator
        Text between the parts of a combination of perturbations. The order of the parts does not matter.
    others
        With ``control``: cells predicted by other methods, by name, such as ``{"latent_arithmetic": cells}``. Each
        method gets a column.
    metrics
        Names of metrics; if None, all that apply.
    layer
        Layer with the counts of real cells, and of synthetic cells if they have it (generated cells have counts in
        `X`). For MuData, one layer for each modality or one for all. Counts of a modality of fewer than 500 features,
        such as a panel of proteins, are compared as their logarithms, zeros and ones (open chromatin) as term
        frequency, inverse document frequency (Signac), and all others as `log1p` of counts that sum to 10,000.
    space
        Genes and components to use, fitted to cells of none of the sets, with the genes of ``real_test`` in the same
        order. All of ``train`` then plays the synthetic cells.
    max_cells
        Largest number of cells to compare on each side. Time and memory grow with its square, the time of optimal
        transport with its cube. Rare labels have some cells of their own, up to 500 in their own rows. Copies,
        duplicates, shares of labels, and means and variances of perturbations are of all cells.
    n_repeats
        Number of draws that a real value averages (one for boosting, which is slow). 0 leaves the real value out.
    n_bootstrap
        Number of half-samples for the interval; few make it wide. 0 leaves it out.
    seed
        Seed of every draw: the same seed gives the same table. Global random state is not touched.

    Returns
    -------
    One row per metric and group, with the columns

    - `metric`, `group`: names; the group ``"all"`` is all cells. A group with fewer than 30 synthetic cells has NaN.
    - `value`: synthetic against real cells.
    - `real`: real against as many other real cells: what a perfect model would score. Half of ``train`` plays the
      synthetic cells, or, without it, part of ``real_test``. For metrics of memorisation, one half of ``real_test`` is
      compared with the other; for ``copied_cells`` and ``near_copies``, ``real_test`` with ``train``.
    - `shuffled`: real cells with every gene's values shuffled within the group: right margins, no correlation. A model
      near this has learned nothing beyond single genes. NaN for copies.
    - `low`, `high`: 95 % confidence interval of the mean value over draws of this size from the same model and tissue.
    - `better`: ``"lower"``, ``"higher"``, or ``"real"`` if the best value is the real value itself.

    ``attrs["n_cells"]`` maps every label of ``real_test`` to the number of cells compared on either side; 0 if a side
    has fewer than 30. ``attrs["n_labelled"]`` maps it, and ``"all"``, to the numbers of such cells in ``real_test`` and
    ``synthetic``. ``attrs["leaked"]`` is the share of ``real_test`` that is in ``train``, count by count, without what
    chance may explain; above 0.5 %, you get a warning, too. It is only known if a metric of copies was asked for.

    With ``control``, there is one row per metric, `perturbation` and group. `real` uses one half of the perturbation's
    real cells as the prediction of the other, averaged over splits (NaN below four cells); a perfect prediction of full
    size scores better. Instead of `shuffled` and the interval there are baselines: `no_change`, the control cells;
    `mean_shift`, control cells moved by the mean change of all training perturbations; `additive`, control cells moved
    by the sum of the changes of the parts (NaN if ``train`` lacks a part); and ``others`` (NaN if a method has fewer
    than two cells of a perturbation). A model has predicted an effect only if it beats every baseline.

    For MuData, the first column is `modality`: ``table[table["modality"] == "rna"]`` is a table for
    :func:`~scgen_diffusion.report.summary` and :func:`~scgen_diffusion.pl.scores`. Joint rows, such as ``"rna+prot"``,
    have the metrics in component space, with each modality divided by the standard deviation of its first component so
    that none dominates (multiple factor analysis). Rows of pairs have ``cross_correlation_error``, whose `shuffled`
    shuffles the second modality among the real cells of each label. ``attrs["scales"]`` and the other ``attrs`` are by
    modality.

    Raises
    ------
    KeyError
        If a layer, a column or a modality is missing.
    TypeError
        If the sets are of different kinds, or an argument has the wrong type.
    ValueError
        If there are too few cells, genes differ, a metric is unknown or lacks what it needs, arguments contradict each
        other, a perturbation was not predicted, or a group has no control cells.

    Notes
    -----
    Principal components are fitted to real cells that are compared with nothing: half of ``train``, or a third of
    ``real_test``. Both sides of a comparison have equal numbers of cells, because most figures depend on that number.

    The interval uses half-samples (McCarthy): half of the cells of each side is drawn without replacement,
    ``n_bootstrap`` times. For a mean of `n` cells, the variance over half-samples is
    :math:`s^2 / (n/2) \cdot (1 - 1/2) = s^2 / n`, that of the mean itself; to first order this holds for every figure
    that is smooth in the cells. The interval is :math:`\text{value} \pm t\, \text{SD}`, cut at the metric's bounds,
    with the 97.5 % quantile :math:`t` of Student's distribution. A bootstrap with replacement would fail, because
    repeated cells are each other's neighbours. For AUCs of classifiers, the cross-validated scores of the cells are
    resampled. Shares of copies and duplicates have Wilson's interval, whose lower limit also allows for the uncertainty
    of the real value (Newcombe). No interval includes what another training run would change.

    ``energy_distance`` is measured in 30 principal components of ``train``, or in ``space``; without both, in all
    genes, where its values are others.

    In cell-eval, ``mean_change_correlation`` is ``pearson_delta``, ``mean_change_error`` is ``mae_delta`` and
    ``de_direction`` is ``de_direction_match``. ``de_overlap_top_100`` resembles ``overlap_at_100``, with other genes
    and another order: there, only significant genes count, ordered by their absolute fold change.

    References
    ----------
    Stuart et al. 2021, Single-cell chromatin state analysis with Signac. Escofier and Pagès 1994, Multiple factor
    analysis (AFMULT package). Newcombe 1998, Interval estimation for the difference between independent proportions.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real, train = rng.poisson(2.0, (60, 20)), rng.poisson(2.0, (120, 20))
    >>> synthetic = rng.poisson(np.linspace(1, 5, 20), (60, 20))
    >>> table = evaluate(
    ...     real, synthetic, train=train, metrics=["gene_mean_error", "library_size_ks"]
    ... )
    >>> table[["metric", "group", "better"]].values.tolist()
    [['gene_mean_error', 'all', 'lower'], ['library_size_ks', 'all', 'lower']]
    >>> bool((table["value"] > table["real"]).all())
    True
    """
    given = {"real_test": real_test, "synthetic": synthetic, "control": control, "train": train}
    sets = {name: cells for name, cells in given.items() if cells is not None}
    if PROVENANCE_KEY in getattr(real_test, "uns", ()) and PROVENANCE_KEY not in getattr(synthetic, "uns", ()):
        msg = "`real_test` holds generated cells, and `synthetic` does not; the real cells come first."
        raise ValueError(msg)
    check_count("max_cells", max_cells, least=MIN_CELLS if control is None else MIN_CELLS_PER_PERTURBATION)
    check_count("n_repeats", n_repeats, least=0)
    check_count("seed", seed, least=0, most=2**32 - 1)  # the range of scikit-learn's seeds
    check_count("n_bootstrap", n_bootstrap, least=0)
    draws = Draws(max_cells, n_repeats, n_bootstrap, seed)
    names = None if metrics is None else as_list(metrics)
    if unknown := [name for name in names or () if name not in CATALOGUE]:
        msg = f"`metrics` has the unknown name {unknown[0]!r}. {known_names(unknown[0], list(CATALOGUE))}"
        raise ValueError(msg)
    is_multimodal = any(isinstance(cells, MuData) for cells in sets.values())
    if is_multimodal and (control is not None or space is not None):
        msg = "`control` and `space` need cells of one modality, such as mdata['rna'], but found MuData."
        raise ValueError(msg)
    if isinstance(layer, Mapping) and not is_multimodal:
        msg = "`layer` by modality is only for MuData, but no set is a MuData."
        raise ValueError(msg)
    if (control is None) != (perturbation_key is None) or (others and control is None):
        msg = "Perturbations need both `control` and `perturbation_key`; `others` needs these two."
        raise ValueError(msg)

    if space is not None and isinstance(real_test, AnnData):  # the other sets are read in its order of genes
        space.check_genes(real_test.n_vars, real_test.var_names)
    if is_multimodal:
        return _evaluate_modalities(sets, names, groupby, layer, draws)
    if control is not None:
        return _evaluate_perturbations(
            sets, others or {}, names, draws, perturbation_key, separator, groupby, layer, space
        )
    sources = read_sources(sets, groupby, layer)
    metrics = check_sources(sources, names, n_features=real_test.shape[1])
    rows, noted = compare_cells(sources, metrics, draws, space=space)
    table = table_of(rows, ("metric", "group"), FIGURES)
    table.attrs.update(noted)
    return table


def _evaluate_perturbations(
    sets: Mapping[str, AnnData],
    others: Mapping[str, AnnData],
    names: Collection[str] | None,
    draws: Draws,
    key: str,
    separator: str,
    groupby: str | Sequence[str] | None,
    layer: str | None,
    space: ComparisonSpace | None,
) -> pd.DataFrame:
    """Return the table of every perturbation: real cells of each, beside all predictions of them."""
    leading, figures = ("metric", "perturbation", "group"), (*PREDICTIONS, *others)
    if taken := [name for name in others if name in {*leading, *PREDICTIONS, *sets, "train", "better"}]:
        msg = f"`others` has the name {taken[0]!r}, which the table already uses; choose another name."
        raise ValueError(msg)
    sets = {**sets, **others}
    for name, cells in sets.items():
        check_is_anndata(cells, name)
    untreated, genes = sets["control"].obs, sets["real_test"].var_names
    controls = set(as_labels(untreated[key])) if key in untreated else set()
    perturbed, names_of = {}, {}
    for name, source in read_sources(sets, groupby, layer).items():
        parts: list[Parts] = [()] * len(source)
        if name != "control":
            perturbations = labels_of(sets[name], key, name=name)
            parts = [parts_of(one, separator=separator, ignored=controls) for one in perturbations]
        if name == "real_test":
            names_of = {own: one for one, own in sorted({*zip(perturbations.tolist(), parts, strict=True)})}
        perturbed[name] = Perturbed.read(source, parts, control_share_of(sets[name], sets["control"]))
    check_perturbed(perturbed)
    available: set[Need] = {"control"} | ({"train"} & {*sets})
    available |= {"perturbations"} if len({parts for parts, _ in perturbed["real_test"].rows}) > 1 else set()
    metrics = choose_metrics(names, "perturbation", available, len(genes))
    if "train" in sets and space is None:
        space = ComparisonSpace.fit(perturbed["train"].expression, seed=draws.seed)
    are_ranked = ~genes.isin({part for parts in names_of for part in parts})
    rows = [
        {"perturbation": names_of[parts], "group": group, **context.row(metric)}
        for (parts, group), context in perturbation_contexts(perturbed, space, draws, are_ranked)
        for metric in metrics
    ]
    rows.sort(key=lambda row: (row["perturbation"], row["group"]))
    return table_of(rows, leading, figures)


def _evaluate_modalities(
    sets: Mapping[str, MuData],
    names: Collection[str] | None,
    groupby: str | Sequence[str] | None,
    layer: str | Mapping[str, str] | None,
    draws: Draws,
) -> pd.DataFrame:
    """Return the table of each modality, of all together, and of each pair."""
    keys = as_list(groupby)
    modalities = common_modalities(sets)
    layers = dict.fromkeys(modalities, layer) if isinstance(layer, str) else dict(layer or {})
    if unknown := [modality for modality in layers if modality not in modalities]:
        msg = f"`layer` has no modality {unknown[0]!r}. {known_names(unknown[0], modalities)}"
        raise KeyError(msg)
    if names is not None:
        choose_metrics([n for n in names if "pair" not in CATALOGUE[n].scopes], "all", {"train", "groupby", "counts"})

    def wanted(scope: Scope) -> list[str] | None:
        return None if names is None else [name for name in names if scope in CATALOGUE[name].scopes]

    sources, checked, scales = {}, {}, {}  # all modalities, before any is judged
    for modality in modalities:
        of_layer = layers.get(modality)
        own = {name: modality_cells(mdata, modality, keys, name, of_layer) for name, mdata in sets.items()}
        scales[modality], scale = choose_scale(own, of_layer)
        try:
            sources[modality] = read_sources(own, keys, of_layer, scale)
            if wanted("all") != []:
                metrics = check_sources(sources[modality], wanted("all"), n_features=own["real_test"].n_vars)
                checked[modality] = sources[modality], metrics
        except ValueError as error:
            msg = f"Modality {modality!r}: {error}"
            raise ValueError(msg) from error
    together, least = "+".join(modalities), {name: least_cells(name, has_train="train" in sets) for name in sets}
    if len(modalities) > 1 and wanted("joint") != []:
        if paired := paired_cells(sources, least):
            joint = joint_sources(sources, paired)
            checked[together] = joint, check_sources(joint, wanted("joint"), scope="joint")
    rows: list[Row] = []
    noted: dict[str, dict[str, object]] = {"n_cells": {}, "n_labelled": {}, "leaked": {}}
    for modality, own in checked.items():
        own_rows, of_cells = compare_cells(*own, draws)
        rows.extend({"modality": modality, **row} for row in own_rows)
        for what, value in of_cells.items():
            noted[what][modality] = value
    of_pair = choose_metrics(wanted("pair"), "pair", {"modalities"} if len(modalities) > 1 else set())
    least = dict.fromkeys(("real_test", "synthetic"), MIN_CELLS)
    for pair in combinations(modalities, 2) if of_pair else ():
        both = {modality: sources[modality] for modality in pair}
        if paired := paired_cells(both, least):
            context = pair_context(both, paired, draws)
            rows.extend({"modality": "+".join(pair), "group": ALL, **context.row(metric)} for metric in of_pair)
    table = table_of(rows, ("modality", "metric", "group"), FIGURES)
    table.attrs.update(noted, scales=scales)
    return table


# --- checks of the sets, before any long computation ------------------------------------------------------------------


def least_cells(name: str, *, has_train: bool) -> int:
    """Return how many cells a set must have.

    One half of ``train`` fits the space, the other plays the synthetic cells; without it, ``real_test`` is split in
    three.
    """
    return MIN_CELLS * {"train": 2, "synthetic": 1}.get(name, 1 if has_train else 3)


def read_sources(
    sets: Mapping[str, Cells | CellFiles],
    groupby: str | Sequence[str] | None,
    layer: str | None,
    scale: Scale = log_normalise,
) -> dict[str, Source]:
    """Check each set on its own; arrays are counts."""
    sources, genes = {}, None
    for name, cells in sets.items():
        if not isinstance(cells, AnnData | CellFiles if name == "train" else AnnData):
            counts = to_csr(cells, name)
            check_same_number_of_genes(sets["real_test"].shape[1], counts.shape[1], ("real_test", name))
            cells = AnnData(counts)
        genes = cells.var_names if genes is None else genes  # `real_test` comes first
        sources[name] = Source.of(cells, name, genes, groupby=groupby, layer=layer, scale=scale)
    return sources


def check_sources(
    sources: Mapping[str, Source], names: Collection[str] | None, *, scope: Scope = "all", n_features: float = np.inf
) -> list[Metric]:
    """Check the values and the sets against each other; return the requested metrics, or all that these sets allow."""
    real = sources["real_test"]
    for name, source in sources.items():
        if len(source) < (least := least_cells(name, has_train="train" in sources)):
            msg = f"`{name}` has {len(source)} cells; there must be {least} or more."
            raise ValueError(msg)
        source.read(np.arange(min(N_CELLS_CHECKED, len(source))))  # raises if the values are not allowed
        if source.labels is not None and not np.isin(source.labels, real.labels).any():
            found, known = (list_first(np.unique(side.labels)) for side in (source, real))
            msg = f"`{name}` and `real_test` have no label in common: {found} and {known}. Use the same labels in both."
            raise ValueError(msg)
    available: set[Need] = {"groupby"} if real.labels is not None else set()
    available |= {"train"} & {*sources}
    available |= {"counts"} if all(source.log_base is None for source in sources.values()) else set()
    return choose_metrics(names, scope, available, n_features)


# --- the rows of all cells and of each group --------------------------------------------------------------------------


def compare_cells(
    sources: Mapping[str, Source], metrics: Sequence[Metric], draws: Draws, *, space: ComparisonSpace | None = None
) -> tuple[list[Row], dict[str, object]]:
    """Return the rows of all cells and of each group, and what to note beside them, of sets that were checked."""
    counts_copies = any(metric.of_all for metric in metrics)
    with_all = counts_copies or any("train" in metric.needs for metric in metrics)
    pools = draw_pools(sources, space, draws, with_all=with_all)
    of_all = make_context(pools, None, draws)
    if leaked := leaked_share(pools.all_cells) if counts_copies else 0.0:
        warn_user(f"At least {leaked:.1%} of the cells in `real_test` are in `train`, too; hold out others.")
    n_sides = 2 if pools.others is None else 1  # in the first case, one half of the real cells plays the synthetic ones
    groups = pools.real.frequent_labels(n_sides * MIN_CELLS_PER_GROUP)
    groups_of_either = {*groups, *pools.synthetic.frequent_labels(MIN_CELLS_PER_GROUP)}
    rows = []
    for metric in tqdm(metrics, desc="Evaluating all cells", delay=3, leave=False):
        rows.append({"group": ALL, **of_all.row(metric)})
        if metric.by_group is not None:
            rows += [{"group": group, **of_all.row(metric, group)} for group in groups_of_either]
    n_labelled = {}
    if sources["real_test"].labels is not None:
        n_real, n_synthetic = (count_labels(sources[name].labels) for name in ("real_test", "synthetic"))
        n_labelled = {ALL: (int(n_real.sum()), int(n_synthetic.sum()))}
        n_labelled |= {label: (int(n), int(n_synthetic.get(label, 0))) for label, n in n_real.items()}
    n_cells = dict.fromkeys(n_labelled, 0) | {ALL: pools.n_cells}
    of_groups = [metric for metric in metrics if metric.by_group is None and "group" in metric.scopes]
    for group in tqdm(groups, desc="Evaluating labels", delay=3, leave=False):
        context = make_context(pools, group, draws)  # one at a time: it has many copies of the group's cells
        if context is not None:
            n_cells[group] = len(context.comparisons["value"][0].real)
            rows += [{"group": group, **context.row(metric)} for metric in of_groups]
        else:
            rows += [{"group": group, "metric": metric.name, "better": metric.better} for metric in of_groups]
    place = {metric.name: position for position, metric in enumerate(metrics)}
    # all cells first, then group by group, metrics in the order of the catalogue
    rows.sort(key=lambda row: (row["group"] != ALL, row["group"], place[row["metric"]]))
    return rows, {"n_cells": n_cells, "n_labelled": n_labelled, "leaked": leaked}
