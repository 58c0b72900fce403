"""The study of several modalities: its split, its figures for cells with known answers, its bookkeeping."""

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

figures = pytest.importorskip("modality_figures")
splits = pytest.importorskip("modality_splits")
report = pytest.importorskip("multimodal_report")
study = pytest.importorskip("multimodal")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TOY = splits.Paired(other="prot", label="cell_type", pairs=(("gene1", "p1"), ("gene2", "not there")))


def paired_cells(n_cells=240, seed=0):
    """Build two types of cells; protein 1 follows gene 1 from cell to cell."""
    rng = np.random.default_rng(seed)
    types = np.arange(n_cells) % 2
    rates = np.random.default_rng(5).gamma(1.0, 4.0, (2, 40))[types]
    activity = rng.lognormal(0, 1, n_cells)
    rates[:, 1] = 5 * activity
    protein = np.column_stack([np.full(n_cells, 50.0), 100 * activity, 20.0 + 60 * types])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    parts = {}
    for name, mean, prefix in (("rna", rates, "gene"), ("prot", protein, "p")):
        var = pd.DataFrame(index=[f"{prefix}{i}" for i in range(mean.shape[1])])
        parts[name] = ad.AnnData(sp.csr_matrix(rng.poisson(mean).astype(np.float32)), obs=obs.copy(), var=var)
    mdata = mudata.MuData(parts)  # as importing the study told mudata to, columns stay where they are
    mdata.obs["cell_type"] = pd.Categorical(np.array(["B", "T"])[types])
    return mdata


@pytest.fixture(scope="module")
def split():
    return splits.split_paired(paired_cells(), TOY, seed=0, n_genes=30)


@pytest.fixture(scope="module")
def judge(split):
    return figures.PairedJudge(split, 0)


def value(table, part, metric):
    return table.set_index(["part", "metric"])["value"][part, metric]


def test_both_modalities_are_split_alike(split):
    assert split.train.n_obs == 180
    assert split.train["rna"].n_vars == 30
    assert split.train["prot"].obs_names.equals(split.train["rna"].obs_names)
    assert not set(split.train.obs_names) & set(split.held_out.obs_names)
    assert set(split.labels(split.held_out)) == {"B", "T"}


def test_the_held_out_cells_themselves_have_no_error(split, judge):
    table = judge.paired(split.held_out, judge.labels)

    for part, metric in (
        ("prot", "feature_ks"),
        ("prot", "total_ks"),
        ("prot", "correlation_error"),
        ("rna+prot", "cross_correlation_error"),
        ("pair", "mean error"),
    ):
        assert value(table, part, metric) == pytest.approx(0, abs=1e-6)
    assert value(table, "pair", "gene1/p1") > 0.5
    assert value(table, "rna+prot", "label_fidelity") > 0.9


def test_modalities_of_different_cells_are_seen_across_and_not_within(split, judge):
    shuffled = split.held_out.copy()
    order = np.random.default_rng(0).permutation(shuffled.n_obs)
    shuffled["prot"].X = shuffled["prot"].X[order]

    table = judge.paired(shuffled, judge.labels)

    assert value(table, "prot", "feature_ks") == 0
    assert value(table, "pair", "mean error") > 0.3


def test_the_floor_has_every_figure_but_those_of_memorisation(split, judge):
    floor, measured = judge.floor(), judge.measure(split.held_out)

    missing = set(zip(measured["part"], measured["metric"], strict=True)) - set(
        zip(floor["part"], floor["metric"], strict=True)
    )
    assert {metric for _, metric in missing} <= {"nearest_train_ratio", "nearer_than_held_out"}


def test_true_values_are_imputed_perfectly_and_label_means_only_between_labels():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 100)
    real = rng.normal(size=(200, 3)) + 4.0 * (labels == "b")[:, None]
    means = pd.DataFrame(real).groupby(labels).transform("mean").to_numpy()
    noisy = means + 1e-3 * rng.normal(size=means.shape)

    perfect = figures.imputation_figures(real, real, labels, ["x", "y", "z"], "imputation")
    coarse = figures.imputation_figures(noisy, real, labels, ["x", "y", "z"], "imputation")

    assert value(perfect, "imputation", "mean correlation within label") == pytest.approx(1)
    assert value(coarse, "imputation", "mean correlation") > 0.8
    assert abs(value(coarse, "imputation", "mean correlation within label")) < 0.2


def test_ridge_finds_the_protein_that_follows_its_gene(split):
    predicted = figures.ridge(split, 0)

    assert np.corrcoef(predicted[:, 1], figures.logs(split.held_out, "prot")[:, 1])[0, 1] > 0.7


def test_stored_methods_are_not_measured_again(tmp_path):
    path = tmp_path / "multimodal.csv"
    rows = pd.DataFrame({"part": ["rna"], "metric": ["w2"], "value": [1.0]})
    study.store_rows(path, rows.assign(dataset="d", seed=0, method="floor"), study.KEYS)

    assert study.pending(path, "d", 0, ["floor", "ridge"]) == ["ridge"]
    assert study.pending(path, "d", 1, ["floor"]) == ["floor"]


def test_the_summary_has_a_table_for_every_part():
    rows = pd.DataFrame(
        {
            "dataset": "d",
            "seed": [0, 0, 1],
            "method": ["floor", "multimodal", "multimodal"],
            "part": "prot",
            "metric": "feature_ks",
            "value": [0.1, 0.2, 0.4],
            "versions": "v",
            "machine": "m",
            "date": "today",
        }
    )

    text = report.summarise(rows, study.METHODS)

    assert "### Surface proteins" in text
    assert "| feature_ks | 0.100 | 0.300 |" in text
