"""``evaluate``, ``evaluate-perturbation`` and ``report``: the tables of Python's interface, and exit codes."""

import io

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mudata import MuData

import scgen_diffusion as sgd
from scgen_diffusion.cli._files import read_cells

QUICK = ["--n-floor", "1", "--n-bootstrap", "0", "--max-cells", "60"]


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
        arguments = ["--train", files / "train.h5ad", "--metric", "gene_mean_error", "--metric", "copied_cells", *QUICK]
        return call("evaluate", files / "real.h5ad", files / synthetic, *arguments, *options)

    return judge


def test_the_table_is_that_of_evaluate_and_the_summary_is_printed(judge, files, tmp_path):
    path = tmp_path / "table.csv"
    code, out, err = judge("-g", "cell_type", "--out", path)
    assert (code, out) == (0, f"{path}\n"), err
    expected = sgd.metrics.evaluate(
        *(anndata.read_h5ad(files / f"{name}.h5ad") for name in ("real", "synthetic")),
        train=anndata.read_h5ad(files / "train.h5ad"),
        groupby="cell_type",
        metrics=["gene_mean_error", "copied_cells"],
        n_floor=1,
        n_bootstrap=0,
        max_cells=60,
    )
    pd.testing.assert_frame_equal(pd.read_csv(path), expected, check_dtype=False)
    assert f"{sgd.report.summary(expected).headline}\n" in err
    code, _, err = judge("--out", path)
    assert (code, "already exists" in err) == (2, True)
    assert judge("--out", path, "--overwrite")[0] == 0


def test_without_a_file_the_table_goes_to_stdout(judge):
    code, out, _ = judge(synthetic="synthetic.zarr")
    assert code == 0
    assert pd.read_csv(io.StringIO(out))["metric"].tolist() == ["gene_mean_error", "copied_cells"]
    assert judge("--backed")[1] == out
    assert judge("--backed", synthetic="synthetic.zarr")[1] == out


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_backed_cells_are_not_read_as_a_whole(tmp_path, name):
    cells = _cells(0, 30)
    cells.X, cells.layers["dense"] = sp.csr_matrix(cells.X), cells.X
    (cells.write_zarr if name.endswith("zarr") else cells.write_h5ad)(tmp_path / name)

    found = read_cells(tmp_path / name, backed=True)

    assert not sp.issparse(found.X)
    some = found[[3, 1]].to_memory()
    np.testing.assert_array_equal(some.X.toarray(), cells.X[[3, 1]].toarray())
    np.testing.assert_array_equal(some.layers["dense"], cells.layers["dense"][[3, 1]])
    assert found.obs["cell_type"].tolist() == cells.obs["cell_type"].tolist()


@pytest.mark.usefixtures("without_pictures")
def test_training_cells_may_be_in_several_files(judge, call, files, tmp_path):
    train = anndata.read_h5ad(files / "train.h5ad")
    train.layers["counts"], train.X = train.X, np.log1p(train.X)  # the layer is read, as from one file
    train[:30, ::-1].copy().write_h5ad(tmp_path / "first.h5ad")
    train[30:].copy().write_zarr(tmp_path / "second.zarr")
    no_cells = train[:0].copy()
    no_cells.obs = no_cells.obs.astype(object)  # text, of which anndata makes categories only if there is some
    no_cells.write_h5ad(tmp_path / "no_cells.h5ad")
    parts = [*("--train", tmp_path / "first.h5ad"), *("--train", tmp_path / "second.zarr")]
    parts += ["--train", tmp_path / "no_cells.h5ad"]
    options = [*parts, "--metric", "gene_mean_error", "--metric", "copied_cells", *QUICK, "-g", "cell_type"]

    code, out, err = call("evaluate", files / "real.h5ad", files / "synthetic.h5ad", *options)

    assert (code, out) == (0, judge("-g", "cell_type")[1]), err
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    table.write_text(out)
    parts_and_table = [*parts, "--backed", "--table", table]
    code, _, err = call("report", files / "real.h5ad", files / "synthetic.zarr", *parts_and_table, "--out", page)
    assert code == 0, err
    assert "140 training cells" in page.read_text(encoding="utf-8")
    MuData({"rna": train}).write(tmp_path / "cells.h5mu")
    code, _, err = call(
        "evaluate",
        *[tmp_path / "cells.h5mu"] * 2,
        "--train",
        tmp_path / "cells.h5mu",
        "--train",
        tmp_path / "cells.h5mu",
    )
    assert (code, "There can be only one .h5mu file of each set" in err) == (2, True)
    code, _, err = call("evaluate", files / "real.h5ad", files / "synthetic.h5ad", *parts, "--layer", "raw")
    assert (code, "--layer 'raw' is not in the layers of" in err) == (2, True)


