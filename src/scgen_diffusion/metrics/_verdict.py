"""The table of figures in plain words: what was seen, beside what real cells score, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._verdict_checks import CHECKS, Finding
from ._verdict_figures import LEVELS, Figures

if TYPE_CHECKING:
    import pandas as pd

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
    deviations of the value (from the table's interval), *and* one that is large enough to matter; both limits are constants of the modules
    ``_verdict_figures`` and ``_verdict_checks``, calibrated so that unseen real cells get no warning. Topics whose metrics the table lacks are left out.
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
