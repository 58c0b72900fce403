"""``predict_perturbation`` of SCLDM: the counterparts of given cells, and what they do and do not depend on."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from builders import same_cells

from scgen_diffusion.model import SCLDM

# Matrix products add in another order where rows lie elsewhere in a block, in single precision.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def test_a_cell_under_its_own_condition_is_itself_or_its_reconstruction(trained):
    with pytest.warns(UserWarning, match="nothing is predicted"):
        own, drawn = (trained.predict_perturbation(seed=3, keep_residuals=keep) for keep in (True, False))

    for found, expected in ((own, trained.adata), (drawn, trained.get_reconstruction(seed=3))):
        assert (found.X != expected.X).mean() < 0.01  # a last bit of a rate may turn a count


def test_with_a_gaussian_head_a_cell_comes_back_as_its_logarithms(make_trained):
    model = make_trained(likelihood="gaussian")
    profile = model.module.modelled_values(torch.tensor(np.asarray(model.adata.X, dtype=np.float32))).numpy()

    np.testing.assert_allclose(model.predict_perturbation(seed=0).X, profile, atol=1e-4)


def test_another_condition_changes_cells_and_guidance_changes_them_more(trained):
    def cells(condition, scale):
        request = {"condition": condition, "guidance_scale": scale, "keep_residuals": False, "seed": 0}
        return trained.predict_perturbation(trained.adata[:50].copy(), **request).X.toarray()

    same, nk = cells(None, 1.0), {"cell_type": "NK"}
    plain, guided = cells(nk, 1.0), cells(nk, 4.0)

    was_nk = (trained.adata.obs["cell_type"][:50] == "NK").to_numpy()
    np.testing.assert_allclose(plain[was_nk], same[was_nk], **CLOSE)
    assert np.abs(plain - same)[~was_nk].mean() > 1e-3
    assert np.abs(guided - same).mean() > np.abs(plain - same).mean()


def test_rows_names_and_obs_are_those_of_the_control_cells(trained):
    given, before = (trained.adata[[7, 3, 90]].copy() for _ in range(2))

    cells = trained.predict_perturbation(given, condition={"cell_type": "NK"}, seed=0)

    names = cells.obs_names.str.replace(r"^SCLDM-[0-9a-f]{10}-", "", regex=True)
    assert names.tolist() == ["0-cell_7", "1-cell_3", "2-cell_90"]
    assert list(cells.obs) == ["cell_type", "dose", "treated", "cell_type_of_control", "synthetic"]
    assert set(cells.obs["cell_type"]) == {"NK"}
    for kept, key in (("cell_type_of_control", "cell_type"), ("dose", "dose"), ("treated", "treated")):
        assert cells.obs[kept].tolist() == given.obs[key].tolist()
    assert list(given.obs) == ["cell_type", "dose", "treated"]  # given cells stay as they were
    assert (list(given.uns), list(given.obsm)) == (list(before.uns), list(before.obsm))
    for other in ({"seed": 1}, {"condition": {"dose": 1}}, {"keep_residuals": False}):
        others = trained.predict_perturbation(given, **{"condition": {"cell_type": "NK"}, "seed": 0, **other})
        assert not set(cells.obs_names) & set(others.obs_names), other
    record = cells.uns["scgen_diffusion"]
    assert (record["task"], record["condition"], record["seed"]) == ("predict_perturbation", {"cell_type": "NK"}, 0)
    pd.testing.assert_frame_equal(cells.var, trained.adata.var, check_dtype=False)


def test_a_cell_keeps_its_total_unless_another_is_requested(trained):
    request = {"condition": {"dose": 1}, "keep_residuals": False, "seed": 0}

    kept, set_to = (trained.predict_perturbation(**request, library_size=size).X.sum(1) for size in (None, 1000))

    assert kept.mean() == pytest.approx(trained.adata.X.sum(1).mean(), rel=0.1)
    assert set_to.mean() == pytest.approx(1000, rel=0.1)  # outliers of the likelihood have a share


def test_a_combination_never_seen_is_predicted_with_a_warning(trained):
    is_t_cell = (trained.adata.obs["cell_type"] == "T cell").to_numpy()

    with pytest.warns(UserWarning, match="dose=100") as caught:
        cells = trained.predict_perturbation(trained.adata[is_t_cell].copy(), condition={"dose": 100}, seed=0)

    assert set(cells.obs["dose"]) == {100}
    assert any("inversion" in str(one.message) for one in caught)  # there is no perturbation flow


def test_a_saved_model_predicts_the_same_for_cells_passed_again_also_in_a_file(trained_any, tmp_path):
    cells, request = trained_any.adata.copy(), {"condition": {"dose": 1}, "n_steps": 3}
    cells.write_h5ad(tmp_path / "cells.h5ad")
    trained_any.save(tmp_path / "model")
    loaded = type(trained_any).load(tmp_path / "model", adata=False)

    expected = trained_any.predict_perturbation(**request, seed=1)

    for given in (cells, anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")):
        assert same_cells(loaded.predict_perturbation(given, **request, seed=1), expected)
    assert (trained_any.predict_perturbation(**request, seed=2).X != expected.X).nnz > 0


def test_requests_of_one_seed_share_their_noise(make_trained):
    """Paired sampling: the cells of two requests differ by their conditions alone, unseen combinations among them."""
    gaussian = make_trained(likelihood="gaussian")  # cells are real numbers, so that the smallest difference shows
    n_cells = 150  # more than a block
    nk, unpaired = (gaussian.generate(n_cells, {"cell_type": "NK", "dose": 1}, seed=seed) for seed in (5, 6))
    unseen = gaussian.generate(n_cells, {"cell_type": "T cell", "dose": 100}, seed=5)
    mixed = gaussian.generate(n_cells, seed=5)

    def paired_correlation(other):
        return np.corrcoef((nk.X - nk.X.mean(0)).ravel(), (other.X - other.X.mean(0)).ravel())[0, 1]

    assert paired_correlation(unseen) > 0.9
    assert abs(paired_correlation(unpaired)) < 0.2
    as_nk = ((mixed.obs["cell_type"] == "NK") & (mixed.obs["dose"] == 1)).to_numpy()
    assert as_nk.any()
    np.testing.assert_allclose(mixed.X[as_nk], nk.X[as_nk], **CLOSE)  # drawn or requested
    one, *others = (
        gaussian.predict_perturbation(condition={"dose": 1}, seed=5, batch_size=size).X for size in (64, 1, 1000)
    )
    for other in others:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"condition": {"cell_typ": "NK"}}, "cell_typ"),
        ({"condition": {"dose": 3}}, "dose"),
        ({"condition": {"dose": [1, 10]}}, "96"),
        ({"condition": pd.DataFrame({"dose": [1, 10]})}, "96"),
        ({"sampler": lambda field, x, **_: x}, "sampler"),  # cannot be run backwards
        ({"sampler": "eulr"}, "eulr"),
        ({"library_size": [1, 2]}, "library_size"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_requests_are_refused(trained, request_, name):
    with pytest.raises(ValueError, match=name):
        trained.predict_perturbation(**request_)


def test_cells_that_do_not_fit_the_model_are_refused(trained, make_cells):
    adata, labels = trained.adata, trained.adata.obs["cell_type"]
    unlabelled, foreign, bare = (adata.copy() for _ in range(3))
    unlabelled.obs["cell_type"] = labels.where(np.arange(96) > 3)
    foreign.obs["cell_type"] = "Monocyte"
    del bare.obs["dose"]

    for cells, error, name in (
        (unlabelled, ValueError, "cell_type"),
        (foreign, ValueError, "Monocyte"),
        (bare, KeyError, "dose"),
        (adata[:, ::-1].copy(), ValueError, "var_names"),
        (make_cells(values="log1p"), ValueError, "whole numbers"),
    ):
        with pytest.raises(error, match=name):
            trained.predict_perturbation(cells, {"dose": 1})


def test_untrained_models_and_models_without_cells_say_so(make_model, any_class, saved_model):
    with pytest.raises(RuntimeError, match="train"):
        make_model(cls=any_class).predict_perturbation(condition={"dose": 1})
    with pytest.raises(ValueError, match="adata_control"):
        SCLDM.load(saved_model, adata=False).predict_perturbation(condition={"dose": 1})