@pytest.mark.parametrize("options", [[], ["--backed"]])
def test_empty_synthetic_cells_are_an_error(judge, files, tmp_path, options):
    cells = anndata.read_h5ad(files / "synthetic.h5ad")
    cells.X[:35] = 0
    cells.write_h5ad(tmp_path / "empty.h5ad")
    code, _, err = judge(*options, synthetic=tmp_path / "empty.h5ad")
    assert (code, "`synthetic` has 35 of 70 cells without any count" in err) == (2, True), err


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("backed", [[], ["--backed"]])
def test_the_genes_that_all_sets_have_are_compared_if_asked(judge, call, files, tmp_path, backed):
    fewer, page = tmp_path / "fewer.h5ad", tmp_path / "report.html"
    anndata.read_h5ad(files / "synthetic.h5ad")[:, :2:-1].write_h5ad(fewer)
    anndata.read_h5ad(files / "train.h5ad")[:, :-1].write_h5ad(tmp_path / "train.h5ad")
    train = ["--train", tmp_path / "train.h5ad", *backed]
    code, _, err = judge(*train, synthetic=fewer)
    assert (code, "lacks 3 of the 20 genes" in err, "common genes, give --shared-genes." in err) == (2, True, True), err
    code, out, err = judge("--shared-genes", *backed, synthetic=fewer)
    assert (code, "17 of the 20 genes of the real cells are in all sets" in err) == (0, True), err
    assert judge("--shared-genes", *train, synthetic=fewer)[1] != out
    command = ["report", files / "real.h5ad", fewer, *train, "--max-cells", "60", "--out", page]
    code, _, err = call(*command, "--shared-genes")
    assert (code, "16 of the 20 genes" in err) == (0, True), err


FAIL_ON_WARNINGS = ["--n-bootstrap", "10", "--fail-on", "warning"]


def test_cells_that_are_not_good_enough_have_an_exit_code_of_their_own(judge, tmp_path):
    path = tmp_path / "table.csv"
    code, out, err = judge("--out", path, *FAIL_ON_WARNINGS)
    assert (code, out, path.exists()) == (3, f"{path}\n", True)
    assert "Not good enough: the summary has warnings" in err


def test_wrong_options_are_named(judge, files):
    code, _, err = judge("--metric", "nothing")
    assert (code, "nothing" in err) == (2, True)
    code, _, err = judge("--out", files / "table.txt")
    assert (code, "the name must end in .csv" in err) == (2, True)
    code, _, err = judge("--layer", "rna=counts")
    assert (code, "--layer takes MODALITY=NAME for .h5mu files, and NAME for other files" in err) == (2, True)


def test_cells_of_which_nothing_can_be_judged_are_not_good_enough(judge, monkeypatch):
    code, _, err = judge(*FAIL_ON_WARNINGS, "--n-floor", "0")
    assert (code, "--fail-on needs the scores of real cells; give --n-floor 1 or more" in err) == (2, True)
    code, _, err = judge(*FAIL_ON_WARNINGS, "--n-bootstrap", "0")
    assert (code, "--fail-on needs intervals; give --n-bootstrap 5 or more" in err) == (2, True)
    evaluate = sgd.metrics.evaluate
    monkeypatch.setattr(
        sgd.metrics, "evaluate", lambda *cells, **options: evaluate(*cells, **options).assign(floor=np.nan)
    )
    code, _, err = judge(*FAIL_ON_WARNINGS)
    assert (code, "Not good enough: no figure can be judged" in err) == (3, True), err


