"""The perturbation study: what is left out, what the baselines do, and that a run goes from cells to tables."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

perturbation = pytest.importorskip("perturbation")
baselines = pytest.importorskip("perturbation_baselines")
cases = pytest.importorskip("perturbation_cases")
methods = pytest.importorskip("perturbation_methods")
report = pytest.importorskip("perturbation_report")

N_CELLS, N_GENES = 60, 40
TYPES = ("A", "B", "C")


def make_cells(seed=0):
    """Sixty cells of each type and condition; the last ten genes triple in perturbed cells of every type."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(2.0, 2.0, (len(TYPES), N_GENES))
    parts, obs = [], []
    for number, name in enumerate(TYPES):
        for condition in ("control", "stimulated"):
            factor = np.where((np.arange(N_GENES) >= N_GENES - 10) & (condition == "stimulated"), 3.0, 1.0)
            parts.append(rng.poisson(rate[number] * factor, (N_CELLS, N_GENES)))
            obs += [(name, condition)] * N_CELLS
    counts = sp.csr_matrix(np.concatenate(parts), dtype=np.float32)
    obs = pd.DataFrame(obs, columns=["cell_type", "condition"], index=[f"c{n}" for n in range(len(obs))])
    var = pd.DataFrame(index=[f"g{n}" for n in range(N_GENES)])
    return ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy()})


@pytest.fixture(scope="module")
def case():
    return cases.leave_out(make_cells(), "A", n_genes=30)


def change(cells, case):
    """Log fold change of each gene's share against the control cells of the case."""
    after, before = (np.asarray(x.sum(axis=0)).ravel() for x in (cells, case.control.X))
    return np.log((after + 1) / after.sum()) - np.log((before + 1) / before.sum())


def responds(case):
    return case.train.var_names.isin([f"g{n}" for n in range(N_GENES - 10, N_GENES)])


def test_only_the_perturbed_cells_of_one_type_are_left_out(case):
    assert set(case.real.obs["cell_type"]) == {"A"}
    assert set(case.real.obs["condition"]) == {"stimulated"}
    assert case.train.n_obs == 5 * N_CELLS
    assert case.control.n_obs == N_CELLS
    assert case.other_types == ["B", "C"]


def test_the_cells_left_out_have_no_say_in_the_genes():
    adata = make_cells()
    loud = adata.copy()
    is_out = ((adata.obs["cell_type"] == "A") & (adata.obs["condition"] == "stimulated")).to_numpy()
    loud.layers["counts"] = sp.csr_matrix(np.where(is_out[:, None], 1000 * np.arange(N_GENES), adata.X.toarray()))

    of_both = [cases.leave_out(cells, "A", n_genes=10).train.var_names for cells in (adata, loud)]

    assert of_both[0].equals(of_both[1])


def test_types_with_few_perturbed_cells_are_not_judged():
    adata = make_cells()
    few = adata[np.r_[0:190, 240:360]]

    assert cases.judged_types(few) == ["A", "C"]


def test_the_linear_model_finds_what_the_types_have_in_common(case):
    predicted = baselines.linear_additive(case, 0)

    effect = np.asarray(predicted.X.mean(axis=0)).ravel() - baselines.log_normalise(case.control.X).mean(axis=0)
    assert effect[responds(case)].min() > effect[~responds(case)].max()
    assert "log1p" in predicted.uns


def test_the_mean_change_of_latents_is_that_of_the_other_types(case):
    latents = np.zeros((case.train.n_obs, 2))
    latents[case.rows("B", "stimulated")] = [1, 0]
    latents[case.rows("C", "stimulated")] = [0, 3]

    np.testing.assert_allclose(baselines.mean_latent_change(case, latents), [0.5, 1.5])


def test_scvi_arithmetic_draws_one_cell_per_control_cell(case):
    predicted = baselines.scvi_arithmetic(case, 0, max_epochs=1)

    assert predicted.shape == case.control.shape
    assert (predicted.X.data == predicted.X.data.round()).all()
    assert predicted.X.sum() == pytest.approx(case.control.X.sum(), rel=0.1)


