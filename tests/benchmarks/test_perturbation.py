"""Rivals in the study of held-out perturbations. The rival here decodes constants."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

perturbation = pytest.importorskip("benchmarks.studies.perturbation")
splits = pytest.importorskip("benchmarks.quality.splits")

COSTS = {"train_minutes": 4.5, "machine": "its own", "versions": "pertpy 1", "date": "2026-11-22"}


@pytest.fixture
def case(make_cells):
    adata = make_cells(400, 30)
    adata.layers["counts"] = adata.X
    adata.obs = pd.DataFrame(
        {"cell_type": ["B", "T"] * 200, "condition": ["control"] * 200 + ["stimulated"] * 200}, adata.obs_names
    )
    return perturbation.leave_out(adata, "B", n_genes=20)


@pytest.fixture
def asked(monkeypatch):
    """What a rival was asked; it decodes 0.5, and 1.5 or 2.5 with a shift, but the first gene falls to -2."""
    calls = []

    def ask(rival, train, requested, seed, **options):
        calls.append((rival, train, requested, seed, options))
        levels = requested["shift"].map({"all types": 1.5, "other types": 2.5, "none": 0.5}).to_numpy(np.float32)
        values = np.repeat(levels[:, None], train.n_vars, axis=1)
        values[levels > 1, 0] = -2
        return ad.AnnData(values, uns={"costs": COSTS})

    monkeypatch.setattr("benchmarks.rivals.exchange.ask", ask)
    return calls


def test_scgen_sees_no_left_out_cell_and_is_trained_once(case, asked, tmp_path):
    for _ in range(2):
        trained = perturbation.Trained(case, 3, tmp_path, "python")
        for method in ("scgen", "scgen_other_types", "scgen_profiles"):
            perturbation.predict(trained, method)
    [(rival, train, requested, seed, options)] = asked
    assert (rival, seed, options["python"]) == ("scGen", 3, "python")
    assert not set(train.obs_names) & set(case.real.obs_names)
    np.testing.assert_array_equal(splits.to_dense(train.X), splits.to_dense(case.train.layers["counts"]))
    assert set(train.obs) == {"cell_type", "condition"}
    assert list(requested.index) == list(case.control.obs_names) * 3


def test_control_cells_change_as_what_scgen_decodes_of_them_does(case, asked, tmp_path):
    trained = perturbation.Trained(case, 0, tmp_path, "python")
    before = splits.log_normalise(case.control.layers["counts"])
    cells = perturbation.predict(trained, "scgen")
    np.testing.assert_allclose(splits.to_dense(cells.X)[:, 1:], before[:, 1:] + 1, rtol=1e-6)
    np.testing.assert_allclose(splits.to_dense(cells.X)[:, 0], np.maximum(before[:, 0] - 2.5, 0), rtol=1e-5)
    assert set(cells.obs["condition"]) == {"stimulated"}
    cells = perturbation.predict(trained, "scgen_other_types")
    np.testing.assert_allclose(splits.to_dense(cells.X)[:, 1:], before[:, 1:] + 2, rtol=1e-6)
    profiles = splits.to_dense(perturbation.predict(trained, "scgen_profiles").X)
    assert (profiles[:, 0] == 0).all()
    assert (profiles[:, 1:] == 1.5).all()


def test_rows_of_a_rival_have_its_minutes_and_versions(case, asked, tmp_path):
    trained = perturbation.Trained(case, 0, tmp_path, "python")
    predicted = {
        "scgen": perturbation.predict(trained, "scgen"),
        "linear_additive": perturbation.linear_additive(case, 0),
    }
    rows = perturbation.judge(case, predicted, 0).set_index("method")
    timed = rows[rows["metric"] == "train_minutes"]
    assert list(timed.index) == ["scgen"]
    assert timed["value"].item() == 4.5
    assert set(rows.loc["scgen", "versions"]) == {"pertpy 1"}
    assert not {"pertpy 1"} & set(rows.loc[["linear_additive", "floor"], "versions"])
    text = perturbation.summarise(rows.reset_index())
    assert "CPU minutes of training, mean over types: scGen 4.5." in text
    assert "train_minutes" not in text


def test_a_rival_needs_a_python(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["perturbation", "--methods", "scgen"])
    with pytest.raises(SystemExit):
        perturbation.main()
    assert "scgen: a rival needs --python" in capsys.readouterr().err


def test_a_mean_over_types_is_left_out_if_some_were_not_measured():
    pages = pytest.importorskip("benchmarks.studies.pages")
    rows = [
        {"metric": metric, "method": method, "cell_type": name, "seed": 0, "value": value}
        for method in (*pages.PERTURBATION_METHODS, "scldm_inversion", "scldm_generate")
        for metric in pages.PERTURBATION_METRICS
        for name, value in (("B", 1.0), ("T", 2.0))
        if (method, metric, name) != ("scvi_arithmetic", "mean_change_slope", "B")
    ]

    (overall, _) = pages.perturbation(pd.DataFrame(rows)).values()

    lines = {line.split(" | ")[0].strip("| "): line for line in overall.splitlines()}
    assert lines["scGen"].count("1.50") == len(pages.PERTURBATION_METRICS)
    assert lines["scVI arithmetic"].split(" | ")[1:4] == ["1.50", "1.50", ""]