def test_training_cells_in_several_files_may_be_logarithms(call, files, tmp_path):
    for name in ("real", "synthetic", "train"):
        cells = anndata.read_h5ad(files / f"{name}.h5ad")
        cells.X, cells.uns["log1p"] = np.log1p(1e4 * cells.X / cells.X.sum(axis=1, keepdims=True)), {}
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    cells[:30].write_h5ad(tmp_path / "first.h5ad")
    cells[30:].write_h5ad(tmp_path / "second.h5ad")
    sets = ["evaluate", tmp_path / "real.h5ad", tmp_path / "synthetic.h5ad", "--metric", "nearest_train_ratio", *QUICK]
    one = call(*sets, "--train", tmp_path / "train.h5ad")
    several = call(*sets, "--train", tmp_path / "first.h5ad", "--train", tmp_path / "second.h5ad")
    assert one[0] == several[0] == 0, several[2]
    assert one[1] == several[1]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("place", ["X", "X beside counts", "layer"])
def test_logarithms_that_no_file_marks_are_judged_as_they_were_trained_on(call, files, tmp_path, place):
    for name in ("real", "synthetic", "train"):
        cells = anndata.read_h5ad(files / f"{name}.h5ad")
        counts, logarithms = cells.X, np.log1p(1e4 * cells.X / cells.X.sum(axis=1, keepdims=True))
        cells.X, cells.uns["log1p"] = logarithms, {}
        cells.write_h5ad(tmp_path / f"marked_{name}.h5ad")
        del cells.uns["log1p"]
        if name != "synthetic":  # generated cells have their values in X
            cells.layers.update(
                {"X": {}, "X beside counts": {"counts": counts}, "layer": {"lognorm": logarithms}}[place]
            )
            cells.X = counts if place == "layer" else logarithms
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    cells[:30].write_h5ad(tmp_path / "first.h5ad")
    cells[30:].write_h5ad(tmp_path / "second.h5ad")
    real, synthetic = tmp_path / "real.h5ad", tmp_path / "synthetic.h5ad"
    options = ["--values", "log1p", *(["--layer", "lognorm"] if place == "layer" else [])]
    judging = ["--metric", "gene_mean_error", "--metric", "nearest_train_ratio", *QUICK]
    marked = [tmp_path / f"marked_{name}.h5ad" for name in ("real", "synthetic", "train")]
    expected = call("evaluate", *marked[:2], "--train", marked[2], *judging)
    parts = ["--train", tmp_path / "first.h5ad", "--train", tmp_path / "second.h5ad"]

    for train in (["--train", tmp_path / "train.h5ad"], ["--train", tmp_path / "train.h5ad", "--backed"], parts):
        code, out, err = call("evaluate", real, synthetic, *train, *options, *judging)
        assert (code, out) == (0, expected[1]), err
    (tmp_path / "table.csv").write_text(out)
    page = ["--table", tmp_path / "table.csv", "--out", tmp_path / "page.html"]
    code, _, err = call("report", real, synthetic, *parts, *options, *page)
    assert code == 0, err
    code, _, err = call("evaluate", files / "real.h5ad", synthetic, "--values", "log1p")
    assert (code, "--values" in err) == (2, True)
    code, _, err = call("evaluate", marked[0], synthetic, "--train", marked[2])
    assert (code, "give --values log1p" in err) == (2, True), err


def test_training_cells_in_several_files_are_as_free_as_those_in_one(call, files, tmp_path):
    """Cells without counts, and logarithms to another base, which no model would train on."""
    sets = ["evaluate", files / "real.h5ad", files / "synthetic.h5ad", "--metric", "gene_mean_error", *QUICK]
    sets += ["--metric", "nearest_train_ratio"]
    train = anndata.read_h5ad(files / "train.h5ad")
    train.X[[2, 50]] = 0
    binary = train.copy()
    binary.X, binary.uns["log1p"] = np.log2(1 + train.X), {"base": 2}
    for number, cells in enumerate([train, binary]):
        one, first, second = (tmp_path / f"{name}{number}.h5ad" for name in ("one", "first", "second"))
        for path, rows in ((one, slice(None)), (first, slice(30)), (second, slice(30, None))):
            cells[rows].write_h5ad(path)
        expected, found = call(*sets, "--train", one), call(*sets, "--train", first, "--train", second)
        assert expected[0] == found[0] == 0, found[2]
        assert expected[1] == found[1]
    code, _, err = call(*sets, "--train", tmp_path / "first0.h5ad", "--train", tmp_path / "second1.h5ad")
    assert (code, "first0.h5ad holds counts, and second1.h5ad holds logarithms to the base 2" in err) == (2, True), err


