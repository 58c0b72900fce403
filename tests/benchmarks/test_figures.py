"""Figures that readers see are those of the stored results."""

import csv
import re
from statistics import mean

import pytest
from benchmarks import pages
from benchmarks.tables import ROOT

from scgen_diffusion.metrics import CATALOGUE


def rival_predictions(metric, method):
    return "studies/results/perturbation.csv", {"metric": metric, "method": method}, "value", 1


#: Page, sentence with one group per figure, and for each: results, rows (their mean is taken), column and decimals.
SENTENCES = [
    (
        "docs/comparison.md",
        r"took ([\d.]+),\s+([\d.]+) and ([\d.]+) CPU minutes of training per left-out type",
        [rival_predictions("train_minutes", method) for method in ("cellflow", "cpa", "scgen")],
    ),
]


def rows_of(results, chosen):
    with (ROOT / "benchmarks" / results).open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if chosen.items() <= row.items()]


def words_of(page):
    """Return a page without line breaks."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.parametrize(("page", "pattern", "figures"), SENTENCES)
def test_figures_in_sentences_are_those_of_the_results(page, pattern, figures):
    found = re.findall(pattern, words_of(page))
    assert len(found) == 1, f"{page} has {len(found)} sentences like {pattern!r}."
    shown = [found[0]] if isinstance(found[0], str) else list(found[0])
    expected = [
        f"{mean(float(row[column]) for row in rows_of(results, chosen)):.{decimals}f}"
        for results, chosen, column, decimals in figures
    ]
    assert shown == expected


def test_tables_of_the_pages_are_those_of_the_results():
    stale = [
        f"{page}: {mark}"
        for (page, mark), text in pages.blocks().items()
        if f"<!-- {mark} -->\n{text.strip()}\n<!-- /{mark} -->" not in (ROOT / page).read_text(encoding="utf-8")
    ]
    assert not stale, "Run `python -m benchmarks.pages`."


def test_readme_counts_the_metrics_and_seeds_of_the_results():
    text = words_of("README.md")
    assert f"Each of the {len(CATALOGUE)} metrics" in text
    assert len({row["seed"] for row in rows_of("quality/results/compare.csv", {"group": "all"})}) == 5
    assert "means of up to five seeds" in text
