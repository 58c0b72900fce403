"""The table of an evaluation in short: how each metric stands beside what real cells score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import binom

from scgen_diffusion._arguments import list_first
from scgen_diffusion.metrics import (
    ALL,
    CATALOGUE,
    COLUMNS,
    GUESSING,
    QUANTILE,
    check_columns,
    check_one_row_each,
    excess_over_real,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row: TypeAlias = "Mapping[str, Any]"

Level: TypeAlias = Literal["ok", "note", "warning", "not judged"]

MIN_STRUCTURE = 0.10  # with less between shuffled and real cells there is no structure to judge
UNLIKE = 0.60  # AUC above which training and held-out cells come from different sources, such as other donors
N_DEVIATIONS = 3.0
MISSING = 0.25  # a label whose share is below this part of the real one is missing
NOTHING = "No metric can be judged: each needs a score of synthetic and of real cells (`n_repeats` above 0)."
WORSE = {"warning": "Clearly worse than real cells", "note": "Slightly worse"}
UNLIKELY = 0.01  # in so many evaluations, at most, chance makes a label look missing


@dataclass(frozen=True, repr=False)
class Summary:
    """What :func:`summary` returns; print it.

    Attributes
    ----------
    headline
        One sentence on all metrics.
    table
        A row per metric: `metric`, `group`, `value`, `real` (the score of real cells) and `level`.
    """

    headline: str
    table: pd.DataFrame

    def of_level(self, level: Level) -> list[str]:
        """Return the metrics of a level, with the group where it is not all cells."""
        rows = self.table[self.table["level"] == level]
        return rows["metric"].where(rows["group"] == ALL, rows["metric"] + " of " + rows["group"]).tolist()

    def __str__(self) -> str:
        """Return the headline and the table."""
        return f"{self.headline}\n{self.table.to_string(index=False, float_format='{:.3g}'.format)}"

    __repr__ = __str__  # what a notebook shows


def summary(table: pd.DataFrame) -> Summary:
    """Say of each metric of an evaluation whether the cells score as real ones do.

    A metric is a note or a warning if the value is worse than that of real cells by more than chance explains, *and* by
    enough to matter: ``metrics.CATALOGUE[name].limits``. Without intervals (``n_bootstrap=0``), the second alone
    decides. Limits are chosen so that unseen real cells seldom get a warning. Groups have a row only for what is off.

    A metric is not judged without limits, without a score of synthetic or of real cells, or if labels have other shares
    than in the held-out cells and even perfect cells would fail. The scores of real cells come from training cells. If
    a classifier tells these from the held-out ones (say, other donors), a metric is judged only where synthetic cells
    are worse than they, and memorisation is not judged.

    Two rows need the ``attrs`` of the table, which a file does not keep: ``label_share`` of labels that nearly no
    synthetic cell has, and ``leaked``, the number of held-out cells that are in ``train``.

    Parameters
    ----------
    table
        What :func:`~scgen_diffusion.metrics.evaluate` returns, a part of it, or a copy read from a file; of several
        modalities, one.

    Returns
    -------
    A headline and a table.

    Raises
    ------
    ValueError
        If the columns are others, or a metric has several rows of a group, as in the table of several modalities.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = ["metric", "group", "value", "real", "shuffled", "low", "high", "better"]
    >>> rows = [["copied_cells", "all", 0.2, 0.0, 0.0, 0.17, 0.23, "lower"]]
    >>> summary(pd.DataFrame(rows, columns=columns))
    Clearly worse than real cells: copied_cells.
          metric group  value  real   level
    copied_cells   all    0.2     0 warning
    """
    check_columns(table)
    check_one_row_each(table)
    rows = table[list(COLUMNS)].to_dict("records")
    n_cells, n_labelled, leaked = (_noted(table, name) for name in ("n_cells", "n_labelled", "leaked"))
    told = _auc_of_real(rows, (n_cells or {}).get(ALL, np.inf))
    other_shares = max(
        [_excess(row) for row in rows if (row["metric"], row["group"]) == ("group_share_difference", ALL)], default=0.0
    )
    judged = []
    for row in rows:
        level = _level(row, other_shares)
        needs_train = "train" in getattr(CATALOGUE.get(row["metric"]), "needs", ())
        passes_by_leak = leaked and needs_train and level == "ok"
        if passes_by_leak or (told and (needs_train or level == "ok")):  # beside such values, bad cells pass, too
            level = "not judged"
        if row["group"] == ALL or level in ("note", "warning"):
            judged.append((row["metric"], row["group"], row["value"], row["real"], level))
    for label, (real, synthetic) in _missing_labels(n_labelled or {}).items():
        judged.append(("label_share", label, synthetic, real, "warning"))
    if leaked:
        judged.append(("leaked", ALL, leaked, 0.0, "warning"))
    found = Summary("", pd.DataFrame(judged, columns=["metric", "group", "value", "real", "level"]))

    n_ok = len(found.of_level("ok"))
    parts = [f"{words}: {list_first(off)}." for level, words in WORSE.items() if (off := found.of_level(level))]
    parts = parts or [f"Like real cells in all {n_ok} metrics that were judged." if n_ok else NOTHING]
    if told:
        parts.append(f"Training cells, which real cells are drawn from, differ from held-out ones (AUC {told:.2f}).")
    return Summary(" ".join(parts), found.table)


def _noted(table: pd.DataFrame, name: str) -> Any:
    """Return what `evaluate` noted in ``attrs``, of the modality of the table; None for a table from a file."""
    noted = table.attrs.get(name)
    return noted.get(table["modality"].iloc[0]) if noted and "modality" in table and len(table) else noted


def _deviation(row: Row) -> float:
    """Return the standard deviation behind an interval, by its longer side, as bounds cut the other; 0 without one."""
    reach = max(row["high"] - row["value"], row["value"] - row["low"])
    return reach / QUANTILE if np.isfinite(reach) else 0.0


def _excess(row: Row) -> float:
    """Return by how much a value is worse than that of real cells; 0 if chance explains it."""
    metric = CATALOGUE[row["metric"]]
    limits = metric.limits_of(row["group"])
    excess = excess_over_real(row["metric"], row["better"], row["value"], row["real"])
    if metric.ideal == GUESSING:  # nearer to the held-out cells than chance allows: were files swapped?
        excess = max(excess, min(GUESSING, row["real"]) - row["value"])
    if metric.of_all:  # whose lower limit allows for the uncertainty of the real cells' score
        is_clear = not row["low"] <= row["real"]
    else:
        is_clear = excess > limits.n_deviations * _deviation(row)
    return excess if is_clear else 0.0


def _level(row: Row, other_shares: float) -> Level:
    """Judge a row: a difference to real cells must be clear, and large enough."""
    metric = CATALOGUE.get(row["metric"])
    limits = metric and metric.limits_of(row["group"])
    if not limits or not np.isfinite([row["value"], row["real"]]).all() or other_shares > metric.most_share_difference:
        return "not judged"
    unit = {"one": 1.0, "real": abs(row["real"])}.get(limits.of)
    if unit is None:  # what real cells have beyond shuffled ones
        unit = row["real"] - np.nan_to_num(row["shuffled"])
        if unit < MIN_STRUCTURE:
            return "not judged"
    excess = _excess(row)
    if excess <= 0 or excess <= limits.note * unit:
        return "ok"
    return "warning" if excess > limits.warning * unit else "note"


def _auc_of_real(rows: Sequence[Row], n_cells: float) -> float:
    """Return the AUC of a classifier that tells training cells from held-out ones; 0 if none can.

    The AUC of guessing has a variance of about ``1 / (6 * n_cells)``.
    """
    told = [0.0]
    for row in rows:
        if row["metric"].startswith("auc_") and row["group"] == ALL:
            deviation = max(_deviation(row), CATALOGUE[row["metric"]].widening / np.sqrt(6 * n_cells))
            if row["real"] > max(UNLIKE, GUESSING + N_DEVIATIONS * deviation):
                told.append(row["real"])
    return max(told)


def _missing_labels(n_labelled: Mapping[str, tuple[int, int]]) -> dict[str, tuple[float, float]]:
    """Return the shares of real and synthetic cells of labels that the latter lack, beyond what chance explains."""
    n_real, n_synthetic = n_labelled.get(ALL, (1, 1))
    missing = {}
    for label, (real, synthetic) in n_labelled.items():
        chance = binom.cdf(synthetic, real + synthetic, n_synthetic / (n_real + n_synthetic))  # if shares are equal
        if synthetic / n_synthetic < MISSING * real / n_real and chance < UNLIKELY / len(n_labelled):
            missing[label] = real / n_real, synthetic / n_synthetic
    return missing