def test_several_modalities_are_judged_each_and_together(call, tmp_path):
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
    real.with_suffix(".h5ad").write_text("")
    code, _, err = call("evaluate", real.with_suffix(".h5ad"), synthetic)
    assert (code, "Either all files must be .h5mu, or none" in err) == (2, True)
    code, _, err = call("evaluate", real, synthetic, "--shared-genes")
    assert (code, "--shared-genes is for .h5ad and .zarr files" in err) == (2, True)


@pytest.fixture
def perturbed(tmp_path):
    for name, seed, scale, label in (
        ("real", 0, 2.0, "KLF1"), ("predicted", 1, 2.0, "KLF1"), ("other", 2, 1.0, "KLF1"), ("control", 3, 1.0, "none"),
    ):  # fmt: skip
        cells = _cells(seed, 30, np.repeat([1.0, scale], 10))
        cells.obs["gene"] = label
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


def test_means_over_some_perturbations_only_are_named(call, perturbed):
    for name in ("real", "predicted"):
        cells = anndata.read_h5ad(perturbed / f"{name}.h5ad")
        pairs = cells.copy()
        pairs.obs["gene"] = "KLF1+BAK1"
        anndata.concat([cells, pairs], index_unique="-").write_h5ad(perturbed / f"{name}.h5ad")
    files = [perturbed / f"{name}.h5ad" for name in ("real", "predicted")]
    options = ["--control", perturbed / "control.h5ad", "--train", perturbed / "other.h5ad", "-p", "gene"]
    code, _, err = call("evaluate-perturbation", *files, *options, "--metric", "energy_distance", "--n-floor", "1")
    assert (code, "no figures of additive: their means skip these" in err) == (0, True), err


def test_predictions_of_perturbations_are_judged_beside_baselines_and_others(call, perturbed):
    files = [
        perturbed / "real.h5ad",
        perturbed / "predicted.h5ad",
        "--control",
        perturbed / "control.h5ad",
        "-p",
        "gene",
    ]
    options = ["--other", f"lazy={perturbed / 'other.h5ad'}", "--n-floor", "1"]
    options += ["--metric", "energy_distance", "--metric", "mean_change_correlation"]
    code, out, err = call("evaluate-perturbation", *files, *options)
    assert code == 0, err
    table = pd.read_csv(io.StringIO(out)).set_index("metric")
    assert table.loc["energy_distance", "value"] < table.loc["energy_distance", "lazy"]
    assert set(table.index) == {"energy_distance", "mean_change_correlation"}
    shown = next(line.split() for line in err.splitlines() if line.split()[:2] == ["metric", "value"])
    assert {"floor", "no_change", "lazy"} < {*shown}
    anndata.read_h5ad(perturbed / "other.h5ad")[:, 2:].write_h5ad(perturbed / "other.h5ad")
    code, _, err = call("evaluate-perturbation", *files, *options, "--shared-genes")
    assert (code, "18 of the 20 genes" in err) == (0, True), err
    code, _, err = call("evaluate-perturbation", *files, "--match", "donor")
    assert (code, "`REAL.obs` has no column 'donor'" in err) == (2, True)
    code, _, err = call("evaluate-perturbation", *files[:-1], "genes")
    assert (code, "genes" in err) == (2, True)


def test_another_method_without_a_figure_is_named(call, perturbed):
    """Its file has control cells only."""
    files = [perturbed / f"{name}.h5ad" for name in ("real", "predicted")]
    code, _, err = call("evaluate-perturbation", *files, "--control", files[0], "-p", "gene", "--other", "lazy=no.h5ad")
    assert (code, "--other: there is no file no.h5ad" in err, "Reading" in err) == (2, True, False)
    options = ["--control", perturbed / "control.h5ad", "-p", "gene", "--other", f"lazy={perturbed / 'control.h5ad'}"]
    options += ["--metric", "energy_distance", "--n-floor", "1"]
    code, _, err = call("evaluate-perturbation", *files, *options)
    assert (code, "no figures of lazy: no perturbation has two or more of its cells" in err) == (0, True), err


