"""``evaluate`` and ``report``: the tables of Python's interface."""

import io

import anndata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import scgen_diffusion as sgd

QUICK = ["--n-repeats", "1", "--n-bootstrap", "0", "--max-cells", "60"]
TWO = ["--metric", "gene_mean_error", "--metric", "copied_cells"]


def _cells(seed, n_cells, scale=1.0):
    rng = np.random.default_rng(seed)
    names = [f"{seed}-{i}" for i in range(n_cells)]
    obs = pd.DataFrame({"cell_type": rng.choice(["a", "b"], n_cells)}, index=names)
    counts = rng.poisson(np.linspace(1, 5, 20) * scale, (n_cells, 20)).astype(np.float32)
    return anndata.AnnData(counts, obs=obs)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write real, synthetic (bad ones) and training cells."""
    folder = tmp_path_factory.mktemp("cells")
    cells = {"real": _cells(0, 70), "synthetic": _cells(1, 70, np.linspace(2, 0.2, 20)), "train": _cells(2, 140)}
    for name, some in cells.items():
        some.write_h5ad(folder / f"{name}.h5ad")
    cells["synthetic"].write_zarr(folder / "synthetic.zarr")
    return folder


@pytest.fixture
def judge(call, files):
    def judge(*options, synthetic="synthetic.h5ad"):
        arguments = ["--train", files / "train.h5ad", *TWO, *QUICK]
        return call("evaluate", files / "real.h5ad", files / synthetic, *arguments, *options)

    return judge


def test_the_table_is_that_of_evaluate(judge, files, tmp_path):
    path = tmp_path / "table.csv"
    code, out, err = judge("-g", "cell_type", "--out", path)
    assert (code, out) == (0, f"{path}\n"), err
    real, synthetic, train = (anndata.read_h5ad(files / f"{name}.h5ad") for name in ("real", "synthetic", "train"))
    quick = {"metrics": ["gene_mean_error", "copied_cells"], "n_repeats": 1, "n_bootstrap": 0, "max_cells": 60}
    expected = sgd.metrics.evaluate(real, synthetic, train=train, groupby="cell_type", **quick)
    pd.testing.assert_frame_equal(pd.read_csv(path), expected, check_dtype=False)
    assert f"{sgd.report.summary(expected).headline}\n" in err
    code, _, err = judge("--out", path)
    assert (code, "--overwrite" in err) == (2, True)
    assert judge("--out", path, "--overwrite")[0] == 0


def test_without_a_file_the_table_goes_to_stdout_wherever_the_cells_are(judge):
    code, out, _ = judge(synthetic="synthetic.zarr")
    assert code == 0
    assert pd.read_csv(io.StringIO(out))["metric"].tolist() == ["gene_mean_error", "copied_cells"]
    assert judge("--backed")[1] == out
    assert judge("--backed", synthetic="synthetic.zarr")[1] == out


@pytest.mark.usefixtures("without_pictures")
def test_training_cells_may_be_in_several_files(judge, call, refused, files, tmp_path):
    train = anndata.read_h5ad(files / "train.h5ad")
    train.layers["counts"], train.X = train.X, np.log1p(train.X)  # the layer is read, as from one file
    train[:30, ::-1].copy().write_h5ad(tmp_path / "first.h5ad")
    train[30:].copy().write_zarr(tmp_path / "second.zarr")
    parts = [part for name in ("first.h5ad", "second.zarr") for part in ("--train", tmp_path / name)]
    sets = [files / "real.h5ad", files / "synthetic.h5ad", *parts]

    code, out, err = call("evaluate", *sets, *TWO, *QUICK, "-g", "cell_type")

    assert (code, out) == (0, judge("-g", "cell_type")[1]), err
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    table.write_text(out)
    code, _, err = call("report", *sets, "--backed", "--table", table, "--out", page)
    assert code == 0, err
    assert "140 training cells" in page.read_text(encoding="utf-8")
    refused("raw", "evaluate", *sets, "--layer", "raw")


def test_several_modalities_are_judged_each(call, refused, files, tmp_path):
    for seed, name in enumerate(["real", "synthetic"]):
        cells = _cells(seed, 160)  # some lack counts of the other modality
        other = cells[:, :5].copy()
        other.var_names = [f"p{i}" for i in range(5)]
        other.obs = other.obs[[]]
        MuData({"rna": cells, "prot": other}).write_h5mu(tmp_path / f"{name}.h5mu")
    real, synthetic = tmp_path / "real.h5mu", tmp_path / "synthetic.h5mu"
    code, out, err = call("evaluate", real, synthetic, "--metric", "gene_mean_error", *QUICK)
    assert code == 0, err
    assert pd.read_csv(io.StringIO(out))["modality"].tolist() == ["rna", "prot"]
    assert "rna: " in err
    refused("MuData", "evaluate", files / "real.h5ad", synthetic)
    refused("mdata[modality]", "report", real, synthetic, "--out", tmp_path / "report.html")


def test_wrong_options_of_evaluate_are_named(judge, files):
    for word, *options in (
        ("nothing", "--metric", "nothing"),
        (".csv", "--out", files / "table.txt"),
        ("layer", "--layer", "rna=counts"),
        ("typo", "--groupby", "typo"),
        ("control", "--perturbation-key", "cell_type"),
    ):
        code, _, err = judge(*options)
        assert (code, word in err.splitlines()[-1]) == (2, True), err


def test_predictions_of_perturbations_are_judged_beside_baselines(call, tmp_path):
    real, predicted, control = (tmp_path / f"{name}.h5ad" for name in ("real", "predicted", "control"))
    for seed, (path, scale, label) in enumerate(
        [(real, 2.0, "KLF1"), (predicted, 2.0, "KLF1"), (control, 1.0, "none")]
    ):
        cells = _cells(seed, 30, np.repeat([1.0, scale], 10))
        cells.obs["gene"] = label
        cells.write_h5ad(path)
    options = ["--control", control, "-p", "gene", "--n-repeats", "1"]
    options += ["--metric", "energy_distance", "--metric", "mean_change_correlation"]
    code, out, err = call("evaluate", real, predicted, *options)
    assert code == 0, err
    table = pd.read_csv(io.StringIO(out)).set_index("metric")
    assert table.loc["energy_distance", "value"] < table.loc["energy_distance", "no_change"]
    assert set(table.index) == {"energy_distance", "mean_change_correlation"}


@pytest.mark.usefixtures("without_pictures")
def test_the_report_shows_the_table_that_was_computed_before(call, refused, files, saved_model, tmp_path):
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    real, synthetic, train = (files / f"{name}.h5ad" for name in ("real", "synthetic", "train"))
    assert call("evaluate", real, synthetic, "--train", train, *TWO, *QUICK, "--out", table)[0] == 0
    command = ["report", real, synthetic, "--train", train, "--table", table, "--model", saved_model]
    code, out, err = call(*command, "-g", "cell_type", "--title", "Ours", "--out", page)
    assert (code, out) == (0, f"{page}\n"), err
    assert "Ours" in page.read_text()
    refused("--overwrite", *command, "--out", page)
    refused(".html", *command, "--out", tmp_path / "report.pdf")
    refused("typo", *command, "--groupby", "typo", "--out", tmp_path / "other.html")
    table.write_text("gene,value\na,1\n")
    refused("evaluate", *command, "--out", tmp_path / "other.html")
