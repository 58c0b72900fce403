"""Embeddings that know the labels, know nothing, know them in a ring, or know the donor."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgen_diffusion.metrics import evaluate_embeddings

N_CELLS = 360


def make_adata(seed=0):
    rng = np.random.default_rng(seed)
    types, donors = np.resize([0, 1, 2], N_CELLS), np.repeat([0, 1, 2, 3], N_CELLS // 4)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(types, ["a", "b", "c"]), "donor": [f"d{d}" for d in donors]},
        index=[f"cell_{i}" for i in range(N_CELLS)],
    )
    noise = rng.normal(size=(N_CELLS, 3))
    angle, radius = rng.uniform(0, 2 * np.pi, N_CELLS), 1.0 + 4 * types
    obsm = {
        "X_clear": 8 * np.eye(3)[types] + noise,
        "X_noise": noise[:, ::-1].copy(),
        "X_rings": np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]) + 0.1 * noise[:, :2],
        # every donor has its types at other places
        "X_donor": 8 * np.eye(3)[(types + donors) % 3] + 100 * np.eye(4)[donors][:, :3] + noise,
    }
    return AnnData(np.zeros((N_CELLS, 1), np.float32), obs=obs, obsm=obsm)


def scores(adata, *use_reps, donor_key="donor", **options):
    table = evaluate_embeddings(adata, list(use_reps), "cell_type", donor_key=donor_key, **options)
    return table.set_index(["embedding", "task", "split", "score"])["value"]


def test_every_embedding_task_split_and_score_has_a_row():
    table = evaluate_embeddings(make_adata(), ["X_clear", "X_noise"], "cell_type", donor_key="donor")
    assert list(table.columns) == ["embedding", "task", "split", "score", "value", "n_cells"]
    assert len(table) == 2 * 5 * 2
    assert not table.duplicated(["embedding", "task", "split", "score"]).any()
    n_cells = table.set_index("task")["n_cells"]
    assert (n_cells.drop("label_transfer") == N_CELLS).all()
    assert (n_cells["label_transfer"] == 3 * N_CELLS).all()  # every cell, from each of three other donors


def test_without_donors_only_cells_are_held_out():
    table = evaluate_embeddings(make_adata(), ["X_clear"], "cell_type")
    assert set(table["split"]) == {"cells"}
    assert set(table["task"]) == {"linear_probe", "knn"}


def test_an_embedding_that_knows_the_labels_tells_them_in_every_way():
    assert (scores(make_adata(), "X_clear") > 0.99).all()


def test_an_embedding_that_knows_nothing_is_at_chance():
    # a third; four standard errors of a share of 360 cells
    np.testing.assert_allclose(scores(make_adata(), "X_noise").xs("accuracy", level="score"), 1 / 3, atol=0.1)


def test_rings_are_seen_by_neighbours_and_not_by_straight_lines():
    found = scores(make_adata(), "X_rings").xs(("cells", "accuracy"), level=("split", "score"))["X_rings"]
    assert found["knn"] > 0.99
    assert found["linear_probe"] < 0.6


def test_an_embedding_of_donors_fails_on_new_donors():
    found = scores(make_adata(), "X_donor").xs("accuracy", level="score")["X_donor"]
    assert found["knn", "cells"] > 0.95
    assert found["knn", "donors"] < 0.6
    assert found["label_transfer", "donors"] < 0.6


def test_the_scale_of_an_embedding_does_not_matter():
    adata = make_adata()
    adata.obsm["X_large"] = 1e4 * adata.obsm["X_rings"]
    found = scores(adata, "X_rings", "X_large")
    np.testing.assert_allclose(found["X_large"], found["X_rings"], atol=0.01)


def test_labels_of_fewer_than_five_cells_are_left_out():
    adata = make_adata()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[:4], "cell_type"] = "rare"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = evaluate_embeddings(adata, ["X_clear"], "cell_type")
    assert (table["n_cells"] == N_CELLS - 4).all()
    assert (table["value"] > 0.99).all()


def test_a_reference_donor_with_one_label_labels_all_cells_so():
    adata = make_adata()
    kept = (adata.obs["donor"] == "d0") | (adata.obs["cell_type"] == "a")
    found = scores(adata[kept].copy(), "X_clear").xs("accuracy", level="score")["X_clear", "label_transfer", "donors"]
    # from d0: all 90 cells of the others right; from each of the others: 60 of 60 cells a, 30 of 90 of d0
    assert found == pytest.approx((90 + 3 * (60 + 30)) / (90 + 3 * (60 + 90)), abs=0.01)


def test_missing_names_are_listed():
    adata = make_adata()
    with pytest.raises(KeyError, match="'X_claer', which `adata.obsm` lacks.*closest first: 'X_clear'"):
        evaluate_embeddings(adata, ["X_claer"], "cell_type")
    with pytest.raises(KeyError, match="no column 'type'"):
        evaluate_embeddings(adata, ["X_clear"], "type")
    with pytest.raises(TypeError, match=r"Did you mean \['X_clear'\]"):
        evaluate_embeddings(adata, "X_clear", "cell_type")


def test_one_donor_or_one_label_is_an_error():
    adata = make_adata()
    with pytest.raises(ValueError, match="all cells are of 'd1'"):
        evaluate_embeddings(adata[adata.obs["donor"] == "d1"].copy(), ["X_clear"], "cell_type", donor_key="donor")
    with pytest.raises(ValueError, match="two labels or more"):
        evaluate_embeddings(adata[adata.obs["cell_type"] == "a"].copy(), ["X_clear"], "cell_type")


def test_missing_values_are_an_error():
    adata = make_adata()
    adata.obsm["X_clear"][3, 1] = np.nan
    with pytest.raises(ValueError, match="X_clear"):
        evaluate_embeddings(adata, ["X_clear"], "cell_type")
