"""Files for cell-eval: what it asks for, and, where it is installed, what it says of them.

Name the Python of an environment with cell-eval in ``CELL_EVAL_PYTHON``: ``python -m venv ENV && ENV/bin/pip install
cell-eval``. The package wants other versions of anndata and numpy than this one, so it cannot share its environment.
"""

import os
import subprocess

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgen_diffusion.metrics import evaluate, write_cell_eval

N_GENES = 60
CELL_EVAL = os.environ.get("CELL_EVAL_PYTHON")


def cells(*perturbations, seed, n_cells=40, effect=1.0):
    rng = np.random.default_rng(seed)
    log_change = {name: np.random.default_rng(i).normal(0, 0.5, N_GENES) for i, name in enumerate("ABCD")}
    rates = [20 * np.exp(effect * sum(log_change.get(part, 0) for part in name.split("+"))) for name in perturbations]
    counts = np.vstack([rng.poisson(np.broadcast_to(rate, N_GENES), (n_cells, N_GENES)) for rate in rates])
    obs = {"gene": np.repeat(perturbations, n_cells), "line": np.resize(["x", "y"], len(counts))}
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return ad.AnnData(
        sp.csr_matrix(counts, dtype=np.float32), obs=pd.DataFrame(obs).set_axis(map(str, range(len(counts)))), var=var
    )


def sets():
    """Return real cells with their control, predicted ones with other genes' order, and control cells."""
    real, predicted = cells("A", "B+C", "D", "ctrl", seed=1), cells("D", "A", "C+B", "B", seed=2, effect=0.7)
    return real, predicted[:, ::-1].copy(), cells("ctrl", seed=3, n_cells=50)


def test_both_files_have_what_cell_eval_asks_for(tmp_path):
    real, predicted, control = sets()
    paths = write_cell_eval(tmp_path / "new", real, predicted, control=control, perturbation_key="gene", groupby="line")
    files = [ad.read_h5ad(path) for path in paths]
    assert [path.name for path in paths] == ["real.h5ad", "predicted.h5ad"]
    for adata in files:
        assert adata.var_names.equals(real.var_names)
        assert set(adata.obs["target"]) == {"A", "B+C", "D", "non-targeting"}
        assert adata.X.dtype == np.float32
        assert (adata.X.data % 1 > 1e-3).any()
        assert adata.X.min() >= 0
        assert adata.X.max() < 15  # above, cell-eval takes values for something else than logarithms
        assert adata.obs_names.is_unique
        np.testing.assert_allclose(np.expm1(adata.X.toarray()).sum(axis=1), 1e4, rtol=1e-4)
        assert (adata.obs.groupby("line", observed=True)["target"].nunique() == 4).all()
    of_control = [adata[adata.obs["target"] == "non-targeting"].X.toarray() for adata in files]
    np.testing.assert_array_equal(*of_control)
    assert len(of_control[0]) == 50
    ours = predicted[predicted.obs["gene"] == "C+B", real.var_names].X.toarray()
    normalised = np.log1p(ours / ours.sum(axis=1, keepdims=True) * 1e4)
    written = files[1][files[1].obs["target"] == "B+C"].X.toarray()
    np.testing.assert_allclose(np.sort(written, axis=0), np.sort(normalised, axis=0), rtol=1e-4)


def test_perturbations_may_be_numbers(tmp_path):
    real, predicted, control = cells("A", "D", "ctrl", seed=1), cells("A", "D", seed=2), cells("ctrl", seed=3)
    for adata in (real, predicted, control):
        adata.obs["dose"] = adata.obs["gene"].map({"ctrl": 0.0, "A": 1.0, "D": 10.0})
    predicted.obs["dose"] = pd.Categorical(predicted.obs["dose"].astype(int))

    paths = write_cell_eval(tmp_path, real, predicted, control=control, perturbation_key="dose")

    assert all(set(ad.read_h5ad(path).obs["target"]) == {"1", "10", "non-targeting"} for path in paths)
    table = evaluate(real, predicted, control=control, perturbation_key="dose", metrics="mean_change_error", n_floor=0)
    assert list(table["perturbation"]) == ["1", "10"]


def test_what_cell_eval_would_refuse_raises_before_a_file_is_written(tmp_path):
    real, predicted, control = sets()
    not_all = predicted[predicted.obs["gene"].isin(["A", "D"])].copy()
    of_x = control[control.obs["line"] == "x"].copy()
    with pytest.raises(ValueError, match="`synthetic` must have at least 2 cells for perturbation 'B\\+C', but has 0"):
        write_cell_eval(tmp_path, real, not_all, control=control, perturbation_key="gene")
    with pytest.raises(ValueError, match="`control` must have at least 2 cells for perturbation '.*' in group 'y'"):
        write_cell_eval(tmp_path, real, predicted, control=of_x, perturbation_key="gene", groupby="line")
    with pytest.raises(KeyError, match="`real_test.obs` has no column 'drug'"):
        write_cell_eval(tmp_path, real, predicted, control=control, perturbation_key="drug")
    for cells in (real, predicted, control):
        cells.obs["target"] = cells.obs["line"]
    with pytest.raises(ValueError, match="`groupby` is 'target'"):
        write_cell_eval(tmp_path, real, predicted, control=control, perturbation_key="gene", groupby="target")
    for cells in (real, predicted):
        cells.obs["gene"] = cells.obs["gene"].astype(str).replace("A", "non-targeting")
    with pytest.raises(ValueError, match="perturbed cells called 'non-targeting'"):
        write_cell_eval(tmp_path, real, predicted, control=control, perturbation_key="gene")
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
from cell_eval import MetricsEvaluator
real, predicted, out = sys.argv[1:]
evaluator = MetricsEvaluator(predicted, real, outdir=out, num_threads=1)
evaluator.compute(profile="full", skip_metrics=["clustering_agreement", "pearson_edistance"], break_on_error=True)
"""


@pytest.mark.skipif(not CELL_EVAL, reason="CELL_EVAL_PYTHON names no environment with cell-eval")
def test_the_released_package_reads_the_files_and_agrees_with_this_one(tmp_path):
    real, predicted, control = sets()
    paths = write_cell_eval(tmp_path, real, predicted, control=control, perturbation_key="gene")
    command = [CELL_EVAL, "-c", SCRIPT, *map(str, paths), str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = pd.read_csv(tmp_path / "out" / "results.csv", index_col="perturbation")
    table = evaluate(real, predicted, control=control, perturbation_key="gene")
    ours = table.pivot_table(index="perturbation", columns="metric", values="value").loc[theirs.index]
    np.testing.assert_allclose(ours["mean_change_correlation"], theirs["pearson_delta"], atol=1e-4)
    np.testing.assert_allclose(ours["mean_change_error"], theirs["mae_delta"], rtol=1e-3)
    n_better = (1 - theirs["discrimination_score_cosine"]) * len(theirs)
    np.testing.assert_allclose(ours["perturbation_discrimination"], 1 - n_better / (len(theirs) - 1), atol=1e-6)
