"""All metrics in one tidy table, each next to its real value: check the sets, compare them, and collect the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from mudata import MuData

from scgen_diffusion._arguments import as_list, known_names, warn_user
from scgen_diffusion.data import PROVENANCE_KEY, SEPARATOR, CellFiles, to_csr

from ._catalogue import CATALOGUE, choose_metrics, leaked_share
from ._cells import (
    Cells,
    Source,
    align_genes,
    check_for_empty_cells,
    check_for_training_cells,
    check_same_number_of_genes,
)
from ._comparison import ALL, FIGURES, Draws, Metric, table_of
from ._genes import count_labels
from ._modalities import MIN_PAIRED_CELLS, common_modalities, joint_sources, modality_cells, pair_context, paired_cells
from ._perturbation_contexts import MIN_CELLS as MIN_CELLS_PER_PERTURBATION
from ._perturbation_contexts import evaluate_perturbations
from ._pools import MIN_CELLS_PER_GROUP, draw_pools, make_context
from ._space import ComparisonSpace, choose_scales, make_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ._cells import Scale
    from ._comparison import Need, Scope
    from ._space import ScaleName

    Row = dict[str, object]

MIN_CELLS = 50
N_CELLS_CHECKED = 20
N_LABELS_NAMED = 5


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
    scales: Mapping[str, ScaleName] | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_repeats: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compare synthetic cells with real ones in every respect, each figure next to what real cells would score.

    What you pass decides what is compared: all cells, and each label of ``groupby``; with ``control``, each
    perturbation, next to baselines that need no model; for MuData, each modality, all of them together, and each pair.

    Cells are drawn first (``max_cells``, ``seed``), and only these are compared; copies, duplicates and shares of
    labels are counted in all cells, and membership inference uses all synthetic ones. Principal components are fitted
    to real cells that are compared with nothing: half of ``train``, or a third of ``real_test``. Both sides of a
    comparison have equal numbers of cells, because most figures depend on that number.

    Parameters
    ----------
    real_test
        Real cells that the model was not trained on, 50 or more (150 without ``train``; with ``control``, two of each
        perturbation): counts in ``layers["counts"]`` or `X`, or log-normalised values in `X` with ``uns["log1p"]``.
        Whole numbers and arrays are read as counts. In MuData, rows of a modality use the cells that have it, rows of a
        pair the cells that have both (50 or more), and joint rows the cells that have all; if too few have both or
        all, you get a warning and no such rows. Real cells without any count in a modality lack it.
    synthetic
        Cells to judge, 50 or more (with ``control``, two of each perturbation), with the same genes in any order. If
        both come as arrays, the order must be the same too. A share of cells without counts that is more than 5 points
        above that of ``real_test`` is an error.
    train
        Cells that the model was trained on, 100 or more (with ``control``, any number); needed for metrics of
        memorisation. These assume that ``train`` and ``real_test`` come from one distribution, and so do the real
        values. For held-out donors, batches or times they measure the difference between donors, not a leak: leave
        ``train`` out then. :class:`~scgen_diffusion.data.CellFiles` stay in their files and are read part by part. With
        ``control``, the baselines ``mean_shift`` and ``additive`` and the principal components come from these cells,
        which must be an AnnData then.
    groupby
        Column of `obs`, or several (joined by ``|``; a ``|`` inside a value becomes ``\|``), in all sets: the label
        that each synthetic cell was generated for. Adds metrics of labels, and rows for every label with 30 or more
        real cells (about 90 without ``train``). With ``control``, changes are taken against control cells of the same
        label. The mean shift then averages all training perturbations in all labels; the additive baseline adds parts
        in the same label. Add the donor or batch if cells have several: ``groupby=["cell_type", "donor"]``. Otherwise,
        a difference between donors can look like an effect.
    control
        Real unperturbed cells, with ``groupby`` those of all labels: changes of training cells, from which the
        baselines come, are taken against them as well. Metrics of perturbations then judge every perturbation in
        ``real_test``. If these cells have a value in ``obs[perturbation_key]``, cells with that value are left out of
        the other sets, and that part of a name such as ``"KLF1+ctrl"`` is ignored.
    perturbation_key
        Column of `obs` with the perturbation; needed with ``control``.
    separator
        Text between the parts of a combination of perturbations. The order of the parts does not matter.
    others
        With ``control``: cells predicted by other methods, by name, such as ``{"latent_arithmetic": cells}``. Each
        method gets a column.
    metrics
        Names of metrics; if None, all that apply. ``marker_overlap`` and ``mean_variance_error`` need 100 genes, and
        metrics of the top 20 or 100 genes twice that many: in smaller panels they mean nothing.
    layer
        Layer with the counts of real cells, and of synthetic cells if they have it (generated cells have counts in
        `X`). For MuData, one layer for each modality or one for all.
    scales
        For MuData, the scale on which the counts of a modality are compared. All scales keep zeros.

        - ``"log_normalised"``: `log1p` of counts that sum to 10,000 per cell. Default for 500 features or more.
        - ``"log1p"``: logarithms of the counts as they are. Default for fewer features, such as a panel of proteins,
          where dividing by the total would make all others fall when one rises.
        - ``"tf_idf"``: term frequency, inverse document frequency (Signac), with the frequencies of the training cells,
          or of ``real_test`` without them. Default for values of 0 and 1 (open chromatin).
    space
        Genes and components to use, fitted to cells of none of the sets, with the genes of ``real_test`` in the same
        order. All of ``train`` then plays the synthetic cells.
    max_cells
        Largest number of cells to compare on each side. Time and memory grow with its square, the time of optimal
        transport with its cube. Groups draw up to 500 cells of their own, so rare labels keep their cells. In
        ``marker_overlap``, ``marker_slope`` and ``mmd_per_label``, a label that has rows, but fewer than 20 cells among
        those drawn on a side, has up to 50 of its own. Metrics of memorisation use all of ``train``. Copies and
        duplicates (``copied_cells``, ``near_copies``, ``copied_test_cells``, ``duplicate_share``) are counted in all
        cells of all sets, read part by part; ``near_copies`` in a random part if that would be more than a billion
        pairs of cells. Means and variances of perturbations use all cells.
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
      compared with the other; for ``copied_cells`` and ``near_copies``, ``real_test`` with ``train``. NaN in a group
      with fewer than 30 such cells: a label needs about 60 cells in ``train``, or 90 in ``real_test`` without it.
    - `shuffled`: real cells with every gene's values shuffled within the group (or among all cells): right margins and
      total counts, no correlation. A model near this has learned nothing beyond single genes. NaN for copies.
    - `low`, `high`: 95 % confidence interval of the mean value over draws of this size from the same model and tissue.
      About 90 % of such draws have a value in it, as far as was measured. It is too narrow, or has no width, for a
      share near its best or worst value, such as a ``trts_accuracy`` of 1.
      Copies and duplicates are counted in all cells and have Wilson's interval of a share, so its upper limit is above
      0 even if none was found. Their lower limit also allows for the uncertainty of the real value (Newcombe), but for
      no more equal cells than chance can explain.
    - `better`: ``"lower"``, ``"higher"``, or ``"real"`` if the best value is the real value itself.

    ``attrs["n_cells"]`` maps every label of ``real_test`` to the number of cells compared on either side; 0 if a side
    has fewer than 30. ``attrs["n_labelled"]`` maps it, and ``"all"``, to the numbers of such cells in ``real_test`` and
    ``synthetic``. ``attrs["leaked"]`` is the share of ``real_test`` that is in ``train``, count by count, without what
    chance may explain; above 0.5 %, you get a warning, too. It is 0 for less, and if no metric of copies was asked for,
    or counts are compared with logarithms.

    With ``control``, there is one row per metric, `perturbation` and group. `real` uses one half of the perturbation's
    real cells as the prediction of the other, averaged over splits (NaN below four cells). Halves have more sampling
    noise than all cells, so a perfect prediction of full size scores better than this real value, and with few cells
    even a mediocre one can. Instead of `shuffled` and the interval there are baselines: `no_change`, the control cells;
    `mean_shift`, control cells moved by the mean change of all training perturbations; `additive`, control cells moved
    by the sum of the changes of the parts (NaN if ``train`` lacks a part); and ``others`` (NaN if a method has fewer
    than two cells of a perturbation). A model has predicted an effect only if it beats every baseline.

    For MuData, the first column is `modality`: ``table[table["modality"] == "rna"]`` is a table for
    :func:`~scgen_diffusion.report.summary` and :func:`~scgen_diffusion.pl.scores`. Joint rows, such as ``"rna+prot"``,
    show whether the modalities belong together. They have the metrics in component space, with each modality divided by
    the standard deviation of its first component so that none dominates (multiple factor analysis). Rows of pairs have
    ``cross_correlation_error``, whose `shuffled` shuffles the second modality among the real cells of each label.
    ``attrs["scales"]``, ``attrs["n_cells"]``, ``attrs["n_labelled"]`` and ``attrs["leaked"]`` are by modality.

    Raises
    ------
    KeyError
        If a layer, a column or a modality is missing.
    TypeError
        If the sets are of different kinds, or an argument has the wrong type.
    ValueError
        If there are too few cells, many synthetic cells have no counts, genes differ, a metric is unknown or lacks what
        it needs, ``real_test`` has cells of ``train``, arguments contradict each other, a perturbation was not
        predicted, or a group has no control cells.

    Notes
    -----
    The interval uses half-samples (McCarthy): half of the cells of each side is drawn without replacement,
    ``n_bootstrap`` times. For a mean of `n` cells, the variance over half-samples is
    :math:`s^2 / (n/2) \cdot (1 - 1/2) = s^2 / n`, that of the mean itself; to first order this holds for every figure
    that is smooth in the cells. The mean of the half-samples is biased, so the interval is
    :math:`\text{value} \pm t\, \text{SD}`, cut at the metric's bounds, with the 97.5 % quantile :math:`t` of Student's
    distribution for one degree of freedom less than half-samples (2.26 for ten). A bootstrap with replacement would
    fail, because repeated cells are each other's neighbours. For AUCs of classifiers, the cross-validated scores of the
    cells are resampled. The interval does not include what another training run would change.

    Real values draw real cells at random, labels included. Synthetic cells generated with exactly the labels of
    ``real_test`` lack this scatter of labels, which favours them slightly in small sets.

    Without ``groupby``, `within_label_correlation` and `within_label_slope` include differences between cell types.

    With ``control``, ``specific_change_correlation`` needs ``train``, and ``perturbation_discrimination`` two or more
    perturbations; otherwise they have no rows. ``energy_distance`` is measured in 30 principal components of ``train``,
    or in ``space``; without both, in all genes, where its values are others.

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
    draws = Draws(max_cells, n_repeats, n_bootstrap, seed)
    draws.check(MIN_CELLS if control is None else MIN_CELLS_PER_PERTURBATION)
    names = None if metrics is None else as_list(metrics)
    if unknown := [name for name in names or () if name not in CATALOGUE]:
        msg = f"`metrics` has the unknown name {unknown[0]!r}. {known_names(unknown[0], list(CATALOGUE))}"
        raise ValueError(msg)
    is_multimodal = any(isinstance(cells, MuData) for cells in sets.values())
    if is_multimodal and (control is not None or space is not None):
        msg = "`control` and `space` need cells of one modality, such as mdata['rna'], but found MuData."
        raise ValueError(msg)
    if not is_multimodal and (scales is not None or isinstance(layer, Mapping)):
        msg = "`scales`, and `layer` by modality, are only for MuData, but no set is a MuData."
        raise ValueError(msg)
    if (control is None) != (perturbation_key is None) or (others and control is None):
        msg = "Perturbations need both `control` and `perturbation_key`; `others` needs these two."
        raise ValueError(msg)

    if space is not None and isinstance(real_test, AnnData):  # the other sets are read in its order of genes
        space.check_genes(real_test.n_vars, real_test.var_names)
    if is_multimodal:
        return _evaluate_modalities(sets, names, groupby, scales, layer, draws)
    if control is not None:
        options = {"key": perturbation_key, "separator": separator, "groupby": groupby, "layer": layer, "space": space}
        return evaluate_perturbations(sets, dict(others or {}), names, draws, **options)
    sources = read_sources(sets, groupby, layer)
    metrics = check_sources(sources, names, n_features=real_test.shape[1])
    rows, noted = compare_cells(sources, metrics, draws, space=space)
    table = table_of(rows, ("metric", "group"), FIGURES)
    table.attrs.update(noted)
    return table


def _evaluate_modalities(
    sets: Mapping[str, MuData],
    names: Collection[str] | None,
    groupby: str | Sequence[str] | None,
    scales: Mapping[str, ScaleName] | None,
    layer: str | Mapping[str, str] | None,
    draws: Draws,
) -> pd.DataFrame:
    """Return the table of each modality, of all together, and of each pair."""
    keys = as_list(groupby)
    modalities = common_modalities(sets)
    layers = dict.fromkeys(modalities, layer) if isinstance(layer, str) else dict(layer or {})
    cells = {
        modality: {
            name: modality_cells(mdata, modality, keys, name, layers.get(modality)) for name, mdata in sets.items()
        }
        for modality in modalities
    }
    scale_names = choose_scales({modality: own["real_test"] for modality, own in cells.items()}, scales, layers)
    if names is not None:
        choose_metrics([n for n in names if "pair" not in CATALOGUE[n].scopes], "all", {"train", "groupby", "counts"})

    def wanted(scope: Scope) -> list[str] | None:
        return None if names is None else [name for name in names if scope in CATALOGUE[name].scopes]

    sources, checked = {}, {}  # all modalities, before any is judged
    for modality, own in cells.items():
        genes = own["real_test"].var_names
        reference = align_genes(own.get("train", own["real_test"]), genes, name="train")
        scale = make_scale(scale_names[modality], reference, layers.get(modality))
        try:
            sources[modality] = read_sources(own, keys or None, layers.get(modality), scale)
            if wanted("all") != []:
                metrics = check_sources(sources[modality], wanted("all"), n_features=len(genes))
                checked[modality] = sources[modality], metrics
        except ValueError as error:
            msg = f"Modality {modality!r}: {error}"
            raise ValueError(msg) from error
    together, least = "+".join(modalities), {name: least_cells(name, has_train="train" in sets) for name in sets}
    if len(modalities) > 1 and wanted("joint") != []:
        by_modality = [*sources.values()]
        if paired := paired_cells(by_modality, least, f"{together} is not judged together"):
            joint = joint_sources(by_modality, paired)
            checked[together] = joint, check_sources(joint, wanted("joint"), scope="joint")
    rows: list[Row] = []
    noted: dict[str, dict[str, object]] = {"n_cells": {}, "n_labelled": {}, "leaked": {}}
    for modality, own in checked.items():
        own_rows, of_cells = compare_cells(*own, draws)
        rows.extend({"modality": modality, **row} for row in own_rows)
        for what, value in of_cells.items():
            noted[what][modality] = value
    of_pair = choose_metrics(wanted("pair"), "pair", {"modalities"} if len(modalities) > 1 else set())
    least = dict.fromkeys(("real_test", "synthetic"), MIN_PAIRED_CELLS)
    for pair in combinations(modalities, 2) if of_pair else ():
        both = [sources[modality] for modality in pair]
        if paired := paired_cells(both, least, f"{'+'.join(pair)} is not compared as a pair"):
            context = pair_context(both, paired, draws)
            rows.extend({"modality": "+".join(pair), "group": ALL, **context.row(metric)} for metric in of_pair)
    table = table_of(rows, ("modality", "metric", "group"), FIGURES)
    table.attrs.update(noted, scales=scale_names)
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
    scale: Scale | None = None,
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
        if source.labels is None:
            continue
        if (source.labels == ALL).any():
            msg = f"`groupby` gives cells of `{name}` the label {ALL!r}, the table's name for all cells; rename it."
            raise ValueError(msg)
        if not np.isin(source.labels, real.labels).any():
            found, known = (np.unique(side.labels)[:N_LABELS_NAMED].tolist() for side in (source, real))
            msg = f"`{name}` and `real_test` have no label in common: {found} and {known}. Use the same labels in both."
            raise ValueError(msg)
    check_for_empty_cells(sources)
    if "train" in sources:
        check_for_training_cells(real, sources["train"])
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
        warn_user(f"At least {leaked:.1%} of the cells in `real_test` are in `train`, too, which hides memorisation.")
    n_sides = 2 if pools.others is None else 1  # in the first case, one half of the real cells plays the synthetic ones
    groups = pools.real.frequent_labels(n_sides * MIN_CELLS_PER_GROUP)
    groups_of_either = {*groups, *pools.synthetic.frequent_labels(MIN_CELLS_PER_GROUP)}
    rows = []
    for metric in metrics:
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
    for group in groups:
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
