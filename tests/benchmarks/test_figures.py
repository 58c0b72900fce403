"""Figures that readers see are those of the stored results."""

import csv
import re
from statistics import mean

import pandas as pd
import pytest
from benchmarks import pages
from benchmarks.quality.report import METHODS_IN_SHORT, OTHER_METHODS, leaders, means_over_seeds
from benchmarks.quality.splits import DATASETS
from benchmarks.tables import ROOT, mean_with_interval

from scgen_diffusion.metrics import CATALOGUE

QUALITY = "quality/results/compare.csv"


def quality(metric, method, dataset="pbmc3k"):
    return QUALITY, {"group": "all", "metric": metric, "method": method, "dataset": dataset}, "value", 2


def published_size(metric):
    rows = {"group": "all", "metric": metric, "method": "SCLDM-published", "cells": "32000"}
    return "studies/results/learning_curves.csv", rows, "value", 2


def rival_predictions(metric, method):
    return "studies/results/perturbation.csv", {"metric": metric, "method": method}, "value", 1


#: Page, sentence with one group per figure, and for each: results, rows (their mean is taken), column and decimals.
SENTENCES = [
    (
        "docs/how_to/gpu.md",
        r"took ([\d.]+) minutes on the GPU, and ([\d.]+) on the core",
        [(*quality("cpu_minutes", method, "kang_ifnb")[:3], 1) for method in ("SCLDM-cuda", "SCLDM")],
    ),
    (
        "docs/how_to/gpu.md",
        r"the AUC of principal components is ([\d.]+) \(core ([\d.]+)\) and\s+that of genes ([\d.]+) \(([\d.]+)\)",
        [
            quality(metric, method, "kang_ifnb")
            for metric in ("auc_boosting", "auc_genes")
            for method in ("SCLDM-cuda", "SCLDM")
        ],
    ),
    (
        "docs/user_guide/how_many_cells.md",
        r"recognised with an AUC of ([\d.]+) in PCs and\s+([\d.]+) in genes, and their recall is ([\d.]+)\.",
        [published_size(metric) for metric in ("auc_boosting", "auc_genes", "recall")],
    ),
    (
        "docs/faq.md",
        r"SCLDM's cells reach an AUC of ([\d.]+) on principal components and ([\d.]+) on genes",
        [quality("auc_boosting", "SCLDM"), quality("auc_genes", "SCLDM")],
    ),
    (
        "docs/faq.md",
        r"scVI's cells, drawn from its prior, reach ([\d.]+) and ([\d.]+)\.",
        [quality("auc_boosting", "scVI"), quality("auc_genes", "scVI")],
    ),
    (
        "docs/comparison.md",
        r"took ([\d.]+),\s+([\d.]+) and ([\d.]+) CPU minutes of training per left-out type",
        [rival_predictions("train_minutes", method) for method in ("cellflow", "cpa", "scgen")],
    ),
]


def rows_of(results, chosen):
    with (ROOT / "benchmarks" / results).open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if chosen.items() <= row.items()]


def test_the_page_of_scldm_has_the_shares_of_labels_of_the_known_world():
    table = pd.read_csv(ROOT / "benchmarks/studies/results/known_world.csv")
    table = table[(table["n_genes"] == 100) & (table["n_train"] >= 60)]
    shares = (100 * table.groupby(["cells", "model"])["confirmed"].mean()).map("{:.0f} %".format)
    text = words_of("docs/user_guide/scldm.md")
    generated, real = shares["generated"], shares["real cells"]["SCLDM"]
    assert f"{generated['SCLDM']} of SCLDM's cells have the label that was asked for" in text
    assert f"and {generated['SCLDM, guidance 1.5']} with `guidance_scale=1.5`" in text
    assert generated["SCRDIT"] == generated["NB-copula"]
    assert f"Real cells reach {real}, SCRDIT and a copula per label {generated['SCRDIT']}" in text


def test_the_page_of_fine_tuning_has_the_distances_of_types_never_seen():
    table = pd.read_csv(ROOT / "benchmarks/studies/results/perturbation.csv")
    table = table[table["metric"] == "energy_distance"]
    means = table.groupby(["method", "cell_type"])["value"].mean().groupby("method").agg(["mean", "size"])
    never, control, shift = means.loc[["scldm_transport_of_reference", "scldm_transport", "mean_shift"], "mean"]
    assert (means.loc["scldm_transport_of_reference", "size"], means.loc["mean_shift", "size"]) == (8, 8)
    text = words_of("docs/how_to/fine_tuning.md")
    assert f"was {never:.2f} on average, beside {control:.2f} for a model with the control cells of the type" in text
    assert f"and {shift:.2f} for the mean shift" in text


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
    rows = rows_of(QUALITY, {"group": "all"})
    text = words_of("README.md")
    n_of_all = sum("all" in metric.scopes for metric in CATALOGUE.values())
    assert f"{n_of_all} metrics, from fidelity" in text
    assert f"and {len(CATALOGUE) - n_of_all} more for perturbations and several modalities" in text
    assert len({row["seed"] for row in rows}) == 3
    assert "means of three seeds" in text


def test_the_user_guide_counts_the_data_sets_of_the_comparison():
    table = pd.read_csv(ROOT / "benchmarks" / QUALITY)
    table = table[table["dataset"].isin(DATASETS) & table["method"].isin([*METHODS_IN_SHORT, *OTHER_METHODS])]
    n_of = table.groupby("method")["dataset"].nunique()
    counts = f"of SCLDM on {n_of['SCLDM']} data sets, of SCRDIT on {n_of['SCRDIT']} and of WBDIT on {n_of['WBDIT']},"
    assert counts in words_of("docs/user_guide/index.md")
    assert f"scores on {n_of['SCRDIT']} data sets" in words_of("docs/user_guide/scrdit.md")
    assert f"Scores on {n_of['SCLDM']} data sets" in words_of("docs/user_guide/scldm.md")
    assert f"On all {n_of['SCLDM']}, a classifier finds them the hardest" in words_of("docs/user_guide/scldm.md")
    means = means_over_seeds(table[table["metric"].isin(["auc_boosting", "auc_genes"])])
    for _, rows in means.groupby(["dataset", "metric"]):
        assert leaders(rows)[rows["method"] == "SCLDM"].all()


def test_readme_says_in_how_many_steps_gene_space_models_were_measured():
    rows = rows_of("speed/results/speed.csv", {"threads": "2", "device": "cpu"})

    def steps(system, stage):
        last = [row["how"] for row in rows if (row["system"], row["stage"]) == (system, stage)][-1]
        return int(re.search(r"(\d+) steps", last).group(1))

    text = words_of("README.md")
    assert steps("SCRDIT", "generate") == steps("WBDIT", "generate")
    assert f"generate in {steps('SCRDIT', 'generate')} steps" in text
    assert f"published counterparts in {steps('published-scrdit', 'generate_ddim')}" in text


def test_intervals_of_means_hold_nine_of_ten_bootstrap_samples():
    assert mean_with_interval(pd.Series([2.0] * 5)) == "2.00 (2.00 to 2.00)"
    assert mean_with_interval(pd.Series([0.0, 1.0] * 200)) == "0.50 (0.46 to 0.54)"  # 1.64 standard errors of 0.025
    assert mean_with_interval(pd.Series([float("nan")])) == ""
