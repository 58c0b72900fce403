"""What classifiers learn from synthetic cells, and what embeddings are worth."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgen_diffusion.metrics import augmentation_gain, evaluate_embeddings, label_fidelity, transfer_f1

LABELS = np.array(["a", "b", "c"])
CENTRES = np.array([[8.0, 0], [0, 8.0], [0, 0]])
CLASSIFIERS = pytest.mark.parametrize("classifier", ["logistic", "neighbours"])


def clear_cells(n_per_label=60, seed=0, n_features=2):
    """Build cells whose labels lie eight standard deviations apart."""
    codes = np.repeat(np.arange(3), n_per_label)
    noise = np.random.default_rng(seed).normal(size=(len(codes), n_features))
    noise[:, :2] += CENTRES[codes]
    return noise, LABELS[codes]


@CLASSIFIERS
def test_clear_labels_are_transferred(classifier):
    assert transfer_f1(*clear_cells(), *clear_cells(seed=1), classifier=classifier) > 0.99


@CLASSIFIERS
def test_labels_that_are_all_swapped_score_nothing(classifier):
    values, labels = clear_cells()
    assert transfer_f1(values, np.roll(labels, 60), *clear_cells(seed=1), classifier=classifier) < 0.01


def test_counts_beside_logarithms_are_refused():
    values, labels = clear_cells()
    counts = np.floor(np.abs(values))
    with pytest.raises(
        ValueError, match="synthetic_values hold whole numbers, such as counts, and train_values and test"
    ):
        augmentation_gain(values, labels, counts, labels, values, labels)


def test_a_missing_label_scores_nothing_and_drags_the_one_it_is_taken_for():
    values, labels = clear_cells()
    kept = labels != "c"
    # c is taken for a or b: with shares s and 1 - s, their F1 are 2 / (2 + s) and 2 / (3 - s), between 2 / 3 and 1
    found = transfer_f1(values[kept], labels[kept], *clear_cells(seed=1))
    assert 2 * 2 / 3 / 3 < found < 2 / 3


def test_synthetic_cells_of_one_label_teach_nothing():
    values, _ = clear_cells()
    assert np.isnan(transfer_f1(values, ["a"] * len(values), *clear_cells()))


@CLASSIFIERS
def test_labels_of_few_cells_each_are_not_taken_for_numbers(classifier):
    labels = np.arange(60) * 2 // 3  # 40 labels
    values = labels[:, None] + np.random.default_rng(0).normal(size=(60, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in (transfer_f1, label_fidelity):
            assert 0 <= measure(values, labels, values, labels, classifier=classifier) <= 1


def test_an_unknown_classifier_is_an_error():
    with pytest.raises(ValueError, match="'logistic' or 'neighbours', but is 'forest'"):
        transfer_f1(*clear_cells(), *clear_cells(), classifier="forest")


def test_labels_must_be_one_per_cell():
    values, labels = clear_cells()
    with pytest.raises(ValueError, match="`train_values` has [2-9] features and `test_values` 1"):
        transfer_f1(values, labels, values[:, :1], labels)
    with pytest.raises(ValueError, match="`train_values` must not hold infinite or missing values"):
        transfer_f1(values * np.nan, labels, values, labels)
    with pytest.raises(ValueError, match="`test_labels` must have one label for each of 180 cells"):
        transfer_f1(values, labels, values, labels[1:])
    with pytest.raises(ValueError, match="`train_labels` has no label for 180 of 180"):
        transfer_f1(values, [None] * 180, values, labels)
    with pytest.raises(ValueError, match="`train_labels` has no label for 1 of 180"):
        transfer_f1(values, [*labels[:-1], float("nan")], values, labels)


def test_fidelity_is_the_share_of_requests_that_were_followed_label_by_label():
    real = clear_cells()
    values, labels = clear_cells(seed=1)
    kept = np.r_[0:60, 60:72, 120:180]  # the mean is over labels, so that their sizes do not matter
    asked = labels[kept].copy()
    asked[:15] = "b"  # cells of a requested as b: 15 of 27 requests for b fail
    assert label_fidelity(*real, values[kept], asked) == pytest.approx((1 + 12 / 27 + 1) / 3, abs=0.01)


def test_labels_of_whole_numbers_may_be_floats():
    values, labels = clear_cells()
    codes = pd.factorize(labels)[0]
    others = codes.astype(float)  # as a missing value makes them
    assert label_fidelity(values, codes, values, others) > 0.99
    assert transfer_f1(values, others, values, codes) > 0.99


def test_fidelity_does_not_see_that_all_cells_are_the_same():
    assert label_fidelity(*clear_cells(), CENTRES.repeat(10, axis=0), LABELS.repeat(10)) == 1


def test_fidelity_leaves_out_labels_that_real_cells_do_not_have():
    real, (values, labels) = clear_cells(), clear_cells(seed=1)
    asked = labels.astype("<U9")
    asked[labels == "c"] = "unseen"
    assert label_fidelity(*real, values, asked) == label_fidelity(*real, values[:120], labels[:120]) > 0.99
    assert np.isnan(label_fidelity(*real, values, np.full(180, "unseen")))


def starved_cells():
    """Build training cells with no cell of c, and synthetic ones of c."""
    values, labels = clear_cells()
    extra, extra_labels = clear_cells(seed=2)
    return values[labels != "c"], labels[labels != "c"], extra[extra_labels == "c"], extra_labels[extra_labels == "c"]


def test_synthetic_cells_of_a_missing_label_gain_all_of_its_f1():
    found = augmentation_gain(*starved_cells(), *clear_cells(seed=1))
    assert found.loc["c", "f1_real"] == 0
    assert found.loc["c", "gain"] > 0.98
    assert 0.9 < found.loc["c", "low"] <= found.loc["c", "gain"] <= found.loc["c", "high"]
    assert list(found.loc["c", ["n_train", "n_synthetic", "n_test"]]) == [0, 60, 60]


def test_the_last_row_is_the_mean_over_labels():
    found = augmentation_gain(*starved_cells(), *clear_cells(seed=1))
    assert list(found.index) == ["a", "b", "c", "macro"]
    for score in ("f1_real", "f1_augmented", "gain"):
        assert found.loc["macro", score] == pytest.approx(found[score].iloc[:3].mean())
    assert found.loc["macro", "n_test"] == 180


def test_scores_are_those_of_the_classifiers():
    train, extra, test = clear_cells(20, n_features=5), clear_cells(5, seed=1, n_features=5), clear_cells(50, seed=2)
    test = np.random.default_rng(0).normal(3, 3, (150, 5)), test[1]
    found = augmentation_gain(*train, *extra, *test)
    assert found.loc["macro", "f1_real"] == pytest.approx(transfer_f1(*train, *test))
    both = np.concatenate([train[0], extra[0]]), np.concatenate([train[1], extra[1]])
    assert found.loc["macro", "f1_augmented"] == pytest.approx(transfer_f1(*both, *test))


def test_mislabelled_cells_do_harm():
    values, labels = clear_cells(20)
    wrong = clear_cells(60, seed=1)
    found = augmentation_gain(values, labels, wrong[0], np.roll(wrong[1], 60), *clear_cells(seed=2))
    assert found.loc["macro", "gain"] < -0.5
    assert found.loc["macro", "high"] < 0


def test_copies_of_the_training_cells_gain_next_to_nothing():
    train = clear_cells(40)
    found = augmentation_gain(*train, *train, *clear_cells(seed=1))
    assert (found["gain"].abs() < 0.02).all()  # only the penalty weighs less


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


def test_an_embedding_that_encodes_the_labels_scores_in_every_task():
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
    with pytest.raises(ValueError, match="all cells are from 'd1'"):
        evaluate_embeddings(adata[adata.obs["donor"] == "d1"].copy(), ["X_clear"], "cell_type", donor_key="donor")
    with pytest.raises(ValueError, match="two or more labels"):
        evaluate_embeddings(adata[adata.obs["cell_type"] == "a"].copy(), ["X_clear"], "cell_type")


def test_donors_of_rare_labels_alone_do_not_count():
    adata = make_adata()
    adata = adata[adata.obs["donor"] == "d1"].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[:4], ["cell_type", "donor"]] = ["rare", "d2"]
    with pytest.raises(ValueError, match="all cells of labels with at least 5 cells are from 'd1'"):
        evaluate_embeddings(adata, ["X_clear"], "cell_type", donor_key="donor")


def test_missing_values_are_an_error():
    adata = make_adata()
    adata.obsm["X_clear"][3, 1] = np.nan
    with pytest.raises(ValueError, match="X_clear"):
        evaluate_embeddings(adata, ["X_clear"], "cell_type")
