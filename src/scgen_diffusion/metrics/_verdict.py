"""The table of figures in plain words: what was seen, beside what real cells score, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from ._evaluate import ALL, COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable

FIGURES = ["value", "floor", "shuffled", "low", "high"]

Level: TypeAlias = Literal["ok", "note", "warning"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning")

QUANTILE = 1.959964  # of the normal distribution: the table's intervals are 95 % ones
#: So many standard deviations must lie between value and floor. The floor varies about as the value does, so that this is two standard
#: deviations of their difference; and what matters has to be large besides, so that 20 topics seldom raise a false alarm.
N_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Limits:
    """By how much a figure may be worse than the floor.

    Attributes
    ----------
    note, warning
        From where it is worth a note or a warning.
    relative
        Whether these are multiples of the floor instead of absolute numbers.
    """

    note: float
    warning: float
    relative: bool = False


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    metric: str
    group: str
    value: float
    floor: float
    shuffled: float
    low: float
    high: float
    better: str

    @property
    def deviation(self) -> float:
        """The standard deviation that the interval stands for; the longer side, as bounds cut the other. 0 without an interval."""
        reach = max(self.high - self.value, self.value - self.low)
        return reach / QUANTILE if np.isfinite(reach) else 0.0

    @property
    def excess(self) -> float:
        """By how much it is worse than the floor; negative if it is better."""
        if self.better == "floor":
            return abs(self.value - self.floor)
        return self.value - self.floor if self.better == "lower" else self.floor - self.value

    @property
    def is_clear(self) -> bool:
        """Whether it is worse than the floor by more than chance. Where real cells score exactly 0 (copies), chance gives none."""
        return self.excess > (0 if self.floor == 0 else N_DEVIATIONS * self.deviation)

    def level(self, limits: Limits) -> Level:
        """Judge the excess: it must be clear, and large enough."""
        if not self.is_clear:
            return "ok"
        unit = abs(self.floor) if limits.relative else 1.0
        if self.excess > limits.warning * unit:
            return "warning"
        return "note" if self.excess > limits.note * unit else "ok"


class Figures:
    """The rows of a table that have a value and a floor.

    Parameters
    ----------
    table
        As `evaluate` returns it, or read from a file.

    Raises
    ------
    TypeError
        If it is no table.
    ValueError
        If the table has other columns, figures that are no numbers, rows without a group, or several rows of a metric and group.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        if not isinstance(table, pd.DataFrame):
            msg = f"`table` must be what `evaluate` returns, a DataFrame, but is {type(table).__name__}."
            raise TypeError(msg)
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            msg = f"`table` must be what `evaluate` returns, but lacks the columns {missing}; there are {list(table.columns)}."
            raise ValueError(msg)
        if len(table) and not all(is_numeric_dtype(table[column]) for column in FIGURES) or table["group"].isna().any():
            msg = f"`table` must have numbers in {FIGURES}, and a group in each row. Was it read from a file in which a group is called 'NA' or 'nan'?"
            raise ValueError(msg)
        if (repeated := table.duplicated(["metric", "group"])).any():
            first = table[repeated].iloc[0]
            msg = (
                f"`table` has several rows of the metric {first['metric']!r} and the group {first['group']!r}; judge one evaluation at a time, "
                "of several modalities one: table[table['modality'] == ...]."
            )
            raise ValueError(msg)
        rows = table[COLUMNS].to_dict("records")
        self._all = {(row["group"], row["metric"]): Figure(**row) for row in rows}

    def get(self, metric: str, group: str = ALL) -> Figure | None:
        """Return a figure; None where it was not measured, or has no floor to stand beside."""
        figure = self._all.get((group, metric))
        known = figure is not None and np.isfinite(figure.value) and np.isfinite(figure.floor)
        return figure if known else None

    def was_asked_for(self, metric: str, group: str = ALL) -> bool:
        """Say whether there is a row, with a value or without."""
        return (group, metric) in self._all

    def lacks_value(self, metric: str, group: str) -> bool:
        """Say whether there is a row without a value: enough real cells and too few synthetic ones."""
        figure = self._all.get((group, metric))
        return figure is not None and not np.isfinite(figure.value)

    @property
    def groups(self) -> list[str]:
        """All groups but that of all cells."""
        return sorted({group for group, _ in self._all} - {ALL})


