"""The table of figures in plain words: what was seen, beside what real cells score, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.stats import binom

from scgen_diffusion._arguments import list_first
from scgen_diffusion.data import check_one_modality
from scgen_diffusion.metrics import ALL, CATALOGUE, FIGURES, GUESSING, MIN_CELLS_PER_GROUP, QUANTILE, excess_over_floor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: The rows of a table, by metric and group.
    Rows: TypeAlias = "dict[tuple[str, str], Figure]"

COLUMNS = ["metric", "group", *FIGURES, "better"]

Level: TypeAlias = Literal["ok", "note", "warning"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning")

#: So many standard deviations must lie between value and floor. The floor varies about as the value does, so that this
#: is two standard deviations of their difference; and what matters has to be large besides, so that 20 topics seldom
#: raise a false alarm.
N_DEVIATIONS = 3.0
N_DEVIATIONS_OF = {
    # These vary more than their floor does, and are worth a note at most. In simulations, real cells get one in 1% of
    # evaluations, and a share of 25% instead of 5% of 100 cells gets one in 90% (with three deviations: 60%).
    "group_share_difference": 2.0,
    # Real cells of rare labels differ from their floor by more than intervals say: up to 1.3 and 1.9 times.
    "transfer_f1": 4.0,
    "marker_slope": 5.0,
}


@dataclass(frozen=True)
class Limits:
    """By how much a figure may be worse than the floor.

    Attributes
    ----------
    note, warning
        From where it is worth a note or a warning.
    of
        What these are multiples of: an absolute number, the floor, or what lies between shuffled genes and the floor.
    """

    note: float
    warning: float
    of: Literal["one", "floor", "structure"] = "one"


@dataclass(frozen=True)
class Figure:
    """A row of the table, and how much of its excess other shares of labels may explain."""

    metric: str
    group: str
    value: float
    floor: float
    shuffled: float
    low: float
    high: float
    better: str
    explained: float = 0.0

    @property
    def deviation(self) -> float:
        """That of a normal value with this interval; the longer side, as bounds cut the other; 0 without an interval.

        It is somewhat larger than the standard deviation of few half-samples, which is uncertain.
        """
        reach = max(self.high - self.value, self.value - self.low)
        return reach / QUANTILE if np.isfinite(reach) else 0.0

    @property
    def excess(self) -> float:
        """By how much it is worse than the floor and what is explained; negative if it is better."""
        return excess_over_floor(self.metric, self.better, self.value, self.floor) - self.explained

    @property
    def percent(self) -> str:
        """The value in percent, with as many digits as a rare copy needs."""
        return f"{100 * self.value:.1g}%" if 0 < self.value < 1e-4 else f"{self.value:.2%}"

    @property
    def beside_floor(self) -> str:
        """What a classifier scores between real cells; nothing where guessing replaced it (:func:`_without_floor`)."""
        return "" if self.floor == GUESSING else f"; real from real cells: {self.floor:.2f}"

    @property
    def beside_explained(self) -> str:
        """What other shares of labels may explain; nothing if they explain nothing."""
        return f"; other shares of labels explain at most {self.explained:.1%} more" if self.explained else ""

    @property
    def is_clear(self) -> bool:
        """Whether it is worse than the floor by more than chance; without an interval, whether it is worse at all."""
        if CATALOGUE[self.metric].of_all is not None:  # whose lower limit allows for the uncertainty of the floor
            return self.excess > 0 and not self.low <= self.floor
        return self.excess > N_DEVIATIONS_OF.get(self.metric, N_DEVIATIONS) * self.deviation

    @property
    def structure(self) -> float:
        """What lies between shuffled genes and real cells; all that real cells have where nothing was shuffled."""
        return self.floor - (self.shuffled if np.isfinite(self.shuffled) else 0.0)

    def level(self, limits: Limits | None = None) -> Level:
        """Judge the excess: it must be clear, and large enough; by the metric's own limits if none are given."""
        if not self.is_clear:
            return "ok"
        limits = LIMITS[self.metric] if limits is None else limits
        unit = {"one": 1.0, "floor": abs(self.floor), "structure": self.structure}[limits.of]
        if self.excess > limits.warning * unit:
            return "warning"
        return "note" if self.excess > limits.note * unit else "ok"


def read_rows(table: pd.DataFrame) -> Rows:
    """Return the rows of a table of `evaluate`, or of a copy read from a file.

    Raises
    ------
    TypeError
        If it is no table.
    ValueError
        If the table has other columns, figures that are no numbers, rows without a group, or several rows of a metric
        and group.
    """
    if not isinstance(table, pd.DataFrame):
        msg = f"`table` must be what `evaluate` returns, a DataFrame, but is {type(table).__name__}."
        raise TypeError(msg)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        msg = (
            f"`table` must be what `evaluate` returns, but lacks the columns {missing}; there are "
            f"{list(table.columns)}."
        )
        if "perturbation" in table:
            msg = (
                "A table of perturbations has no verdict: compare `value` with `floor`, `no_change` and `mean_shift`, "
                "or plot it by `pl.perturbation_scores`."
            )
        raise ValueError(msg)
    if len(table) and not all(is_numeric_dtype(table[column]) for column in FIGURES) or table["group"].isna().any():
        msg = (
            f"`table` must have numbers in {list(FIGURES)}, and a group in each row. If a group is called 'NA', 'nan' "
            "or '', read the file with `keep_default_na=False, na_values=dict.fromkeys(metrics.FIGURES, [''])`."
        )
        raise ValueError(msg)
    check_one_modality(table)
    if (repeated := table.duplicated(["metric", "group"])).any():
        first = table[repeated].iloc[0]
        msg = (
            f"`table` has several rows of the metric {first['metric']!r} and the group {first['group']!r}; judge one "
            "evaluation at a time."
        )
        raise ValueError(msg)
    return {(row["metric"], row["group"]): Figure(**row) for row in table[COLUMNS].to_dict("records")}


