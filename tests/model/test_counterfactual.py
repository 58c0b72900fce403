"""``predict_perturbation`` of SCLDM: the counterparts of given cells, and what they do and do not depend on."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from builders import same_cells

from scgen_diffusion.diffusion import Guidance
from scgen_diffusion.model import SCLDM

# Matrix products add in another order where rows lie elsewhere in a block, in single precision.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


# --- the identity -----------------------------------------------------------------------------------------------------


def test_drawn_counts_under_the_own_condition_are_those_of_the_reconstruction(trained):
    drawn, expected = trained.predict_perturbation(seed=3, residuals="new"), trained.get_reconstruction(seed=3)

    assert (drawn.X != expected.X).mean() < 0.01  # a last bit of a rate may turn a count


def test_a_cell_that_keeps_its_residuals_is_itself_under_its_own_condition(trained):
    with pytest.warns(UserWarning, match="nothing is predicted"):
        same = trained.predict_perturbation(seed=3)

    assert (same.X != trained.adata.X).mean() < 0.01


def test_another_condition_changes_cells_and_guidance_changes_them_more(trained):
    same, other, guided = (
        trained.predict_perturbation(
            trained.adata[:50].copy(), condition=condition, residuals="new", seed=0, guidance_scale=scale
        ).X.toarray()
        for condition, scale in ((None, 1.0), ({"cell_type": "NK"}, 1.0), ({"cell_type": "NK"}, 4.0))
    )

    was_nk = (trained.adata.obs["cell_type"][:50] == "NK").to_numpy()
    np.testing.assert_allclose(other[was_nk], same[was_nk], **CLOSE)
    assert np.abs(other - same)[~was_nk].mean() > 1e-3
    assert np.abs(guided - same).mean() > np.abs(other - same).mean()


def test_guidance_can_be_limited_and_rescaled(trained):
    request = {"condition": {"cell_type": "NK"}, "residuals": "new", "seed": 0, "guidance_scale": 4.0}
    plain, whole, limited, rescaled = (
        trained.predict_perturbation(**(request | options)).X.toarray()
        for options in (
            {"guidance_scale": scale}
            for scale in (1.0, 4.0, Guidance(4.0, interval=(0.4, 0.6)), Guidance(4.0, rescale=1.0))
        )
    )

    assert 0 < np.abs(limited - plain).mean() < np.abs(whole - plain).mean()
    assert np.abs(rescaled - whole).max() > 0


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_rows_names_and_obs_are_those_of_the_control_cells(trained):
    rows = [7, 3, 90]
    given = trained.adata.obs.iloc[rows]

    cells = trained.predict_perturbation(trained.adata[rows].copy(), condition={"cell_type": "NK"}, seed=0)

    assert cells.obs_names.str.replace(r"^SCLDM-[0-9a-f]{10}-", "", regex=True).tolist() == [
        "0-cell_7",
        "1-cell_3",
        "2-cell_90",
    ]
    assert list(cells.obs) == ["cell_type", "dose", "treated", "cell_type_of_control", "synthetic"]
    assert set(cells.obs["cell_type"]) == {"NK"}
    assert cells.obs["cell_type_of_control"].tolist() == given["cell_type"].tolist()
    assert cells.obs["dose"].tolist() == given["dose"].tolist()
    assert cells.obs["treated"].tolist() == given["treated"].tolist()
    assert trained.adata.obs.columns.tolist() == ["cell_type", "dose", "treated"]  # given cells stay as they were
    pd.testing.assert_frame_equal(cells.var, trained.adata.var, check_dtype=False)


def test_predictions_are_named_by_the_request_and_the_cell(trained):
    request = {"condition": {"cell_type": "NK"}, "seed": 0}
    names = trained.predict_perturbation(trained.adata[[7, 3]].copy(), **request).obs_names

    assert trained.predict_perturbation(trained.adata[[7]].copy(), **request).obs_names.tolist() == [names[0]]
    for other in ({"seed": 1}, {"condition": {"dose": 1}}, {"residuals": "new"}):
        others = trained.predict_perturbation(trained.adata[[7, 3]].copy(), **request | other).obs_names
        assert not set(names) & set(others), other


def test_a_cell_keeps_its_total_unless_another_is_requested(trained):
    totals = trained.adata.X.sum(1)

    request = {"condition": {"dose": 1}, "residuals": "new", "seed": 0}

    kept, set_to = (trained.predict_perturbation(**request, library_size=size).X.sum(1) for size in (None, 1000))

    assert kept.mean() == pytest.approx(totals.mean(), rel=0.1)
    assert set_to.mean() == pytest.approx(1000, rel=0.1)  # outliers of the likelihood have a share


def test_provenance_is_recorded_and_can_be_written(trained, tmp_path):
    cells = trained.predict_perturbation(condition={"dose": 1}, seed=4, n_steps=3)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    told = anndata.read_h5ad(tmp_path / "cells.h5ad").uns["scgen_diffusion"]

    assert told["task"] == "predict_perturbation"
    assert told["condition"] == {"dose": 1}
    assert (told["seed"], told["n_steps"]) == (4, 3)
    assert told["library_size"] == "that of each control cell"


def test_a_combination_never_seen_is_predicted_with_a_warning(trained):
    types = trained.adata.obs["cell_type"] == "T cell"

    with pytest.warns(UserWarning, match=r"dose=100 does not occur in the training cells\.$"):
        cells = trained.predict_perturbation(trained.adata[types.to_numpy()].copy(), condition={"dose": 100}, seed=0)

    assert set(cells.obs["dose"]) == {100}


def test_numbers_and_sets_can_be_requested_too(make_trained, make_cells):
    adata = make_cells()
    rng = np.random.default_rng(0)
    adata.obs["drugs"] = rng.choice(["A", "B", "A+B", "none"], 96)
    adata.obs["age"] = rng.integers(20, 60, 96)
    setup = {"continuous_condition_keys": ["age"], "set_condition_keys": ["drugs"], "control_values": {"drugs": "none"}}
    model = make_trained(adata, condition_keys=["cell_type"], setup=setup)
    condition = {"drugs": {"B", "A"}, "age": np.linspace(30, 40, 96)}

    same = model.predict_perturbation(seed=0)
    with pytest.warns(UserWarning, match="do not occur"):
        other = model.predict_perturbation(condition=condition, seed=0)

    assert (same.X != model.adata.X).mean() < 0.01
    assert set(other.obs["drugs"]) == {"A+B"}
    assert other.obs["drugs_of_control"].tolist() == adata.obs["drugs"].tolist()
    np.testing.assert_allclose(other.obs["age"], np.linspace(30, 40, 96))
    assert len(other.uns["scgen_diffusion"]["outside_training"]) > 0


# --- what it does and does not depend on ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussian(make_trained):
    """Train a model whose cells are real numbers, so that the smallest difference shows."""
    return make_trained(likelihood="gaussian")


def test_cells_do_not_depend_on_batch_size(gaussian):
    whole = gaussian.predict_perturbation(condition={"dose": 1}, seed=5)

    for batch_size in (1, 1000):
        other = gaussian.predict_perturbation(condition={"dose": 1}, seed=5, batch_size=batch_size)
        np.testing.assert_array_equal(whole.X, other.X)


def test_the_same_seed_draws_the_same_cells_and_another_one_others(trained_any):
    one, same, other = (trained_any.predict_perturbation(condition={"dose": 1}, seed=s, n_steps=3) for s in (1, 1, 2))

    assert same_cells(one, same)
    assert (one.X != other.X).nnz > 0


def test_a_saved_model_predicts_the_same_for_cells_passed_again_also_in_a_file(trained_any, tmp_path):
    cells, request = trained_any.adata.copy(), {"condition": {"dose": 1}, "seed": 1, "n_steps": 3}
    cells.write_h5ad(tmp_path / "cells.h5ad")
    trained_any.save(tmp_path / "model")
    loaded = type(trained_any).load(tmp_path / "model", adata=False)

    expected = trained_any.predict_perturbation(**request)

    for given in (cells, anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")):
        assert same_cells(loaded.predict_perturbation(given, **request), expected)


def test_requests_of_one_seed_share_their_noise(gaussian):
    """Paired sampling: the cells of two requests differ by their conditions alone, unseen combinations among them."""
    n_cells = 150  # more than a block
    nk = gaussian.generate(n_cells, {"cell_type": "NK", "dose": 1}, seed=5)
    with pytest.warns(UserWarning, match="does not occur"):
        unseen = gaussian.generate(n_cells, {"cell_type": "T cell", "dose": 100}, seed=5)
    unpaired = gaussian.generate(n_cells, {"cell_type": "NK", "dose": 1}, seed=6)
    mixed = gaussian.generate(n_cells, seed=5)

    def paired_correlation(other):
        return np.corrcoef((nk.X - nk.X.mean(0)).ravel(), (other.X - other.X.mean(0)).ravel())[0, 1]

    assert paired_correlation(unseen) > 0.9
    assert abs(paired_correlation(unpaired)) < 0.2
    as_nk = ((mixed.obs["cell_type"] == "NK") & (mixed.obs["dose"] == 1)).to_numpy()
    assert as_nk.any()
    np.testing.assert_allclose(mixed.X[as_nk], nk.X[as_nk], **CLOSE)  # drawn or requested


def test_given_totals_mean_what_they_mean_in_generate(trained):
    least = trained.adata.X.sum(1).min()
    request = {"condition": {"dose": 10}, "residuals": "new", "seed": 0}

    usual, shallow = (
        trained.predict_perturbation(**request, library_size=size).X.toarray() for size in (least, least / 4)
    )
    with pytest.warns(UserWarning, match="`library_size` asks for up to 5,000 counts"):
        deep = trained.predict_perturbation(**request, library_size=5000)

    are_thinned = (shallow <= usual).all(1)
    assert are_thinned.mean() > 0.85  # the others would be empty, and are drawn again
    assert shallow[are_thinned].sum() / usual.sum() == pytest.approx(0.25, rel=0.1)
    assert "library_size 5000" in deep.uns["scgen_diffusion"]["outside_training"]


# --- what is refused --------------------------------------------------------------------------------------------------


BAD_REQUESTS = {
    "unknown key": ({"condition": {"cell_typ": "NK"}}, "unknown key 'cell_typ'.*'cell_type'"),
    "unknown value": ({"condition": {"dose": 3}}, "unknown value 3 for 'dose'"),
    "too few values": ({"condition": {"dose": [1, 10]}}, "has 2 values for 96 cells"),
    "short table": ({"condition": pd.DataFrame({"dose": [1, 10]})}, "table has 2 rows for 96 cells"),
    "sampler of one's own": ({"sampler": lambda field, x, **_: x}, "cannot be run backwards"),
    "unknown sampler": ({"sampler": "eulr"}, "not known.*'euler'"),
    "totals": ({"library_size": [1, 2]}, "one per cell .96."),
    "batch size": ({"batch_size": 0}, "`batch_size` must be"),
}


@pytest.mark.parametrize(("request_", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_requests_are_refused(trained, request_, message):
    with pytest.raises(ValueError, match=message):
        trained.predict_perturbation(**request_)


def change_obs(adata, **columns):
    adata = adata.copy()
    adata.obs = adata.obs.assign(**columns)
    return adata


def test_cells_without_a_condition_of_their_own_are_refused(trained):
    adata = trained.adata
    unlabelled = change_obs(adata, cell_type=adata.obs["cell_type"].where(np.arange(96) > 3))
    foreign = change_obs(adata, cell_type="Monocyte")
    bare = adata.copy()
    del bare.obs["dose"]

    with pytest.raises(ValueError, match=r"obs\['cell_type'\] has no label for 4 of 96 cells"):
        trained.predict_perturbation(unlabelled, {"dose": 1})
    with pytest.raises(ValueError, match="load_query_data"):
        trained.predict_perturbation(foreign, {"dose": 1})
    with pytest.raises(KeyError, match="'dose'"):
        trained.predict_perturbation(bare, {"dose": 1})


def test_other_genes_and_other_values_are_refused(trained, make_cells):
    with pytest.raises(ValueError, match="another order.*get_var_names"):
        trained.predict_perturbation(trained.adata[:, ::-1].copy(), {"dose": 1})
    with pytest.raises(ValueError, match=r"not whole numbers.*set up with counts there; .* counts in adata\.X"):
        trained.predict_perturbation(make_cells(values="log1p"), {"dose": 1})


def test_untrained_models_and_models_without_cells_say_so(make_model, any_class, saved_model):
    with pytest.raises(RuntimeError, match="call train"):
        make_model(cls=any_class).predict_perturbation(condition={"dose": 1})
    with pytest.raises(ValueError, match="give `adata_control`"):
        SCLDM.load(saved_model, adata=False).predict_perturbation(condition={"dose": 1})


def test_without_a_transport_a_combination_that_training_never_saw_says_how_to_get_one(trained):
    with pytest.warns(UserWarning, match="Predicted by inversion"):
        trained.predict_perturbation(condition={"cell_type": "rare", "dose": 10}, seed=0)