def worst(levels: list[Level]) -> Level:
    """Return the most severe level."""
    return max(levels, key=LEVELS.index)


#: An AUC of 0.6 is hardly better than guessing; at 0.75 three of four pairs of a real and a synthetic cell are ordered right.
TOLD_APART = Limits(0.10, 0.25)
#: Distances between samples are large even for real cells (their floor), so that a small excess means much.
DISTANCE = Limits(0.06, 0.15, relative=True)
#: One cell in 15, or one in 7, where real cells do not go, or one that the synthetic ones do not reach.
NEIGHBOURHOOD = Limits(0.07, 0.15)
#: Sampling of the cells alone gives the floor: a quarter more is visible, at 75 % more the model's own error is as large.
PROFILE = Limits(0.25, 0.75, relative=True)
#: In powers of ten: the variance of a typical gene, which is a sparse one, is off by 7 % or by 15 % more than by chance.
SPREAD = Limits(0.03, 0.06)
#: Largest difference of the cumulative distributions: totals 5 % off give about 0.1 in homogeneous cells, a third off 0.4.
LIBRARY_SIZE = Limits(0.08, 0.20)
#: Share of what real cells of another sample reach.
LABELS = Limits(0.05, 0.15, relative=True)
MARKERS = Limits(0.15, 0.35, relative=True)
SLOPE = Limits(0.15, 0.35)
#: One cell in ten carries another label than in real data. Often on purpose, hence never a warning.
SHARES = Limits(0.10, np.inf)
SHARE_OF_GROUP = Limits(0.02, np.inf)
#: New real cells have 1 % by construction.
NEARER = Limits(0.02, 0.05)
NEAREST_RATIO = Limits(0.10, 0.25)
MEMBERSHIP = Limits(0.03, 0.08)
#: Any copy of a training cell counts, beyond those that unseen real cells are by chance (in very sparse data).
COPIES = Limits(0.0, 0.0)
#: No model has seen the held-out cells: copies of these are a mistake in the files, and only some of these cells are compared.
TEST_COPIES = Limits(0.001, 0.01)
#: A twin here and there harms nobody; more than half a per cent is no accident.
DUPLICATES = Limits(0.0, 0.005)
#: Share of the way from shuffled genes (0) to real cells (1).
KEPT_STRUCTURE_NOTE = 0.75
KEPT_STRUCTURE_WARNING = 0.50
#: With less between real and shuffled cells there is no structure to judge.
MIN_STRUCTURE = 0.10
#: In a group there are few cells; only what is far off can be told.
IN_A_GROUP = Limits(0.25, 0.50)
#: Of held-out cells that are training cells, count by count.
MANY_COPIES = 0.5
N_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One thing that a verdict says.

    Attributes
    ----------
    level
        ``"ok"``, ``"note"`` (worth a look) or ``"warning"`` (deal with it before the cells are used).
    topic
        What it is about, in a word or two.
    message
        What was seen, beside what real cells score, and what to do about it.
    """

    level: Level
    topic: str
    message: str


@dataclass(frozen=True)
class Check:
    """A topic judged by metrics of all cells; the worst of them speaks.

    Attributes
    ----------
    topic
        Its name.
    limits
        How bad is bad, by metric.
    seen
        By metric, what its figure means; formatted with the :class:`Figure` as `f`.
    advice
        What to do if it is bad.
    """

    topic: str
    limits: dict[str, Limits]
    seen: dict[str, str]
    advice: str

    def __call__(self, figures: Figures) -> list[Finding]:
        """Return the finding, or none where no metric of the topic was measured."""
        known = [figure for metric in self.limits if (figure := figures.get(metric)) is not None]
        if not known:
            return []
        levels = [figure.level(self.limits[figure.metric]) for figure in known]
        level = worst(levels)
        spoken = [figure for figure, own in zip(known, levels, strict=True) if own == level]
        return [Finding(level, self.topic, self._message(level, spoken))]

    def _message(self, level: Level, spoken: list[Figure]) -> str:
        sentences = [self.seen[figure.metric].format(f=figure) for figure in spoken]
        return " ".join(sentences if level == "ok" else [*sentences, self.advice])


def _told_apart(figures: Figures) -> list[Finding]:
    """Judge by the best of the classifiers."""
    names = {
        "auc_boosting": "gradient boosting on principal components",
        "auc_logistic": "a linear classifier on principal components",
        "auc_neighbours": "nearest neighbours",
        "auc_genes": "gradient boosting on genes",
    }
    known = [figure for metric in names if (figure := figures.get(metric)) is not None]
    if not known:
        return []
    best = max(known, key=lambda figure: (figure.level(TOLD_APART) != "ok", figure.excess))
    level = best.level(TOLD_APART)
    seen = (
        f"The best classifier, {names[best.metric]}, tells synthetic from real cells with an AUC of {best.value:.2f} "
        f"(0.5 is guessing; real from real cells: {best.floor:.2f})."
    )
    advice = (
        "Look in the other findings for what gives them away; if there is nothing, train longer or compare the genes "
        "that differ most between real and synthetic cells."
    )
    return [Finding(level, "told apart", seen if level == "ok" else f"{seen} {advice}")]


def _missing_groups(figures: Figures) -> list[Finding]:
    """Name groups with a share in real cells and too few synthetic ones to compare."""
    if not figures.groups or not figures.was_asked_for("group_share_difference"):
        return []
    shares = {group: figures.get("group_share_difference", group) for group in figures.groups}
    shares = {group: figure for group, figure in shares.items() if figure is not None}
    compared = [metric for metric in ("precision", "recall", "w2") if figures.was_asked_for(metric)]
    empty = [group for group in shares if compared and all(figures.lacks_value(metric, group) for metric in compared)]
    missing = [group for group in empty if shares[group].is_clear]
    if missing:
        message = (
            f"Hardly any or no synthetic cells for {_named(missing)}, which the real cells have. If they were asked for, the model "
            "has dropped these cells; else ask for them by their condition."
        )
        return [Finding("warning", "missing groups", message)]
    return [Finding("ok", "missing groups", "Every group of the real cells that is large enough has synthetic cells.")]


def _group_shares(figures: Figures) -> list[Finding]:
    total = figures.get("group_share_difference")
    if total is None:
        return []
    seen = (
        f"{total.value:.0%} of the cells would need another label for the groups to have the shares of the real cells "
        f"(real against real: {total.floor:.0%})."
    )
    if total.level(SHARES) == "ok":
        return [Finding("ok", "group shares", seen)]
    found = [figure for group in figures.groups if (figure := figures.get("group_share_difference", group)) is not None]
    off = sorted((f for f in found if f.level(SHARE_OF_GROUP) != "ok"), key=lambda f: -f.value)
    most = f" Most of it is {_named([f.group for f in off])}." if off else ""
    advice = "Fine if these shares were asked for; else draw conditions from the training data. Figures of all cells suffer from it."
    return [Finding("note", "group shares", f"{seen}{most} {advice}")]


def _weak_groups(figures: Figures) -> list[Finding]:
    """Name groups whose cells are off, or do not cover the real ones, where all cells together may look fine."""
    kinds = {"precision": "do not look like real cells of that group", "recall": "cover only a part of that group"}
    levels: list[Level] = []
    sentences, n_judged = [], 0
    for metric, meaning in kinds.items():
        known = [figure for group in figures.groups if (figure := figures.get(metric, group)) is not None]
        n_judged += len(known)
        off = sorted((f for f in known if f.level(IN_A_GROUP) != "ok"), key=lambda f: -f.excess)
        levels += [f.level(IN_A_GROUP) for f in off]
        if off:
            figures_of = [f"{f.group} ({f.value:.2f}; real {f.floor:.2f})" for f in off]
            sentences.append(f"Synthetic cells {meaning}: {metric} of {_named(figures_of)}.")
    if not n_judged:
        return []
    if not levels:
        return [Finding("ok", "groups", "No group is far worse than real cells of that group.")]
    advice = "Check the labels of the training cells; give small groups more training, or more guidance towards the condition."
    return [Finding(worst(levels), "groups", " ".join([*sentences, advice]))]


def _structure(figures: Figures) -> list[Finding]:
    figure = figures.get("within_label_correlation")
    if figure is None or not np.isfinite(figure.shuffled) or figure.floor - figure.shuffled < MIN_STRUCTURE:
        return []
    kept = (figure.value - figure.shuffled) / (figure.floor - figure.shuffled)
    level: Level = "ok"
    if figure.is_clear and kept < KEPT_STRUCTURE_NOTE:
        level = "warning" if kept < KEPT_STRUCTURE_WARNING else "note"
    seen = (
        f"Gene-gene correlations agree with the real ones to {figure.value:.2f} (other real cells: {figure.floor:.2f}; "
        f"genes shuffled: {figure.shuffled:.2f})."
    )
    advice = (
        f"Only {max(kept, 0):.0%} of the structure between genes is there: train longer or use a larger latent, and do not use these "
        "cells for networks of genes."
    )
    return [Finding(level, "gene-gene structure", seen if level == "ok" else f"{seen} {advice}")]


def _copies(figures: Figures) -> list[Finding]:
    figure = figures.get("copied_cells")
    if figure is None:
        return []
    seen = f"{figure.value:.2%} of the synthetic cells have exactly the counts of a training cell (unseen real cells: {figure.floor:.2%})."
    advice = "The model repeats training cells: do not publish these cells as private; train shorter, with more cells or a smaller model."
    if figure.floor > MANY_COPIES:
        advice = "The held-out cells are training cells, or have hardly any counts: figures of memorisation say nothing. Hold other cells out."
        return [Finding("warning", "copies", f"{seen} {advice}")]
    if figure.level(COPIES) == "ok":
        return [Finding("ok", "copies", seen)]
    return [Finding("warning", "copies", f"{seen} {advice}")]


def _memorisation(figures: Figures) -> list[Finding]:
    """Judge nearness to training cells. Smooth cells lie near everything: only nearness to *training* cells in particular is a leak."""
    leak, nearer, ratio = (
        figures.get(name) for name in ("membership_auc", "nearer_than_held_out", "nearest_train_ratio")
    )
    known = [figure for figure in (leak, nearer, ratio) if figure is not None]
    if not known:
        return []
    of_leak = "ok" if leak is None else leak.level(MEMBERSHIP)
    of_nearer = "ok" if nearer is None else nearer.level(NEARER)
    of_ratio: Level = "ok" if ratio is None or ratio.value > ratio.floor else ratio.level(NEAREST_RATIO)
    seen = " ".join(_NEARNESS[figure.metric].format(f=figure) for figure in known)
    level = worst([of_leak, of_nearer, of_ratio])
    if level == "ok":
        return [Finding("ok", "memorisation", seen)]
    if of_leak == "ok" and of_ratio != "ok":
        advice = (
            "That is what memorised cells do, and cells that are too smooth, as averages are. If spread, zeros and diversity are fine, it "
            "is memorisation: train shorter, with more cells or a smaller model."
        )
    else:
        advice = "Training cells leak: do not publish these cells as private; train shorter, with more cells or a smaller model."
    return [Finding(level, "memorisation", f"{seen} {advice}")]


_NEARNESS = {
    "membership_auc": "Whether a real cell was used in training can be told from the synthetic cells with an AUC of {f.value:.2f} "
    "(0.5 is guessing; unseen cells: {f.floor:.2f}).",
    "nearer_than_held_out": "{f.value:.1%} of the synthetic cells lie nearer to a training cell than nearly all unseen real cells do "
    "(unseen real cells: {f.floor:.1%}).",
    "nearest_train_ratio": "The nearest training cell is {f.value:.2f} times as far as from unseen real cells.",
}


def _named(names: list[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more


_DUPLICATES = Check(
    "duplicates",
    {"duplicate_share": DUPLICATES},
    {
        "duplicate_share": "{f.value:.2%} of the synthetic cells have a twin with the same counts (real cells: {f.floor:.2%})."
    },
    "A seed was used twice, or the model knows few cells only: draw each batch with another seed, and look at diversity.",
)
_TEST_COPIES = Check(
    "held-out copies",
    {"copied_test_cells": TEST_COPIES},
    {
        "copied_test_cells": "{f.value:.2%} of the synthetic cells have exactly the counts of one of the held-out cells that they were compared with "
        "(real cells: {f.floor:.2%})."
    },
    "The held-out cells themselves are judged here, not cells of a model: were files mixed up?",
)
_REALISM = Check(
    "realism",
    {"precision": NEIGHBOURHOOD},
    {"precision": "{f.value:.0%} of the synthetic cells lie where real cells do (real cells: {f.floor:.0%})."},
    "The others are like no real cell: more steps of the sampler, less guidance, or longer training.",
)
_DIVERSITY = Check(
    "diversity",
    {"recall": NEIGHBOURHOOD, "coverage": NEIGHBOURHOOD},
    {
        "recall": "Synthetic cells reach {f.value:.0%} of the real cells (real cells: {f.floor:.0%}).",
        "coverage": "{f.value:.0%} of the real cells have a synthetic cell close by (real cells: {f.floor:.0%}).",
    },
    "A part of the real cells is missing: look at missing groups and shares, use less guidance, train longer.",
)
_DISTRIBUTION = Check(
    "distribution",
    {"w2": DISTANCE},
    {
        "w2": "The distance between the two sets of cells (Wasserstein) is {f.value:.3g}; between two sets of real cells it is {f.floor:.3g}."
    },
    "The other findings say in what they differ.",
)
_MEANS = Check(
    "means",
    {"gene_mean_error": PROFILE},
    {
        "gene_mean_error": "The mean of a gene is off by {f.value:.3f} on average, in log-normalised units (real cells: {f.floor:.3f})."
    },
    "Check that synthetic and real cells have the same genes, the same mixture of types and the same kind of counts; train longer.",
)
_VARIANCES = Check(
    "spread",
    {"gene_variance_error": PROFILE, "mean_variance_error": SPREAD},
    {
        "gene_variance_error": "The variance of a gene is off by {f.value:.3f} on average (real cells: {f.floor:.3f}).",
        "mean_variance_error": "At equal mean, a typical gene's variance is off by {f.value:.2f} powers of ten (real cells: {f.floor:.2f}).",
    },
    "Too little: cells are means instead of draws, or guidance is too strong. Too much: noise is left over (more steps of the sampler).",
)
_ZEROS = Check(
    "zeros",
    {"gene_zero_error": PROFILE},
    {"gene_zero_error": "The share of zeros of a gene is off by {f.value:.1%} on average (real cells: {f.floor:.1%})."},
    "Compare counts with counts: cells must be drawn as counts, not decoded as means or denoised; and look at the library size, which "
    "changes zeros as well.",
)
_LIBRARY_SIZE = Check(
    "library size",
    {"library_size_ks": LIBRARY_SIZE},
    {
        "library_size_ks": "Total counts per cell differ by {f.value:.2f} (largest gap of the cumulative shares, 0 to 1; real cells: {f.floor:.2f})."
    },
    "Draw library sizes from the training cells of the same condition, and check that both sides hold raw counts of the same genes.",
)
_LABELS = Check(
    "labels",
    {"label_fidelity": LABELS, "transfer_f1": LABELS},
    {
        "label_fidelity": "A classifier trained on real cells finds the label that was asked for in {f.value:.0%} of the synthetic cells (real cells: {f.floor:.0%}).",
        "transfer_f1": "A classifier trained on synthetic cells labels real ones with an F1 of {f.value:.2f} (trained on real cells: {f.floor:.2f}).",
    },
    "Cells do not follow their label well enough: use more guidance, train longer, and check that labels were not mixed up.",
)
_MARKERS = Check(
    "markers",
    {"marker_overlap": MARKERS, "marker_slope": SLOPE},
    {
        "marker_overlap": "{f.value:.0%} of the marker genes of the groups are found again (real cells: {f.floor:.0%}).",
        "marker_slope": "Differences between groups are {f.value:.2f} times the real ones (real cells: {f.floor:.2f}).",
    },
    "Differences between groups are not the real ones: below 1, use more guidance; above 1, use less.",
)

#: All checks, in the order of the report.
CHECKS: tuple[Callable[[Figures], list[Finding]], ...] = (
    *(_TEST_COPIES, _copies, _memorisation, _DUPLICATES),
    *(_missing_groups, _DIVERSITY, _REALISM, _told_apart, _DISTRIBUTION),
    *(_MEANS, _VARIANCES, _ZEROS, _LIBRARY_SIZE, _structure),
    *(_LABELS, _MARKERS, _group_shares, _weak_groups),
)


NOT_LOOKED_AT = {
    "memorisation": ("membership_auc", "give `train`"),
    "labels": ("label_fidelity", "give `groupby`"),
    "library size": ("library_size_ks", "give counts"),
}


@dataclass(frozen=True)
class Verdict:
    """What a table of figures says, in words.

    Attributes
    ----------
    summary
        One or two sentences.
    findings
        One per topic, the severe ones first.
    """

    summary: str
    findings: tuple[Finding, ...]

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


def verdict(table: pd.DataFrame) -> Verdict:
    """Say in plain words what the table of :func:`evaluate` shows.

    Every figure is judged by how much worse it is than what real cells score (the floor). A note or a warning needs an excess of more than three standard
    deviations of the value (from the table's interval), *and* one that is large enough to matter; both limits are constants of the module
    ``_verdict``, calibrated so that unseen real cells get no warning. Topics whose metrics the table lacks are left out.
    A verdict cannot see what no metric sees: look at the cells as well.

    Parameters
    ----------
    table
        What :func:`evaluate` returns; a part of it, or a copy read from a file, will do.

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
    figures = Figures(table)
    findings = [finding for check in CHECKS for finding in check(figures)]
    ranked = tuple(sorted(findings, key=lambda finding: -LEVELS.index(finding.level)))
    return Verdict(_summary(ranked, figures), ranked)


def _summary(findings: tuple[Finding, ...], figures: Figures) -> str:
    if not findings:
        return "The table has no figure that can be judged: each needs a value and a floor (`n_floor` above 0)."
    topics = {level: [finding.topic for finding in findings if finding.level == level] for level in LEVELS}
    unseen = [f"{topic} ({how})" for topic, (metric, how) in NOT_LOOKED_AT.items() if not figures.was_asked_for(metric)]
    sentences = [_headline(topics["warning"], topics["note"], len(findings))]
    if topics["warning"] and topics["note"]:
        sentences.append(f"Worth a look, too: {_listed(topics['note'])}.")
    if unseen:
        sentences.append(f"Not looked at: {_listed(unseen)}.")
    return " ".join(sentences)


def _headline(warnings: list[str], notes: list[str], n_topics: int) -> str:
    if warnings:
        return f"{len(warnings)} warning{'s' * (len(warnings) > 1)}: {_listed(warnings)}."
    if notes:
        return f"No warnings. Worth a look: {_listed(notes)}."
    return f"The synthetic cells score like real ones in all of the {n_topics} respects that were looked at."


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