def noted_by_label(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return what `evaluate` noted of labels of the real cells and of all cells; nothing for a table from a file."""
    noted = table.attrs.get(name, {})
    if "modality" not in table:
        return noted
    return noted.get(table["modality"].iloc[0], {}) if len(table) else {}


def known(rows: Rows, metrics: Sequence[str], groups: Sequence[str] = (ALL,)) -> list[Figure]:
    """Return the figures of some metrics and groups, those that were measured and have a floor to stand beside."""
    found = [rows[metric, group] for metric in metrics for group in groups if (metric, group) in rows]
    return [figure for figure in found if np.isfinite([figure.value, figure.floor]).all()]


def groups_of(rows: Rows) -> list[str]:
    """Return all groups but that of all cells."""
    return sorted({group for _, group in rows} - {ALL})


#: By how much the figures of all cells may be worse than the floor.
LIMITS = {
    # An AUC of 0.6 is hardly better than guessing; at 0.75 three of four pairs of a real and a synthetic cell are
    # ordered right.
    **dict.fromkeys(("auc_boosting", "auc_logistic", "auc_neighbours", "auc_genes"), Limits(0.10, 0.25)),
    # Distances between samples are large even for real cells (their floor), so that a small excess means much.
    "w2": Limits(0.06, 0.15, of="floor"),
    # One cell in 15, or one in 7, where real cells do not go, or one that the synthetic ones do not reach.
    **dict.fromkeys(("precision", "recall", "coverage"), Limits(0.07, 0.15)),
    # Sampling of the cells alone gives the floor: a quarter more is visible, at 75 % more the model's own error is as
    # large.
    **dict.fromkeys(("gene_mean_error", "gene_variance_error", "gene_zero_error"), Limits(0.25, 0.75, of="floor")),
    "cross_correlation_error": Limits(0.25, 0.75, of="floor"),
    # In powers of ten: the variance of a typical gene, which is a sparse one, is off by 7 % or by 15 % more than by
    # chance.
    "mean_variance_error": Limits(0.03, 0.06),
    # A quarter, or half, of what the correlations of real cells are above those of shuffled genes.
    **dict.fromkeys(("within_label_correlation", "cross_correlation_similarity"), Limits(0.25, 0.50, of="structure")),
    # Largest difference of the cumulative distributions: totals 5 % off give about 0.1 in homogeneous cells, a third
    # off 0.4.
    "library_size_ks": Limits(0.08, 0.20),
    # Share of what real cells of another sample reach.
    **dict.fromkeys(("label_fidelity", "transfer_f1"), Limits(0.05, 0.15, of="floor")),
    "marker_overlap": Limits(0.15, 0.35, of="floor"),
    # Changes, or correlations, a seventh or a third too small or too large.
    **dict.fromkeys(("marker_slope", "within_label_slope"), Limits(0.15, 0.35)),
    # One cell in ten carries another label than in real data. Often on purpose, hence never a warning.
    "group_share_difference": Limits(0.10, np.inf),
    # New real cells have 1 % by construction.
    "nearer_than_held_out": Limits(0.02, 0.05),
    "nearest_train_ratio": Limits(0.10, 0.25),
    "membership_auc": Limits(0.03, 0.08),
    # Any copies of training cells count, if they are more than unseen real cells are by chance (in very sparse data).
    **dict.fromkeys(("copied_cells", "near_copies"), Limits(0.0, 0.0)),
    # No model has seen the held-out cells: copies of these are a mistake in the files.
    "copied_test_cells": Limits(0.001, 0.01),
    # A twin here and there harms nobody; more than half a per cent is no accident.
    "duplicate_share": Limits(0.0, 0.005),
}
SHARE_OF_GROUP = Limits(0.02, np.inf)
#: In a group there are few cells; only what is far off can be told.
IN_A_GROUP = Limits(0.25, 0.50)
#: Metrics by which groups are judged, and what a bad figure means.
OF_GROUPS = {"precision": "do not look like real cells of that group", "recall": "cover only a part of that group"}
#: With less between real and shuffled cells there is no structure to judge.
MIN_STRUCTURE = 0.10
#: A group whose share is below this part of the real one is missing.
MISSING = 0.25
#: In so many evaluations, at most, chance makes a group look missing.
UNLIKELY = 0.01
#: Of held-out cells that are training cells, count by count.
MANY_COPIES = 0.5
#: Metrics that even perfect cells fail if their labels have other shares, and from which difference of shares on: they
#: pool the labels of each side, which differ in density, in correlations, in what all other cells are, or in how many
#: cells a classifier learns them from.
MIXED = {
    # Where a dense and a loose label have half of the cells each, the median distance jumps from one to the other.
    "nearest_train_ratio": Limits(0.04, np.inf),
    **dict.fromkeys(
        ("within_label_correlation", "within_label_slope", "marker_overlap", "marker_slope", "transfer_f1"),
        LIMITS["group_share_difference"],
    ),
}
#: From which AUC of a classifier on other cells are not from where the held-out cells are.
UNLIKE = 0.60
#: Added to the advice on what other shares of labels, or given totals, change by themselves.
LIKE_HELD_OUT = "To judge the model, generate cells with the labels of the held-out ones."
#: Parts of advice, which are left out where the record of the cells says that they do not apply.
LESS_GUIDANCE = ", and use less guidance if it was above 1"
OR_GUIDANCE = ", or guidance is too strong"
IF_GUIDED = ": if guidance was above 1, use less"
OF_GUIDANCE = (LESS_GUIDANCE, OR_GUIDANCE, IF_GUIDED)
FEWER_EPOCHS = " SCRDIT and WBDIT on few cells: fewer epochs."
#: The end of some advice, which is left out where training saw no such cells.
MORE = "If nothing else helps, and the validation loss did not rise, train longer."


@dataclass(frozen=True)
class Finding:
    """One thing that a verdict says.

    Attributes
    ----------
    level
        ``"ok"``, ``"note"`` (worth a look) or ``"warning"`` (deal with it before the cells are used).
    topic
        What it is about, in a word or two.
    seen
        What was seen, beside what real cells score.
    advice
        What to do about it; "" for nothing.
    """

    level: Level
    topic: str
    seen: str
    advice: str = ""

    @property
    def message(self) -> str:
        """What was seen, and what to do about it."""
        return f"{self.seen} {self.advice}".rstrip()


def worst(levels: Sequence[Level]) -> Level:
    """Return the most severe level."""
    return max(levels, key=LEVELS.index)


@dataclass(frozen=True)
class Check:
    """A topic judged by metrics of all cells.

    Attributes
    ----------
    topic
        Its name.
    seen
        By metric, what its figure means; formatted with the :class:`Figure` as `f`.
    advice
        What to do if it is bad.
    speaks
        Which metrics do: all that are as bad as the worst, or the one farthest off.
    """

    topic: str
    seen: dict[str, str]
    advice: str
    speaks: Literal["all", "one"] = "all"

    def __call__(self, rows: Rows) -> list[Finding]:
        """Return the finding, or none where no metric of the topic was measured, or there is no structure to judge.

        Without structure in real cells, an error is still judged beside its floor.
        """
        figures = known(rows, list(self.seen))
        if lacks_structure(figures):
            figures = [figure for figure in figures if LIMITS[figure.metric].of == "floor"]
        if not figures:
            return []
        level = worst([figure.level() for figure in figures])
        spoken = [figure for figure in figures if figure.level() == level]
        if self.speaks == "one":
            spoken = [max(spoken, key=lambda figure: figure.excess)]
        sentences = [self.seen[figure.metric].format(f=figure) for figure in spoken]
        return [make_finding(level, self.topic, " ".join(sentences), self.advice)]


def lacks_structure(figures: Sequence[Figure]) -> bool:
    """Return whether the real cells have too little of what a figure measures to judge it."""
    return any(LIMITS[f.metric].of == "structure" and f.structure < MIN_STRUCTURE for f in figures)


def make_finding(level: Level, topic: str, seen: str, advice: str) -> Finding:
    """Say what was seen, and what to do about it where that is not well."""
    return Finding(level, topic, seen, "" if level == "ok" else advice)


def _missing_groups(rows: Rows, n_labelled: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Name groups with a share in real cells and too few synthetic ones to compare: their rows have no value.

    ``n_labelled`` are the numbers of real and synthetic cells in all and by group, if they are known, also of groups
    without rows.
    """
    compared = [metric for metric in ("precision", "recall", "w2") if (metric, ALL) in rows]
    if not compared or not groups_of(rows) or ("group_share_difference", ALL) not in rows:
        return []
    n_real, n_synthetic = n_labelled.get(ALL, (1, 1))
    counts_of = {group: numbers for group, numbers in n_labelled.items() if group != ALL}
    shares = known(rows, ["group_share_difference"], groups_of(rows))
    have_other_shares = {share.group for share in shares if share.is_clear}

    def is_missing(group: str) -> bool:
        if group not in counts_of:
            return group in have_other_shares
        real, synthetic = counts_of[group]
        chance = binom.cdf(synthetic, real + synthetic, n_synthetic / (n_real + n_synthetic))  # if shares are equal
        return synthetic / n_synthetic < MISSING * real / n_real and chance < UNLIKELY / len(counts_of)

    are_empty = lambda group: all((m, group) in rows and np.isnan(rows[m, group].value) for m in compared)
    empty = list(filter(are_empty, groups_of(rows)))
    without_rows = [group for group in counts_of if not any((metric, group) in rows for metric in compared)]
    shown = {
        group: f"{group} ({synthetic / n_synthetic:.1%}; real cells: {real / n_real:.1%})"
        for group, (real, synthetic) in counts_of.items()
    }
    if missing := [shown.get(group, group) for group in sorted([*empty, *without_rows]) if is_missing(group)]:
        message = (
            f"Too few synthetic cells, or none, for {list_first(missing)}. If more were asked for, the model has "
            "dropped these cells; else ask for them by their condition."
        )
        return [Finding("warning", "missing groups", message)]
    if empty and not known(rows, list(OF_GROUPS)):
        message = f"Too few synthetic cells to judge {list_first(empty)}: fewer than {MIN_CELLS_PER_GROUP}."
        return [make_finding("note", "missing groups", message, "Generate more cells.")]
    if empty or not any((metric, group) in rows for metric in compared for group in groups_of(rows)):
        return []  # the finding on groups names them
    return [Finding("ok", "missing groups", "Every group of the real cells that is large enough has synthetic cells.")]


def _group_shares(rows: Rows) -> list[Finding]:
    totals = known(rows, ["group_share_difference"])
    if not totals:
        return []
    total = totals[0]
    seen = (
        f"{total.value:.0%} of the cells would need another label for the groups to have the shares of the real cells "
        f"(real against real: {total.floor:.0%})."
    )
    if left_out := [f.metric for f in known(rows, _mixed(rows))]:
        seen += (
            f" Not judged, because different shares alone change them: {_listed(left_out)}. To get them judged, "
            "generate with the labels of the held-out cells: `model.generate(condition=held_out)`."
        )
    shares = known(rows, ["group_share_difference"], groups_of(rows))
    off = sorted((f for f in shares if f.level(SHARE_OF_GROUP) != "ok"), key=lambda f: -f.value)
    most = f"Most of it is {list_first([f.group for f in off])}. " if off else ""
    advice = "Fine if these shares were asked for. Figures of all cells suffer from it."
    level = worst([total.level(), "note" if left_out else "ok"])
    return [make_finding(level, "group shares", seen, f"{most}{advice}")]


def _mixed(rows: Rows) -> list[str]:
    """Return the metrics that cannot be judged, because the labels have other shares."""
    totals = known(rows, ["group_share_difference"])
    return [metric for metric, limits in MIXED.items() if any(f.level(limits) != "ok" for f in totals)]


def _with_comparable_shares(rows: Rows) -> Rows:
    """Return the rows, without those that pool the labels of each side if the labels have other shares.

    Of nearness to training cells, only what exceeds the difference of the shares remains to be judged.
    """
    left_out = {(metric, ALL) for metric in _mixed(rows)}
    kept = {key: figure for key, figure in rows.items() if key not in left_out}
    # if cells are right within labels, the share that lies near differs by no more than the shares of labels do
    explained = sum(f.value for f in known(rows, ["group_share_difference"]) if f.is_clear)
    return kept | {(f.metric, ALL): replace(f, explained=explained) for f in known(rows, ["nearer_than_held_out"])}


def _as_asked(finding: Finding, rows: Rows, request: Mapping[str, Any]) -> Finding:
    """Fit a finding to the request of the cells.

    Totals that were given may differ by design. Other shares of labels are named where a classifier tells the cells.
    Advice against guidance that was not used, or for another model, is left out.
    """
    if finding.level == "ok":
        return finding
    if finding.topic == "library size" and request.get("library_size") == "given":
        advice = (
            "Totals were given as `library_size`. If they were those of the held-out cells, the model does not meet "
            f"them; otherwise, they differ by design. {LIKE_HELD_OUT}"
        )
        return replace(finding, level="note", advice=advice)
    advice = finding.advice
    if finding.topic == "classifier" and any(f.level() != "ok" for f in known(rows, ["group_share_difference"])):
        advice = f"Shares of labels differ, which alone makes cells easy to tell. {LIKE_HELD_OUT} {advice}"
    scale = request.get("guidance_scale", np.inf)
    if all(each <= 1 for each in (scale.values() if isinstance(scale, Mapping) else [scale])):
        for part in OF_GUIDANCE:
            advice = advice.replace(part, "")
    if request.get("model") in ("SCLDM", "MULTISCLDM"):
        advice = advice.replace(FEWER_EPOCHS, "")
    return replace(finding, advice=advice)


def _weak_groups(rows: Rows, n_labelled: Mapping[str, tuple[int, int]], n_cells: Mapping[str, int]) -> list[Finding]:
    """Name groups whose cells are off, or do not cover the real ones, where all cells together may look fine.

    Labels of few real cells have no rows: their number in ``n_cells`` is 0. ``n_labelled`` are as for missing groups.
    """
    figures = known(rows, list(OF_GROUPS), groups_of(rows))
    with_rows = {group for metric, group in rows if metric in OF_GROUPS} - {ALL}
    groups = with_rows | {group for group, n in n_cells.items() if not n}
    if not groups or not (figures or known(rows, list(OF_GROUPS))):
        return []
    judged = {f.group for f in figures}
    count, are_all_judged = _count_judged(rows, groups, judged, n_labelled)
    if not judged:
        return [Finding("note", "groups", count)]
    sentences = []
    for metric, meaning in OF_GROUPS.items():
        off = [f for f in figures if f.metric == metric and f.level(IN_A_GROUP) != "ok"]
        if off:
            worst_first = sorted(off, key=lambda f: -f.excess)
            listed = list_first([f"{f.group} ({f.value:.2f}; real {f.floor:.2f})" for f in worst_first])
            sentences.append(f"Synthetic cells {meaning}: {metric} of {listed}.")
    level = worst(["ok" if are_all_judged else "note", *(f.level(IN_A_GROUP) for f in figures)])
    if not sentences:
        which = "No group" if are_all_judged else "No judged group"
        return [Finding(level, "groups", f"{which} is far worse than real cells of that group. {count}")]
    advice = (
        f"Check the labels of the training cells, and give small groups more guidance towards the condition. {MORE}"
    )
    return [Finding(level, "groups", " ".join([*sentences, count]), advice)]


def _count_judged(
    rows: Rows, groups: set[str], judged: set[str], n_labelled: Mapping[str, tuple[int, int]]
) -> tuple[str, bool]:
    """Say how many groups were judged, and why others were not; return also whether all were."""
    measured = {f.group for f in rows.values() if f.metric in OF_GROUPS and f.group != ALL and np.isfinite(f.value)}
    absent = {group for group in groups - measured if not n_labelled.get(group, (1, 1))[1]}
    too_few = f"fewer than {MIN_CELLS_PER_GROUP} real or synthetic cells to compare: hold out and generate more"
    no_floor = (
        f"no floor, which needs {MIN_CELLS_PER_GROUP} cells in half of `train`: read the table, or leave `train` out "
        f"if {3 * MIN_CELLS_PER_GROUP} cells are held out"
    )
    unjudged = {too_few: sorted(groups - measured - absent), no_floor: sorted(measured - judged)}
    whys = [f"{list_first(names)} ({reason})" for reason, names in unjudged.items() if names]
    sentences = [f"Judged: {len(judged)} of {len(groups)} groups."]
    if whys:
        sentences.append(f"Not judged: {'; '.join(whys)}.")
    without_floor = [f for f in rows.values() if f.metric in _CLASSIFIERS and f.group in measured - judged]
    told = [f for f in without_floor if replace(f, floor=GUESSING).level(IN_A_GROUP) != "ok"]
    if told:
        best = {f.group: f"{f.group} (AUC {f.value:.2f})" for f in sorted(told, key=lambda f: f.value)}
        easily = list_first(list(best.values()))
        sentences.append(f"A classifier easily tells synthetic cells of {easily} from real ones.")
    if absent:
        sentences.append(f"No synthetic cells: {list_first(sorted(absent))}.")
    return " ".join(sentences), not (whys or absent)


def _unlike_floor(rows: Rows, n_cells: float) -> list[Finding]:
    """Say so if the cells behind the floors are told from the held-out cells, as other donors or times are.

    The value of bad cells is near 1 and hardly varies, but the floor does: with ``n_cells`` cells on either side, the
    AUC of guessing has a variance of about ``1 / (6 * n_cells)``.
    """
    of_guessing = 1 / np.sqrt(6 * n_cells)
    deviation = lambda f: max(f.deviation, CATALOGUE[f.metric].widening * of_guessing)
    figures = known(rows, list(_CLASSIFIERS))
    clear = [f for f in figures if f.floor > max(UNLIKE, GUESSING + N_DEVIATIONS * deviation(f))]
    if not clear:
        return []
    auc = max(f.floor for f in clear)
    message = (
        "The training cells, which give the floors, are not like the held-out ones: a classifier tells them apart with "
        f"an AUC of {auc:.2f}, as it may tell donors or times. So synthetic cells can be bad and still better than the "
        "floors, and nearness to training cells says nothing about memorisation; what passes is left out here. If the "
        "synthetic cells are off because training saw no such cells, training longer does not help. Without `train`, "
        "`evaluate` takes the floors from the held-out cells; for memorisation, hold out random cells."
    )
    return [Finding("warning", "floors", message)]


def _without_floor(rows: Rows) -> Rows:
    """Return the rows with classifiers beside guessing, and without nearness to training cells, which needs a floor."""
    known_goal = {key: replace(f, floor=GUESSING) if f.metric in _CLASSIFIERS else f for key, f in rows.items()}
    return {key: figure for key, figure in known_goal.items() if figure.metric not in _NEARNESS}


_COPIES = {
    "copied_cells": (
        "{f.percent} of the synthetic cells equal a training cell exactly (unseen real cells: {f.floor:.2%})."
    ),
    "near_copies": (
        "{f.percent} of the synthetic cells are ten times nearer to a training cell than other training cells are "
        "(unseen real cells: {f.floor:.2%})."
    ),
}


def _copies(rows: Rows) -> list[Finding]:
    figures = known(rows, list(_COPIES))
    if not figures:
        return []
    seen = " ".join(_COPIES[f.metric].format(f=f) for f in figures)
    if any(f.floor > MANY_COPIES for f in figures):
        advice = (
            "The held-out cells are training cells, or have hardly any counts: figures of memorisation say nothing. "
            "Hold other cells out."
        )
        return [make_finding("warning", "copies", seen, advice)]
    advice = (
        "The model repeats training cells: do not publish these cells as private; train for fewer epochs, on more "
        "cells, or with a smaller model."
    )
    return [make_finding(worst([f.level() for f in figures]), "copies", seen, advice)]


def _leak(leaked: float) -> list[Finding]:
    """Say so if a share of the held-out cells is in the training cells, as it is if data hold cells twice."""
    message = (
        f"At least {leaked:.1%} of the held-out cells are training cells, count by count: the split leaks. So figures "
        "and floors look too good, and memorisation is hidden. Keep each cell once, then split."
    )
    return [Finding("warning", "split", message)] if leaked else []


_NEARNESS = {
    "membership_auc": (
        "Whether a real cell was used in training can be told from the synthetic cells with an AUC of "
        "{f.value:.2f} (0.5 is guessing; unseen cells: {f.floor:.2f})."
    ),
    "nearer_than_held_out": (
        "{f.value:.1%} of the synthetic cells lie nearer to a training cell than nearly all unseen real cells do "
        "(unseen real cells: {f.floor:.1%}{f.beside_explained})."
    ),
    "nearest_train_ratio": "The nearest training cell is {f.value:.2f} times as far as from unseen real cells.",
}


def _memorisation(rows: Rows) -> list[Finding]:
    """Judge nearness to training cells.

    Smooth cells lie near everything: only nearness to *training* cells in particular is a leak.
    """
    figures = known(rows, list(_NEARNESS))
    if not figures:
        return []
    is_far = lambda f: f.metric == "nearest_train_ratio" and f.value > f.floor
    levels = {f.metric: "ok" if is_far(f) else f.level() for f in figures}
    level = worst([*levels.values()])
    if level == "ok" and _held_out_copies(rows):  # which lie far from training cells
        return []
    seen = " ".join(_NEARNESS[f.metric].format(f=f) for f in figures)
    if level == "ok":
        seen += " This does not make the cells anonymous."
    advice = (
        "Training cells leak: do not publish these cells as private; train for fewer epochs, on more cells, or with a "
        "smaller model."
    )
    if levels.get("membership_auc", "ok") == "ok" and levels.get("nearest_train_ratio", "ok") != "ok":
        advice = (
            "That is what memorised cells do, and cells that are too smooth, as averages are. If spread, zeros and "
            "diversity are fine, it is memorisation: train for fewer epochs, on more cells, or with a smaller model."
        )
    return [make_finding(level, "memorisation", seen, advice)]


def _held_out_copies(rows: Rows) -> list[Finding]:
    """Say so if synthetic cells lie nearer to the held-out cells than chance allows, as copies of these do."""
    for f in known(rows, ["membership_auc", "auc_neighbours"]):
        below = min(GUESSING, f.floor) - f.value
        if below > max(LIMITS["membership_auc"].warning, N_DEVIATIONS * f.deviation):
            message = (
                f"Synthetic cells lie nearer to the held-out cells than chance allows ({f.metric}: {f.value:.2f}, 0.50 "
                "is guessing). Were `train` and `real_test` swapped, or was the model trained on the held-out cells?"
            )
            return [Finding("warning", "held-out cells", message)]
    return []


def _markers(rows: Rows) -> list[Finding]:
    """Judge differences between groups: their genes and their size. The advice depends on what is off."""
    figures = known(rows, ["marker_overlap", "marker_slope"])
    if not figures:
        return []
    level = worst([figure.level() for figure in figures])
    sentences, advice = [], []
    for f in figures:
        if f.level() != level:
            continue
        if f.metric == "marker_overlap":
            sentences.append(
                f"{f.value:.0%} of the marker genes of the groups are found again (real cells: {f.floor:.0%})."
            )
            advice.append(f"Other genes mark the groups: check that labels were not mixed up. {MORE}")
            continue
        sentences.append(
            f"Differences between groups are {f.value:.2f} times the real ones (real cells: {f.floor:.2f})."
        )
        too_small = f"Groups are too much like each other: use more guidance. {MORE}"
        too_large = f"Groups differ too much{IF_GUIDED}."
        advice.append(too_small if f.value < f.floor else too_large)
    return [make_finding(level, "markers", " ".join(sentences), " ".join(advice))]


_AUC = (
    "The best classifier, {name}, tells synthetic from real cells with an AUC of {{f.value:.2f}} (0.5 is guessing"
    "{{f.beside_floor}})."
)
_CLASSIFIERS = {
    "auc_boosting": "gradient boosting on principal components",
    "auc_logistic": "a linear classifier on principal components",
    "auc_neighbours": "nearest neighbours",
    "auc_genes": "gradient boosting on genes",
}

#: All checks but that of single groups, in the order of the report.
CHECKS: tuple[Callable[[Rows], list[Finding]], ...] = (
    Check(
        "held-out copies",
        {
            "copied_test_cells": (
                "{f.percent} of the synthetic cells equal a held-out cell exactly (real cells: {f.floor:.2%})."
            )
        },
        "The held-out cells themselves are judged here, not cells of a model: were files mixed up?",
    ),
    _copies,
    _held_out_copies,
    _memorisation,
    Check(
        "duplicates",
        {"duplicate_share": "{f.percent} of the synthetic cells have an exact twin (real cells: {f.floor:.2%})."},
        "A seed was used twice, or the model knows few cells only: draw each batch with another seed, and look at "
        "diversity.",
    ),
    Check(
        "diversity",
        {
            "recall": "Synthetic cells reach {f.value:.0%} of the real cells (real cells: {f.floor:.0%}).",
            "coverage": "{f.value:.0%} of the real cells have a synthetic cell close by (real cells: {f.floor:.0%}).",
        },
        f"If few are reached, a part of them is missing: look at missing groups and shares{LESS_GUIDANCE}. If they are "
        f"reached, but few have a cell close by, cells are scattered: see realism. {MORE}",
    ),
    Check(
        "realism",
        {"precision": "{f.value:.0%} of the synthetic cells lie where real cells do (real cells: {f.floor:.0%})."},
        "The others lie outside of where real cells are: take more steps of the sampler"
        f"{LESS_GUIDANCE}.{FEWER_EPOCHS} {MORE}",
    ),
    Check(
        "classifier",
        {metric: _AUC.format(name=name) for metric, name in _CLASSIFIERS.items()},
        "Look in the other findings for what gives them away; if there is nothing, look at the genes that differ most "
        f"(`metrics.gene_differences`). {MORE}",
        speaks="one",
    ),
    Check(
        "distribution",
        {
            "w2": (
                "The distance between the two sets of cells (Wasserstein) is {f.value:.3g}; between two sets of real "
                "cells it is {f.floor:.3g}."
            )
        },
        "The other findings say in what they differ.",
    ),
    Check(
        "means",
        {
            "gene_mean_error": (
                "The mean of a gene is off by {f.value:.3f} on average, in log-normalised units (real cells: "
                "{f.floor:.3f})."
            )
        },
        "Check that synthetic and real cells have the same genes, the same mixture of types and the same kind of "
        f"counts. {MORE}",
    ),
    Check(
        "spread",
        {
            "gene_variance_error": (
                "The variance of a gene is off by {f.value:.3f} on average (real cells: {f.floor:.3f})."
            ),
            "mean_variance_error": (
                "At equal mean, a typical gene's variance is off by {f.value:.2f} powers of ten (real cells: "
                "{f.floor:.2f})."
            ),
        },
        f"Too little: cells are means instead of draws{OR_GUIDANCE}. Too much: noise is left over (more steps of the "
        "sampler).",
    ),
    Check(
        "zeros",
        {
            "gene_zero_error": (
                "The share of zeros of a gene is off by {f.value:.1%} on average (real cells: {f.floor:.1%})."
            )
        },
        "Compare counts with counts: cells must be drawn as counts, not decoded as means or denoised; and look at the "
        "library size, which changes zeros as well.",
    ),
    Check(
        "library size",
        {
            "library_size_ks": (
                "Total counts per cell differ by {f.value:.2f} (largest gap of the cumulative shares, 0 to 1; real "
                "cells: {f.floor:.2f})."
            )
        },
        "Draw library sizes from the training cells of the same condition, and check that both sides hold raw counts "
        "of the same genes.",
    ),
    Check(
        "gene-gene structure",
        {
            "within_label_correlation": (
                "Gene-gene correlations agree with the real ones to {f.value:.2f} (other real cells: {f.floor:.2f}; "
                "genes shuffled: {f.shuffled:.2f})."
            ),
            "within_label_slope": (
                "Gene-gene correlations are {f.value:.2f} times as strong as real ones (real cells: {f.floor:.2f}; "
                "1 is right)."
            ),
        },
        f"Genes do not vary together as in real cells: do not use these cells for networks of genes. {MORE}",
    ),
    Check(
        "modalities",
        {
            "cross_correlation_similarity": (
                "Correlations between the modalities agree with the real ones to {f.value:.2f} (other real cells: "
                "{f.floor:.2f}; modalities of other cells: {f.shuffled:.2f})."
            ),
            "cross_correlation_error": (
                "A correlation between the modalities is off by {f.value:.3f} on average (real cells: {f.floor:.3f})."
            ),
        },
        f"Modalities do not belong together as in real cells: check that those of a cell are in the same row. {MORE}",
    ),
    Check(
        "labels",
        {
            "label_fidelity": (
                "A classifier trained on real cells finds the label that was asked for in {f.value:.0%} of the "
                "synthetic cells, averaged over labels (real cells: {f.floor:.0%})."
            ),
            "transfer_f1": (
                "A classifier trained on synthetic cells labels real ones with an F1 of {f.value:.2f} (trained on real "
                "cells: {f.floor:.2f})."
            ),
        },
        "Cells do not follow their label well enough: use more guidance, and check that labels were not mixed up. "
        f"{MORE}",
    ),
    _markers,
)


#: What the best classifier can do, from which excess of its AUC over the floor on; below the first, or within chance,
#: it can do nothing.
TELLING = {
    0.25: "can easily tell the synthetic cells from real ones",
    0.10: "can often tell the synthetic cells from real ones",
    0.0: "can tell the synthetic cells from real ones slightly better than by guessing",
}


def _telling(rows: Rows) -> list[str]:
    """Say whether a classifier can tell the synthetic cells from real ones; nothing if none was trained."""
    figures = known(rows, list(_CLASSIFIERS))
    if not figures:
        return []
    clear = [figure for figure in figures if figure.is_clear]
    best = max(clear or figures, key=lambda figure: figure.excess)
    auc = f"(AUC {best.value:.2f}, 0.50 is perfect)"
    if N_DEVIATIONS * best.deviation > LIMITS[best.metric].warning and not clear:  # not even what is easily told
        return [f"Too few cells to say whether a classifier can tell the synthetic cells from real ones {auc}."]
    how = "cannot reliably tell the synthetic cells from real ones"
    if clear:
        how = next(words for excess, words in TELLING.items() if best.excess > excess)
    return [f"A classifier {how} {auc}."]


#: What to give for topics that the whole table of an evaluation may lack.
TO_GIVE = {
    "memorisation": "give `train`",
    "labels": "give `groupby`",
    "library size": "give counts in X, or name their `layer`",
}
#: What to give for topics whose figures are empty; without an entry, it may be anything.
IF_EMPTY = {"held-out copies": "give counts, or logarithms, on all sides"}
#: Metrics of all topics, but those of single groups and pairs of modalities, which few tables have.
TOPICS = {
    "copies": tuple(_COPIES),
    "memorisation": tuple(_NEARNESS),
    "markers": ("marker_overlap", "marker_slope"),
    "group shares": ("group_share_difference",),
    **{check.topic: tuple(check.seen) for check in CHECKS if isinstance(check, Check) and check.topic != "modalities"},
}
#: What real cells may have too little of, and the metric that shows it.
STRUCTURES = {
    "gene-gene structure": "within_label_correlation",
    "correlation between modalities": "cross_correlation_similarity",
}


def _not_checked(rows: Rows, checked: Sequence[str]) -> list[str]:
    """Say which topics have no figure, and what to give if none was left out by choice; of few topics, say these."""
    if not any(np.isfinite(figure.floor) for figure in rows.values()):
        return ["Not checked: what needs a floor, as the table has none (`n_floor`)."]
    unseen = [topic for topic, metrics in TOPICS.items() if not known(rows, metrics)]
    empty = [topic for topic in unseen if any((metric, ALL) in rows for metric in TOPICS[topic])]
    advised = TO_GIVE | {topic: IF_EMPTY.get(topic, "the table has no value, or no floor") for topic in empty}
    always = [m for m in CATALOGUE.values() if "all" in m.scopes and not m.needs and not m.min_features]
    if all((metric.name, ALL) in rows for metric in always):
        lacking = [f"{topic} ({advice})" for topic, advice in advised.items() if topic in unseen]
        return [f"Not checked: {_listed(lacking)}."] if lacking else []
    if len(checked) <= len(unseen):
        return [f"Checked only: {_listed(list(checked))}."]
    return [f"Not checked, as the table lacks the figures: {_listed(unseen)}."] if unseen else []


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a table of figures says, in words.

    Attributes
    ----------
    summary
        Some sentences: whether a classifier can tell the cells from real ones, and which checks failed.
    findings
        One per topic, the severe ones first.
    is_judged
        Whether the table has a figure that could be judged.
    """

    summary: str
    findings: tuple[Finding, ...]
    is_judged: bool = True

    @property
    def headline(self) -> str:
        """First sentence of the summary."""
        first, stop, _ = self.summary.partition(". ")
        return first + stop.rstrip()

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that should be dealt with before the cells are used."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings worth a look."""
        return tuple(finding for finding in self.findings if finding.level == "note")

    def __str__(self) -> str:
        """Return the summary and a line per finding."""
        lines = [f"[{finding.level}] {finding.topic}: {finding.message}" for finding in self.findings]
        return "\n".join([self.summary, *lines])

    __repr__ = __str__  # what a notebook shows


def verdict(table: pd.DataFrame) -> Verdict:
    """Say in plain words what the table of :func:`~scgen_diffusion.metrics.evaluate` shows.

    Every figure is judged by how much worse it is than what real cells score (the floor). A note or a warning needs an
    excess of more than three standard deviations of the value (from the table's interval; four for ``transfer_f1`` and
    five for ``marker_slope``, which vary more where labels are rare), *and* one that is large enough to matter. Both
    limits are chosen so that unseen real cells seldom get a warning. Copies and duplicates need a lower limit of the
    interval above the floor. A figure without an interval (all of them with ``n_bootstrap=0``) cannot tell chance: then
    any excess that is large enough counts. ``marker_slope`` is judged by its distance from the floor, on either side,
    and ``within_label_slope``, whose floor is noisy, by how much farther it is from 1 than the floor. Topics whose
    metrics the table lacks are left out, and so are correlations between genes if real cells have hardly any. If a
    classifier tells the training cells, which give the floors, from the held-out ones (say, other donors), the verdict
    says so, and leaves out memorisation, what passes, and the advice to train longer. If shares of labels clearly
    differ from the held-out ones, as in cells for rare types, it leaves out what pools labels, which is a note:
    ``nearest_train_ratio`` (from a small difference on), correlations within labels, markers, and ``transfer_f1``. Of
    ``nearer_than_held_out``, it leaves out as much as the shares can explain. A group is called missing only if chance
    does not explain it, however many groups there are. Groups that were not judged, such as those of few cells, are
    named in a note, and so is what was asked for outside of the training cells.
    Totals that differ are a note at most if they were given as ``library_size``.
    If the training of the model was far too short, that is the first warning, and there is no other advice. If held-out
    cells are training cells, it says so, and nothing good about copies and memorisation. A verdict cannot see what no
    metric sees: look at the cells as well.

    Parameters
    ----------
    table
        What :func:`~scgen_diffusion.metrics.evaluate` returns; a part of it will do. So will a copy read from a file,
        without what ``attrs`` tell: what chance does to the floors and shares of few cells, labels without rows, cells
        of ``real_test`` in ``train``, conditions outside of the training cells, given totals, and a training that was
        too short.

    Returns
    -------
    Summary and findings.

    Raises
    ------
    TypeError
        If it is no table.
    ValueError
        If the columns are others, or a metric has several rows of a group, as in the table of several modalities.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = ["metric", "group", "value", "floor", "shuffled", "low", "high", "better"]
    >>> rows = [["copied_cells", "all", 0.2, 0.0, 0.0, 0.17, 0.23, "lower"]]
    >>> verdict(pd.DataFrame(rows, columns=columns)).warnings[0].topic
    'copies'
    """
    rows = read_rows(table)
    n_cells = noted_by_label(table, "n_cells")
    n_labelled = noted_by_label(table, "n_labelled")
    unlike = _unlike_floor(rows, n_cells.get(ALL, np.inf))
    judged = _without_floor(rows) if unlike else rows
    comparable = _with_comparable_shares(judged)
    found = [finding for check in CHECKS for finding in check(comparable)] + _group_shares(judged)
    found += _missing_groups(judged, n_labelled)
    found += _weak_groups(judged, n_labelled, n_cells)
    found = [_as_asked(finding, judged, table.attrs.get("request", {})) for finding in found]
    checked = [finding.topic for finding in found]
    if unlike:  # what passes beside such floors may still be bad
        bad = [finding for finding in found if finding.level != "ok"]
        found = unlike + [replace(finding, advice=finding.advice.replace(MORE, "").rstrip()) for finding in bad]
    if leak := _leak(noted_by_label(table, "leaked") or 0.0):  # copies pass beside those in the floor
        found = leak + [f for f in found if f.level != "ok" or f.topic not in ("copies", "memorisation")]
    if short := table.attrs.get("short_training"):
        message = f"In the model of these cells, {short}. Train it longer before you judge it: see `print(model)`."
        found = [Finding("warning", "training", message), *(replace(finding, advice="") for finding in found)]
    if outside := table.attrs.get("outside_training"):
        message = (
            f"Cells were asked for outside of the training cells: {list_first(outside)}. Expect them to be worse than "
            "others; for them, training longer does not help."
        )
        found = [*found, Finding("note", "conditions", message)]
    findings = tuple(sorted(found, key=lambda finding: -LEVELS.index(finding.level)))
    if not checked:
        with_floor = [f.metric for f in rows.values() if np.isfinite([f.value, f.floor]).all()]
        if with_floor:  # such as `density`
            names = list_first(list(dict.fromkeys(with_floor)))
            return Verdict(
                f"The verdict says nothing about {names} of these cells; compare each value with its floor.",
                findings,
                is_judged=False,
            )
        return Verdict(
            "The table has no figure that can be judged: each needs a value and a floor (`n_floor` above 0).",
            findings,
            is_judged=False,
        )
    warnings, notes = (
        [finding.topic for finding in findings if finding.level == level] for level in ("warning", "note")
    )
    sentences = _telling(judged)
    if warnings:
        sentences += [f"{len(warnings)} of {len(findings)} checks failed: {_listed(warnings)}."]
        sentences += [f"Worth a look, too: {_listed(notes)}."] if notes else []
    elif notes:
        sentences += [f"No check failed; worth a look: {_listed(notes)}."]
    else:
        sentences += [f"All {len(findings)} checks passed." if len(findings) > 1 else "The check passed."]
    if flat := [what for what, metric in STRUCTURES.items() if lacks_structure(known(comparable, [metric]))]:
        sentences += [f"Real cells have too little {_listed(flat)} to check it."]
    return Verdict(" ".join([*sentences, *_not_checked(rows, checked)]), findings)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