@pytest.mark.usefixtures("without_pictures")
def test_the_report_shows_the_table_that_was_computed_before(call, files, saved_model, tmp_path):
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    real, synthetic, train = (files / f"{name}.h5ad" for name in ("real", "synthetic", "train"))
    metrics = ["--metric", "gene_mean_error", "--metric", "copied_cells"]
    assert call("evaluate", real, synthetic, "--train", train, *metrics, *QUICK, "--out", table)[0] == 0
    cells, found = anndata.read_h5ad(real), pd.read_csv(table)
    read_as_missing = {"a": "NA", "b": ""}  # by pandas
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories(read_as_missing)
    cells.write_h5ad(tmp_path / "real.h5ad")
    pd.concat([found, found.assign(group="NA", floor=np.nan), found.assign(group="")]).to_csv(table, index=False)
    command = ["report", tmp_path / "real.h5ad", synthetic, "--train", train, "-g", "cell_type", "--table", table]
    command += ["--model", saved_model]
    code, out, err = call(*command, "--title", "Ours", "--out", page)
    assert (code, out) == (0, f"{page}\n"), err
    assert "Ours" in page.read_text()
    code, _, err = call(*command[:-1], "pbmc3k", "--out", page)  # the name of a pretrained model
    assert (code, "already exists" in err) == (2, True)
    code, _, err = call(*command, "--out", tmp_path / "report.pdf")
    assert (code, "the name must end in .html" in err) == (2, True)


def test_other_tables_and_several_modalities_get_no_report_and_no_cells_are_read(call, files, tmp_path):
    table, paired = tmp_path / "table.csv", tmp_path / "cells.h5mu"
    table.write_text("gene,value\na,1\n")
    paired.write_text("")
    out = ["--out", tmp_path / "report.html"]
    for cells, options, message in (
        ("real.h5ad", ["--table", table], "--table must be what `evaluate` returns"),
        (paired, [], "A report is of one modality"),
    ):
        code, _, err = call("report", files / cells, files / "synthetic.h5ad", *options, *out)
        assert (code, message in err, "Reading" in err) == (2, True, False), err


@pytest.mark.parametrize(
    ("level", "fatal", "code"), [("note", "note", 3), ("note", "warning", 0), ("not judged", "warning", 3)]
)
def test_notes_fail_only_if_asked_and_cells_that_cannot_be_judged_always(judge, monkeypatch, level, fatal, code):
    found = sgd.report.Summary("So so.", pd.DataFrame({"metric": ["recall"], "group": "all", "level": level}))
    monkeypatch.setattr(sgd.report, "summary", lambda table: found)
    assert judge("--n-bootstrap", "5", "--fail-on", fatal)[0] == code


def test_the_options_of_evaluate_perturbation_reach_python(call, perturbed, monkeypatch):
    given = {}
    table = pd.DataFrame({"metric": ["w2"], "value": [1.0]})
    monkeypatch.setattr(sgd.metrics, "evaluate", lambda *cells, **options: given.update(options) or table)
    files = [perturbed / f"{name}.h5ad" for name in ("real", "predicted")]
    options = ["--control", perturbed / "control.h5ad", "-p", "gene", "--separator", "_", "--seed", "4", "-l", "raw"]
    options += ["-g", "cell_type", "-g", "donor", "--match", "donor", "--max-cells", "50", "--n-floor", "2"]
    assert call("evaluate-perturbation", *files, *options)[0] == 0
    code, _, err = call("evaluate-perturbation", *files, *options, "--control", files[0])
    assert (code, "error: --control takes one file, but is given 2 times." in err) == (2, True)
    del given["control"]
    assert given == {
        "perturbation_key": "gene",
        "separator": "_",
        "seed": 4,
        "layer": "raw",
        "groupby": ["cell_type", "donor"],
        "match_keys": ["donor"],
        "max_cells": 50,
        "n_floor": 2,
    }


def test_a_report_of_a_table_names_a_wrong_column(call, files, judge, tmp_path):
    judge("-g", "cell_type", "--out", tmp_path / "table.csv")
    options = ["--table", tmp_path / "table.csv", "--groupby", "typo", "--out", tmp_path / "report.html"]
    code, _, err = call("report", files / "real.h5ad", files / "synthetic.h5ad", *options)
    assert (code, "`REAL.obs` has no column 'typo'" in err) == (2, True), err