@pytest.fixture(scope="module")
def trained(case, tmp_path_factory):
    """A quickly trained autoencoder and transport."""
    from scgen_diffusion.model import SCLDM

    train = case.train.copy()
    SCLDM.setup_anndata(train, layer="counts", condition_keys=methods.CONDITION_KEYS)
    model = SCLDM(train)
    model.train_autoencoder(50, accelerator="cpu", enable_progress_bar=False)
    path = methods.stored_path(tmp_path_factory.mktemp("cells"), case.cell_type, 0, "autoencoder", ".pt")
    state = {n: t for n, t in model.module.state_dict().items() if n.startswith(methods.AUTOENCODER)}
    import torch

    torch.save({"state": state}, path)
    return methods.Trained(case, 0, path.parent)


@pytest.mark.parametrize("method", ["latent_arithmetic", "scldm_arithmetic_own_residuals", "scldm_transport"])
def test_the_perturbed_genes_rise_most(trained, case, method):
    predicted = methods.SCLDM_METHODS[method](trained)

    change_of = change(predicted.X, case)
    assert predicted.obs["condition"].unique().tolist() == ["stimulated"]
    assert change_of[responds(case)].mean() > change_of[~responds(case)].mean() + 0.2


def test_a_stored_autoencoder_is_not_trained_again(trained, monkeypatch):
    from scgen_diffusion.model import SCLDM

    monkeypatch.setattr(SCLDM, "train_autoencoder", lambda *_, **__: pytest.fail("trained again"))
    again = methods.Trained(trained.case, 0, trained.folder).with_autoencoder

    assert again.trained_stages_ == ["autoencoder"]


def test_judged_predictions_have_all_figures_and_references(case):
    table = perturbation.judge(case, {"linear_additive": baselines.linear_additive(case, 0)}, seed=0)

    assert set(table["method"]) == {"floor", "no_change", "mean_shift", "linear_additive"}
    energy = table[table["metric"] == "energy_distance"].set_index("method")["value"]
    assert energy["floor"] < energy["mean_shift"] < energy["no_change"]
    assert table["value"].notna().all()


def stored(**values):
    rows = [
        {"metric": "w2", "better": "lower", "method": method, "value": value + number, "cell_type": name, "seed": 0}
        | {"versions": "v", "machine": "m"}
        for method, value in values.items()
        for number, name in enumerate(["B", "NK"])
    ]
    extra = [dict(row, metric=metric) for metric in report.DRAWN_METRICS[:1] + report.DRAWN_METRICS[2:] for row in rows]
    return pd.DataFrame(rows + extra)


def test_what_is_stored_is_not_predicted_again(tmp_path):
    stored(linear_additive=1.0).to_csv(tmp_path / "perturbation.csv", index=False)

    wanted = perturbation.pending(tmp_path / "perturbation.csv", ["B"], [0, 1], ["linear_additive", "scldm_transport"])

    assert list(wanted) == [("B", 0, ["scldm_transport"]), ("B", 1, ["linear_additive", "scldm_transport"])]


def test_the_summary_tells_tuned_from_other_types_and_marks_the_best():
    text = report.summarise(stored(floor=1.0, mean_shift=4.0, scldm_transport=2.0))

    assert "| `w2` | lower | 1.500 | 4.500 | **2.500** |" in text  # both types
    assert "| `w2` | lower | 1.000 | 4.000 | **2.000** |" in text  # the one that was looked at
    assert "| NK | 2.000 | 5.000 | **3.000** |" in text
    assert "| `w2` | 2 of 2 |" in text


def test_a_method_that_some_types_lack_gets_no_mean():
    table = stored(floor=1.0, mean_shift=4.0, scldm_transport=2.0)
    table = table[(table["method"] != "mean_shift") | (table["cell_type"] == "B")]

    assert "| `w2` | lower | 1.500 |  | **2.500** |" in report.summarise(table)


def test_the_headline_leaves_out_methods_that_some_types_lack():
    table = stored(floor=1.0, mean_shift=4.0, linear_additive=9.0, scldm_transport=2.0)
    table = table[(table["method"] != "linear_additive") | (table["cell_type"] == "B")]

    text = report.headline(table)

    assert "| Wasserstein-2 (lower) | 1.50 | **2.50** | 4.50 |" in text
    assert "| NK | 2.00 | **3.00** | 5.00 |" in text
    assert "linear additive" not in text


def test_pictures_are_drawn(tmp_path, case):
    import matplotlib as mpl

    mpl.use("Agg")
    report.draw_scores(stored(floor=1.0, mean_shift=4.0, scldm_transport=2.0), tmp_path / "scores.png")
    predicted = {"linear_additive": baselines.linear_additive(case, 0)}
    report.draw_changes({"A": (case, predicted)}, tmp_path / "changes.png")

    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("scores.png", "changes.png"))
